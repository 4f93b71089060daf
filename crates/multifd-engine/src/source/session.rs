//! One migration at the source, from the first dial to the end.

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use multifd_codec::auto::{Auto, Lane as EffortLane};
use multifd_codec::delta::Sent;
use multifd_codec::delta::memory::Share;
use multifd_codec::{Encoder, PathCounts};
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{Address, Cancel, Outlet, Stream};
use multifd_wire::{Hello, Limits, RamPacket};

use super::convergence::Convergence;
use super::discards::{Contents, Discards};
use super::pacing::Pacer;
use super::round::{self, Lane, Work};
use super::watch::Watch;
use super::{Guest, GuestState, SourceFailure, on_main};
use crate::control::{self, Accepted, Acked, Block, Capabilities, Completion, Message};
use crate::control_link::{ControlLink, out_of_turn};
use crate::dirty::DirtyBitmap;
use crate::engine_fault::{EngineError, EngineFault};
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::memory::MemoryBlock;
use crate::parameters::Parameters;
use crate::statistics::{Phase, Progress, Statistics, Tally};
use crate::{VmError, digest};

/// Time limit for making one connection. A destination that listens answers within a round trip.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for a destination that has everything to start the guest.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The side that owns the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Custody {
    Running,
    /// Since then.
    Paused(Instant),
    /// Stopped since then, and the destination's.
    GivenAway(Instant),
}

struct Session<'a, 'g> {
    guest: Guest<'g>,
    parameters: &'a Parameters,
    watch: Watch<'a>,
    statistics: Statistics,
    custody: Custody,
    is_tracked: bool,
}

pub(super) fn run(
    address: &Address,
    guest: Guest<'_>,
    parameters: &Parameters,
    cancel: &Cancel,
    observe: &mut dyn FnMut(&Progress),
) -> Result<Statistics, SourceFailure> {
    let mut session = Session {
        guest,
        parameters,
        watch: Watch::new(parameters, cancel, observe),
        statistics: Statistics::default(),
        custody: Custody::Running,
        is_tracked: false,
    };
    // After any failure here the guest continues.
    let outcome = catch_unwind(AssertUnwindSafe(|| session.connect(address)));
    let failed = !matches!(outcome, Ok(Ok(())));
    let state = match session.custody {
        Custody::Paused(since) if failed => {
            let resumed = session.resume();
            session.statistics.downtime = since.elapsed();
            resumed.map_or_else(GuestState::Stopped, |()| GuestState::Runs)
        }
        Custody::GivenAway(_) => GuestState::Unknown,
        Custody::Running | Custody::Paused(_) => GuestState::Runs,
    };
    if session.is_tracked {
        // The guest's side is known by now. It matters more than a log that panics in `stop`.
        let _ = catch_unwind(AssertUnwindSafe(|| session.guest.dirty.stop()));
    }
    session.statistics.total_time = session.watch.elapsed();
    session.statistics.finish();
    let statistics = session.statistics;
    match outcome {
        Ok(Ok(())) => Ok(statistics),
        Ok(Err(failure)) => Err(SourceFailure {
            failure,
            guest: state,
            statistics: Box::new(statistics),
        }),
        Err(panic) => resume_unwind(panic),
    }
}

impl Session<'_, '_> {
    /// Lets the guest go on.
    fn resume(&mut self) -> Result<(), VmError> {
        let resumed = catch_unwind(AssertUnwindSafe(|| self.guest.vm.resume()));
        resumed.unwrap_or_else(|_| Err("it panicked when it was to be resumed".into()))
    }

    fn connect(&mut self, address: &Address) -> Result<(), Failure> {
        // A failure to encode need not disturb a destination.
        let auto = match self.parameters.auto {
            true => Auto::new(self.parameters.multifd_compression, &self.parameters.codec),
            false => None,
        };
        let encoders = self.encoders(auto.as_ref()).map_err(on_main)?;
        let main = self.dial(address).map_err(on_main)?;
        let mut link = ControlLink::new(&main, Limits::default()).map_err(on_main)?;
        let outcome = self.converse(address, encoders, auto.as_ref(), &mut link);
        self.statistics.auto = auto.map(|auto| auto.summary());
        outcome.map_err(|failure| link.explained(failure))
    }

    fn encoders(&self, auto: Option<&Arc<Auto>>) -> Result<Vec<Encoder<RamPacket>>, Cause> {
        let parameters = self.parameters;
        let one = |_| match auto {
            Some(auto) => Encoder::with_steps(auto, &parameters.codec),
            None => Encoder::new(parameters.multifd_compression, &parameters.codec),
        };
        let channels = parameters.multifd_channels.get();
        Ok((0..channels).map(one).collect::<Result<_, _>>()?)
    }

    fn dial(&self, address: &Address) -> Result<Stream, Cause> {
        self.watch.check()?;
        // Not zero, as was just looked at but for a moment.
        let within = self
            .watch
            .left()
            .clamp(Duration::from_millis(1), DIAL_TIMEOUT);
        let dialled = Stream::connect_within(address, within);
        let stream = dialled.map_err(|source| TransportCause::Dial {
            address: address.clone(),
            source,
        })?;
        stream.notice_stalled_peer()?;
        Ok(stream)
    }

    fn converse(
        &mut self,
        address: &Address,
        encoders: Vec<Encoder<RamPacket>>,
        auto: Option<&Arc<Auto>>,
        link: &mut ControlLink<'_>,
    ) -> Result<(), Failure> {
        let session = random().map_err(|error| on_main(error.into()))?;
        let asked = Instant::now();
        let share = Share::take(self.parameters.delta_memory);
        let accepted = self.agree(session, &share, link).map_err(on_main)?;
        let has_differences = accepted.capabilities.contains(Capabilities::DELTA);
        let sent = has_differences.then(|| Arc::new(Sent::in_place(share)));
        let mut convergence = Convergence::new(asked.elapsed());

        let memory = self.guest.memory;
        let blocks = memory.blocks();
        let mut bitmaps = self.bitmaps(&blocks)?;
        let channels = usize::from(accepted.channels);
        let streams = (0..channels)
            .map(|_| self.dial(address).map_err(on_main))
            .collect::<Result<Vec<_>, _>>()?;
        let mut lanes = (0..=u8::MAX)
            .zip(streams.iter().zip(encoders))
            .map(|(id, (stream, encoder))| {
                let outlet = open(id, stream, session, encoder);
                outlet.map(|outlet| Lane::new(id, stream, extend(outlet, sent.as_ref(), auto)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.statistics.channels = lanes.len();
        self.introduce(&blocks, link).map_err(on_main)?;

        let page_size = self.parameters.page_size;
        let contents = |block: &MemoryBlock<'_>| Contents::new(block.range.len_bytes(), page_size);
        let work = Work {
            blocks: &blocks,
            contents: blocks.iter().map(contents).collect(),
            page_size,
            zero_page_detection: self.parameters.zero_page_detection,
            pacer: Pacer::new(self.parameters.max_bandwidth),
            tally: Tally::default(),
            packets: AtomicU64::new(0),
        };
        let discards = match self.guest.dirty.reports_discards() {
            true => None,
            false => {
                Some(Discards::new().map_err(|error| on_main(EngineFault::from(error).into()))?)
            }
        };
        let mut migration = Migration {
            session: self,
            discards,
            link,
            work: &work,
            lanes: &mut lanes,
            bitmaps: &mut bitmaps,
            convergence: &mut convergence,
            fetched: Instant::now(),
            round: 0,
        };
        let outcome = migration.run(accepted.capabilities.contains(Capabilities::DIGEST));
        self.account(&work, &lanes, link);
        self.statistics.differences = sent.map(|sent| sent.counts());
        outcome
    }

    /// Agrees with the destination on what to do.
    fn agree(
        &self,
        session: [u8; 16],
        share: &Share,
        link: &mut ControlLink<'_>,
    ) -> Result<Accepted, Cause> {
        let watch = || self.watch.check();
        let needed = match self.parameters.digest {
            true => Capabilities::DIGEST,
            false => Capabilities::default(),
        };
        let capabilities = match share.bytes() {
            0 => needed,
            _ => needed.union(Capabilities::DELTA),
        };
        let channels = u16::from(self.parameters.multifd_channels.get());
        link.send_preamble(&watch)?;
        let hello = control::Hello {
            capabilities,
            vm: self.guest.uuid,
            session,
            page_size: self.parameters.page_size,
            channels,
            method_bits: self.parameters.multifd_compression.bits(),
        };
        link.send(&Message::Hello(hello), &watch)?;
        link.preamble(&watch)?;
        match link.receive(&watch)? {
            Message::Accepted(accepted) if accepted.channels > channels => {
                Err(EngineFault::OutOfTurn {
                    found: "an acceptance of more channels",
                    wanted: "one of as many or fewer",
                }
                .into())
            }
            Message::Accepted(accepted) if !accepted.capabilities.contains(needed) => {
                Err(EngineFault::NoDigest.into())
            }
            Message::Accepted(accepted) => Ok(Accepted {
                capabilities: accepted.capabilities.intersection(capabilities),
                ..accepted
            }),
            Message::Refused(reason) => Err(EngineFault::Refused { reason }.into()),
            other => Err(out_of_turn(&other, "an acceptance")),
        }
    }

    fn bitmaps(&self, blocks: &[MemoryBlock<'_>]) -> Result<Vec<DirtyBitmap>, Failure> {
        let page_size = self.parameters.page_size;
        let bitmap = |block: &MemoryBlock<'_>| {
            let len_bytes = block.range.len_bytes();
            if !len_bytes.is_multiple_of(page_size.bytes()) {
                let cause = EngineFault::NotWholePages {
                    len_bytes: len_bytes as u64,
                    page_bytes: page_size.bytes(),
                };
                return Err(Failure {
                    block: Some(Box::new(block.name.clone())),
                    ..on_main(cause.into())
                });
            }
            Ok(DirtyBitmap::new(len_bytes, page_size))
        };
        blocks.iter().map(bitmap).collect()
    }

    /// Names the blocks, and waits until the destination has found all channels and its own blocks.
    fn introduce(
        &self,
        blocks: &[MemoryBlock<'_>],
        link: &mut ControlLink<'_>,
    ) -> Result<(), Cause> {
        let watch = || self.watch.check();
        let blocks = blocks.iter().map(|block| Block {
            name: block.name.clone(),
            len_bytes: block.range.len_bytes() as u64,
        });
        link.send(&Message::Blocks(blocks.collect()), &watch)?;
        acknowledged(Acked::Blocks, link, &watch)
    }

    /// Notes what was sent, however it ended.
    fn account(&mut self, work: &Work<'_>, lanes: &[Lane<'_>], link: &ControlLink<'_>) {
        let so_far = work.tally.so_far();
        let statistics = &mut self.statistics;
        let hellos = (lanes.len() * Hello::LEN) as u64;
        statistics.normal = so_far.normal;
        statistics.duplicate = so_far.duplicate;
        statistics.transferred = so_far.bytes + hellos + link.bytes_out();
        statistics.path_counts = lanes
            .iter()
            .map(|lane| lane.outlet.counts())
            .fold(PathCounts::default(), |all, one| all + one);
        statistics.backend = lanes.first().map(|lane| lane.outlet.encoder().backend());
    }
}

/// The part of a session in which everything is connected.
struct Migration<'m, 'a, 'g, 'l, 's> {
    session: &'m mut Session<'a, 'g>,
    link: &'m mut ControlLink<'l>,
    work: &'m Work<'m>,
    lanes: &'m mut [Lane<'s>],
    bitmaps: &'m mut [DirtyBitmap],
    convergence: &'m mut Convergence,
    /// Unless the log reports them.
    discards: Option<Discards>,
    /// When the log was read last.
    fetched: Instant,
    round: u64,
}

impl Migration<'_, '_, '_, '_, '_> {
    fn run(&mut self, digest: bool) -> Result<(), Failure> {
        let started = self.session.guest.dirty.start();
        started.map_err(|error| on_main(EngineFault::from(error).into()))?;
        self.session.is_tracked = true;
        self.fetched = Instant::now();
        self.session.statistics.setup_time = self.session.watch.elapsed();
        self.bitmaps.iter_mut().for_each(DirtyBitmap::insert_all);
        self.send_round(Phase::Bulk)?;
        loop {
            let remaining = self.fetch().map_err(on_main)?;
            let limit = self.session.parameters.downtime_limit;
            let expected = self.convergence.expected_downtime(remaining);
            if remaining == 0 || expected.is_some_and(|expected| expected <= limit) {
                break;
            }
            self.send_round(Phase::Dirty)?;
        }
        self.switch_over(digest)
    }

    /// Adds what the log says to the bitmaps, and what has been discarded; how many pages are to be
    /// sent.
    fn fetch(&mut self) -> Result<u64, Cause> {
        let (since, begun, before) = (self.fetched, Instant::now(), self.pages());
        let fetched = self.session.guest.dirty.fetch(self.bitmaps);
        fetched.map_err(EngineFault::from)?;
        if let Some(discards) = &mut self.discards {
            let sent = self.work.blocks.iter().zip(&self.work.contents);
            for ((block, contents), dirty) in sent.zip(self.bitmaps.iter_mut()) {
                discards.find(block, contents, dirty)?;
            }
        }
        self.fetched = Instant::now();
        self.session.statistics.dirty_sync_count += 1;
        let pages = self.pages();
        self.convergence
            .fetched(pages - before, begun - since, self.fetched - begun);
        self.session.watch.learned(self.convergence, pages);
        Ok(pages)
    }

    /// Pages in the bitmaps.
    fn pages(&self) -> u64 {
        let counts = self.bitmaps.iter().map(|bitmap| bitmap.count() as u64);
        counts.sum()
    }

    /// Sends the pages of the bitmaps, and waits until they are in place.
    fn send_round(&mut self, phase: Phase) -> Result<(), Failure> {
        let (watch, work) = (&self.session.watch, self.work);
        watch.enter(phase, self.round, self.pages());
        let (begun, before) = (Instant::now(), work.tally.so_far());
        round::send(work, self.lanes, self.bitmaps, &mut |left| {
            watch.sent(left, work.tally.so_far());
            watch.check()
        })?;
        let check = || watch.check();
        let mark = Message::RoundMark(self.round);
        self.link.send(&mark, &check).map_err(on_main)?;
        acknowledged(Acked::Round(self.round), self.link, &check).map_err(on_main)?;
        self.bitmaps.iter_mut().for_each(DirtyBitmap::clear);
        let after = work.tally.so_far();
        let (normal, took) = (after.normal.saturating_sub(before.normal), begun.elapsed());
        match phase {
            Phase::Bulk => self.convergence.bulk_round(normal, took),
            _ => {
                let zero = after.duplicate.saturating_sub(before.duplicate);
                self.convergence.dirty_round(normal, zero, took);
            }
        }
        watch.sent(0, after);
        watch.learned(self.convergence, 0);
        self.round += 1;
        self.session.statistics.rounds = self.round;
        Ok(())
    }

    /// Stops the guest, sends the rest and gives it away.
    fn switch_over(&mut self, digest: bool) -> Result<(), Failure> {
        let stopped = Instant::now();
        self.session.custody = Custody::Paused(stopped);
        self.vm("be stopped", |vm| vm.pause())?;
        // Saving the state may write memory, so the last look at what was written comes after it.
        // One round for both: what the guest wrote before its stop is sent no sooner by a round of
        // its own.
        let state = self.vm("tell its state", |vm| vm.save_device_state())?;
        self.fetch().map_err(on_main)?;
        self.send_round(Phase::SwitchOver)?;
        let outcome = self.complete(&state, digest);
        outcome.map_err(on_main)?;

        // The time limit is for what can still be given up.
        let deadline = Instant::now() + START_TIMEOUT;
        let watch = || match Instant::now() < deadline {
            true => Ok(()),
            false => Err(EngineFault::Closed.into()),
        };
        // An error here means that the message is not whole on its way, and no part of it has an
        // effect.
        let sent = self.link.send(&Message::Start, &watch);
        sent.map_err(on_main)?;
        self.session.custody = Custody::GivenAway(stopped);
        let outcome = acknowledged(Acked::Start, self.link, &watch);
        if let Err(Cause::Engine(EngineError(EngineFault::Peer { .. }))) = outcome {
            // It could not start the guest, says so, and so has given it back.
            self.session.custody = Custody::Paused(stopped);
        }
        outcome.map_err(on_main)?;
        self.session.statistics.downtime = stopped.elapsed();
        Ok(())
    }

    /// Sends what is not pages, and waits until the destination has found all of it right.
    fn complete(&mut self, state: &[u8], digest: bool) -> Result<(), Cause> {
        let watch = || self.session.watch.check();
        for piece in state.chunks(control::MAX_PIECE_LEN) {
            self.link
                .send(&Message::DeviceState(piece.to_vec()), &watch)?;
        }
        let page_size = self.work.page_size;
        let sum = || digest::of_memory(self.work.blocks, page_size).map_err(EngineFault::from);
        let completion = Completion {
            device_state_bytes: state.len() as u64,
            digest: digest.then(sum).transpose()?,
        };
        self.link.send(&Message::Completion(completion), &watch)?;
        acknowledged(Acked::Completion, self.link, &watch)
    }

    fn vm<T>(
        &mut self,
        what: &'static str,
        act: impl FnOnce(&mut dyn crate::VmHandle) -> Result<T, crate::VmError>,
    ) -> Result<T, Failure> {
        act(self.session.guest.vm)
            .map_err(|source| on_main(EngineFault::Vm { what, source }.into()))
    }
}

/// Opens one channel.
fn open<'s>(
    id: u8,
    stream: &'s Stream,
    session: [u8; 16],
    encoder: Encoder<RamPacket>,
) -> Result<Outlet<'s>, Failure> {
    let hello = Hello::new(session, id);
    Outlet::open(stream, &hello, encoder).map_err(|cause| Failure {
        channel: Channel::Multifd(id),
        leg: Leg::Destination,
        block: None,
        cause: cause.into(),
    })
}

/// Adds differences and efforts to a channel.
fn extend<'s>(
    mut outlet: Outlet<'s>,
    sent: Option<&Arc<Sent>>,
    auto: Option<&Arc<Auto>>,
) -> Outlet<'s> {
    if let Some(sent) = sent {
        outlet = outlet.with_differences(Arc::clone(sent));
    }
    if let Some(auto) = auto {
        // A destination takes packets of one method.
        outlet = outlet.with_lane(EffortLane::new(Arc::clone(auto)), false);
    }
    outlet
}

/// Waits for one acknowledgement.
fn acknowledged(
    wanted: Acked,
    link: &mut ControlLink<'_>,
    watch: &dyn Fn() -> Result<(), Cause>,
) -> Result<(), Cause> {
    match link.receive(watch)? {
        Message::Ack(acked) if acked == wanted => Ok(()),
        other => Err(out_of_turn(&other, "an acknowledgement")),
    }
}

/// A number that no other attempt has.
fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
