//! The main channel: passed on byte for byte, and followed as far as needed to know where rounds
//! end and whether the migration went through whole.

use std::io::{self, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{Clock, Doing, Moment, RoundFault};
use multifd_wire::Limits;
use multifd_wire::main_stream::{Command, MainEvent, MainReceiver};

use super::back::WORD_PAUSE;
use super::counters::Counters;
use super::gate::{End, Gate, Held};
use super::link::Link;
use super::outline::{Outline, Seen};
use super::verify::{self, Mismatch, Sums, Told, VerifyFault};
use super::{CHANNELS_TIMEOUT, Remark, Unusual};
use crate::failure::{Cause, Channel, Failure, Leg, SetupFault};
use crate::marks::Marks;

/// The main channel carries little beside multifd, and a guest's whole memory without it.
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// The beginning of a main stream, for a reader of one that goes on after a break.
const STREAM_START: [u8; 8] = *b"QEVM\0\0\0\x03";

/// Source to destination.
pub(super) struct Forward<'a> {
    pub(super) link: &'a Link,
    pub(super) limits: Limits,
    /// Time limit for the destination to begin, once it has the set-up and the last channel.
    pub(super) begin_timeout: Duration,
    pub(super) outline: &'a Outline,
    pub(super) gate: &'a Gate,
    pub(super) counters: &'a Counters,
    pub(super) clock: &'a Clock,
    pub(super) sums: Option<&'a Sums>,
}

/// Facts that a main stream has shown.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) return_path: bool,
    ram: Option<u32>,
    /// Its RAM section is whole.
    pub(super) ram_ended: bool,
}

impl Facts {
    pub(super) fn note(&mut self, event: &MainEvent) {
        match event {
            MainEvent::Command(Command::OpenReturnPath) => self.return_path = true,
            MainEvent::SectionStart(section) if section.name.as_bytes() == b"ram" => {
                self.ram = Some(section.id);
            }
            MainEvent::SectionEnd { id } if self.ram == Some(*id) => self.ram_ended = true,
            _ => {}
        }
    }
}

/// The state of following the main stream.
struct Follower {
    receiver: MainReceiver,
    marks: Marks,
    facts: Facts,
    passed: u64,
    /// The bytes that all pages stood for at the last end of a round.
    carried: u64,
    /// The first body of the RAM section has ended.
    is_set_up: bool,
    /// A page with contents was on main itself.
    has_pages: bool,
    /// Blocks may be left out that both ends share.
    ignores_shared: bool,
    lost: bool,
}

impl Follower {
    fn new(limits: Limits) -> Self {
        Self {
            receiver: MainReceiver::new(limits),
            marks: Marks::default(),
            facts: Facts::default(),
            passed: 0,
            carried: 0,
            is_set_up: false,
            has_pages: false,
            ignores_shared: false,
            lost: false,
        }
    }
}

/// A place where the main channel is held.
struct Pause {
    /// Until every channel has passed its SYNC on.
    is_mark: bool,
    /// Until the destination loads.
    ends_setup: bool,
}

impl Forward<'_> {
    /// Passes everything on, `start` first, which has been read already, and the source's end last.
    pub(super) fn run(&self, start: &[u8], is_recovery: bool) -> Result<(), Failure> {
        let mut follower = Follower::new(self.limits);
        if is_recovery {
            self.outline.see(|seen| seen.recovers = true);
            // Elements follow, as in a stream that has begun.
            self.follow(&mut follower, &mut STREAM_START.as_slice())?;
            self.outline.goes_on();
            self.gate.open();
            self.gate.begin();
        }
        self.pass_on(&mut follower, start)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let outcome = match self.link.source.read_now(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The source may now wait for an answer, so write everything held back.
                    self.flush()?;
                    self.counters.main_idle(true);
                    let read = || self.link.source.read_some(&mut buffer);
                    let outcome = self.clock.during(Doing::Reads, read);
                    self.counters.main_idle(false);
                    outcome
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other,
            };
            if outcome.is_err() && self.outline.look(Seen::is_given_up) {
                // Nothing is missing, and nobody but this relay has the guest by now.
                break;
            }
            let count = outcome.map_err(|error| {
                if self.outline.is_taken_back() {
                    failed(Leg::Source, self.outline.taken_back())
                } else if self.outline.look(|seen| seen.confirmed) {
                    // It closed with something unread, and that may be the destination's word.
                    failed(Leg::Destination, Cause::NotTold)
                } else {
                    failed(Leg::Source, Cause::of_connection(error))
                }
            })?;
            if count == 0 {
                break;
            }
            self.pass_on(&mut follower, buffer.get(..count).unwrap_or_default())?;
        }
        self.end(&follower)
    }

    /// The source has closed.
    fn end(&self, follower: &Follower) -> Result<(), Failure> {
        let seen = self.outline.look(Seen::clone);
        if self.outline.is_taken_back() {
            return Err(failed(Leg::Source, self.outline.taken_back()));
        }
        // A source that closes may have given up, with the destination's word on its way.
        if !self.wait_told() {
            return Err(failed(Leg::Here, RoundFault::Stopped.into()));
        }
        if seen.halted && !seen.complete {
            // The migration is to end, and not all of the guest was there.
            return Err(failed(Leg::Here, TransportCause::Cancelled.into()));
        }
        // The source has closed, so nothing more shows whether the destination loads: stop holding
        // bytes.
        self.gate.begin();
        self.flush()?;
        // A clean end is passed on as one, whatever was understood of the stream.
        self.link
            .destination
            .shutdown(Shutdown::Write)
            .map_err(|error| failed(Leg::Destination, error.into()))?;
        self.outline.see(|seen| seen.ended = true);
        // The destination's word counts more than our own reading.
        match follower.receiver.finish() {
            _ if seen.confirmed || follower.lost => Ok(()),
            // A device's state can look like what it is not. All memory was there, so everything is
            // passed on.
            Err(_) if follower.facts.ram_ended => {
                self.outline.remark(Remark(Unusual::EndNotSeen));
                Ok(())
            }
            Err(_) => Err(failed(Leg::Source, Cause::Incomplete)),
            Ok(()) => Ok(()),
        }
    }

    /// If the destination has said that it has the guest: waits until it is certain that the source
    /// was told. `false` if the migration ends instead.
    fn wait_told(&self) -> bool {
        while self.outline.look(|seen| seen.confirmed && !seen.told) {
            if self.gate.is_stopped() {
                return false;
            }
            thread::sleep(WORD_PAUSE);
        }
        true
    }

    /// Passes `bytes` on, up to each mark, and the mark's last byte once it may pass; and behind
    /// the set-up only once the destination loads.
    fn pass_on(&self, follower: &mut Follower, bytes: &[u8]) -> Result<(), Failure> {
        let mut rest = bytes;
        let mut written = 0;
        while let Some(pause) = self.follow(follower, &mut rest)? {
            let end = bytes.len().saturating_sub(rest.len());
            if pause.is_mark {
                let before = end.saturating_sub(1).max(written);
                self.write(bytes.get(written..before).unwrap_or_default())?;
                written = before;
                follower.passed = follower.passed.saturating_add(1);
                self.flush()?;
                self.clock.during(Doing::Waits, || {
                    self.hold(follower)?;
                    self.verify(follower.passed)
                })?;
                let carried = self.counters.totals().carried;
                // The set-up has a mark too, and a switch-over has several.
                if follower.marks.are_flushes() && carried > follower.carried {
                    follower.carried = carried;
                    self.counters.round_ended();
                }
            }
            if pause.ends_setup {
                self.write(bytes.get(written..end).unwrap_or_default())?;
                written = end;
                self.flush()?;
                self.clock.during(Doing::Writes, || self.wait_begun())?;
            }
        }
        self.write(bytes.get(written..).unwrap_or_default())
    }

    /// Follows the stream to the next place where it is to be held, if there is one in `bytes`.
    fn follow(&self, follower: &mut Follower, bytes: &mut &[u8]) -> Result<Option<Pause>, Failure> {
        while !follower.lost {
            let event = match follower.receiver.push(bytes) {
                Ok(Some(event)) => event,
                // Before it is passed on, as with the end itself.
                Ok(None) => {
                    return match self
                        .outline
                        .goes_behind(follower.receiver.is_in_device_state())
                    {
                        true => Ok(None),
                        false => Err(failed(Leg::Here, RoundFault::Stopped.into())),
                    };
                }
                Err(fault) => {
                    self.outline.remark(Remark(Unusual::NotFollowed(fault)));
                    let has_failed = self.outline.see(|seen| {
                        seen.lost = !seen.failed;
                        seen.failed
                    });
                    if has_failed {
                        return Err(failed(Leg::Here, RoundFault::Stopped.into()));
                    }
                    follower.lost = true;
                    self.outline.goes_on();
                    self.gate.open();
                    self.gate.begin();
                    return Ok(None);
                }
            };
            follower.facts.note(&event);
            if follower.facts.ram_ended {
                self.outline.see(|seen| seen.ram_ended = true);
            }
            match &event {
                // Before it is passed on, so that a wish to end knows of it or was first.
                MainEvent::Command(command) if !self.command(*command) => {
                    return Err(failed(Leg::Here, RoundFault::Stopped.into()));
                }
                MainEvent::SectionPart { .. } | MainEvent::SectionEnd { .. } => {
                    self.outline.goes_on();
                }
                MainEvent::Flush => self.outline.see(|seen| seen.has_flush = true),
                MainEvent::RamBlocks(blocks) => {
                    let lengths = blocks.iter().map(|block| block.used_length);
                    self.counters.memory(lengths.fold(0, u64::saturating_add));
                }
                MainEvent::ZeroPage { .. } => self.counters.main_page(),
                MainEvent::Page { .. } => {
                    follower.has_pages = true;
                    self.counters.main_page();
                }
                MainEvent::Configuration(configuration) => {
                    let mut capabilities = configuration.capabilities.iter();
                    follower.ignores_shared =
                        capabilities.any(|name| name.as_bytes() == b"x-ignore-shared");
                }
                // Before it is passed on: the destination may answer the last byte at once.
                MainEvent::Eof if !self.outline.completes() => {
                    return Err(failed(Leg::Here, RoundFault::Stopped.into()));
                }
                _ => {}
            }
            let is_mark = follower.marks.ends_round(&event);
            let ends_setup = !follower.is_set_up && matches!(event, MainEvent::RamEndOfSection);
            follower.is_set_up |= ends_setup;
            if ends_setup {
                self.outline.set_up();
            }
            if is_mark || ends_setup {
                return Ok(Some(Pause {
                    is_mark,
                    ends_setup,
                }));
            }
        }
        Ok(None)
    }

    /// Notes a command. `false` if the migration has failed, and the command makes a difference
    /// that cannot be undone.
    fn command(&self, command: Command) -> bool {
        match command {
            Command::OpenReturnPath => self.outline.see(|seen| seen.return_path = true),
            Command::Ping(_) => self.outline.see(|seen| seen.pinged |= seen.return_path),
            // The switch to postcopy: from here on pages come when they are asked for.
            Command::PostcopyListen | Command::PostcopyRun | Command::Packaged { .. } => {
                if !self.outline.begins_postcopy() {
                    return false;
                }
                self.outline.remark(Remark(Unusual::Postcopy));
                self.gate.open();
            }
            Command::EnableColo => {
                self.outline.remark(Remark(Unusual::Colo));
                self.outline.goes_on();
                self.gate.open();
            }
            _ => {}
        }
        true
    }

    /// Compares the sums that came before a mark with those of this relay, and tells them on.
    fn verify(&self, mark: u64) -> Result<(), Failure> {
        // In postcopy, and behind what cannot be followed, channels have no rounds.
        let (Some(sums), false) = (self.sums, self.gate.is_open()) else {
            return Ok(());
        };
        let Link {
            source,
            destination,
            ..
        } = self.link;
        if source.has_notes() {
            let note = source.told().and_then(|note| verify::parse(mark, &note));
            let all = note.ok_or_else(|| {
                let fault = VerifyFault::from(Mismatch::NotTold { round: mark });
                failed(Leg::Source, fault.into())
            })?;
            for told in &all {
                self.compare(sums, told)?;
            }
            sums.verified(&all);
        }
        let all = sums.take(mark, &self.gate.synced_channels(mark));
        if destination.has_notes() {
            let told = destination.tell(&verify::note(mark, &all));
            told.map_err(|error| failed(Leg::Destination, Cause::of_connection(error)))?;
        }
        if !source.has_notes() {
            sums.verified(&all);
        }
        Ok(())
    }

    fn compare(&self, sums: &Sums, told: &Told) -> Result<(), Failure> {
        let round = told.round.saturating_add(1);
        // A channel that has not come is one that has carried nothing.
        let is_whole = self.gate.wait_synced(told.channel, round);
        if !is_whole && self.gate.is_stopped() {
            return Err(failed(Leg::Here, RoundFault::Stopped.into()));
        }
        let found = sums.of(told.round, told.channel);
        if found == told.sum {
            return Ok(());
        }
        let fault = VerifyFault::from(Mismatch::Differs {
            round,
            found: found.pages,
            told: told.sum.pages,
        });
        Err(Failure {
            channel: Channel::Multifd(told.channel),
            leg: Leg::Source,
            block: None,
            cause: fault.into(),
        })
    }

    fn hold(&self, follower: &Follower) -> Result<(), Failure> {
        // Machine types before 8.1 do not say that there are channels. Behind the set-up a source
        // has sent pages, and where none but zero pages was on main, the others are on channels. A
        // destination that loads has all of its channels, or awaits none.
        let mark = follower.passed;
        let has_none_here =
            mark > 1 && !follower.has_pages && !follower.ignores_shared && !self.gate.is_loading();
        let has_channels = has_none_here || self.outline.look(|seen| seen.has_flush);
        let held = match self.gate.hold(mark, has_channels) {
            Ok(()) => return Ok(()),
            Err(held) => held,
        };
        let (channel, leg, cause) = match held {
            Held::Stopped => (Channel::Main, Leg::Here, RoundFault::Stopped.into()),
            Held::Missing(missing) => {
                let within = CHANNELS_TIMEOUT;
                let fault = match missing {
                    None if !self.outline.look(|seen| seen.has_flush) => {
                        SetupFault::NoPages { within }
                    }
                    _ => SetupFault::ChannelsMissing { missing, within },
                };
                (Channel::Main, Leg::Source, fault.into())
            }
            Held::NoSync {
                channel,
                end: Some(End::Abandoned(kind)),
                ..
            } => {
                let cause = io::Error::from(kind).into();
                (Channel::Multifd(channel), Leg::Destination, cause)
            }
            Held::NoSync { channel, found, .. } => {
                let fault = RoundFault::MissingSync {
                    found,
                    wanted: mark,
                };
                (Channel::Multifd(channel), Leg::Source, fault.into())
            }
        };
        let block = None;
        Err(Failure {
            channel,
            leg,
            block,
            cause,
        })
    }

    /// Waits until the destination shows that it loads, where it can show it: it answers a ping on
    /// the return path, and reads a unix socket empty.
    fn wait_begun(&self) -> Result<(), Failure> {
        let pinged = self.outline.look(|seen| seen.pinged);
        let destination = &self.link.destination;
        let shows = pinged || destination.unix().is_some();
        if !shows {
            self.gate.begin();
        }
        // Another relay reads its set-up before its own destination does, so the answer counts
        // where there is to be one.
        let since = Moment::now();
        let within = self.begin_timeout;
        let look = |gate: &Gate| {
            if !pinged && destination.unsent_bytes() == 0 {
                gate.begin();
            }
            // Nothing more comes of a source that waits for no word and has closed. What it has
            // sent is passed on.
            if self.link.source.peer_has_closed() && !self.outline.is_taken_back() {
                gate.begin();
            }
            let since = gate.moved().map_or(since, |moved| since.max(moved));
            if since.elapsed() < within {
                return Ok(());
            }
            let channels = gate.channels();
            let fault = SetupFault::NotBegun { channels, within };
            Err(failed(Leg::Destination, fault.into()))
        };
        match self.gate.wait_begun(look)? {
            true => Ok(()),
            false => Err(failed(Leg::Here, RoundFault::Stopped.into())),
        }
    }

    /// Writes `bytes`, at the latest with the next [`flush`](Self::flush).
    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        let write = || self.link.destination.write_ahead(bytes);
        self.wrote(bytes.len(), self.clock.during(Doing::Writes, write))
    }

    /// Writes what was taken and not written.
    fn flush(&self) -> Result<(), Failure> {
        let flush = || (&self.link.destination).flush();
        self.wrote(0, self.clock.during(Doing::Writes, flush))
    }

    fn wrote(&self, len: usize, outcome: io::Result<()>) -> Result<(), Failure> {
        outcome.map_err(|error| failed(Leg::Destination, error.into()))?;
        let below = [
            self.link.source.bytes_below().map(|[read, _]| read),
            self.link
                .destination
                .bytes_below()
                .map(|[_, written]| written),
        ];
        self.counters.main(len, below);
        Ok(())
    }
}

pub(super) fn failed(leg: Leg, cause: Cause) -> Failure {
    Failure {
        channel: Channel::Main,
        leg,
        block: None,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_transport::Stream;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn link() -> (Link, [UnixStream; 2]) {
        let (source, ours) = UnixStream::pair().unwrap();
        let (there, destination) = UnixStream::pair().unwrap();
        let link = Link {
            channel: Channel::Main,
            source: Arc::new(Stream::from(ours)),
            destination: Stream::from(there),
        };
        (link, [source, destination])
    }

    #[test]
    fn a_destination_that_does_not_begin_is_not_waited_for_without_end() {
        let (link, _ends) = link();
        let forward = Forward {
            link: &link,
            limits: Limits::default(),
            begin_timeout: Duration::from_millis(20),
            outline: &Outline::default(),
            gate: &Gate::default(),
            counters: &Counters::default(),
            clock: &Clock::new(),
            sums: None,
        };
        forward.write(b"a set-up that nobody reads").unwrap();
        let failure = forward.wait_begun().unwrap_err();
        assert_eq!(failure.leg, Leg::Destination);
        assert!(matches!(
            failure.cause,
            Cause::Transport(TransportCause::Setup(SetupFault::NotBegun {
                channels: 0,
                ..
            }))
        ));
    }

    /// A source that gives up closes too, and the destination's word may not have reached it.
    #[test]
    fn a_sources_end_waits_until_it_was_told() {
        for is_told in [true, false] {
            let (link, [source, mut destination]) = link();
            drop(source);
            let (outline, gate) = (Outline::default(), Gate::default());
            outline.see(|seen| (seen.ram_ended, seen.confirmed) = (true, true));
            let forward = Forward {
                link: &link,
                limits: Limits::default(),
                begin_timeout: Duration::ZERO,
                outline: &outline,
                gate: &gate,
                counters: &Counters::default(),
                clock: &Clock::new(),
                sums: None,
            };
            let follower = Follower {
                lost: true,
                ..Follower::new(Limits::default())
            };
            thread::scope(|scope| {
                let ending = scope.spawn(|| forward.end(&follower));
                thread::sleep(Duration::from_millis(50));
                assert!(!ending.is_finished(), "it may be on its way");
                match is_told {
                    true => outline.see(|seen| seen.told = true),
                    false => gate.stop(),
                }
                assert_eq!(ending.join().unwrap().is_ok(), is_told);
            });
            destination.set_nonblocking(true).unwrap();
            let end = destination.read(&mut [0]).ok();
            assert_eq!(
                end,
                is_told.then_some(0),
                "no end but a clean one is passed on"
            );
        }
    }

    #[test]
    fn a_round_without_pages_waits_for_the_channels_that_have_them() {
        let (link, _ends) = link();
        for (has_pages, ignores_shared, passes) in [
            (true, false, true),
            (false, true, true),
            (false, false, false),
        ] {
            let gate = Gate::default();
            let forward = Forward {
                link: &link,
                limits: Limits::default(),
                begin_timeout: Duration::ZERO,
                outline: &Outline::default(),
                gate: &gate,
                counters: &Counters::default(),
                clock: &Clock::new(),
                sums: None,
            };
            let follower = Follower {
                passed: 2,
                has_pages,
                ignores_shared,
                ..Follower::new(Limits::default())
            };
            thread::scope(|scope| {
                let holding = scope.spawn(|| forward.hold(&follower));
                if !passes {
                    thread::sleep(Duration::from_millis(50));
                    assert!(!holding.is_finished(), "no channel has come");
                    gate.stop();
                }
                assert_eq!(holding.join().unwrap().is_ok(), passes);
            });
        }
    }
}
