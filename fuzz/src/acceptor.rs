//! The target of what an acceptor decides: connections of anybody, in any order, at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use multifd_transport::incoming::{Decision, Id, Matching, PeerId, Stated};

/// A main channel as the script made it.
struct Main {
    stated: Option<[u8; 16]>,
    ready: bool,
    settled: bool,
    postcopy: bool,
    has_preempt: bool,
    /// Of the channels that it has, or its own if it is an engine's.
    uuid: Option<[u8; 16]>,
    channels: BTreeSet<u8>,
}

/// Everything that the script has made, and what became of it.
#[derive(Default)]
struct World {
    matching: Matching,
    mains: BTreeMap<Id, Main>,
    /// Channels that wait: their UUIDs and ids.
    waiting: BTreeMap<Id, ([u8; 16], u8)>,
    next: Id,
}

/// A channel is given once, to a main channel that is there, was read and can own it; what is
/// refused is gone; nothing that is undecided now was decidable without something new; and nothing
/// waits for ever.
pub fn acceptor(data: &[u8]) {
    let mut world = World::default();
    let mut now = Instant::now();
    for step in data.chunks_exact(3) {
        let &[what, which, how] = step else {
            continue;
        };
        match what % 16 {
            0 | 1 => world.main_came(peer(which)),
            2..=4 => world.main_ready(which, how, now),
            5..=8 => world.channel_came(uuid(which), which >> 4, peer(how), now),
            9 => {
                if let Some(id) = nth(&world.waiting, which) {
                    world.matching.channel_closed(id, now);
                }
            }
            10 => {
                if let Some(id) = nth(&world.mains, which) {
                    world.matching.main_closed(id, now);
                }
            }
            11 => {
                if let Some(id) = nth(&world.mains, which) {
                    world.matching.end(id);
                    world.mains.remove(&id);
                }
            }
            12 => {
                if let Some(id) = nth(&world.mains, which) {
                    world.matching.settle(id);
                    world.mains.entry(id).and_modify(|main| main.settled = true);
                }
            }
            13 => world.preempt_came(peer(which)),
            14 => world.engine_ready(uuid(which), now),
            _ => {
                if let (true, Some(id)) = (how & 1 == 1, nth(&world.waiting, which)) {
                    world.matching.forget_channel(id);
                    world.waiting.remove(&id);
                }
            }
        }
        now += Duration::from_millis(u64::from(how).pow(2) / 8);
        world.decide(now);
        assert_eq!(world.matching.migrations(), world.mains.len());
    }
    // Set-ups are read or given up in the end.
    for id in world
        .mains
        .iter()
        .filter(|(_, main)| !main.ready)
        .map(|(&id, _)| id)
    {
        world.matching.end(id);
    }
    world.mains.retain(|_, main| main.ready);
    for _ in 0..60 {
        now += Duration::from_secs(1);
        world.decide(now);
    }
    assert!(
        world.waiting.is_empty(),
        "{} wait for ever",
        world.waiting.len()
    );
}

impl World {
    fn id(&mut self) -> Id {
        self.next += 1;
        self.next
    }

    fn main_came(&mut self, peer: PeerId) {
        let id = self.id();
        self.matching.main_came(id, peer);
        self.mains.insert(id, Main::new());
    }

    fn main_ready(&mut self, which: u8, how: u8, now: Instant) {
        let Some(id) = nth(&self.mains, which) else {
            return;
        };
        let Some(main) = self.mains.get_mut(&id).filter(|main| !main.ready) else {
            return;
        };
        main.ready = true;
        main.stated = (how & 1 == 1).then(|| uuid(how >> 4));
        main.postcopy = how & 2 == 2;
        let stated = Stated {
            uuid: main.stated,
            has_channels: how & 4 == 4,
            postcopy: main.postcopy,
            return_path: how & 8 == 8,
        };
        self.matching.main_ready(id, stated, now);
    }

    fn engine_ready(&mut self, uuid: [u8; 16], now: Instant) {
        let id = self.id();
        self.matching.engine_ready(id, uuid, now);
        let ready = true;
        let uuid = Some(uuid);
        let main = Main::new();
        self.mains.insert(
            id,
            Main {
                ready,
                uuid,
                ..main
            },
        );
    }

    fn channel_came(&mut self, uuid: [u8; 16], channel: u8, peer: PeerId, now: Instant) {
        let id = self.id();
        self.matching.channel_came(id, uuid, channel, peer, now);
        self.waiting.insert(id, (uuid, channel));
    }

    fn preempt_came(&mut self, peer: PeerId) {
        let Some(id) = self.matching.preempt_came(peer) else {
            return;
        };
        let main = self.mains.get_mut(&id).expect("a migration that is there");
        assert!(main.postcopy && !main.has_preempt);
        main.has_preempt = true;
    }

    fn decide(&mut self, now: Instant) {
        for decision in self.matching.decide(now) {
            match decision {
                Decision::Give { channel, main } => {
                    let (uuid, id) = self.waiting.remove(&channel).expect("given once");
                    let main = self
                        .mains
                        .get_mut(&main)
                        .expect("a migration that is there");
                    assert!(main.ready && !main.settled);
                    for own in [main.stated, main.uuid].into_iter().flatten() {
                        assert_eq!(own, uuid, "another VM's");
                    }
                    main.uuid = Some(uuid);
                    assert!(main.channels.insert(id), "two of one id");
                }
                Decision::Drop { channel } => {
                    self.waiting.remove(&channel).expect("dropped once");
                }
                Decision::Doubt { main, .. } => assert!(self.mains.contains_key(&main)),
                Decision::Refuse { main, .. } => {
                    self.mains.remove(&main).expect("refused once");
                }
            }
        }
        assert_eq!(self.matching.decide(now), [], "decided late");
        let orphans: BTreeSet<Id> = self.matching.orphans().collect();
        assert!(orphans.iter().eq(self.waiting.keys()));
    }
}

impl Main {
    fn new() -> Self {
        Self {
            stated: None,
            ready: false,
            settled: false,
            postcopy: false,
            has_preempt: false,
            uuid: None,
            channels: BTreeSet::new(),
        }
    }
}

fn nth<T>(items: &BTreeMap<Id, T>, which: u8) -> Option<Id> {
    let index = usize::from(which) % items.len().max(1);
    items.keys().nth(index).copied()
}

/// One of four, the first of which is that of VMs without one.
fn uuid(choice: u8) -> [u8; 16] {
    [choice & 3; 16]
}

fn peer(choice: u8) -> PeerId {
    match choice & 7 {
        0 => PeerId::Unknown,
        process @ 1..=4 => PeerId::Process(i32::from(process)),
        host => PeerId::Host(IpAddr::from([192, 0, 2, host])),
    }
}
