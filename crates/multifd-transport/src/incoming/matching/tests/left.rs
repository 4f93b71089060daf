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
        if is_over && is_late {
            // It may have overtaken its main channel. No channel with a lower number follows.
            assert_eq!(matching.decide(then), [doubt(4, true)]);
            let drop = Decision::Drop { channel };
            let known = matching.decide(now + FOREIGN_TIMEOUT);
            assert_eq!(known, [drop, doubt(4, false)]);
        } else {
            // A proxy may have brought a short migration's channel first.
            assert_eq!(matching.decide(then), [give(channel, 4)]);
        }
    }
}

/// Without a return path a source may be done when its channels are accepted, and a proxy may have
/// brought them before its main channel. Its last attempt had fewer.
#[test]
fn early_channels_of_a_wider_migration_are_kept_behind_a_narrower_one() {
    for (went_through, is_first) in [(true, true), (false, true), (false, false)] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(1, UNIX);
        matching.main_ready(1, MULTIFD, now);
        matching.channel_came(2, [0; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(2, 1)]);
        let come = |matching: &mut Matching| {
            for id in 0..2 {
                let channel = 3 + Id::from(id);
                matching.channel_came(channel, [0; 16], id, UNIX, now);
                matching.channel_closed(channel, now);
            }
        };
        if is_first {
            // The last one is still being ended.
            matching.main_closed(1, now);
            matching.set_unspoken([UNIX].into_iter());
        }
        if went_through {
            matching.settle(1);
        }
        if !is_first {
            matching.end(1);
        }
        come(&mut matching);
        matching.set_unspoken([].into_iter());
        matching.end(1);
        matching.main_came(5, UNIX);
        matching.main_ready(5, MULTIFD, now);
        matching.main_closed(5, now);
        let all = [give(3, 5), give(4, 5)];
        if went_through {
            assert_eq!(matching.decide(now), all, "it had all that were its own");
            continue;
        }
        // The number 0 was that one's, and another has it.
        assert_eq!(matching.decide(now), [give(3, 5), doubt(5, true)]);
        let known = matching.decide(now + FOREIGN_TIMEOUT);
        assert_eq!(known, [give(4, 5), doubt(5, false)]);
    }
}

/// The next attempt's own channel comes, so the one before it is left over.
#[test]
fn a_channel_that_may_be_left_is_dropped_as_soon_as_that_is_known() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(1, UNIX);
    matching.main_ready(1, MULTIFD, now);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(2, 1)]);
    matching.end(1);
    matching.channel_came(3, [0; 16], 1, UNIX, now);
    matching.channel_closed(3, now);
    matching.main_came(4, UNIX);
    matching.main_ready(4, MULTIFD, now);
    assert_eq!(matching.decide(now), [doubt(4, true)]);
    for (channel, id) in [(5, 0), (6, 1)] {
        matching.channel_came(channel, [0; 16], id, UNIX, now);
    }
    let drop = Decision::Drop { channel: 3 };
    assert_eq!(
        matching.decide(now),
        [drop, give(5, 4), give(6, 4), doubt(4, false)]
    );
}

/// A source closes everything before its next attempt.
#[test]
fn a_channel_that_was_open_beside_its_main_channel_is_not_left_over() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(1, UNIX);
    matching.main_ready(1, MULTIFD, now);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(2, 1)]);
    matching.end(1);
    matching.channel_came(3, [0; 16], 18, UNIX, now);
    matching.main_came(4, UNIX);
    assert_eq!(matching.decide(now), []);
    matching.channel_closed(3, now);
    matching.main_closed(4, now);
    matching.main_ready(4, MULTIFD, now);
    assert_eq!(matching.decide(now), [give(3, 4)]);
}

/// A source with a return path has its channels open until it has the destination's word, so what
/// was closed is an earlier attempt's. VMs without a UUID are no exception.
#[test]
fn a_closed_channel_is_not_one_of_a_source_that_waits_for_a_word() {
    for closes in [false, true] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        matching.channel_closed(1, now);
        matching.main_came(2, UNIX);
        let stated = Stated {
            return_path: true,
            ..MULTIFD
        };
        matching.main_ready(2, stated, now);
        assert!(!matching.is_undecided(2, now), "it need not wait");
        matching.channel_came(3, [0; 16], 1, UNIX, now);
        assert_eq!(matching.decide(now), [give(3, 2)]);
        if closes {
            matching.main_closed(2, now);
        }
        let later = now + CONFLICT_TIMEOUT;
        assert_eq!(matching.decide(later), []);
        // Its own comes late, and nothing is in doubt.
        matching.channel_came(4, [0; 16], 0, UNIX, later);
        let drop = Decision::Drop { channel: 1 };
        assert_eq!(matching.decide(later), [drop, give(4, 2)]);
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
    assert_eq!(matching.decide(later), []);
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
            assert_eq!(matching.decide(now), [], "it may be about to close");
            assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 20)]);
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
