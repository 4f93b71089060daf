//! Scenarios: derives everything about a run from its seed.

use std::time::Duration;

use multifd_wire::{Hello, Method};

use crate::destination::DestinationBehaviour;
pub use crate::kind::{Between, Kind};
use crate::link::{Echo, Happening, LinkBehaviour, LinkFault};
use crate::plan::{Mode, PAGE, Plan, Shape, Who};
use crate::process::Bounds;
use crate::random::Random;
use crate::source::SourceBehaviour;
use crate::stranger::{Says, Stranger};
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
    /// The name of the fault.
    pub fault: &'static str,
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

/// The same in a run whose fault may keep the migration from beginning.
const IMPATIENCE: Duration = Duration::from_millis(700);

impl Scenario {
    /// Makes a run of one of these kinds, and its source's plan.
    #[must_use]
    pub fn new(seed: u64, kinds: &[Kind]) -> (Self, Plan) {
        let (mut scenario, mut random) = Self::chosen(seed, kinds);
        // Some faults change the shape, and the places of all faults depend on the plan's lengths.
        scenario.reshape();
        let plan = Plan::new(scenario.shape.clone(), &mut random);
        scenario.apply(&plan, &mut random);
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
            fault: "none",
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
    fn choose(&self, random: &mut Random) -> &'static str {
        let relay = matches!(
            self.kind,
            Kind::Relay | Kind::Relays | Kind::Trunks | Kind::Tls
        );
        let mut faults = vec![
            (10, "none"),
            (12, "strangers"),
            (8, "late"),
            (8, "reordered"),
            (6, "stall"),
            (4, "slow link"),
            (8, "reset"),
            (6, "cut"),
            (6, "half-close"),
            (5, "all cut"),
            (6, "flip"),
            (10, "cancel"),
            (4, "kill source"),
            (5, "kill near"),
            (4, "duplicate hello"),
            (4, "stale hello"),
            (2, "no descriptors"),
            (2, "no threads"),
        ];
        if relay {
            faults.extend([
                (3, "few channels"),
                (3, "many channels"),
                (4, "refuses"),
                (4, "destination resets"),
                (5, "destination pauses"),
                (4, "slow reader"),
                (5, "kill destination"),
            ]);
        }
        if self.kind == Kind::Qemu {
            let made = [
                "flip",
                "duplicate hello",
                "stale hello",
                "no descriptors",
                "no threads",
            ];
            faults.retain(|(_, fault)| !made.contains(fault));
            faults.extend([
                (10, "cancel"),
                (4, "few channels"),
                (8, "destination pauses"),
                (5, "kill destination"),
            ]);
        }
        if self.two {
            faults.push((5, "kill far"));
        }
        if self.between != Between::Qemu && relay {
            faults.extend([(8, "flip"), (4, "lost bytes"), (4, "bytes come twice")]);
        }
        if self.between == Between::Clear && relay {
            faults.push((6, "preface comes twice"));
        }
        if matches!(self.kind, Kind::Receive | Kind::Record) {
            faults.push((6, "full disk"));
        }
        if matches!(self.kind, Kind::Engines | Kind::Qemu) {
            // These faults need a made source's bytes.
            faults.retain(|(_, fault)| !matches!(*fault, "duplicate hello" | "stale hello"));
        } else {
            faults.push((5, "second"));
        }
        let all = faults.iter().map(|(weight, _)| weight).sum();
        let mut left = random.below(all);
        for (weight, fault) in faults {
            if left < weight {
                return fault;
            }
            left -= weight;
        }
        "none"
    }

    /// Changes the shape as the fault needs it.
    fn reshape(&mut self) {
        match self.fault {
            "no descriptors" | "no threads" => self.set_channels(8),
            "many channels" => self.set_channels(self.shape.channels.max(2)),
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

    /// Puts the fault at its random place.
    fn apply(&mut self, plan: &Plan, random: &mut Random) {
        let ms = Duration::from_millis;
        let all = plan.bytes();
        let anyone = |random: &mut Random| match random.below(u64::from(plan.shape.channels) + 2) {
            0 | 1 => Who::Main,
            id => Who::Channel(id as u8 - 2),
        };
        // A third of all moments is the very end, where a mistake gives the guest to both ends or
        // to neither.
        let moment = |random: &mut Random| match random.below(3) {
            0 => (all, Duration::from_micros(random.below(6000))),
            _ => (random.below(all), Duration::from_micros(random.below(1000))),
        };
        let is_trunk = self.between != Between::Qemu;
        let leg = match self.two {
            true if is_trunk && random.percent(60) => 1,
            true => random.index(2),
            false => 0,
        };
        let place = match is_trunk && leg == 1 {
            true => Place::Trunk,
            false => Place::Qemu,
        };
        let mut link = LinkBehaviour::default();
        let mut linked = true;
        match self.fault {
            "strangers" => {
                linked = false;
                for _ in 0..random.between(1, 5) {
                    let far = self.two && random.percent(if is_trunk { 70 } else { 30 });
                    let stranger = match is_trunk && far {
                        true => Stranger::at_a_trunk(random),
                        false => Stranger::any(random),
                    };
                    // Main does not state its VM, so a channel of another VM may belong to it.
                    if stranger.says == Says::OtherHello && !plan.shape.states_uuid {
                        self.excuse.failure = true;
                    }
                    // The stranger's own migration fails, and its report looks like this one's.
                    if stranger.says == Says::MainPreface {
                        self.excuse.failure = true;
                    }
                    self.strangers
                        .push((if far { Victim::Far } else { Victim::Near }, stranger));
                }
            }
            "late" => {
                let delay = ms(random.between(5, 150));
                if random.percent(50) {
                    let last = self.source.dials.len() - 1;
                    self.source.dials[random.between(1, last as u64) as usize].1 = delay;
                    self.source.early = true;
                    linked = false;
                } else {
                    link.late.push((anyone(random), delay));
                }
            }
            "reordered" => {
                if random.percent(50) {
                    random.shuffle(&mut self.source.dials);
                    linked = false;
                } else {
                    for (who, _) in &self.source.dials {
                        link.late.push((*who, ms(random.below(40))));
                    }
                }
            }
            "stall" => {
                let time = ms(random.between(20, 400));
                if random.percent(50) {
                    let who = anyone(random);
                    let place = random.below(plan.bytes_of(who));
                    self.source.pause = Some((who, place, time));
                    linked = false;
                } else {
                    link.faults.push(place.fault(
                        anyone(random),
                        plan,
                        random,
                        Happening::Stall(time),
                    ));
                }
            }
            "slow link" => {
                let pieces = random.between(20, 60);
                link.slow = Some(((all / pieces) as usize + 1, ms(random.between(1, 8))));
            }
            "reset" | "cut" | "half-close" => {
                let what = match self.fault {
                    "reset" => Happening::Reset,
                    "cut" => Happening::Cut,
                    _ => Happening::HalfClose,
                };
                link.faults
                    .push(place.fault(anyone(random), plan, random, what));
                self.broken();
            }
            "lost bytes" | "bytes come twice" => {
                let bytes = random.between(1, 200);
                let what = match self.fault {
                    "lost bytes" => Happening::Lose(bytes),
                    _ => Happening::Repeat(bytes),
                };
                let mut fault = Place::Trunk.fault(anyone(random), plan, random, what);
                fault.back = false;
                self.links[1] = Some(LinkBehaviour {
                    faults: vec![fault],
                    ..LinkBehaviour::default()
                });
                linked = false;
                self.broken();
            }
            "preface comes twice" => {
                let who = anyone(random);
                let behind = random.percent(60).then(|| ms(random.below(40)));
                // A late preface of main cannot disturb: the migration's number is in use by then.
                if behind.is_none() || who != Who::Main {
                    self.broken();
                    self.excuse.standstill = true;
                    self.source.patience = IMPATIENCE;
                }
                let stays = ms(random.below(300));
                self.links[1] = Some(LinkBehaviour {
                    echo: Some(Echo { who, behind, stays }),
                    ..LinkBehaviour::default()
                });
                linked = false;
            }
            "flip" if is_trunk && (leg == 1 || self.kind == Kind::Tls) => {
                let bits = 1 << random.below(8);
                let what = Happening::Flip(bits);
                self.links[1] = Some(LinkBehaviour {
                    faults: vec![Place::Trunk.fault(anyone(random), plan, random, what)],
                    ..LinkBehaviour::default()
                });
                linked = false;
                self.broken();
            }
            "all cut" => {
                link.cut_all = Some(moment(random));
                self.broken();
            }
            "flip" => {
                self.excuse.failure = true;
                self.excuse.gap = true;
                let id = random.below(u64::from(plan.shape.channels)) as u8;
                let bits = 1 << random.below(8);
                // Flips go to the magics of hello and first packet, which are the same on each leg.
                let base = random.pick(&[0, Hello::LEN as u64]);
                let place = base + random.below(4);
                if leg == 0 && random.percent(50) {
                    self.source.flip = Some((Who::Channel(id), place, bits));
                    linked = false;
                } else if base > 0 {
                    link.faults.push(LinkFault {
                        who: Who::Channel(id),
                        after: place,
                        back: false,
                        what: Happening::Flip(bits),
                    });
                } else {
                    self.source.flip = Some((Who::Main, random.below(4), bits));
                    linked = false;
                }
                // A connection without its magic belongs to no migration, so parts may wait for it.
                self.excuse.standstill = true;
                self.source.patience = IMPATIENCE;
            }
            "cancel" => {
                linked = false;
                self.source.cancel = Some(moment(random));
                self.broken();
            }
            "few channels" => {
                linked = false;
                self.destination.channels += 1;
                self.excuse.failure = true;
                self.excuse.standstill = true;
                self.source.patience = IMPATIENCE;
            }
            "many channels" => {
                linked = false;
                self.destination.channels -= 1;
                // A destination with all its channels closes a further one together with the bytes
                // in its socket. So QEMU itself loses pages, and no relay can see it.
                self.excuse.wrong_pages = usize::MAX;
                self.excuse.failure = true;
                self.excuse.standstill = true;
                self.excuse.gap = true;
                self.source.patience = IMPATIENCE;
            }
            "refuses" => {
                linked = false;
                self.destination.refuses = true;
                self.excuse.failure = true;
            }
            "destination resets" => {
                linked = false;
                let who = anyone(random);
                self.destination.resets = Some((who, random.below(plan.bytes_of(who))));
                self.broken();
                self.excuse.freeze = true;
            }
            "destination pauses" => {
                linked = false;
                self.destination.pause = Some((random.below(all), ms(random.between(20, 600))));
            }
            "slow reader" => {
                linked = false;
                let pieces = random.between(20, 60);
                let pause = ms(random.between(1, 6));
                self.destination.slow = Some(((all / pieces) as usize + 1, pause));
            }
            "kill source" => {
                linked = false;
                self.source.kill = Some(moment(random));
                self.broken();
            }
            "kill destination" => {
                linked = false;
                self.destination.kill = Some(moment(random));
                self.broken();
            }
            "kill near" | "kill far" => {
                linked = false;
                let victim = if self.fault == "kill far" {
                    Victim::Far
                } else {
                    Victim::Near
                };
                let (at, delay) = moment(random);
                self.kill = Some((victim, at, delay));
                self.broken();
            }
            "duplicate hello" => {
                linked = false;
                self.duplicate = Some(ms(random.below(15)));
                self.excuse.failure = true;
                self.excuse.gap = true;
                self.excuse.standstill = true;
                self.source.patience = IMPATIENCE;
            }
            "stale hello" => {
                linked = false;
                let stale = Stranger {
                    says: Says::StaleHello(plan.shape.uuid),
                    delay: Duration::ZERO,
                    stays: None,
                };
                self.strangers.push((Victim::Near, stale));
            }
            "second" => {
                linked = false;
                let same = plan.shape.uuid == [0; 16] || !plan.shape.states_uuid;
                let delay = ms(random.pick(&[0, 0, 2, 10, 40]));
                self.second = Some(Second { same, delay });
                if same {
                    self.excuse.failure = true;
                    self.excuse.gap = true;
                    self.excuse.standstill = true;
                    self.source.patience = IMPATIENCE;
                }
            }
            "no descriptors" => {
                linked = false;
                self.bounds.files = Some(random.between(14, 44));
                self.bounded = self.any_relay(random);
                self.broken();
            }
            "no threads" => {
                linked = false;
                self.bounds.threads = Some(random.between(4, 20));
                self.bounded = self.any_relay(random);
                self.broken();
            }
            "full disk" => {
                linked = false;
                let pages: usize = plan.shape.blocks.iter().sum();
                self.disk = Some(random.between(8192, (pages * PAGE) as u64 + 40_000));
                self.broken();
            }
            _ => linked = false,
        }
        if self.kind == Kind::Qemu {
            self.stretch(&mut link, random);
        }
        if linked {
            self.links[leg] = Some(link);
        }
    }

    /// Moves the places of faults further back, because a real guest sends more than a plan.
    fn stretch(&mut self, link: &mut LinkBehaviour, random: &mut Random) {
        let by = random.between(1, 6);
        for fault in &mut link.faults {
            fault.after *= if fault.after < 70 { 1 } else { by };
        }
        link.slow = link.slow.map(|(bytes, pause)| (bytes * by as usize, pause));
        let moments = [
            link.cut_all.as_mut().map(|(at, _)| at),
            self.source.cancel.as_mut().map(|(at, _)| at),
            self.source.kill.as_mut().map(|(at, _)| at),
            self.destination.kill.as_mut().map(|(at, _)| at),
            self.destination.pause.as_mut().map(|(at, _)| at),
            self.kill.as_mut().map(|(_, at, _)| at),
        ];
        for at in moments.into_iter().flatten() {
            *at *= by;
        }
        if let Some((_, time)) = &mut self.destination.pause {
            *time *= 4;
        }
    }

    /// One of the two relays at a trunk; otherwise the near part.
    fn any_relay(&self, random: &mut Random) -> Victim {
        match self.between != Between::Qemu && random.percent(50) {
            true => Victim::Far,
            false => Victim::Near,
        }
    }

    /// Excuses a failure at any moment, because the fault breaks something.
    fn broken(&mut self) {
        self.excuse.failure = true;
        self.excuse.gap = true;
    }
}

/// The content of a connection, which decides where faults go.
#[derive(Clone, Copy)]
enum Place {
    /// A QEMU's stream.
    Qemu,
    /// A trunk's prefaces and frames, which may be much shorter.
    Trunk,
}

impl Place {
    /// Puts a fault at a random place of a connection, often at its very beginning or end.
    fn fault(self, who: Who, plan: &Plan, random: &mut Random, what: Happening) -> LinkFault {
        let bytes = plan.bytes_of(who);
        let mut back = false;
        let after = match (self, random.below(6)) {
            (Self::Qemu, 0) => random.below(70),
            (Self::Qemu, 1) => bytes.saturating_sub(random.below(30)),
            (Self::Qemu, _) => random.below(bytes),
            (Self::Trunk, 0) => {
                back = true;
                random.below(70)
            }
            (Self::Trunk, 1) => random.below(140),
            (Self::Trunk, 2) => random.between(100, 400),
            (Self::Trunk, 3) => random.below(bytes / 10 + 200),
            (Self::Trunk, _) => random.below(bytes),
        };
        LinkFault {
            who,
            after,
            back,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Kind, Scenario};

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
            "none",
            "kill near",
            "kill far",
            "kill destination",
            "second",
            "flip",
        ] {
            assert!(relays.contains(fault), "{fault}: {relays:?}");
        }
        assert_eq!(relays.len(), 27, "{relays:?}");
        let trunks = faults(Kind::Trunks);
        for fault in ["lost bytes", "bytes come twice", "preface comes twice"] {
            assert!(trunks.contains(fault), "{fault}: {trunks:?}");
        }
        assert_eq!(trunks.len(), 30, "{trunks:?}");
        // An encrypted preface cannot be repeated.
        assert_eq!(faults(Kind::Tls).len(), 29);
        assert!(faults(Kind::Receive).contains("full disk"));
        assert!(!faults(Kind::Engines).contains("duplicate hello"));
        assert!(faults(Kind::Qemu).contains("destination pauses"));
    }
}
