//! What a source that has gone leaves behind.

use super::*;

/// A source that was cut behind its hellos may close its main channel at once or not, and the next
/// one may be here already.
#[test]
fn an_empty_channel_stands_in_nobodys_way() {
    for (main_closes, next) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_closed_empty(1, now);
        if main_closes {
            matching.main_closed(10, now);
        }
        if next {
            matching.main_came(20, UNIX);
            matching.main_ready(20, MULTIFD, now);
        }
        assert_eq!(matching.decide(now), [Decision::Drop { channel: 1 }]);
        assert!(!matching.is_undecided(10, now));
    }
}

/// A source is cut, and the next one has begun before that is seen.
#[test]
fn what_a_source_has_left_behind_stops_no_other() {
    for number_is_taken in [false, true] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        if number_is_taken {
            matching.channel_came(1, [0; 16], 0, UNIX, now);
            assert_eq!(matching.decide(now), [give(1, 10)]);
        }
        matching.channel_came(2, [0; 16], 0, UNIX, now);
        matching.channel_closed(2, now);
        matching.main_closed(10, now);
        matching.main_came(20, UNIX);
        matching.main_ready(20, MULTIFD, now);
        assert_eq!(
            matching.decide(now),
            [],
            "the new one may be about to close"
        );
        let expected = match number_is_taken {
            true => Decision::Drop { channel: 2 },
            false => give(2, 10),
        };
        assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [expected]);
        matching.channel_came(3, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(3, 20)]);
    }
}

/// A host without descriptors accepts some of a source's channels only when that has gone.
#[test]
fn a_channel_that_is_accepted_too_late_is_not_the_next_attempts() {
    for (is_over, is_late, is_renewed) in [
        (true, true, true),
        (true, true, false),
        (true, false, false),
        (false, true, false),
    ] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        if is_over {
            matching.main_came(1, UNIX);
            matching.main_ready(1, MULTIFD, now);
            matching.channel_came(2, [0; 16], 0, UNIX, now);
            assert_eq!(matching.decide(now), [give(2, 1)]);
            matching.end(1);
        }
        let channel = if is_late { 3 } else { 5 };
        matching.channel_came(channel, [0; 16], 18, UNIX, now);
        matching.channel_closed(channel, now);
        matching.main_came(4, UNIX);
        matching.main_ready(4, MULTIFD, now);
        let then = match is_renewed {
            // The next attempt is over as well.
            true => {
                matching.main_closed(4, now);
                now
            }
            false => now + CONFLICT_TIMEOUT,
        };
        let expected = match is_over && is_late {
            true => Decision::Drop { channel },
            // A proxy may have brought a short migration's channel first.
            false => give(channel, 4),
        };
        assert_eq!(matching.decide(then), [expected]);
    }
}

/// What has been over for long leaves nothing.
#[test]
fn a_migration_that_is_over_is_forgotten() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(1, UNIX);
    matching.main_ready(1, MULTIFD, now);
    matching.channel_came(2, [0; 16], 1, UNIX, now);
    assert_eq!(matching.decide(now), [give(2, 1)]);
    matching.end(1);
    assert_eq!(matching.decide(now), []);
    let later = now + ORPHAN_TIMEOUT;
    matching.channel_came(3, [0; 16], 0, UNIX, later);
    matching.channel_closed(3, later);
    matching.main_came(4, UNIX);
    matching.main_ready(4, MULTIFD, later);
    matching.main_closed(4, later);
    assert_eq!(matching.decide(later), [give(3, 4)]);
}

/// The next source's channels may speak before its main channel does.
#[test]
fn an_open_channel_waits_for_a_main_channel_that_has_still_to_speak() {
    for speaks in [false, true] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.main_closed(10, now);
        matching.set_unspoken([UNIX].into_iter());
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), []);
        if speaks {
            matching.set_unspoken([].into_iter());
            matching.main_came(20, UNIX);
            assert_eq!(matching.decide(now), []);
            matching.main_ready(20, MULTIFD, now);
            assert_eq!(matching.decide(now), [give(1, 20)]);
        } else {
            assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 10)]);
        }
    }
}

/// Without a return path a source may close everything at once.
#[test]
fn a_closed_channel_of_two_closed_migrations_is_no_guess() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    for main in [10, 20] {
        matching.main_came(main, UNIX);
        matching.main_ready(main, MULTIFD, now);
        matching.main_closed(main, now);
    }
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.channel_closed(1, now);
    assert_eq!(matching.decide(now), []);
    assert_eq!(
        matching.decide(now + CONFLICT_TIMEOUT),
        [
            alike(10, [0; 16]),
            alike(20, [0; 16]),
            Decision::Drop { channel: 1 }
        ]
    );
}

/// A source whose first attempt has brought no channel leaves none.
#[test]
fn a_migration_without_channels_takes_none_of_the_next_one_along() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(1, UNIX);
    matching.main_ready(1, MULTIFD, now);
    matching.end(1);
    // A proxy dials in any order.
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    matching.channel_closed(2, now);
    matching.main_came(3, UNIX);
    matching.main_ready(3, MULTIFD, now);
    matching.main_closed(3, now);
    assert_eq!(matching.decide(now), [give(2, 3)]);
}
