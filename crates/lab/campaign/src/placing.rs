//! Puts a run's fault at its random place.
//!
//! A seed makes the same run only as long as each fault takes its random numbers in this order.

use std::time::Duration;

use multifd_wire::Hello;

use crate::fault::Fault;
use crate::kind::{Between, Kind};
use crate::link::{Echo, Happening, LinkBehaviour, LinkFault};
use crate::plan::{PAGE, Plan, Who};
use crate::random::Random;
use crate::scenario::{Scenario, Second, Victim};
use crate::stranger::{Says, Stranger};

/// The source's patience in a run whose fault may keep the migration from beginning.
const IMPATIENCE: Duration = Duration::from_millis(700);

/// What each fault is placed by.
struct Places<'a> {
    plan: &'a Plan,
    /// The leg whose network is faulty: the source's, or the one between two relays.
    leg: usize,
    /// The content of that leg.
    content: Content,
}

impl Places<'_> {
    /// Main, or one of the channels.
    fn anyone(&self, random: &mut Random) -> Who {
        match random.below(u64::from(self.plan.shape.channels) + 2) {
            0 | 1 => Who::Main,
            id => Who::Channel(id as u8 - 2),
        }
    }

    /// A number of bytes of the migration, and a time after them.
    ///
    /// A third of all moments is the very end, where a mistake gives the guest to both ends or to
    /// neither.
    fn moment(&self, random: &mut Random) -> (u64, Duration) {
        let all = self.plan.bytes();
        match random.below(3) {
            0 => (all, Duration::from_micros(random.below(6000))),
            _ => (random.below(all), Duration::from_micros(random.below(1000))),
        }
    }

    /// A faulty network with one event at a random place of any connection.
    fn network(&self, random: &mut Random, what: Happening) -> LinkBehaviour {
        let who = self.anyone(random);
        LinkBehaviour {
            faults: vec![self.content.fault(who, self.plan, random, what)],
            ..LinkBehaviour::default()
        }
    }

    /// The same for a trunk, whichever leg is faulty otherwise.
    fn trunk(&self, random: &mut Random, what: Happening) -> LinkBehaviour {
        let who = self.anyone(random);
        LinkBehaviour {
            faults: vec![Content::Trunk.fault(who, self.plan, random, what)],
            ..LinkBehaviour::default()
        }
    }
}

/// The content of a connection, which decides where faults go.
#[derive(Clone, Copy)]
enum Content {
    /// A QEMU's stream.
    Qemu,
    /// A trunk's prefaces and frames, which may be much shorter.
    Trunk,
}

impl Content {
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

impl Scenario {
    /// Puts the fault at its random place.
    pub(crate) fn place(&mut self, plan: &Plan, random: &mut Random) {
        let is_trunk = self.between != Between::Qemu;
        let leg = match self.two {
            true if is_trunk && random.percent(60) => 1,
            true => random.index(2),
            false => 0,
        };
        let places = Places {
            plan,
            leg,
            content: if is_trunk && leg == 1 {
                Content::Trunk
            } else {
                Content::Qemu
            },
        };
        let mut link = match self.fault {
            Fault::None => None,
            Fault::Late | Fault::Reordered | Fault::Stall => self.disturb(&places, random),
            Fault::SlowLink | Fault::Reset | Fault::Cut | Fault::HalfClose | Fault::AllCut => {
                Some(self.break_network(&places, random))
            }
            Fault::Flip if is_trunk && (leg == 1 || self.kind == Kind::Tls) => {
                self.break_trunk(&places, random);
                None
            }
            Fault::LostBytes | Fault::BytesComeTwice | Fault::PrefaceComesTwice => {
                self.break_trunk(&places, random);
                None
            }
            Fault::Flip => self.flip_a_magic(&places, random),
            Fault::Cancel | Fault::KillSource | Fault::KillNear | Fault::KillFar => {
                self.end_a_part(&places, random);
                None
            }
            Fault::FewChannels
            | Fault::ManyChannels
            | Fault::Refuses
            | Fault::DestinationResets
            | Fault::DestinationPauses
            | Fault::SlowReader
            | Fault::KillDestination => {
                self.spoil_the_destination(&places, random);
                None
            }
            Fault::Strangers | Fault::DuplicateHello | Fault::StaleHello | Fault::Second => {
                self.bring_others(plan, random);
                None
            }
            Fault::NoDescriptors | Fault::NoThreads | Fault::FullDisk => {
                self.bound(plan, random);
                None
            }
        };
        if self.kind == Kind::Qemu {
            self.stretch(link.as_mut(), random);
        }
        if link.is_some() {
            self.links[leg] = link;
        }
    }

    /// Delays connections or bytes, at the source or in the network.
    fn disturb(&mut self, places: &Places<'_>, random: &mut Random) -> Option<LinkBehaviour> {
        let ms = Duration::from_millis;
        let mut link = LinkBehaviour::default();
        match self.fault {
            Fault::Late => {
                let delay = ms(random.between(5, 150));
                if random.percent(50) {
                    let last = self.source.dials.len() - 1;
                    self.source.dials[random.between(1, last as u64) as usize].1 = delay;
                    self.source.early = true;
                    return None;
                }
                link.late.push((places.anyone(random), delay));
            }
            Fault::Reordered => {
                if random.percent(50) {
                    random.shuffle(&mut self.source.dials);
                    return None;
                }
                for (who, _) in &self.source.dials {
                    link.late.push((*who, ms(random.below(40))));
                }
            }
            _ => {
                let time = ms(random.between(20, 400));
                if random.percent(50) {
                    let who = places.anyone(random);
                    let place = random.below(places.plan.bytes_of(who));
                    self.source.pause = Some((who, place, time));
                    return None;
                }
                link = places.network(random, Happening::Stall(time));
            }
        }
        Some(link)
    }

    /// A network that is slow, or that ends connections.
    fn break_network(&mut self, places: &Places<'_>, random: &mut Random) -> LinkBehaviour {
        let mut link = LinkBehaviour::default();
        match self.fault {
            Fault::SlowLink => {
                let pieces = random.between(20, 60);
                let piece = (places.plan.bytes() / pieces) as usize + 1;
                link.slow = Some((piece, Duration::from_millis(random.between(1, 8))));
                return link;
            }
            Fault::Reset => link = places.network(random, Happening::Reset),
            Fault::Cut => link = places.network(random, Happening::Cut),
            Fault::HalfClose => link = places.network(random, Happening::HalfClose),
            _ => link.cut_all = Some(places.moment(random)),
        }
        self.broken();
        link
    }

    /// A trunk whose bytes or prefaces change, get lost or come twice.
    fn break_trunk(&mut self, places: &Places<'_>, random: &mut Random) {
        let ms = Duration::from_millis;
        let link = match self.fault {
            Fault::PrefaceComesTwice => {
                let who = places.anyone(random);
                let behind = random.percent(60).then(|| ms(random.below(40)));
                // A late preface of main cannot disturb: the migration's number is in use by then.
                if behind.is_none() || who != Who::Main {
                    self.broken();
                    self.may_stand_still();
                }
                let stays = ms(random.below(300));
                LinkBehaviour {
                    echo: Some(Echo { who, behind, stays }),
                    ..LinkBehaviour::default()
                }
            }
            Fault::Flip => {
                let bits = 1 << random.below(8);
                self.broken();
                places.trunk(random, Happening::Flip(bits))
            }
            _ => {
                let bytes = random.between(1, 200);
                let what = match self.fault {
                    Fault::LostBytes => Happening::Lose(bytes),
                    _ => Happening::Repeat(bytes),
                };
                let mut link = places.trunk(random, what);
                for fault in &mut link.faults {
                    fault.back = false;
                }
                self.broken();
                link
            }
        };
        self.links[1] = Some(link);
    }

    /// Flips a bit of a magic of a hello or of a first packet, which are the same on each leg.
    fn flip_a_magic(&mut self, places: &Places<'_>, random: &mut Random) -> Option<LinkBehaviour> {
        self.broken();
        // A connection without its magic belongs to no migration, so parts may wait for it.
        self.may_stand_still();
        let id = random.below(u64::from(places.plan.shape.channels)) as u8;
        let bits = 1 << random.below(8);
        let base = random.pick(&[0, Hello::LEN as u64]);
        let place = base + random.below(4);
        if places.leg == 0 && random.percent(50) {
            self.source.flip = Some((Who::Channel(id), place, bits));
            return None;
        }
        if base == 0 {
            self.source.flip = Some((Who::Main, random.below(4), bits));
            return None;
        }
        Some(LinkBehaviour {
            faults: vec![LinkFault {
                who: Who::Channel(id),
                after: place,
                back: false,
                what: Happening::Flip(bits),
            }],
            ..LinkBehaviour::default()
        })
    }

    /// The source cancels, or a part is killed.
    fn end_a_part(&mut self, places: &Places<'_>, random: &mut Random) {
        let (at, delay) = places.moment(random);
        match self.fault {
            Fault::Cancel => self.source.cancel = Some((at, delay)),
            Fault::KillSource => self.source.kill = Some((at, delay)),
            Fault::KillFar => self.kill = Some((Victim::Far, at, delay)),
            _ => self.kill = Some((Victim::Near, at, delay)),
        }
        self.broken();
    }

    /// A destination that differs, refuses, pauses or ends.
    fn spoil_the_destination(&mut self, places: &Places<'_>, random: &mut Random) {
        let ms = Duration::from_millis;
        let all = places.plan.bytes();
        match self.fault {
            Fault::FewChannels => {
                self.destination.channels += 1;
                self.excuse.failure = true;
                self.may_stand_still();
            }
            Fault::ManyChannels => {
                self.destination.channels -= 1;
                // A destination with all its channels closes a further one together with the bytes
                // in its socket. So QEMU itself loses pages, and no relay can see it.
                self.excuse.wrong_pages = usize::MAX;
                self.broken();
                self.may_stand_still();
            }
            Fault::Refuses => {
                self.destination.refuses = true;
                self.excuse.failure = true;
            }
            Fault::DestinationResets => {
                let who = places.anyone(random);
                let place = random.below(places.plan.bytes_of(who));
                self.destination.resets = Some((who, place));
                self.broken();
                self.excuse.freeze = true;
            }
            Fault::DestinationPauses => {
                let at = random.below(all);
                self.destination.pause = Some((at, ms(random.between(20, 600))));
            }
            Fault::SlowReader => {
                let pieces = random.between(20, 60);
                let pause = ms(random.between(1, 6));
                self.destination.slow = Some(((all / pieces) as usize + 1, pause));
            }
            _ => {
                self.destination.kill = Some(places.moment(random));
                self.broken();
            }
        }
    }

    /// Connections of others, and of an earlier or a second migration.
    fn bring_others(&mut self, plan: &Plan, random: &mut Random) {
        let ms = Duration::from_millis;
        match self.fault {
            Fault::Strangers => {
                for _ in 0..random.between(1, 5) {
                    self.bring_a_stranger(plan, random);
                }
            }
            Fault::DuplicateHello => {
                self.duplicate = Some(ms(random.below(15)));
                self.broken();
                self.may_stand_still();
            }
            Fault::StaleHello => {
                let stale = Stranger {
                    says: Says::StaleHello(plan.shape.uuid),
                    delay: Duration::ZERO,
                    stays: None,
                };
                self.strangers.push((Victim::Near, stale));
            }
            _ => {
                let same = plan.shape.uuid == [0; 16] || !plan.shape.states_uuid;
                let delay = ms(random.pick(&[0, 0, 2, 10, 40]));
                self.second = Some(Second { same, delay });
                if same {
                    self.broken();
                    self.may_stand_still();
                }
            }
        }
    }

    fn bring_a_stranger(&mut self, plan: &Plan, random: &mut Random) {
        let is_trunk = self.between != Between::Qemu;
        let far = self.two && random.percent(if is_trunk { 70 } else { 30 });
        let stranger = if is_trunk && far {
            Stranger::at_a_trunk(random)
        } else {
            Stranger::any(random)
        };
        // Main does not state its VM, so a channel of another VM may belong to it.
        if stranger.says == Says::OtherHello && !plan.shape.states_uuid {
            self.excuse.failure = true;
        }
        // The stranger's own migration fails, and its report looks like this one's.
        if stranger.says == Says::MainPreface {
            self.excuse.failure = true;
        }
        let victim = if far { Victim::Far } else { Victim::Near };
        self.strangers.push((victim, stranger));
    }

    /// A part that lacks descriptors, threads or room on its disk.
    fn bound(&mut self, plan: &Plan, random: &mut Random) {
        match self.fault {
            Fault::NoDescriptors => {
                self.bounds.files = Some(random.between(14, 44));
                self.bounded = self.any_relay(random);
            }
            Fault::NoThreads => {
                self.bounds.threads = Some(random.between(4, 20));
                self.bounded = self.any_relay(random);
            }
            _ => {
                let pages: usize = plan.shape.blocks.iter().sum();
                self.disk = Some(random.between(8192, (pages * PAGE) as u64 + 40_000));
            }
        }
        self.broken();
    }

    /// Moves the places of faults further back, because a real guest sends more than a plan.
    fn stretch(&mut self, link: Option<&mut LinkBehaviour>, random: &mut Random) {
        let by = random.between(1, 6);
        let mut moments = [
            self.source.cancel.as_mut().map(|(at, _)| at),
            self.source.kill.as_mut().map(|(at, _)| at),
            self.destination.kill.as_mut().map(|(at, _)| at),
            self.destination.pause.as_mut().map(|(at, _)| at),
            self.kill.as_mut().map(|(_, at, _)| at),
        ];
        for at in moments.iter_mut().flatten() {
            **at *= by;
        }
        if let Some(link) = link {
            for fault in &mut link.faults {
                fault.after *= if fault.after < 70 { 1 } else { by };
            }
            link.slow = link.slow.map(|(bytes, pause)| (bytes * by as usize, pause));
            if let Some((at, _)) = &mut link.cut_all {
                *at *= by;
            }
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

    /// Excuses a migration that does not begin. Its source gives up early then.
    fn may_stand_still(&mut self) {
        self.excuse.standstill = true;
        self.source.patience = IMPATIENCE;
    }
}
