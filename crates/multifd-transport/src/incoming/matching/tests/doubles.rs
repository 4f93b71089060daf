//! Two sources at once whose hellos are alike, where the second one's main channel has still to
//! speak.

use super::*;

const DROP_2: Decision = Decision::Drop { channel: 22 };

fn both_here(now: Instant) -> Matching {
    let mut matching = Matching::default();
    matching.main_came(10, UNIX);
    matching.set_unspoken([UNIX].into_iter());
    // The connections of both come in any order.
    for (id, number) in [(11, 0), (21, 0), (22, 1), (12, 1)] {
        matching.channel_came(id, [7; 16], number, UNIX, now);
    }
    assert_eq!(matching.decide(now), []);
    matching.main_ready(10, MULTIFD, now);
    matching
}

/// The first source is done and has gone. What it has closed is its own; the open channels are the
/// other one's.
#[test]
fn channels_of_a_source_that_is_done_are_not_replaced_by_another_ones() {
    for second_speaks in [false, true] {
        let now = Instant::now();
        let mut matching = both_here(now);
        assert_eq!(matching.decide(now), [doubt(10, true)]);
        // It closes its channels before main, and they are looked at in between.
        for channel in [11, 12] {
            matching.channel_closed(channel, now);
        }
        assert_eq!(matching.decide(now), []);
        matching.main_closed(10, now);
        assert_eq!(
            matching.decide(now),
            [give(11, 10), give(12, 10), doubt(10, false)]
        );
        let mut later = now + CONFLICT_TIMEOUT;
        assert_eq!(matching.decide(later), [], "the others are not its own");
        if second_speaks {
            matching.set_unspoken([].into_iter());
            matching.main_came(20, UNIX);
            matching.main_ready(20, MULTIFD, later);
            assert_eq!(matching.decide(later), [give(21, 20), give(22, 20)]);
        } else {
            later += 2 * ORPHAN_TIMEOUT;
            let drop = Decision::Drop { channel: 21 };
            assert_eq!(matching.decide(later), [drop, DROP_2]);
        }
    }
}

/// Both sources still have their guests.
#[test]
fn two_at_once_are_refused_once_the_second_one_speaks() {
    let now = Instant::now();
    let mut matching = both_here(now);
    assert_eq!(matching.decide(now), [doubt(10, true)]);
    matching.set_unspoken([].into_iter());
    matching.main_came(20, UNIX);
    assert_eq!(matching.decide(now), [doubt(10, false)]);
    matching.main_ready(20, MULTIFD, now);
    let refused = matching.decide(now);
    assert_eq!(refused[..2], [alike(10, [7; 16]), alike(20, [7; 16])]);
    assert_eq!(matching.orphans().count(), 0);
}

/// The second source has more channels than the first one.
#[test]
fn a_wider_source_beside_another_gives_it_no_channel() {
    for first_is_done in [false, true] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_came(11, [7; 16], 0, UNIX, now);
        assert_eq!(matching.decide(now), [give(11, 10)]);
        matching.set_unspoken([UNIX].into_iter());
        for (id, number) in [(22, 1), (21, 0)] {
            matching.channel_came(id, [7; 16], number, UNIX, now);
        }
        if first_is_done {
            matching.main_closed(10, now);
            assert_eq!(matching.decide(now), []);
            assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), []);
            continue;
        }
        assert_eq!(matching.decide(now), [doubt(10, true)]);
        let fault = SetupFault::ChannelTwice { id: 0 };
        let refused = matching.decide(now + CONFLICT_TIMEOUT);
        assert_eq!(refused[0], Decision::Refuse { main: 10, fault });
        assert!(refused.contains(&DROP_2), "{refused:?}");
    }
}

/// A source that gives up closes its main channel first. Another one is here already.
#[test]
fn a_channel_that_is_about_to_close_is_not_another_sources() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    for main in [10, 20] {
        matching.main_came(main, UNIX);
        matching.main_ready(main, MULTIFD, now);
    }
    matching.channel_came(30, [7; 16], 0, UNIX, now);
    matching.main_closed(10, now);
    assert_eq!(matching.decide(now), []);
    assert!(matching.is_undecided(20, now), "it waits for its channels");
    matching.channel_closed(30, now);
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(30, 10)]);
}

/// Each source has closed a channel of the number, and one main channel is known.
#[test]
fn two_closed_channels_of_one_number_are_no_guess() {
    let (mut matching, begin) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, begin);
    for id in [11, 21] {
        matching.channel_came(id, [7; 16], 0, UNIX, begin);
    }
    assert_eq!(matching.decide(begin), [doubt(10, true)]);
    let now = begin + CONFLICT_TIMEOUT / 2;
    for id in [11, 21] {
        matching.channel_closed(id, now);
    }
    matching.main_closed(10, now);
    let fault = SetupFault::ChannelTwice { id: 0 };
    let decisions = matching.decide(now);
    assert_eq!(decisions[0], Decision::Refuse { main: 10, fault });
}
