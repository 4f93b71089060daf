use super::*;

mod doubles;
mod left;

const UNIX: PeerId = PeerId::Process(7);
const MULTIFD: Stated = Stated {
    uuid: None,
    has_channels: true,
    postcopy: false,
    return_path: false,
};

fn give(channel: Id, main: Id) -> Decision {
    Decision::Give { channel, main }
}

fn doubt(main: Id, doubt: bool) -> Decision {
    Decision::Doubt { main, doubt }
}

fn alike(main: Id, uuid: [u8; 16]) -> Decision {
    let fault = SetupFault::Alike { uuid };
    Decision::Refuse { main, fault }
}

#[test]
fn channels_wait_for_the_set_up_of_their_main_channel() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.channel_came(1, [0; 16], 1, UNIX, now);
    assert_eq!(matching.decide(now), []);
    matching.main_came(10, UNIX);
    assert_eq!(matching.decide(now), []);
    // Long set-ups are no reason to lose a channel.
    let later = now + 3 * ORPHAN_TIMEOUT;
    assert_eq!(matching.decide(later), []);
    matching.main_ready(10, MULTIFD, later);
    assert_eq!(matching.decide(later), [give(1, 10)]);
    matching.channel_came(2, [0; 16], 0, UNIX, later);
    assert_eq!(matching.decide(later), [give(2, 10)]);
}

#[test]
fn a_channel_that_is_open_is_not_an_attempts_that_was_given_up() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    for main in [10, 20] {
        matching.main_came(main, UNIX);
        matching.main_ready(main, MULTIFD, now);
    }
    matching.main_closed(10, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [], "it may be about to close");
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 20)]);
}

#[test]
fn a_channel_whose_own_main_channel_has_still_to_speak_is_no_others() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    let other = PeerId::Process(8);
    for peer in [UNIX, other] {
        matching.set_unspoken([peer].into_iter());
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_came(5, [0; 16], 1, UNIX, now);
        matching.channel_came(1, [0; 16], 0, other, now);
        let expected: &[Decision] = match peer == other {
            true => &[give(5, 10)],
            // A proxy has many processes.
            false => &[give(5, 10), give(1, 10)],
        };
        assert_eq!(matching.decide(now), expected);
        if peer == other {
            matching.set_unspoken([].into_iter());
            matching.main_came(20, other);
            matching.main_ready(20, MULTIFD, now);
            assert_eq!(matching.decide(now), [give(1, 20)]);
        }
        matching.end(10);
    }
}

/// A short migration without a return path has closed everything when a stranger's main channel
/// beside it ends.
#[test]
fn a_stranger_takes_no_channel_along() {
    for ends_first in [true, false] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.main_came(10, UNIX);
        matching.main_came(20, UNIX);
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        if ends_first {
            matching.end(10);
        }
        matching.main_ready(20, MULTIFD, now);
        matching.channel_closed(1, now);
        matching.main_closed(20, now);
        matching.end(10);
        assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 20)]);
    }
}

/// The same, where the migration's own main channel is here and has still to speak.
#[test]
fn a_stranger_takes_no_channel_of_a_main_channel_along_that_has_still_to_speak() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.set_unspoken([UNIX].into_iter());
    matching.main_came(10, UNIX);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.end(10);
    matching.set_unspoken([].into_iter());
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    matching.channel_closed(1, now);
    matching.main_closed(20, now);
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 20)]);
}

/// A migration that has its channels, or cannot have any, takes none of the next one along: a
/// relay's destination has answered, or a stream goes on after a break.
#[test]
fn a_settled_migration_that_ends_takes_no_channel_along() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.settle(10);
    matching.main_came(20, UNIX);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), []);
    matching.end(10);
    matching.main_ready(20, MULTIFD, now);
    matching.channel_closed(1, now);
    matching.main_closed(20, now);
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 20)]);
}

/// A migration has one channel of each number.
#[test]
fn a_migration_that_ends_takes_no_channel_along_whose_number_it_has() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 10)]);
    matching.main_came(20, UNIX);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), []);
    matching.end(10);
    matching.main_ready(20, MULTIFD, now);
    matching.channel_closed(2, now);
    matching.main_closed(20, now);
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(2, 20)]);
}

/// A source that gives up in its set-up leaves hellos behind, and its next attempt may be here
/// before that is noticed.
#[test]
fn a_mere_hello_of_an_attempt_that_was_given_up_is_dropped_beside_the_next_one() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.channel_came(1, [0; 16], 5, UNIX, now);
    matching.main_came(20, UNIX);
    matching.end(10);
    matching.channel_closed_empty(1, now);
    matching.main_ready(20, MULTIFD, now);
    assert_eq!(
        matching.decide(now + CONFLICT_TIMEOUT),
        [Decision::Drop { channel: 1 }]
    );
}

/// What a source has left behind that gave up in its set-up is not its next attempt's.
#[test]
fn a_channel_of_an_attempt_that_was_given_up_in_its_set_up_is_dropped() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.channel_closed(1, now);
    matching.end(10);
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    assert_eq!(matching.decide(now), [Decision::Drop { channel: 1 }]);
}

#[test]
fn a_channel_without_a_main_channel_goes_after_a_while() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.channel_came(1, [0; 16], 1, UNIX, now);
    assert_eq!(matching.decide(now + ORPHAN_TIMEOUT / 2), []);
    assert_eq!(
        matching.decide(now + ORPHAN_TIMEOUT),
        [Decision::Drop { channel: 1 }]
    );
}

#[test]
fn two_at_once_that_cannot_be_told_apart_are_both_refused() {
    for uuids in [[[0; 16]; 2], [[1; 16], [2; 16]]] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        for main in [10, 20] {
            matching.main_came(main, UNIX);
            matching.main_ready(main, MULTIFD, now);
        }
        matching.channel_came(1, uuids[0], 0, UNIX, now);
        let drop = Decision::Drop { channel: 1 };
        assert_eq!(
            matching.decide(now),
            [alike(10, uuids[0]), alike(20, uuids[0]), drop]
        );
    }
}

#[test]
fn channels_of_two_vms_and_one_main_channel_are_no_guess() {
    let uuids = [[1; 16], [2; 16]];
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    for (id, uuid) in (1..).zip(uuids) {
        matching.channel_came(id, uuid, 0, UNIX, now);
    }
    assert_eq!(matching.decide(now), []);
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    let decisions = matching.decide(now);
    assert_eq!(decisions[..2], [alike(10, uuids[0]), alike(20, uuids[0])]);

    let mut matching = Matching::default();
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    for (id, uuid) in (1..).zip(uuids) {
        matching.channel_came(id, uuid, 0, UNIX, now);
    }
    let decisions = matching.decide(now + RIVAL_TIMEOUT);
    assert_eq!(
        decisions[0],
        alike(10, uuids[0]),
        "the second one did not come"
    );
}

#[test]
fn a_refusal_costs_nobody_else_a_channel() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    let other = PeerId::Process(8);
    for (main, peer) in [(10, UNIX), (20, UNIX), (30, other)] {
        matching.main_came(main, peer);
    }
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.channel_came(2, [0; 16], 0, other, now);
    for main in [10, 20] {
        matching.main_ready(main, MULTIFD, now);
    }
    let (uuid, drop) = ([0; 16], Decision::Drop { channel: 1 });
    assert_eq!(
        matching.decide(now),
        [alike(10, uuid), alike(20, uuid), drop]
    );
    matching.main_ready(30, MULTIFD, now);
    assert_eq!(matching.decide(now), [give(2, 30)]);
}

#[test]
fn the_peer_and_a_stated_uuid_tell_apart() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    let hosts = [1, 2].map(|last| PeerId::Host([192, 0, 2, last].into()));
    for (main, host) in [(10, hosts[0]), (20, hosts[1])] {
        matching.main_came(main, host);
        matching.main_ready(main, MULTIFD, now);
    }
    matching.channel_came(1, [0; 16], 0, hosts[1], now);
    matching.channel_came(2, [0; 16], 0, hosts[0], now);
    assert_eq!(matching.decide(now), [give(1, 20), give(2, 10)]);

    let mut matching = Matching::default();
    for (main, uuid) in [(10, [1; 16]), (20, [2; 16])] {
        matching.main_came(main, UNIX);
        let uuid = Some(uuid);
        matching.main_ready(main, Stated { uuid, ..MULTIFD }, now);
    }
    matching.channel_came(1, [2; 16], 0, UNIX, now);
    matching.channel_came(2, [1; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 20), give(2, 10)]);
}

#[test]
fn a_migration_that_has_all_its_channels_leaves_the_others_to_the_next() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 10)]);
    matching.settle(10);
    matching.channel_came(2, [0; 16], 1, UNIX, now);
    assert_eq!(matching.decide(now), []);
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    matching.channel_came(3, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(2, 20), give(3, 20)]);
}

#[test]
fn nobody_waits_for_a_stranger_that_stalls_in_its_set_up() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [], "the other one may go on");
    matching.main_stalls(10, true);
    assert_eq!(matching.decide(now), [give(1, 20)]);
}

#[test]
fn a_late_channel_is_taken_where_nobody_else_can_be_meant() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 10)]);
    let late = now + 2 * LATE_TIMEOUT;
    matching.channel_came(2, [0; 16], 1, UNIX, late);
    assert_eq!(matching.decide(late), [give(2, 10)]);
}

#[test]
fn a_channel_id_used_twice_is_refused_and_a_stale_one_is_dropped() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    for id in [1, 2, 3] {
        matching.channel_came(id, [0; 16], 0, UNIX, now);
    }
    matching.channel_closed(1, now);
    // The closed one is a remnant, as the same channel is here anew; of the others, one is another
    // migration's.
    let drop = |channel| Decision::Drop { channel };
    assert_eq!(matching.decide(now), [drop(1), doubt(10, true)]);
    let after = now + CONFLICT_TIMEOUT;
    let fault = SetupFault::ChannelTwice { id: 0 };
    assert_eq!(
        matching.decide(after),
        [Decision::Refuse { main: 10, fault }, drop(2), drop(3)]
    );
}

#[test]
fn a_closed_channel_waits_for_a_successor_while_its_main_channel_is_open() {
    for (main_closes, renewed) in [(false, false), (false, true), (true, false)] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        matching.channel_came(1, [0; 16], 0, UNIX, now);
        matching.channel_closed(1, now);
        matching.main_came(10, UNIX);
        matching.main_ready(10, MULTIFD, now);
        assert_eq!(matching.decide(now), []);
        if main_closes {
            matching.main_closed(10, now);
            assert_eq!(matching.decide(now), [give(1, 10)]);
        } else if renewed {
            matching.channel_came(2, [0; 16], 0, UNIX, now);
            assert_eq!(
                matching.decide(now),
                [Decision::Drop { channel: 1 }, give(2, 10)]
            );
        } else {
            assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 10)]);
        }
    }
}

#[test]
fn an_attempt_that_is_over_leaves_its_place_to_the_next() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 10)]);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [doubt(10, true)]);
    matching.end(10);
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    assert_eq!(matching.decide(now), [give(2, 20)]);
}

#[test]
fn a_doubt_ends_with_the_channel_that_raised_it() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 10)]);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [doubt(10, true)]);
    assert_eq!(matching.decide(now), [], "it is told once");
    matching.channel_closed(2, now);
    let after = now + CONFLICT_TIMEOUT;
    let drop = Decision::Drop { channel: 2 };
    assert_eq!(matching.decide(after), [drop, doubt(10, false)]);
}

#[test]
fn an_attempt_whose_source_has_closed_is_not_taken_for_the_next() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    for main in [10, 20] {
        matching.main_came(main, UNIX);
        matching.main_ready(main, MULTIFD, now);
    }
    matching.main_closed(10, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [], "it may be about to close");
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 20)]);
}

#[test]
fn an_engines_channels_are_its_own() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.engine_ready(10, [9; 16], now);
    matching.main_came(20, UNIX);
    matching.main_ready(20, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.channel_came(2, [9; 16], 0, UNIX, now);
    let decisions = matching.decide(now);
    assert_eq!(decisions, [give(1, 20), give(2, 10)]);
}

#[test]
fn postcopys_connection_goes_to_the_one_migration_of_its_peer() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    assert_eq!(matching.preempt_came(UNIX), None);
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    assert_eq!(matching.preempt_came(UNIX), None, "without postcopy");
    let postcopy = Stated {
        postcopy: true,
        ..MULTIFD
    };
    matching.main_ready(10, postcopy, now);
    assert_eq!(
        matching.preempt_came(PeerId::Process(8)),
        None,
        "a stranger"
    );
    assert_eq!(matching.preempt_came(UNIX), Some(10));
    assert_eq!(matching.preempt_came(UNIX), None, "there is one already");
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Connections of migrations in a random order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Main(u64),
    Ready(u64),
    Channel(u64, u8),
    Closed(u64, u8),
    /// The source gives up: its channels close.
    End(u64),
}

fn channel_id(migration: u64, channel: u8) -> Id {
    100 * (migration + 1) + u64::from(channel)
}

/// Plays a script; what was given to each main channel, and which were refused.
fn play(
    script: &[Step],
    peers: &[PeerId],
    uuids: &[[u8; 16]],
    stated: bool,
    random: &mut Random,
) -> (Vec<(Id, u64)>, Vec<u64>) {
    let (mut matching, mut now) = (Matching::default(), Instant::now());
    let (mut given, mut refused, mut over) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut here = BTreeSet::new();
    // Less than any time limit in all.
    let pause = CONFLICT_TIMEOUT / (script.len() as u32 + 1);
    for step in script {
        now += pause * random.below(2) as u32;
        match *step {
            Step::Main(of) => matching.main_came(of, peers[of as usize]),
            Step::Ready(of) => {
                let uuid = stated.then_some(uuids[of as usize]);
                matching.main_ready(of, Stated { uuid, ..MULTIFD }, now);
            }
            // A source that was refused opens no more.
            Step::Channel(of, _) if refused.contains(&of) => {}
            Step::Channel(of, id) => {
                let (uuid, peer) = (uuids[of as usize], peers[of as usize]);
                here.insert((of, id));
                matching.channel_came(channel_id(of, id), uuid, id, peer, now);
            }
            Step::Closed(of, id) => matching.channel_closed(channel_id(of, id), now),
            Step::End(of) => {
                matching.end(of);
                over.insert(of);
                for &(_, id) in here.iter().filter(|(its, _)| *its == of) {
                    matching.channel_closed(channel_id(of, id), now);
                }
            }
        }
        decide(&mut matching, now, &mut given, &mut refused);
        over.extend(&refused);
        for &(of, id) in here.iter().filter(|(of, _)| over.contains(of)) {
            matching.channel_closed(channel_id(of, id), now);
        }
    }
    for later in [
        CONFLICT_TIMEOUT,
        FOREIGN_TIMEOUT,
        LATE_TIMEOUT,
        ORPHAN_TIMEOUT,
    ] {
        now += later;
        decide(&mut matching, now, &mut given, &mut refused);
    }
    assert_eq!(matching.orphans().count(), 0, "nothing waits for ever");
    (given, refused)
}

fn decide(
    matching: &mut Matching,
    now: Instant,
    given: &mut Vec<(Id, u64)>,
    refused: &mut Vec<u64>,
) {
    for decision in matching.decide(now) {
        match decision {
            Decision::Give { channel, main } => given.push((channel, main)),
            Decision::Refuse { main, .. } => refused.push(main),
            Decision::Drop { .. } | Decision::Doubt { .. } => {}
        }
    }
}

/// A random order of `steps` in which no step comes before those that it follows in its own
/// migration.
fn shuffled(
    mut steps: Vec<Step>,
    random: &mut Random,
    follows: fn(Step, Step) -> bool,
) -> Vec<Step> {
    let mut script = Vec::new();
    while !steps.is_empty() {
        let index = random.below(steps.len() as u64) as usize;
        let step = steps[index];
        if !steps.iter().any(|&other| follows(step, other)) {
            script.push(steps.remove(index));
        }
    }
    script
}

fn of(step: Step) -> u64 {
    let (Step::Main(of) | Step::Ready(of) | Step::End(of)) = step else {
        let (Step::Channel(of, _) | Step::Closed(of, _)) = step else {
            unreachable!("all steps are of one of these kinds");
        };
        return of;
    };
    of
}

#[test]
fn in_every_order_a_channel_goes_to_its_own_main_channel_or_to_none() {
    let mut random = Random(1);
    let mut all = 0;
    for round in 0..3000 {
        let migrations = 1 + random.below(4);
        let stated = round % 2 == 0;
        let peers: Vec<_> = (0..migrations as u8)
            .map(|of| match (stated, round % 4) {
                (true, _) => UNIX,
                (false, 1) => PeerId::Host([192, 0, 2, of + 1].into()),
                (false, _) => PeerId::Host([192, 0, 2, of].into()),
            })
            .collect();
        let uuids: Vec<_> = (0..migrations as u8)
            .map(|of| match stated {
                true => [of + 1; 16],
                false => [(random.below(2) as u8) * (of + 1); 16],
            })
            .collect();
        let (mut steps, mut sound) = (Vec::new(), Vec::new());
        for of in 0..migrations {
            let channels = 1 + random.below(4) as u8;
            steps.extend([Step::Main(of), Step::Ready(of)]);
            steps.extend((0..channels).map(|id| Step::Channel(of, id)));
            match random.below(4) {
                0 => steps.push(Step::End(of)),
                1 => steps.push(Step::Closed(of, random.below(u64::from(channels)) as u8)),
                _ => sound.push((of, channels)),
            }
        }
        let script = shuffled(steps, &mut random, |step, other| {
            of(step) == of(other)
                && match step {
                    Step::Ready(_) => matches!(other, Step::Main(_)),
                    Step::End(_) => matches!(other, Step::Main(_) | Step::Ready(_)),
                    Step::Closed(_, id) => matches!(other, Step::Channel(_, its) if its == id),
                    Step::Main(_) | Step::Channel(..) => false,
                }
        });
        let (given, refused) = play(&script, &peers, &uuids, stated, &mut random);
        let once: BTreeSet<_> = given.iter().map(|(channel, _)| channel).collect();
        assert_eq!(once.len(), given.len(), "{script:?}");
        for &(channel, main) in &given {
            assert_eq!(channel / 100 - 1, main, "{script:?}, {peers:?}, {uuids:?}");
        }
        assert!(
            refused.is_empty(),
            "{refused:?}: {script:?}, {peers:?}, {uuids:?}"
        );
        for (of, channels) in sound {
            let its = given.iter().filter(|(_, main)| *main == of).count();
            assert_eq!(
                its,
                usize::from(channels),
                "{of}: {script:?}, {peers:?}, {uuids:?}"
            );
            all += 1;
        }
    }
    assert!(all > 1000, "{all} sound migrations");
}

#[test]
fn those_that_cannot_be_told_apart_are_never_mixed() {
    let mut random = Random(2);
    let mut whole = 0;
    for _ in 0..3000 {
        let migrations = 2 + random.below(3);
        let (peers, uuids) = ([UNIX; 4], [[0; 16]; 4]);
        let mut steps = Vec::new();
        for of in 0..migrations {
            steps.extend([Step::Main(of), Step::Ready(of)]);
            steps.extend((0..=random.below(4) as u8).map(|id| Step::Channel(of, id)));
            // Those before are over, mostly: then there is no doubt.
            if random.below(4) > 0 {
                steps.push(Step::End(of));
            }
        }
        // A source opens its main channel first.
        let script = shuffled(steps, &mut random, |step, other| {
            of(step) == of(other)
                && match step {
                    Step::Main(_) => false,
                    Step::Ready(_) | Step::Channel(..) => matches!(other, Step::Main(_)),
                    Step::Closed(..) | Step::End(_) => !matches!(other, Step::End(_)),
                }
        });
        let (given, refused) = play(&script, &peers, &uuids, false, &mut random);
        let once: BTreeSet<_> = given.iter().map(|(channel, _)| channel).collect();
        assert_eq!(once.len(), given.len(), "given twice: {script:?}");
        for main in (0..migrations).filter(|main| !refused.contains(main)) {
            let sources: BTreeSet<_> = given
                .iter()
                .filter(|(_, to)| *to == main)
                .map(|(channel, _)| channel / 100 - 1)
                .collect();
            assert!(
                sources.is_empty() || sources == BTreeSet::from([main]),
                "{main} has channels of {sources:?}: {script:?}"
            );
            whole += sources.len();
        }
    }
    assert!(whole > 100, "{whole} were whole");
}

#[test]
fn a_channel_waits_a_while_for_a_main_channel_of_its_own_peer() {
    for closes in [false, true] {
        let (mut matching, now) = (Matching::default(), Instant::now());
        let hosts = [1, 2].map(|last| PeerId::Host([192, 0, 2, last].into()));
        matching.main_came(10, hosts[0]);
        matching.main_ready(10, MULTIFD, now);
        matching.channel_came(1, [0; 16], 0, hosts[1], now);
        assert_eq!(matching.decide(now), []);
        if closes {
            matching.channel_closed(1, now);
        }
        let own = match closes {
            true => vec![],
            false => vec![give(1, 10)],
        };
        assert_eq!(matching.decide(now + FOREIGN_TIMEOUT), own);
    }
}

/// A host that says a hello and stays takes no place of a source's, and raises no doubt.
#[test]
fn another_hosts_channel_stops_no_source_that_has_its_own() {
    let hosts = [1, 2].map(|last| PeerId::Host([192, 0, 2, last].into()));
    for uuid in [[0; 16], [9; 16]] {
        for wait in [0, 1] {
            let (mut matching, begin) = (Matching::default(), Instant::now());
            matching.channel_came(1, uuid, 0, hosts[1], begin);
            assert_eq!(matching.decide(begin), []);
            // It is a while before the source comes.
            let now = begin + FOREIGN_TIMEOUT;
            matching.main_came(10, hosts[0]);
            matching.main_ready(10, MULTIFD, now);
            assert_eq!(matching.decide(now), [], "its own channels are to come");
            let now = now + wait * CONFLICT_TIMEOUT;
            matching.channel_came(11, uuid, 0, hosts[0], now);
            assert_eq!(matching.decide(now), [give(11, 10)]);
            // One more, while the migration runs.
            matching.channel_came(12, uuid, 0, hosts[1], now);
            for seconds in 1..20 {
                let then = now + CONFLICT_TIMEOUT * seconds;
                let decisions = matching.decide(then);
                let are_drops = |decision: &Decision| matches!(decision, Decision::Drop { .. });
                assert!(decisions.iter().all(are_drops), "{decisions:?}");
            }
            assert_eq!(matching.orphans().count(), 0);
        }
    }
}

/// The source has sent everything, waits for no word, and may have given its guest up.
#[test]
fn no_channel_stops_a_migration_whose_source_is_done() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [give(1, 10)]);
    matching.main_closed(10, now);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), []);
    assert_eq!(matching.decide(now + 3 * CONFLICT_TIMEOUT), []);
    let late = matching.decide(now + ORPHAN_TIMEOUT);
    assert_eq!(late, [Decision::Drop { channel: 2 }]);
}

#[test]
fn what_another_peer_sends_makes_nothing_stale() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    let other = PeerId::Process(8);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.channel_closed(1, now);
    matching.channel_came(2, [0; 16], 0, other, now);
    for (main, peer) in [(10, UNIX), (20, other)] {
        matching.main_came(main, peer);
        matching.main_ready(main, MULTIFD, now);
    }
    assert_eq!(matching.decide(now), [give(2, 20)]);
    assert_eq!(matching.decide(now + CONFLICT_TIMEOUT), [give(1, 10)]);
}

#[test]
fn a_strangers_hello_is_no_rival_of_the_main_channels_own_peer() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.channel_came(1, [9; 16], 0, PeerId::Process(8), now);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    assert_eq!(matching.decide(now), [give(2, 10)]);
}

#[test]
fn a_doubt_is_over_a_while_behind_what_raised_it() {
    let (mut matching, now) = (Matching::default(), Instant::now());
    matching.main_came(10, UNIX);
    matching.main_ready(10, MULTIFD, now);
    matching.channel_came(1, [0; 16], 0, UNIX, now);
    matching.channel_came(2, [0; 16], 0, UNIX, now);
    assert_eq!(matching.decide(now), [doubt(10, true)]);
    matching.channel_closed(2, now);
    // The source may be done, and about to close its main channel.
    assert_eq!(matching.decide(now), []);
    let now = now + CONFLICT_TIMEOUT;
    let decisions = matching.decide(now);
    assert!(decisions.contains(&give(1, 10)) && decisions.contains(&doubt(10, false)));
    assert_eq!(matching.decide(now), []);
}
