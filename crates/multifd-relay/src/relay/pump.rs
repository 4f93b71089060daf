//! Passes one multifd channel from the source to the destination, packet by packet.

use std::convert::Infallible;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use multifd_codec::Encoder;
use multifd_codec::auto::{Auto, Lane};
use multifd_codec::delta::{Kept, Sent};
use multifd_transport::failure::Cause as TransportCause;
use multifd_transport::{
    Clock, Doing, Inlet, Item, Outlet, Stream, Unwritten, Written, block_of, hung_up,
};
use multifd_wire::{BlockName, Fault, Hello, Method, Packet, PageSize, RamPacket};

use super::RelayConfig;
use super::counters::{Counters, Tally};
use super::first::{self, SYNC_REST, Start};
use super::gate::{End, Gate};
use super::link::{Link, Links};
use super::outline::Outline;
use super::reach::unreached;
use super::verify::Sums;
use super::waits::Clocks;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::leg::{Caller, Terms};

/// The state that all channels of a migration share.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) config: &'a RelayConfig,
    pub(super) target: &'a Caller,
    pub(super) links: &'a Links,
    pub(super) main: &'a Link,
    pub(super) outline: &'a Outline,
    pub(super) gate: &'a Gate,
    pub(super) counters: &'a Counters,
    pub(super) clocks: &'a Clocks,
    /// The pages that the destination's relay keeps, and those that this relay keeps for the
    /// source's.
    pub(super) sent: Option<&'a Arc<Sent>>,
    pub(super) kept: Option<&'a Arc<Kept>>,
    /// The terms with the destination.
    pub(super) terms: Terms,
    /// The measurements of all channels for the choice of effort.
    pub(super) auto: Option<&'a Arc<Auto>>,
    /// The source's channels may have packets of the method `none` among others.
    pub(super) plain_packets_come: bool,
    /// The sums of all carried pages, if relays verify them. Each page is then decompressed.
    pub(super) sums: Option<&'a Sums>,
}

/// Passes one channel on until its end.
pub(super) fn run(hello: Hello, source: &Arc<Stream>, shared: Shared<'_>) -> Result<(), Failure> {
    let id = hello.channel;
    let failed = |broken: Broken| Failure {
        channel: Channel::Multifd(id),
        leg: broken.leg,
        block: broken.block,
        cause: broken.cause,
    };
    let config = shared.config;
    // The hello is passed on together with the complete SYNC after it.
    shared.gate.idle(id, true);
    let start = first::wait(source, &hello, config.limits, shared.gate);
    match start.map_err(|error: io::Error| failed(source_side(error)))? {
        Start::Whole => shared.gate.idle(id, false),
        Start::Nothing => {
            shared.gate.ended(id, End::Closed);
            return Ok(());
        }
        Start::Cut { missing } => {
            let cause = plain_cause(
                Leg::Source,
                Fault::Truncated { missing }.into(),
                shared.main,
            );
            return Err(failed(source_side(cause)));
        }
    }
    let given_up = || shared.gate.is_stopped();
    let dialled = shared
        .target
        .channel(&hello, config.dial_timeout, &given_up);
    let destination =
        dialled.map_err(|error| unreached(error, shared.target.address(), Channel::Multifd(id)))?;
    let link = Arc::new(Link {
        channel: Channel::Multifd(id),
        source: Arc::clone(source),
        destination,
    });
    shared.links.add(&link);
    let clock = shared.clocks.add(&link);
    let inlet = Inlet::new(&link.source, &hello, config.limits, config.settings)
        .map_err(|cause| failed(source_side(cause)))?
        .with_clock(&clock);
    let inlet = match shared.kept {
        Some(kept) => inlet.with_differences(Arc::clone(kept), || shared.gate.is_stopped()),
        None => inlet,
    };
    let inlet = match shared.plain_packets_come {
        true => inlet.with_plain_packets(),
        false => inlet,
    };
    let encoder = match shared.auto {
        Some(auto) => Encoder::with_steps(auto, &config.settings),
        None => Encoder::new(shared.terms.method, &config.settings),
    };
    let encoder = encoder.map_err(|error| failed(on_leg(Leg::Here, error)))?;
    let outlet = match shared.target.is_relay() {
        true => Outlet::open_behind(&link.destination, &hello, encoder),
        false => Outlet::open_later(&link.destination, &hello, encoder),
    };
    let outlet = outlet.map_err(|cause| failed(destination_side(cause)))?;
    let outlet = outlet.with_clock(&clock);
    let outlet = match shared.sent {
        Some(sent) => outlet.with_differences(Arc::clone(sent)),
        None => outlet,
    };
    let outlet = match shared.auto {
        Some(auto) => {
            let lane = Lane::new(Arc::clone(auto));
            outlet.with_lane(lane, shared.terms.has_plain_packets)
        }
        None => outlet,
    };
    let pump = Pump {
        id,
        inlet,
        outlet,
        clock: &clock,
        link: &link,
        shared,
        tally: Tally::new(shared.counters),
        behind: None,
        has_synced: false,
        round: 0,
    };
    let outcome = pump.run();
    clock.stop();
    outcome
}

/// The forward direction of one multifd channel.
struct Pump<'s> {
    id: u8,
    inlet: Inlet<'s>,
    outlet: Outlet<'s>,
    clock: &'s Clock,
    link: &'s Link,
    shared: Shared<'s>,
    tally: Tally<'s>,
    /// The next item or failure, if it was read together with the packets before.
    behind: Option<Result<Item, Broken>>,
    /// Whether the channel's first SYNC was passed on.
    has_synced: bool,
    /// The number of SYNCs that were read.
    round: u64,
}

/// A failure: the leg, the block of the packet in hand, and the cause.
struct Broken {
    leg: Leg,
    block: Option<Box<BlockName>>,
    cause: Cause,
}

impl Broken {
    fn in_packet(self, packet: &RamPacket) -> Self {
        let block = block_of(packet);
        Self { block, ..self }
    }
}

impl Pump<'_> {
    fn run(mut self) -> Result<(), Failure> {
        let Shared {
            outline,
            gate,
            counters,
            ..
        } = self.shared;
        loop {
            let went_on = match self.pass_on() {
                Err(Broken {
                    leg: Leg::Destination,
                    block,
                    cause: Cause::Transport(TransportCause::Io(error)),
                }) if hung_up(&error) && outline.needs_no_more(block.is_some()) => {
                    gate.ended(self.id, End::Abandoned(error.kind()));
                    counters.channel_ended(&self.inlet, &self.outlet);
                    // The destination does not need the rest, or it has failed. Its word on main
                    // shows which, and the source can wait for that.
                    self.link.source.drain();
                    return Ok(());
                }
                other => other.map_err(|broken| Failure {
                    channel: Channel::Multifd(self.id),
                    leg: broken.leg,
                    block: broken.block,
                    cause: plain_cause(broken.leg, broken.cause, self.shared.main),
                })?,
            };
            self.tally.read(&self.inlet);
            self.tally.wrote(self.outlet.bytes_out());
            if !went_on {
                counters.channel_ended(&self.inlet, &self.outlet);
                gate.ended(self.id, End::Closed);
                return Ok(());
            }
        }
    }

    /// Passes the next item on. Returns `false` at the channel's end.
    fn pass_on(&mut self) -> Result<bool, Broken> {
        let item = match self.behind.take() {
            Some(item) => item?,
            None => {
                self.shared.gate.idle(self.id, true);
                let item = self.inlet.next_item().map_err(source_side)?;
                self.shared.gate.idle(self.id, false);
                item
            }
        };
        match item {
            Item::End => {
                let closed = self.link.destination.shutdown(Shutdown::Write);
                closed.map_err(destination_side)?;
                return Ok(false);
            }
            Item::Padding { entries } => {
                let written = self.outlet.write_padding(entries);
                written.map_err(destination_side)?;
            }
            Item::Packet(packet @ Packet::DeviceState(_)) => {
                self.shared.outline.see(|seen| seen.device_state = true);
                self.forward(&packet)?;
                self.outlet.release().map_err(destination_side)?;
            }
            Item::Packet(Packet::Ram(packet)) => match packet.page_size() {
                Some(page_size) if self.is_to_encode(&packet)? => {
                    self.transcode(packet, page_size)?;
                }
                _ => self.pass_as_it_is(packet)?,
            },
        }
        Ok(true)
    }

    /// Transcodes `first`, and all further such packets that can be read without waiting. It reads
    /// while the encoder has room; then it encodes and writes the oldest packet. If there is
    /// nothing to read, it writes all packets in hand.
    fn transcode(&mut self, first: RamPacket, page_size: PageSize) -> Result<(), Broken> {
        let mut first = Some(first);
        loop {
            while first.is_some() || self.outlet.room() > 0 && self.behind.is_none() {
                let next = match first.take() {
                    None if self.inlet.has_more() => self.next_alike(page_size),
                    first => first,
                };
                let Some(packet) = next else {
                    break;
                };
                let mut pages = self.outlet.page_buffer();
                if let Err(cause) = self.inlet.read_pages_into(&packet, &mut pages) {
                    // The packets before this one are written first.
                    self.behind = Some(Err(source_side(cause).in_packet(&packet)));
                    break;
                }
                if let Err(broken) = self.add_up(&packet, pages.as_ref()) {
                    self.behind = Some(Err(broken));
                    break;
                }
                self.tally.read(&self.inlet);
                let is_sync = packet.is_sync();
                self.outlet.push(packet, pages);
                // A page after this SYNC may wait for another channel. That channel's destination
                // may read on only after this SYNC has arrived.
                if is_sync && self.inlet.has_differences() {
                    break;
                }
            }
            let Some(Written { packet, .. }) = self.outlet.pop_and_write()? else {
                return Ok(());
            };
            self.tally.pages(&packet);
            self.tally.wrote(self.outlet.bytes_out());
            // QEMU 8.2 and earlier send a SYNC with pages. If the destination has closed the
            // channel, its mark waits in vain and reports that.
            if packet.is_sync() && !self.link.destination.peer_has_closed() {
                self.shared.gate.synced(self.id);
            }
            self.inlet.recycle(packet);
        }
    }

    /// Reads the next packet, if it is transcoded too or has no payload. Any other item, or a
    /// failure, is kept until the packets in hand are written.
    fn next_alike(&mut self, page_size: PageSize) -> Option<RamPacket> {
        let behind = match self.inlet.next_item().map_err(source_side) {
            Ok(Item::Packet(Packet::Ram(packet))) => match self.is_alike(&packet, page_size) {
                Ok(true) => return Some(packet),
                Ok(false) => Ok(Item::Packet(Packet::Ram(packet))),
                Err(broken) => Err(broken),
            },
            other => other,
        };
        self.behind = Some(behind);
        None
    }

    fn is_alike(&mut self, packet: &RamPacket, page_size: PageSize) -> Result<bool, Broken> {
        let fits = packet.page_size() == Some(page_size);
        Ok(fits && (packet.normal().is_empty() || self.is_to_encode(packet)?))
    }

    /// Whether the outlet has to encode a packet's pages: they have another method, or are to be
    /// compressed again.
    fn is_to_encode(&mut self, packet: &RamPacket) -> Result<bool, Broken> {
        if packet.normal().is_empty() {
            return Ok(false);
        }
        let method = self.inlet.method_of(packet);
        let method = method.map_err(|cause| source_side(cause).in_packet(packet))?;
        let Shared {
            config,
            plain_packets_come,
            sums,
            ..
        } = self.shared;
        // Packets of two streams cannot alternate. A plain packet becomes one of the outlet's own
        // stream, so its neighbours have to join that stream too.
        let is_part = plain_packets_come && method != Method::None
            || self.inlet.has_differences() && !plain_packets_come;
        let has_other_method = method != self.outlet.method();
        let is_wanted_anew = config.recode || is_part;
        Ok(has_other_method || is_wanted_anew || self.outlet.has_differences() || sums.is_some())
    }

    /// Adds a packet's pages to the sums that relays compare.
    fn add_up(&mut self, packet: &RamPacket, contents: &[u8]) -> Result<(), Broken> {
        let Some(sums) = self.shared.sums else {
            return Ok(());
        };
        let added = sums.add(self.id, self.round, packet, contents);
        added.map_err(|fault| source_side(fault).in_packet(packet))?;
        if packet.is_sync() {
            self.round = self.round.saturating_add(1);
        }
        Ok(())
    }

    /// Passes on a packet without transcoding.
    fn pass_as_it_is(&mut self, mut packet: RamPacket) -> Result<(), Broken> {
        self.add_up(&packet, &[])?;
        let method = self.outlet.method();
        packet
            .set_payload(method, packet.payload_len())
            .map_err(|cause| source_side(cause).in_packet(&packet))?;
        let (is_sync, packet) = (packet.is_sync(), Packet::Ram(packet));
        let outcome = self.forward(&packet);
        let Packet::Ram(packet) = packet else {
            return outcome;
        };
        let outcome = outcome.and_then(|()| {
            self.tally.pages(&packet);
            match is_sync {
                true => self.synced(),
                false => self.outlet.release().map_err(destination_side),
            }
        });
        outcome.map_err(|broken| broken.in_packet(&packet))?;
        self.inlet.recycle(packet);
        Ok(())
    }

    /// Passes on a packet and its payload unchanged.
    fn forward(&mut self, packet: &Packet) -> Result<(), Broken> {
        let outcome = self.outlet.forward(packet, &mut self.inlet);
        outcome.map_err(|(leg, cause)| on_leg(leg, cause))
    }

    /// Notes that a SYNC was passed on. The end of the first one's table may not be visible, so
    /// nothing after it is read before the destination loads.
    fn synced(&mut self) -> Result<(), Broken> {
        if !self.has_synced {
            self.has_synced = true;
            while let Some(entries) = self.inlet.open_table() {
                let may_end = first::may_end(entries);
                let more = |within| {
                    let readable = self.link.source.is_readable_within(within);
                    readable.map_err(source_side)
                };
                if first::ends(entries) || may_end && !more(SYNC_REST)? {
                    break;
                }
                match self.inlet.next_item().map_err(source_side)? {
                    Item::Padding { entries } => {
                        let written = self.outlet.write_padding(entries);
                        written.map_err(destination_side)?;
                    }
                    other => {
                        self.behind = Some(Ok(other));
                        break;
                    }
                }
            }
            let released = self.outlet.release();
            released.map_err(destination_side)?;
            self.count_sync()?;
            // The end of the migration also shows in the connections.
            let wait = || self.shared.gate.wait_begun(|_| Ok::<_, Infallible>(()));
            let Ok(_) = self.clock.during(Doing::Waits, wait);
            return Ok(());
        }
        self.count_sync()
    }

    /// Counts a SYNC, unless the peer has closed the connection: the system still takes the bytes,
    /// but the peer does not read them.
    fn count_sync(&self) -> Result<(), Broken> {
        if self.link.destination.peer_has_closed() {
            let closed = io::Error::from(io::ErrorKind::BrokenPipe);
            return Err(destination_side(closed));
        }
        self.shared.gate.synced(self.id);
        Ok(())
    }
}

fn source_side(cause: impl Into<Cause>) -> Broken {
    on_leg(Leg::Source, cause)
}

fn destination_side(cause: impl Into<Cause>) -> Broken {
    on_leg(Leg::Destination, cause)
}

fn on_leg(leg: Leg, cause: impl Into<Cause>) -> Broken {
    Broken {
        leg,
        block: None,
        cause: cause.into(),
    }
}

impl From<Unwritten> for Broken {
    fn from(unwritten: Unwritten) -> Self {
        Self {
            leg: Leg::Destination,
            block: unwritten.block,
            cause: unwritten.cause.into(),
        }
    }
}

/// A channel that ends inside a packet is malformed, unless the source has given up the whole
/// migration.
fn plain_cause(leg: Leg, cause: Cause, main: &Link) -> Cause {
    match cause {
        Cause::Transport(TransportCause::Wire(Fault::Truncated { .. }))
            if leg == Leg::Source && main.source.peer_has_closed() =>
        {
            Cause::Incomplete
        }
        cause => cause,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use multifd_codec::{Accel, Pages, Settings, Streams};
    use multifd_transport::Address;
    use multifd_wire::{ChannelSender, Method, PageSize};
    use testkit::allocations::{Counting, on_this_thread};
    use testkit::pages::{Random, packet};

    use super::*;
    use crate::leg::Introduction;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    const PAGE: PageSize = PageSize::K4;
    const HELLO: Hello = Hello::new([0; 16], 0);
    const WARM_UP: usize = 32;
    const PACKETS: usize = 64;

    /// The bytes of a source after its hello, to be cut into this many pieces: packets of pages
    /// that are not in order, with zero pages among them, and now and then a SYNC.
    fn sent<const PIECES: usize>(method: Method, packets: [usize; PIECES]) -> [Vec<u8>; PIECES] {
        let mut encoder = multifd_codec::encoder(method, &Settings::default()).unwrap();
        let (mut sender, mut payload) = (ChannelSender::new(), Vec::new());
        sender.hello(&HELLO, &mut Vec::new()).unwrap();
        let pages = packet(&mut Random::new(1), 100, PAGE.bytes());
        let normal: Vec<u64> = (0..100).rev().map(|page| page * 4096).collect();
        let zero: Vec<u64> = (100..128).map(|page| page * 4096).collect();
        packets.map(|count| {
            let mut bytes = Vec::new();
            for number in 0..count as u64 {
                let block = BlockName::new(b"pc.ram").unwrap();
                let mut packet = RamPacket::new(PAGE, block, &normal, &zero, number).unwrap();
                let content = Pages::private(&pages, PAGE).unwrap();
                encoder.encode(&content, &mut payload).unwrap();
                packet.set_payload(method, payload.len() as u32).unwrap();
                sender.ram_packet(&packet, &mut bytes).unwrap();
                bytes.extend_from_slice(&payload);
                sender.payload_sent(payload.len()).unwrap();
                if number % 8 == 7 {
                    let sync = RamPacket::sync(PAGE, number);
                    sender.ram_packet(&sync, &mut bytes).unwrap();
                }
            }
            bytes
        })
    }

    /// The number of allocations of the channel's thread for packets in the middle of a migration.
    fn allocations(from: Method, to: Method, settings: Settings, auto: bool) -> usize {
        let pieces = sent(from, [WARM_UP, PACKETS]);
        let mut config = RelayConfig::new(Address::Unix("/nowhere".into()), to);
        config.settings = settings;
        let [(source, near), (far, destination)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        let link = Link {
            channel: Channel::Multifd(0),
            source: Arc::new(Stream::from(near)),
            destination: Stream::from(far),
        };
        let introduction = Introduction {
            name: None,
            migration: None,
            methods: vec![config.compression],
            has_plain_packets: false,
            has_channels: true,
            may_be_postcopy: false,
            is_recovery: false,
            delta_bytes: 0,
            verify: false,
            strands: 1,
        };
        let target =
            Caller::resolve(config.connect.clone(), &config, &introduction, &|| false).unwrap();
        let gate = Gate::default();
        gate.channel_came(0);
        gate.begin();
        let shared = Shared {
            config: &config,
            target: &target,
            links: &Links::default(),
            main: &link,
            outline: &Outline::default(),
            gate: &gate,
            counters: &Counters::default(),
            clocks: &Clocks::default(),
            sent: None,
            kept: None,
            terms: Terms {
                method: to,
                has_plain_packets: false,
                delta_bytes: 0,
            },
            auto: None,
            plain_packets_come: false,
            sums: None,
        };
        let auto = auto.then(|| Auto::new(to, &settings).unwrap());
        let encoder = match &auto {
            Some(auto) => Encoder::with_steps(auto, &settings).unwrap(),
            None => Encoder::new(to, &settings).unwrap(),
        };
        let outlet = Outlet::open(&link.destination, &HELLO, encoder).unwrap();
        let outlet = match auto {
            Some(auto) => outlet.with_lane(Lane::new(auto), true),
            None => outlet,
        };
        let clock = Clock::new();
        let mut pump = Pump {
            id: 0,
            inlet: Inlet::new(&link.source, &HELLO, config.limits, settings)
                .unwrap()
                .with_clock(&clock),
            outlet: outlet.with_clock(&clock),
            clock: &clock,
            link: &link,
            shared,
            tally: Tally::new(shared.counters),
            behind: None,
            has_synced: true,
            round: 0,
        };
        thread::scope(|scope| {
            scope.spawn(|| io::copy(&mut &destination, &mut io::sink()).unwrap());
            let (begin, begins) = mpsc::channel();
            let (source, pieces) = (&source, &pieces);
            scope.spawn(move || {
                for piece in pieces {
                    begins.recv().unwrap();
                    (&mut &*source).write_all(piece).unwrap();
                }
            });
            let mut counts = pieces.each_ref().map(|piece| {
                begin.send(()).unwrap();
                let end = pump.inlet.bytes_in() + piece.len() as u64;
                let before = on_this_thread();
                while pump.inlet.bytes_in() < end {
                    assert!(pump.pass_on().is_ok_and(|went_on| went_on));
                }
                on_this_thread() - before
            });
            link.close();
            let [_, late] = &mut counts;
            *late
        })
    }

    #[test]
    fn nothing_is_allocated_for_a_packet() {
        for accel in [Accel::None, Accel::Software] {
            let mut settings = Settings::default();
            settings.accel = accel;
            for (from, to) in [
                (Method::None, Method::Zlib),
                (Method::Zlib, Method::None),
                (Method::Zlib, Method::Zlib),
                (Method::None, Method::None),
                (Method::None, Method::Qpl),
            ] {
                let found = allocations(from, to, settings, false);
                assert_eq!(found, 0, "{from} to {to}, {accel}");
            }
        }
    }

    /// Each step allocates at most once in a migration: its tables, and larger ones for a level
    /// that was never tried before.
    #[test]
    fn nothing_is_allocated_for_a_packet_whose_effort_changes() {
        let mut settings = Settings::default();
        settings.accel = Accel::Software;
        for to in [Method::Zlib, Method::Zstd] {
            let found = allocations(Method::None, to, settings, true);
            assert_eq!(found, 0, "{to}");
        }
    }

    /// Which buffers grow, and when, is a matter of time where helpers take part. So a few
    /// allocations may be late, and one for each packet may not be.
    #[test]
    fn next_to_nothing_is_allocated_with_helpers() {
        let mut settings = Settings::default();
        settings.accel = Accel::Software;
        settings.streams = Streams::new(4).unwrap();
        for (from, to) in [(Method::None, Method::Zlib), (Method::Zlib, Method::None)] {
            let found = allocations(from, to, settings, false);
            assert!(found <= PACKETS / 4, "{from} to {to}: {found}");
        }
    }
}
