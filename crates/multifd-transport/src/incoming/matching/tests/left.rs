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
