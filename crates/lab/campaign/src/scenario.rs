//! Scenarios: derives everything about a run from its seed.

use std::time::Duration;

use multifd_wire::Method;

use crate::destination::DestinationBehaviour;
use crate::fault::Fault;
pub use crate::kind::{Between, Kind};
use crate::link::LinkBehaviour;
use crate::plan::{Mode, Plan, Shape, Who};
use crate::process::Bounds;
use crate::random::Random;
use crate::source::SourceBehaviour;
use crate::stranger::Stranger;
use crate::verdict::Excuse;

/// The victim of a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The part next to the source.
    Near,
    /// The relay next to the destination.
    Far,
}

/// A second migration at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Second {
    /// Its connections look like the first migration's.
    pub same: bool,
    /// The time after which it dials.
    pub delay: Duration,
}

/// Everything about a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The run's seed.
    pub seed: u64,
    /// The kind of the run.
    pub kind: Kind,
    /// Whether there are two relays.
    pub two: bool,
    /// The protocol between the relays.
    pub between: Between,
    /// The fault.
    pub fault: Fault,
    /// The outcomes that the fault excuses.
    pub excuse: Excuse,
    /// The parameters of the source's plan.
    pub shape: Shape,
    /// The method between two relays.
    pub trunk: Method,
    /// Whether the near and the far relay use auto.
    pub auto: [bool; 2],
    /// Connections of a trunk for each channel.
    pub strands: u8,
    /// The method that the destination reads.
    pub out: Method,
    /// Whether the source's leg, the trunk and the destination's leg are TCP.
    pub tcp: [bool; 3],
    /// The source.
    pub source: SourceBehaviour,
    /// The destination.
    pub destination: DestinationBehaviour,
    /// The faulty networks of the source's leg and of the trunk.
    pub links: [Option<LinkBehaviour>; 2],
    /// Strangers, with the part that they dial.
    pub strangers: Vec<(Victim, Stranger)>,
    /// The delay of a connection that repeats the hello of a channel.
    pub duplicate: Option<Duration>,
    /// A second migration.
    pub second: Option<Second>,
    /// A kill: the victim, and a time after a number of bytes.
    pub kill: Option<(Victim, u64, Duration)>,
    /// Resource limits of one part.
    pub bounds: Bounds,
    /// The part with these limits.
    pub bounded: Victim,
    /// The bytes of a receiver's disk, if it is small.
    pub disk: Option<u64>,
}

/// The time after which the source's user cancels. Only a hang takes as long: relays wait 15 s for
/// a destination that does not begin.
const PATIENCE: Duration = Duration::from_secs(45);

impl Scenario {
    /// Makes a run of one of these kinds, and its source's plan.
    #[must_use]
    pub fn new(seed: u64, kinds: &[Kind]) -> (Self, Plan) {
        let (mut scenario, mut random) = Self::chosen(seed, kinds);
        // Some faults change the shape, and the places of all faults depend on the plan's lengths.
        scenario.reshape();
        let plan = Plan::new(scenario.shape.clone(), &mut random);
        scenario.place(&plan, &mut random);
        (scenario, plan)
    }

    /// A run with its fault, which has no place yet.
    fn chosen(seed: u64, kinds: &[Kind]) -> (Self, Random) {
        let mut random = Random::new(seed);
        let any = random.index(kinds.len().max(1));
        let kind = kinds.get(any).copied().unwrap_or(Kind::Relay);
        let mut scenario = Self::sound(seed, kind, &mut random);
        let fault = scenario.choose(&mut random);
        scenario.fault = fault;
        (scenario, random)
    }

    /// A run without faults.
    fn sound(seed: u64, kind: Kind, random: &mut Random) -> Self {
        let methods = [Method::None, Method::Zlib, Method::Zstd];
        let mode = random.pick(&[Mode::PerRound, Mode::PerRound, Mode::PerSection, Mode::Old]);
        let channels = random.pick(&[1, 1, 2, 2, 2, 3, 4, 4, 6, 8]);
        let mut blocks = vec![random.pick(&[16, 60, 120, 200, 300, 700])];
        blocks.extend((0..random.below(4)).map(|_| random.pick(&[1, 5, 40])));
        let mut uuid = [0; 16];
        if random.percent(60) {
            random.fill(&mut uuid);
        }
        let shape = Shape {
            blocks,
            channels,
            method: random.pick(&methods),
            mode,
            return_path: random.percent(65),
            description: random.percent(75),
            legacy_zero: random.percent(25),
            rounds: random.between(1, 5) as usize,
            uuid,
            states_uuid: uuid != [0; 16] && random.percent(30),
            devices: random.pick(&[100, 3000, 60_000]),
        };
        let mut dials = vec![(Who::Main, Duration::ZERO)];
        let mut ids: Vec<u8> = (0..channels).collect();
        random.shuffle(&mut ids);
        dials.extend(ids.into_iter().map(|id| (Who::Channel(id), Duration::ZERO)));
        let two = match kind {
            Kind::Relays | Kind::Trunks | Kind::Tls => true,
            Kind::Qemu => random.percent(60),
            _ => false,
        };
        let between = match kind {
            Kind::Trunks => Between::Clear,
            Kind::Tls => Between::Encrypted,
            Kind::Qemu if two && random.percent(50) => Between::Clear,
            _ => Between::Qemu,
        };
        let tcp_between = random.percent(60) || between == Between::Encrypted;
        Self {
            seed,
            kind,
            two,
            between,
            fault: Fault::None,
            excuse: Excuse::default(),
            trunk: random.pick(&methods),
            out: random.pick(&methods),
            // These have random numbers of their own, so that old seeds keep their other values.
            auto: [1, 2].map(|number| Random::new(seed ^ number << 60).percent(50)),
            strands: match between {
                Between::Qemu => 1,
                _ => Random::new(seed ^ 3 << 60).pick(&[1, 1, 3]),
            },
            tcp: [random.percent(40), tcp_between, random.percent(40)],
            source: SourceBehaviour {
                dials,
                early: random.percent(30),
                small: random.percent(40),
                cancel: None,
                kill: None,
                patience: PATIENCE,
                flip: None,
                pause: None,
            },
            destination: DestinationBehaviour {
                channels,
                method: Method::None,
                small: random.percent(40),
                refuses: false,
                kill: None,
                resets: None,
                pause: None,
                slow: None,
                gap: random.pick(&[
                    Duration::ZERO,
                    Duration::from_millis(3),
                    Duration::from_millis(30),
                ]),
                says_failure: random.percent(50),
            },
            links: [None, None],
            strangers: Vec::new(),
            duplicate: None,
            second: None,
            kill: None,
            bounds: Bounds::default(),
            bounded: Victim::Near,
            disk: None,
            shape,
        }
    }

    /// Chooses one of the faults of this kind.
    fn choose(&self, random: &mut Random) -> Fault {
        let faults = Fault::weighted(self.kind, self.two, self.between);
        let mut left = random.below(faults.iter().map(|(weight, _)| weight).sum());
        for (weight, fault) in faults {
            if left < weight {
                return fault;
            }
            left -= weight;
        }
        Fault::None
    }

    /// Changes the shape as the fault needs it.
    fn reshape(&mut self) {
        match self.fault {
            Fault::NoDescriptors | Fault::NoThreads => self.set_channels(8),
            Fault::ManyChannels => self.set_channels(self.shape.channels.max(2)),
            _ => {}
        }
        if matches!(self.kind, Kind::Receive | Kind::Record) {
            // Receivers find the end of main by the description.
            self.shape.description = true;
        }
        self.destination.method = match self.kind {
            Kind::Relay | Kind::Relays | Kind::Trunks | Kind::Tls => self.out,
            _ => self.shape.method,
        };
    }

    /// Describes the run on a few lines.
    #[must_use]
    pub fn brief(&self) -> String {
        let shape = &self.shape;
        let leg = |tcp: bool| if tcp { "tcp" } else { "unix" };
        let legs = self.tcp.map(leg).join(", ");
        let mut text = format!(
            "{} channels, {:?}, {} rounds, {:?} pages, return path {}, {} / {} / {}, auto {:?}, {} strands, legs {legs}\n    {:?}\n    {:?}",
            shape.channels,
            shape.mode,
            shape.rounds,
            shape.blocks,
            shape.return_path,
            shape.method,
            self.trunk,
            self.out,
            self.auto,
            self.strands,
            self.source,
            self.destination
        );
        for link in self.links.iter().flatten() {
            text += &format!("\n    {link:?}");
        }
        if !self.strangers.is_empty() {
            text += &format!("\n    {:?}", self.strangers);
        }
        let rest = (
            self.duplicate,
            self.second,
            self.kill,
            self.bounds,
            self.disk,
        );
        if rest != (None, None, None, Bounds::default(), None) {
            text += &format!("\n    {rest:?}");
        }
        text
    }

    /// Removes all faults, and sets the number of channels.
    pub fn clear(&mut self, channels: u8) {
        let mut random = Random::new(self.seed);
        let kind = self.kind;
        *self = Self::sound(self.seed, kind, &mut random);
        self.set_channels(channels);
        self.shape.return_path = true;
    }

    fn set_channels(&mut self, channels: u8) {
        self.shape.channels = channels;
        self.destination.channels = channels;
        let ids = (0..channels).map(Who::Channel);
        let all = std::iter::once(Who::Main).chain(ids);
        self.source.dials = all.map(|who| (who, Duration::ZERO)).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Fault, Kind, Scenario};

    #[test]
    fn a_seed_is_one_run() {
        for seed in [0, 1, 77, u64::MAX] {
            let (a, plan) = Scenario::new(seed, &Kind::ALL);
            let (b, again) = Scenario::new(seed, &Kind::ALL);
            assert_eq!(a.brief(), b.brief());
            assert_eq!(plan.main(), again.main());
            assert_eq!(plan.bytes(), again.bytes());
        }
        let briefs = (0..50).map(|seed| Scenario::new(seed, &Kind::ALL).0.brief());
        assert_eq!(briefs.collect::<BTreeSet<_>>().len(), 50);
    }

    #[test]
    fn every_fault_is_chosen_by_some_seed() {
        let faults = |kind| {
            let all = (0..2000).map(|seed| Scenario::chosen(seed, &[kind]).0.fault);
            all.collect::<BTreeSet<_>>()
        };
        let relays = faults(Kind::Relays);
        for fault in [
            Fault::None,
            Fault::KillNear,
            Fault::KillFar,
            Fault::KillDestination,
            Fault::Second,
            Fault::Flip,
        ] {
            assert!(relays.contains(&fault), "{fault}: {relays:?}");
        }
        assert_eq!(relays.len(), 27, "{relays:?}");
        let trunks = faults(Kind::Trunks);
        for fault in [
            Fault::LostBytes,
            Fault::BytesComeTwice,
            Fault::PrefaceComesTwice,
        ] {
            assert!(trunks.contains(&fault), "{fault}: {trunks:?}");
        }
        assert_eq!(trunks.len(), 30, "{trunks:?}");
        // An encrypted preface cannot be repeated.
        assert_eq!(faults(Kind::Tls).len(), 29);
        assert!(faults(Kind::Receive).contains(&Fault::FullDisk));
        assert!(!faults(Kind::Engines).contains(&Fault::DuplicateHello));
        assert!(faults(Kind::Qemu).contains(&Fault::DestinationPauses));
    }
}
