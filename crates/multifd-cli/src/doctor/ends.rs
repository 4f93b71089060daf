//! Both ends of a made migration, in the place of QEMUs: a source that sends for a while, and a
//! destination that looks at each page.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::Settings;
use multifd_transport::{Address, Cancel, Listener, Stream};
use multifd_transport::{Inlet, Item};
use multifd_wire::{BlockName, ChannelSender, Hello, Limits, Method, Packet, PageSize, RamPacket};

use super::guest::{Memory, PAGE_BYTES};

/// The name and the length of the only RAM block: so long that no host sends all of it in the time
/// of an examination.
const BLOCK: &[u8] = b"pc.ram";
const BLOCK_BYTES: u64 = 1 << 40;

/// The pages of a packet with contents, and its zero pages: 128 together, as QEMU has them.
const PAGES: u64 = 112;
const ZERO_PAGES: u64 = 16;

/// How long one read or write may take. A relay gives up before that.
const IO_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a wait asks whether it is still wanted.
const TICK: Duration = Duration::from_millis(5);

/// The first bytes of a main channel.
const MAIN_MAGIC: [u8; 4] = *b"QEVM";

/// A record which says that all channels have synchronised (QEMU's multifd flush).
const FLUSH: [u8; 8] = 0x200_u64.to_be_bytes();

/// The end of a body of the RAM section.
const BODY_END: &[u8] = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

/// A PING on the main channel, and the answer to it.
const PING: &[u8] = b"\x08\0\x02\0\x04\0\0\0\x01";
const PONG: [u8; 8] = [0, 2, 0, 4, 0, 0, 0, 1];

/// The destination's word: it has the guest.
const SHUT_WELL: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Channels, at least 1.
    pub(super) channels: u8,
    /// How long pages are sent for the first time, unless there are no more of them.
    pub(super) first: Duration,
    /// The most packets of a channel that are sent for the first time.
    pub(super) packets: u64,
    /// How long these are then sent again, each time with a change.
    pub(super) again: Duration,
}

/// What has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrived {
    /// Pages with contents, of the first round.
    pub(super) first: u64,
    /// From the first page of that round to the last one.
    pub(super) first_took: Duration,
    /// Pages that were sent again.
    pub(super) again: u64,
    /// From the first of those to the last one.
    pub(super) again_took: Duration,
}

/// Why an end gave up.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a page arrived that is not the one that was sent: page {page} on channel {channel}")]
    Page { page: u64, channel: u8 },
    #[error("pages are missing: {found} arrived, and {sent} were sent")]
    Missing { found: u64, sent: u64 },
    #[error("channel {channel} brought what was not sent there: {found}")]
    Order { channel: u8, found: String },
    #[error("the channel cannot be read: {0}")]
    Channel(String),
    #[error("given up")]
    GivenUp,
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> EndError {
    EndError::Io(io::Error::other(error))
}

/// Sends the guest. Returns how many pages with contents were sent.
///
/// # Errors
/// When a connection breaks, or the destination does not say that it has the guest.
pub(super) fn send(
    memory: &Memory,
    plan: Plan,
    address: &Address,
    cancel: &Cancel,
) -> Result<u64, EndError> {
    let dial = || -> io::Result<Stream> {
        let stream = Stream::connect(address)?;
        stream.set_timeouts(Some(IO_TIMEOUT))?;
        Ok(stream)
    };
    let main = dial()?;
    (&main).write_all(&set_up())?;
    let streams: Vec<(u8, Stream)> = (0..plan.channels)
        .map(|id| Ok((id, dial()?)))
        .collect::<io::Result<_>>()?;
    // A QEMU's main channel ends a round when all its channels have.
    let rounds = Barrier::new(usize::from(plan.channels).saturating_add(1));
    let sent = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        let channels: Vec<_> = streams
            .iter()
            .map(|(id, stream)| {
                let given_up = || cancel.is_cancelled() || failed.load(Ordering::Relaxed);
                let (rounds, sent, failed) = (&rounds, &sent, &failed);
                scope.spawn(move || {
                    let mut channel = Channel::new(*id, plan, memory, stream);
                    let mut outcome = channel.first(&given_up);
                    failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    rounds.wait();
                    if outcome.is_ok() {
                        outcome = channel.again(&given_up);
                        failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    }
                    rounds.wait();
                    sent.fetch_add(channel.sent, Ordering::Relaxed);
                    outcome
                })
            })
            .collect();
        let mut told = Ok(());
        for kind in [2, 3] {
            rounds.wait();
            let mark = [&[kind, 0, 0, 0, 2][..], &FLUSH, BODY_END].concat();
            told = told.and_then(|()| (&main).write_all(&mark));
        }
        for channel in channels {
            channel.join().unwrap_or(Err(EndError::GivenUp))?;
        }
        Ok::<(), EndError>(told?)
    })?;
    // As a QEMU ends a stream: an empty description of devices.
    (&main).write_all(b"\0\x06\0\0\0\x02{}")?;
    let mut back = Vec::new();
    let mut byte = [0];
    while !back.ends_with(&SHUT_WELL) {
        if cancel.is_cancelled() {
            return Err(EndError::GivenUp);
        }
        if main.is_readable_within(TICK)? {
            match (&main).read(&mut byte)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                _ => back.extend_from_slice(&byte),
            }
        }
    }
    for (_, stream) in &streams {
        stream.shutdown(Shutdown::Write)?;
    }
    main.shutdown(Shutdown::Write)?;
    Ok(sent.into_inner())
}

/// The main channel up to the end of the first body of the RAM section: with a return path, one
/// block, and the mark of the channels' first SYNC.
fn set_up() -> Vec<u8> {
    let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x04none".to_vec();
    bytes.extend_from_slice(b"\x08\0\x01\0\0");
    bytes.extend_from_slice(PING);
    bytes.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend_from_slice(&(BLOCK_BYTES | 0x04).to_be_bytes());
    bytes.push(BLOCK.len() as u8);
    bytes.extend_from_slice(BLOCK);
    bytes.extend_from_slice(&BLOCK_BYTES.to_be_bytes());
    bytes.extend_from_slice(&FLUSH);
    bytes.extend_from_slice(BODY_END);
    bytes
}

/// The first page of a channel's packet.
fn first_page(plan: Plan, channel: u8, packet: u64) -> u64 {
    let before = packet.wrapping_mul(u64::from(plan.channels));
    before
        .wrapping_add(u64::from(channel))
        .wrapping_mul(PAGES + ZERO_PAGES)
}

/// A channel of the source.
struct Channel<'a> {
    id: u8,
    plan: Plan,
    memory: &'a Memory,
    stream: &'a Stream,
    sender: ChannelSender,
    number: u64,
    packets: u64,
    sent: u64,
    header: Vec<u8>,
    payload: Vec<u8>,
}

impl<'a> Channel<'a> {
    fn new(id: u8, plan: Plan, memory: &'a Memory, stream: &'a Stream) -> Self {
        Self {
            id,
            plan,
            memory,
            stream,
            sender: ChannelSender::new(),
            number: 0,
            packets: 0,
            sent: 0,
            header: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Hello, a SYNC for the set-up, and new pages.
    fn first(&mut self, given_up: &dyn Fn() -> bool) -> Result<(), EndError> {
        let hello = Hello::new([0; 16], self.id);
        self.sender.hello(&hello, &mut self.header).map_err(other)?;
        self.sync()?;
        let begun = Instant::now();
        while self.packets < self.plan.packets
            && (self.packets == 0 || begun.elapsed() < self.plan.first)
        {
            if given_up() {
                return Err(EndError::GivenUp);
            }
            self.packet(self.packets, 0)?;
            self.packets = self.packets.saturating_add(1);
        }
        self.sync()
    }

    /// The same pages, again and again.
    fn again(&mut self, given_up: &dyn Fn() -> bool) -> Result<(), EndError> {
        let begun = Instant::now();
        let mut writes = 0_u64;
        'all: while !self.plan.again.is_zero() {
            writes = writes.saturating_add(1);
            for packet in 0..self.packets {
                if given_up() {
                    return Err(EndError::GivenUp);
                }
                if (writes, packet) > (1, 0) && begun.elapsed() >= self.plan.again {
                    break 'all;
                }
                self.packet(packet, writes)?;
            }
        }
        self.sync()
    }

    fn sync(&mut self) -> Result<(), EndError> {
        let sync = RamPacket::sync(PageSize::K4, self.next_number());
        self.sender
            .ram_packet(&sync, &mut self.header)
            .map_err(other)?;
        self.stream.write_all_of_two(&self.header, &[])?;
        self.header.clear();
        Ok(())
    }

    fn packet(&mut self, packet: u64, writes: u64) -> Result<(), EndError> {
        let first = first_page(self.plan, self.id, packet);
        let offset = |page: u64| first.wrapping_add(page).wrapping_mul(PAGE_BYTES as u64);
        let normal: Vec<u64> = (0..PAGES).map(offset).collect();
        let zero: Vec<u64> = (PAGES..PAGES + ZERO_PAGES).map(offset).collect();
        self.payload.clear();
        for page in 0..PAGES {
            let number = first.wrapping_add(page);
            self.memory.append(number, writes, &mut self.payload);
        }
        let block = BlockName::new(BLOCK).map_err(other)?;
        let number = self.next_number();
        let mut ram = RamPacket::new(PageSize::K4, block, &normal, &zero, number).map_err(other)?;
        ram.set_payload(Method::None, self.payload.len() as u32)
            .map_err(other)?;
        self.sender
            .ram_packet(&ram, &mut self.header)
            .map_err(other)?;
        self.stream.write_all_of_two(&self.header, &self.payload)?;
        self.header.clear();
        self.sender
            .payload_sent(self.payload.len())
            .map_err(other)?;
        self.sent = self.sent.saturating_add(PAGES);
        Ok(())
    }

    fn next_number(&mut self) -> u64 {
        let number = self.number;
        self.number = self.number.wrapping_add(1);
        number
    }
}

/// The destination's socket.
pub(super) fn listen(path: &Path) -> io::Result<Listener> {
    Listener::bind(&Address::Unix(path.to_owned()))
}

/// Takes the guest, and looks at each page. It says that it has the guest once all pages of all
/// channels have come in their order.
///
/// # Errors
/// When a page is wrong or missing, or a connection breaks.
pub(super) fn take(
    memory: &Memory,
    plan: Plan,
    listener: &Listener,
    cancel: &Cancel,
) -> Result<Arrived, EndError> {
    let mut main = None;
    let mut channels = Vec::new();
    while main.is_none() || channels.len() < usize::from(plan.channels) {
        if cancel.is_cancelled() {
            return Err(EndError::GivenUp);
        }
        let Some(stream) = listener.try_accept()? else {
            thread::sleep(TICK);
            continue;
        };
        stream.set_timeouts(Some(IO_TIMEOUT))?;
        let mut first = [0; 4];
        loop {
            match stream.peek(&mut first) {
                Ok(count) if count == first.len() => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if cancel.is_cancelled() {
                return Err(EndError::GivenUp);
            }
            thread::sleep(TICK);
        }
        match first == MAIN_MAGIC {
            true => main = Some(stream),
            false => channels.push(stream),
        }
    }
    let main = main.ok_or(EndError::GivenUp)?;
    thread::scope(|scope| {
        let channels: Vec<_> = channels
            .iter()
            .map(|stream| scope.spawn(move || look(memory, plan, stream, cancel)))
            .collect();
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        let mut is_answered = false;
        while !said.ends_with(b"{}") {
            let count = main.read_some(&mut buffer)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            said.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if !is_answered && said.windows(PING.len()).any(|bytes| bytes == PING) {
                is_answered = true;
                (&main).write_all(&PONG)?;
            }
        }
        let mut all = Seen::default();
        for channel in channels {
            all = all.and(channel.join().unwrap_or(Err(EndError::GivenUp))?);
        }
        (&main).write_all(&SHUT_WELL)?;
        // The source closes when it has heard that.
        while main.read_some(&mut buffer)? > 0 {}
        Ok(all.arrived())
    })
}

/// What one channel, or all, have brought.
#[derive(Clone, Copy, Default)]
struct Seen {
    pages: [u64; 2],
    from: [Option<Instant>; 2],
    to: [Option<Instant>; 2],
}

impl Seen {
    fn and(self, more: Self) -> Self {
        let round = |of: usize| {
            let pick = |all: [Option<Instant>; 2]| all.get(of).copied().flatten();
            let pages = |all: [u64; 2]| all.get(of).copied().unwrap_or_default();
            let from = [pick(self.from), pick(more.from)].into_iter().flatten();
            (
                pages(self.pages).saturating_add(pages(more.pages)),
                from.min(),
                pick(self.to).max(pick(more.to)),
            )
        };
        let (first, second) = (round(0), round(1));
        Self {
            pages: [first.0, second.0],
            from: [first.1, second.1],
            to: [first.2, second.2],
        }
    }

    fn arrived(self) -> Arrived {
        let took = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        let ([first, again], [from, from_again], [to, to_again]) = (self.pages, self.from, self.to);
        Arrived {
            first,
            first_took: took(from, to),
            again,
            again_took: took(from_again, to_again),
        }
    }
}

/// Looks at the pages of one channel, which come in the order in which they were sent.
fn look(memory: &Memory, plan: Plan, stream: &Stream, cancel: &Cancel) -> Result<Seen, EndError> {
    let mut hello = [0; Hello::LEN];
    let mut reader = stream;
    reader.read_exact(&mut hello)?;
    let hello = Hello::parse(&hello).map_err(|fault| EndError::Channel(fault.to_string()))?;
    let id = hello.channel;
    let broken = |cause: multifd_transport::failure::Cause| EndError::Channel(cause.to_string());
    let mut inlet =
        Inlet::new(stream, &hello, Limits::default(), Settings::default()).map_err(broken)?;
    let mut seen = Seen::default();
    // The number of SYNCs, the packets of the first round, and the place in the rounds behind it.
    let (mut syncs, mut first, mut packet, mut writes) = (0_u64, 0_u64, 0_u64, 0_u64);
    loop {
        if cancel.is_cancelled() {
            return Err(EndError::GivenUp);
        }
        let ram = match inlet.next_item().map_err(broken)? {
            Item::Packet(Packet::Ram(ram)) => ram,
            Item::Padding { .. } => continue,
            // The relay closes a channel when its source has.
            Item::End | Item::Packet(_) => {
                let found = "an end before its time, or another kind of packet".to_owned();
                return Err(EndError::Order { channel: id, found });
            }
        };
        if ram.is_sync() {
            syncs = syncs.saturating_add(1);
            match syncs {
                2 => (first, packet, writes) = (packet, 0, 1),
                3 => return Ok(seen),
                _ => {}
            }
            continue;
        }
        let begins = first_page(plan, id, packet);
        let offset = |page: u64| begins.wrapping_add(page).wrapping_mul(PAGE_BYTES as u64);
        let is_due = ram.normal().iter().copied().eq((0..PAGES).map(offset))
            && ram
                .zero()
                .iter()
                .copied()
                .eq((PAGES..PAGES + ZERO_PAGES).map(offset))
            && (1..=2).contains(&syncs);
        if !is_due {
            let found = format!("{} pages where packet {packet} was due", ram.normal().len());
            return Err(EndError::Order { channel: id, found });
        }
        let pages = inlet.read_pages(&ram).map_err(broken)?;
        for (page, bytes) in (begins..).zip(pages.chunks(PAGE_BYTES)) {
            if !memory.has(page, writes, bytes) {
                return Err(EndError::Page { page, channel: id });
            }
        }
        inlet.recycle(ram);
        let now = Instant::now();
        let round = usize::from(syncs > 1);
        if let (Some(pages), Some(from), Some(to)) = (
            seen.pages.get_mut(round),
            seen.from.get_mut(round),
            seen.to.get_mut(round),
        ) {
            *pages = pages.saturating_add(PAGES);
            from.get_or_insert(now);
            *to = Some(now);
        }
        packet = packet.saturating_add(1);
        if syncs > 1 && packet >= first {
            (packet, writes) = (0, writes.saturating_add(1));
        }
    }
}
