//! One migration through the relay: its connections, its threads, its end.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use multifd_codec::{Backend, Engine, PageBuffer, PathCounts};
use multifd_wire::{BlockName, Fault, Method, Packet, PageSize, RamPacket};

use super::main_channel::{self, Outline};
use super::{MigrationReport, RelayConfig, Totals, Work};
use crate::endings::{told, wait_for};
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::incoming::{Incoming, IncomingChannel};
use crate::inlet::{Inlet, Item};
use crate::outlet::{FlowFailure, Outlet, Supply, block_of};
use crate::stream::hung_up;
use crate::{Address, Stream};

/// The two connections of one channel.
pub(super) struct Link {
    pub(super) source: Stream,
    pub(super) destination: Stream,
}

impl Link {
    fn dial(source: Stream, address: &Address, channel: Channel) -> Result<Link, Failure> {
        match Stream::connect(address) {
            Ok(destination) => Ok(Link {
                source,
                destination,
            }),
            Err(error) => {
                let cause = Cause::Dial {
                    address: address.clone(),
                    source: error,
                };
                Err(Failure {
                    channel,
                    leg: Leg::Destination,
                    block: None,
                    cause,
                })
            }
        }
    }

    /// Ends every read and write on both connections, here and at the peers.
    fn close(&self) {
        // A connection that cannot be shut down is closed already.
        let _ = self.source.shutdown(Shutdown::Both);
        let _ = self.destination.shutdown(Shutdown::Both);
    }
}

/// Sums over all channels, counted as packets pass.
#[derive(Default)]
pub(super) struct Counters {
    pages: AtomicU64,
    zero_pages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    decoded: Mutex<Option<Work>>,
    encoded: Mutex<Option<Work>>,
}

impl Counters {
    /// Bytes of the main channel, passed on as they are.
    pub(super) fn main(&self, count: usize) {
        self.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
        self.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// What a channel's codecs did, at its end. One that did nothing has nothing to tell.
    fn channel_ended(&self, inlet: &Inlet<'_>, outlet: &Outlet<'_>) {
        let encoder = outlet.encoder();
        add(
            &self.encoded,
            encoder.method(),
            encoder.backend(),
            encoder.counts(),
        );
        if let Some(decoder) = inlet.decoder() {
            add(
                &self.decoded,
                decoder.method(),
                decoder.backend(),
                decoder.counts(),
            );
        }
    }

    fn totals(&self) -> Totals {
        Totals {
            pages: self.pages.load(Ordering::Relaxed),
            zero_pages: self.zero_pages.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        }
    }
}

/// Adds one channel's work. A channel that had to do with less than the others is the one that is told of.
fn add(sum: &Mutex<Option<Work>>, method: Method, backend: Backend, pages: PathCounts) {
    if pages.total() == 0 {
        return;
    }
    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
    let work = sum.get_or_insert_with(|| Work {
        method,
        backend: backend.clone(),
        pages: PathCounts::default(),
    });
    work.pages += pages;
    let falls_short = |backend: &Backend| match (backend.reason(), backend.engine()) {
        (None, _) => 0,
        (Some(_), Engine::QplHardware) => 1,
        (Some(_), _) => 2,
    };
    if falls_short(&backend) >= falls_short(&work.backend) {
        work.backend = backend;
    }
}

/// Passes one migration through.
pub(super) fn run(
    incoming: Incoming,
    config: &RelayConfig,
    progress: &mut dyn FnMut(Totals),
) -> Result<MigrationReport, Failure> {
    let started = Instant::now();
    let channels = incoming.channels.len();
    // Main first: a destination before QEMU 8.0 takes the first connection for it. Nothing is sent on it
    // before all channels are dialled: that is how a receiver knows their number.
    let main = Link::dial(incoming.main, &config.connect, Channel::Main)?;
    let mut links = Vec::with_capacity(channels);
    for IncomingChannel { hello, stream } in incoming.channels {
        let link = Link::dial(stream, &config.connect, Channel::Multifd(hello.channel))?;
        links.push((hello, link));
    }
    let mut pumps = Vec::with_capacity(channels);
    for (hello, link) in &links {
        let channel = Channel::Multifd(hello.channel);
        let failed = |leg| {
            move |cause| Failure {
                channel,
                leg,
                block: None,
                cause,
            }
        };
        let inlet = Inlet::new(&link.source, hello, config.limits, config.settings)
            .map_err(failed(Leg::Source))?;
        let encoder = multifd_codec::encoder(config.compression, &config.settings)
            .map_err(|error| failed(Leg::Destination)(error.into()))?;
        let outlet =
            Outlet::open(&link.destination, hello, encoder).map_err(failed(Leg::Destination))?;
        pumps.push(Pump {
            channel,
            inlet,
            outlet,
            link,
            main: &main,
        });
    }

    let outline = Outline::default();
    let counters = Counters::default();
    let close_all = || {
        main.close();
        links.iter().for_each(|(_, link)| link.close());
    };
    let failure = thread::scope(|scope| {
        let (ended, endings) = mpsc::channel::<Result<(), Failure>>();
        let main_failed = |(leg, cause)| Failure {
            channel: Channel::Main,
            leg,
            block: None,
            cause,
        };
        let (main, start) = (&main, incoming.main_start.as_slice());
        let (outline, counters, close_all) = (&outline, &counters, &close_all);
        let tell = ended.clone();
        scope.spawn(move || {
            told(&tell, close_all, || {
                main_channel::forward(main, start, config.limits, outline, counters)
                    .map_err(main_failed)
            })
        });
        let tell = ended.clone();
        scope.spawn(move || {
            told(&tell, close_all, || {
                main_channel::back(main, outline).map_err(main_failed)
            })
        });
        for pump in pumps {
            let tell = ended.clone();
            scope.spawn(|| drain_back(pump.link));
            scope.spawn(move || told(&tell, close_all, || pump.run(outline, counters)));
        }
        drop(ended);

        // Both directions of main and the forward one of each channel. The backward one of a channel carries nothing and ends with the others.
        let failure = wait_for(
            channels + 2,
            &endings,
            || progress(counters.totals()),
            close_all,
        );
        close_all();
        failure
    });
    match failure {
        Some(failure) => Err(failure),
        None => Ok(MigrationReport {
            channels,
            totals: counters.totals(),
            decoded: counters
                .decoded
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
            encoded: counters
                .encoded
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
            duration: started.elapsed(),
        }),
    }
}

/// The forward direction of one multifd channel.
struct Pump<'s> {
    channel: Channel,
    inlet: Inlet<'s>,
    outlet: Outlet<'s>,
    link: &'s Link,
    main: &'s Link,
}

impl Pump<'_> {
    fn run(mut self, outline: &Outline, counters: &Counters) -> Result<(), Failure> {
        let mut tally = Tally::new(counters);
        let (mut next, mut block) = (None, None);
        loop {
            let went_on = match self.pass_on(&mut next, &mut block, &mut tally) {
                Err((Leg::Destination, Cause::Io(error)))
                    if hung_up(&error) && outline.needs_no_more(block.is_some()) =>
                {
                    counters.channel_ended(&self.inlet, &self.outlet);
                    return self.drain();
                }
                other => other.map_err(|(leg, cause)| {
                    let cause = self.plain_cause(leg, cause);
                    Failure {
                        channel: self.channel,
                        leg,
                        block: block.take(),
                        cause,
                    }
                })?,
            };
            tally.read(&self.inlet);
            tally.wrote(self.outlet.bytes_out());
            if !went_on {
                counters.channel_ended(&self.inlet, &self.outlet);
                return Ok(());
            }
        }
    }

    /// The next item, which may have been read already; `false` at the channel's end. Of packets whose pages are transcoded, as
    /// many as there are. `block` becomes that of the last packet, or of the one which has failed.
    fn pass_on(
        &mut self,
        next: &mut Option<Item>,
        block: &mut Option<Box<BlockName>>,
        tally: &mut Tally<'_>,
    ) -> Result<bool, (Leg, Cause)> {
        let source = |cause| (Leg::Source, cause);
        let destination = |cause| (Leg::Destination, cause);
        *block = None;
        let item = match next.take() {
            Some(item) => item,
            None => self.inlet.next_item().map_err(source)?,
        };
        match item {
            Item::End => {
                self.link
                    .destination
                    .shutdown(Shutdown::Write)
                    .map_err(|error| destination(error.into()))?;
                return Ok(false);
            }
            Item::Padding { entries } => self.outlet.write_padding(entries).map_err(destination)?,
            Item::Packet(packet @ Packet::DeviceState(_)) => {
                self.outlet.forward(&packet, &mut self.inlet)?
            }
            Item::Packet(Packet::Ram(mut packet)) => {
                *block = block_of(&packet);
                let method = self.outlet.method();
                if let Some(page_size) = packet.page_size()
                    && !packet.normal().is_empty()
                    && self.inlet.method_of(&packet).map_err(source)? != method
                {
                    let mut arriving = Arriving {
                        inlet: &mut self.inlet,
                        first: Some(packet),
                        behind: next,
                        method,
                        page_size,
                        block,
                        tally,
                    };
                    let outcome = self.outlet.write_flow(&mut arriving, page_size);
                    return match outcome {
                        Ok(()) => Ok(true),
                        Err(FlowFailure::Supply(cause)) => Err(source(cause)),
                        Err(FlowFailure::Outlet(cause, failed)) => {
                            *block = failed;
                            Err(destination(cause))
                        }
                    };
                }
                let (pages, zero_pages) = (packet.normal().len(), packet.zero().len());
                packet
                    .set_payload(method, packet.payload_len())
                    .map_err(|fault| source(fault.into()))?;
                self.outlet.forward(&Packet::Ram(packet), &mut self.inlet)?;
                tally.pages(pages, zero_pages);
            }
        }
        Ok(true)
    }

    /// The destination has the guest and has closed the channel, in front of packets that it does
    /// not need: the rest is read and forgotten, so that the source can end in peace.
    fn drain(&self) -> Result<(), Failure> {
        // However the source ends now, nothing is lost by it.
        let _ = io::copy(&mut &self.link.source, &mut io::sink());
        Ok(())
    }

    /// A channel that ends inside a packet is malformed, unless the source has given up the whole migration.
    fn plain_cause(&self, leg: Leg, cause: Cause) -> Cause {
        match cause {
            Cause::Wire(Fault::Truncated { .. })
                if leg == Leg::Source && self.main.source.peer_has_closed() =>
            {
                Cause::Incomplete
            }
            cause => cause,
        }
    }
}

/// Packets that are transcoded, as long as there are some which need not be waited for.
struct Arriving<'p, 's, 'c> {
    inlet: &'p mut Inlet<'s>,
    first: Option<RamPacket>,
    /// What came behind them and is none of them.
    behind: &'p mut Option<Item>,
    /// That of the outlet.
    method: Method,
    page_size: PageSize,
    /// That of the last packet.
    block: &'p mut Option<Box<BlockName>>,
    tally: &'p mut Tally<'c>,
}

impl Supply for Arriving<'_, '_, '_> {
    type Error = Cause;

    fn next(&mut self, pages: &mut PageBuffer) -> Result<Option<RamPacket>, Cause> {
        let packet = match self.first.take() {
            Some(first) => first,
            None if self.behind.is_some() || !self.inlet.has_more() => return Ok(None),
            None => {
                *self.block = None;
                let item = self.inlet.next_item()?;
                if let Item::Packet(Packet::Ram(packet)) = &item {
                    *self.block = block_of(packet);
                }
                match item {
                    Item::Packet(Packet::Ram(packet)) if self.is_one(&packet)? => packet,
                    other => {
                        *self.behind = Some(other);
                        return Ok(None);
                    }
                }
            }
        };
        self.inlet.read_pages_into(&packet, pages)?;
        self.tally.read(self.inlet);
        Ok(Some(packet))
    }

    fn sent(&mut self, normal_pages: usize, zero_pages: usize, bytes: u64) {
        self.tally.pages(normal_pages, zero_pages);
        self.tally.wrote(self.tally.bytes_out + bytes);
    }
}

impl Arriving<'_, '_, '_> {
    /// Whether it is to be transcoded, or has nothing to transcode.
    fn is_one(&mut self, packet: &RamPacket) -> Result<bool, Cause> {
        let fits = packet.page_size() == Some(self.page_size);
        let has_payload = !packet.normal().is_empty();
        Ok(fits && (!has_payload || self.inlet.method_of(packet)? != self.method))
    }
}

/// What a channel adds to the counters.
struct Tally<'c> {
    counters: &'c Counters,
    bytes_in: u64,
    bytes_out: u64,
}

impl<'c> Tally<'c> {
    const fn new(counters: &'c Counters) -> Self {
        Self {
            counters,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    fn pages(&self, normal: usize, zero: usize) {
        let counters = self.counters;
        counters.pages.fetch_add(normal as u64, Ordering::Relaxed);
        counters
            .zero_pages
            .fetch_add(zero as u64, Ordering::Relaxed);
    }

    fn read(&mut self, inlet: &Inlet<'_>) {
        let more = inlet.bytes_in() - self.bytes_in;
        self.counters.bytes_in.fetch_add(more, Ordering::Relaxed);
        self.bytes_in += more;
    }

    /// `bytes_out` in all.
    fn wrote(&mut self, bytes_out: u64) {
        let more = bytes_out - self.bytes_out;
        self.counters.bytes_out.fetch_add(more, Ordering::Relaxed);
        self.bytes_out += more;
    }
}

/// Destination to source on a multifd channel: QEMU sends nothing there but the end of the stream.
fn drain_back(link: &Link) {
    // Whatever ends this direction ends it quietly: the forward direction tells whether the channel is broken.
    let _ = io::copy(&mut &link.destination, &mut &link.source);
    let _ = link.source.shutdown(Shutdown::Write);
}
