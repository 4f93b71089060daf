//! The contents of captured channels and recordings.
//!
//! A file holds one direction of one connection, as a tee on the wire sees it, or it is a
//! recording. Its first bytes tell which. It is read in one pass, in pieces; what cannot be read
//! is told with its place, beside everything that could be.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use multifd_wire::main_stream::{self, Block, Command, MainEvent, MainReceiver};
use multifd_wire::{
    ChannelReceiver, Event, Fault, Flags, Limits, Method, Packet, PageSize, UnknownMethod,
};

use crate::failure::Channel;
use crate::recording::{self, Chunk, Reader, RecordingError, Role};

/// Bytes of a captured channel to read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// One table entry of a packet, in bytes.
const TABLE_ENTRY_BYTES: u64 = 8;

/// A file that is being looked through: an iterator over the packets in it.
/// [`finish`](Self::finish) gives the totals.
///
/// Memory, whatever is in the file: a buffer of up to 512 KiB, a chunk of a recording of up to
/// 256 KiB, some 5 KiB for each of at most 256 streams, and the
/// list of RAM blocks, which has at most [`Limits::blocks`] entries of less than 300 bytes.
#[derive(Debug)]
pub struct Inspection {
    source: Source,
    streams: Vec<Followed>,
    /// The bytes read last, of stream `current`; all before `at` has been looked at.
    buffer: Vec<u8>,
    at: usize,
    current: usize,
    damage: Option<InspectError>,
}

/// A packet and where it was found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Sighting {
    /// The stream it is in: its place in [`FileReport::streams`].
    pub stream: usize,
    /// The channel's id.
    pub channel: Channel,
    /// The number of packets before it on its channel.
    pub index: u64,
    /// The offset of its header in its channel, in bytes.
    pub offset: u64,
    /// The header.
    pub packet: Packet,
}

/// The contents of a file.
#[derive(Debug)]
#[non_exhaustive]
pub struct FileReport {
    /// Whether it is a recording. Otherwise it has one stream.
    pub recording: bool,
    /// The connections, in the order of a recording.
    pub streams: Vec<StreamReport>,
    /// Why the file could not be read to its end.
    pub damage: Option<InspectError>,
}

/// The contents of one connection.
#[derive(Debug)]
#[non_exhaustive]
pub struct StreamReport {
    /// The bytes of it that the file has.
    pub bytes: u64,
    /// A summary of its contents.
    pub summary: Summary,
    /// The place at which it could not be followed any further, and the reason.
    pub fault: Option<StreamFault>,
}

/// A fault and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{channel}, at offset {offset}")]
#[non_exhaustive]
pub struct StreamFault {
    /// The channel.
    pub channel: Channel,
    /// On a multifd channel the start of the packet at fault, on the main channel where reading
    /// stopped; in bytes from the start of the channel.
    pub offset: u64,
    /// The fault.
    #[source]
    pub fault: Fault,
}

/// Why nothing can be said about a file, or nothing about the rest of it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InspectError(#[from] Unreadable);

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    /// It cannot be opened, or its first bytes cannot be read.
    #[error("cannot be read")]
    Start(#[source] io::Error),
    /// It begins like nothing that is known here.
    #[error("neither a channel of a migration nor a recording: it starts with {}", Hex(.found))]
    Unknown {
        /// Its first bytes, at most eight.
        found: Vec<u8>,
    },
    /// It is a recording whose header is damaged.
    #[error("not a readable recording")]
    Header(#[source] RecordingError),
    /// It is a recording, and not whole.
    #[error(transparent)]
    Recording(RecordingError),
    /// It could not be read to its end.
    #[error("reading failed")]
    Rest(#[source] io::Error),
}

/// A summary of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a stream is the main channel or a multifd channel"
)]
pub enum Summary {
    /// The main channel.
    Main(MainSummary),
    /// A multifd channel.
    Channel(ChannelSummary),
}

/// A summary of a main channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MainSummary {
    /// The machine type.
    pub machine: Option<String>,
    /// The guest's page size, where the channel states it.
    pub page_size: Option<PageSize>,
    /// The RAM blocks.
    pub blocks: Vec<Block>,
    /// Flush marks.
    pub flush: u64,
    /// Ends of bodies of the RAM section.
    pub eos: u64,
    /// Zero pages.
    pub zero_records: u64,
    /// Pages with contents.
    pub page_records: u64,
    /// Whether the source opened the return path.
    pub return_path: bool,
    /// Whether the source could have switched to postcopy.
    pub postcopy: bool,
}

/// A summary of a multifd channel, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelSummary {
    /// The channel's id, once it has said it; of several together none.
    pub channel: Option<u8>,
    /// Packets of any kind.
    pub packets: u64,
    /// Packets which are a SYNC.
    pub sync: u64,
    /// Packets with the state of a device.
    pub device_state: u64,
    /// Pages with contents.
    pub normal: u64,
    /// Zero pages.
    pub zero: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
    /// Bytes of the channel up to the end of the last packet that says anything. What follows are
    /// empty packets, which QEMU 8.2 and earlier send, and for which no destination waits.
    pub(crate) needed_bytes: u64,
    /// The methods of packets with pages.
    pub methods: BTreeSet<PacketMethod>,
    /// The guest's page size, once it shows.
    pub page_size: Option<PageSize>,
}

/// A method as a packet states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a packet has a method, one that is unknown, or none"
)]
pub enum PacketMethod {
    /// One that QEMU has.
    Known(Method),
    /// Any other.
    Unknown {
        /// The bits of the flags which say it.
        bits: u32,
    },
}

impl PacketMethod {
    /// The method that the flags of a packet with pages state.
    pub fn of(flags: Flags) -> Self {
        match flags.method() {
            Ok(method) => Self::Known(method),
            Err(UnknownMethod { bits }) => Self::Unknown { bits },
        }
    }
}

impl fmt::Display for PacketMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(method) => method.fmt(f),
            Self::Unknown { bits } => write!(f, "unknown-{bits:#04x}"),
        }
    }
}

impl FileReport {
    /// Whether the file was readable to its end, and everything in it.
    pub fn is_sound(&self) -> bool {
        self.damage.is_none() && self.streams.iter().all(|stream| stream.fault.is_none())
    }

    /// The summary of the main channel, if there is one in the file.
    pub fn main(&self) -> Option<&MainSummary> {
        self.streams
            .iter()
            .find_map(|stream| match &stream.summary {
                Summary::Main(main) => Some(main),
                Summary::Channel(_) => None,
            })
    }

    /// The summary of all multifd channels together, if there are any in the file. The id is that
    /// of a single one.
    pub fn channels(&self) -> Option<ChannelSummary> {
        let channels = self
            .streams
            .iter()
            .filter_map(|stream| match &stream.summary {
                Summary::Main(_) => None,
                Summary::Channel(channel) => Some(channel.clone()),
            });
        channels.reduce(ChannelSummary::and)
    }
}

impl Summary {
    /// The channel.
    pub fn channel(&self) -> Channel {
        match self {
            Self::Main(_) => Channel::Main,
            Self::Channel(ChannelSummary {
                channel: Some(id), ..
            }) => Channel::Multifd(*id),
            Self::Channel(ChannelSummary { channel: None, .. }) => Channel::Unnamed,
        }
    }
}

impl ChannelSummary {
    fn and(mut self, other: Self) -> Self {
        self.channel = None;
        self.packets = self.packets.saturating_add(other.packets);
        self.sync = self.sync.saturating_add(other.sync);
        self.device_state = self.device_state.saturating_add(other.device_state);
        self.normal = self.normal.saturating_add(other.normal);
        self.zero = self.zero.saturating_add(other.zero);
        self.payload_bytes = self.payload_bytes.saturating_add(other.payload_bytes);
        self.needed_bytes = self.needed_bytes.saturating_add(other.needed_bytes);
        self.methods.extend(other.methods);
        self.page_size = self.page_size.or(other.page_size);
        self
    }

    fn count(&mut self, packet: &Packet) {
        self.packets = self.packets.saturating_add(1);
        self.payload_bytes = self
            .payload_bytes
            .saturating_add(u64::from(packet.payload_len()));
        match packet {
            Packet::DeviceState(_) => self.device_state = self.device_state.saturating_add(1),
            Packet::Ram(packet) => {
                let (normal, zero) = (packet.normal().len() as u64, packet.zero().len() as u64);
                self.sync = self.sync.saturating_add(u64::from(packet.is_sync()));
                self.normal = self.normal.saturating_add(normal);
                self.zero = self.zero.saturating_add(zero);
                if normal > 0 || zero > 0 {
                    self.methods.insert(PacketMethod::of(packet.flags()));
                }
                self.page_size = self.page_size.or(packet.page_size());
            }
        }
    }
}

impl MainSummary {
    fn count(&mut self, event: MainEvent) {
        match event {
            MainEvent::Configuration(configuration) => {
                self.machine = Some(configuration.machine.to_string());
                self.page_size = configuration.page_size;
            }
            MainEvent::RamBlocks(blocks) => self.blocks = blocks,
            MainEvent::Flush => self.flush = self.flush.saturating_add(1),
            MainEvent::RamEndOfSection => self.eos = self.eos.saturating_add(1),
            MainEvent::ZeroPage { .. } => self.zero_records = self.zero_records.saturating_add(1),
            MainEvent::Page { .. } => self.page_records = self.page_records.saturating_add(1),
            MainEvent::Command(Command::OpenReturnPath) => self.return_path = true,
            MainEvent::Command(Command::PostcopyAdvise) => self.postcopy = true,
            _ => {}
        }
    }
}

impl Inspection {
    /// Opens a file and finds out what it is.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or begins like nothing that is known here.
    pub fn open(path: &Path) -> Result<Self, InspectError> {
        let (file, start) = opened(path).map_err(Unreadable::Start)?;
        let (source, streams) = if start == recording::MAGIC {
            let reader = Reader::new(file).map_err(Unreadable::Header)?;
            (Source::Recording(reader), Vec::new())
        } else {
            let role = match start.first_chunk().copied().map(u32::from_be_bytes) {
                Some(main_stream::MAGIC) => Role::Main,
                Some(multifd_wire::MAGIC) => Role::Channel,
                _ => return Err(Unreadable::Unknown { found: start }.into()),
            };
            (Source::Stream(file.into_inner()), vec![Followed::new(role)])
        };
        Ok(Self {
            source,
            streams,
            buffer: Vec::new(),
            at: 0,
            current: 0,
            damage: None,
        })
    }

    /// Looks through the rest of the file and gives the totals.
    pub fn finish(mut self) -> FileReport {
        while self.next().is_some() {}
        FileReport {
            recording: matches!(self.source, Source::Recording(_)),
            streams: self.streams.into_iter().map(Followed::report).collect(),
            damage: self.damage,
        }
    }

    /// Reads more; `false` at the end of the file.
    fn refill(&mut self) -> Result<bool, InspectError> {
        self.at = 0;
        self.buffer.clear();
        match &mut self.source {
            Source::Stream(file) => {
                file.take(BUFFER_BYTES as u64)
                    .read_to_end(&mut self.buffer)
                    .map_err(Unreadable::Rest)?;
                if let (true, Some(stream)) = (self.buffer.is_empty(), self.streams.first_mut()) {
                    stream.end();
                }
                Ok(!self.buffer.is_empty())
            }
            Source::Recording(reader) => {
                match reader.next_chunk().map_err(Unreadable::Recording)? {
                    Some(Chunk::Open { role, .. }) => self.streams.push(Followed::new(role)),
                    Some(Chunk::Data { stream, bytes }) => {
                        self.current = usize::from(stream);
                        self.buffer.extend_from_slice(bytes);
                    }
                    Some(Chunk::Eof { stream }) => {
                        if let Some(stream) = self.streams.get_mut(usize::from(stream)) {
                            stream.end();
                        }
                    }
                    None => return Ok(false),
                }
                Ok(true)
            }
        }
    }
}

/// Opens a file and looks at its first bytes.
fn opened(path: &Path) -> io::Result<(BufReader<File>, Vec<u8>)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut start = Vec::new();
    (&mut file)
        .take(recording::MAGIC.len() as u64)
        .read_to_end(&mut start)?;
    file.rewind()?;
    Ok((file, start))
}

impl Iterator for Inspection {
    type Item = Sighting;

    fn next(&mut self) -> Option<Sighting> {
        loop {
            let mut rest = self.buffer.get(self.at..).unwrap_or_default();
            if let (false, Some(stream)) = (rest.is_empty(), self.streams.get_mut(self.current)) {
                let sighting = stream.follow(self.current, &mut rest);
                self.at = self.buffer.len().saturating_sub(rest.len());
                if sighting.is_some() {
                    return sighting;
                }
                continue;
            }
            match self.refill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(damage) => {
                    self.damage.get_or_insert(damage);
                    return None;
                }
            }
        }
    }
}

#[derive(Debug)]
enum Source {
    Stream(File),
    Recording(Reader<BufReader<File>>),
}

/// One connection while it is followed.
#[derive(Debug)]
struct Followed {
    receiver: Receiver,
    bytes: u64,
    fault: Option<StreamFault>,
}

#[derive(Debug)]
enum Receiver {
    Main {
        receiver: MainReceiver,
        summary: MainSummary,
    },
    Channel {
        receiver: ChannelReceiver,
        summary: ChannelSummary,
        packet_start: u64,
    },
}

impl Followed {
    fn new(role: Role) -> Self {
        let limits = Limits::default();
        let receiver = match role {
            Role::Main => Receiver::Main {
                receiver: MainReceiver::new(limits),
                summary: MainSummary::default(),
            },
            Role::Channel => Receiver::Channel {
                receiver: ChannelReceiver::new(limits),
                summary: ChannelSummary::default(),
                packet_start: 0,
            },
        };
        Self {
            receiver,
            bytes: 0,
            fault: None,
        }
    }

    /// Follows `input` up to the next packet; with `None` all of it has been followed.
    fn follow(&mut self, stream: usize, input: &mut &[u8]) -> Option<Sighting> {
        let before = input.len();
        let outcome = match self.fault {
            Some(_) => Ok(None),
            None => self.receiver.push(stream, self.bytes, input),
        };
        let sighting = outcome.unwrap_or_else(|fault| {
            self.stop(fault, before.saturating_sub(input.len()));
            None
        });
        if sighting.is_none() {
            *input = &[];
        }
        self.bytes = self
            .bytes
            .saturating_add(before.saturating_sub(input.len()) as u64);
        sighting
    }

    /// Notes that the connection ended.
    fn end(&mut self) {
        let outcome = match &self.receiver {
            Receiver::Main { receiver, .. } => receiver.finish(),
            Receiver::Channel { receiver, .. } => receiver.finish(),
        };
        if let (Err(fault), None) = (outcome, self.fault) {
            self.stop(fault, 0);
        }
    }

    /// Notes a fault `taken` bytes after what was followed before.
    fn stop(&mut self, fault: Fault, taken: usize) {
        let offset = match &self.receiver {
            Receiver::Main { .. } => self.bytes.saturating_add(taken as u64),
            Receiver::Channel { packet_start, .. } => *packet_start,
        };
        self.fault = Some(StreamFault {
            channel: self.receiver.channel(),
            offset,
            fault,
        });
    }

    fn report(self) -> StreamReport {
        let summary = match self.receiver {
            Receiver::Main { summary, .. } => Summary::Main(summary),
            Receiver::Channel { summary, .. } => Summary::Channel(summary),
        };
        StreamReport {
            bytes: self.bytes,
            summary,
            fault: self.fault,
        }
    }
}

impl Receiver {
    fn channel(&self) -> Channel {
        match self {
            Self::Main { .. } => Channel::Main,
            Self::Channel { summary, .. } => {
                summary.channel.map_or(Channel::Unnamed, Channel::Multifd)
            }
        }
    }

    /// Follows `input`, which starts `offset` bytes into the connection.
    fn push(
        &mut self,
        stream: usize,
        offset: u64,
        input: &mut &[u8],
    ) -> Result<Option<Sighting>, Fault> {
        let (receiver, summary, packet_start) = match self {
            Self::Main { receiver, summary } => {
                while let Some(event) = receiver.push(input)? {
                    summary.count(event);
                }
                return Ok(None);
            }
            Self::Channel {
                receiver,
                summary,
                packet_start,
            } => (receiver, summary, packet_start),
        };
        let len = input.len();
        while let Some(event) = receiver.push(input)? {
            let here = offset.saturating_add(len.saturating_sub(input.len()) as u64);
            match event {
                Event::Hello(hello) => {
                    summary.channel = Some(hello.channel);
                    *packet_start = here;
                }
                Event::Packet(packet) => {
                    let sighting = Sighting {
                        stream,
                        channel: Channel::Multifd(summary.channel.unwrap_or_default()),
                        index: summary.packets,
                        offset: *packet_start,
                        packet,
                    };
                    summary.count(&sighting.packet);
                    *packet_start = here.saturating_add(u64::from(sighting.packet.payload_len()));
                    if !is_empty(&sighting.packet) {
                        summary.needed_bytes = *packet_start;
                    }
                    return Ok(Some(sighting));
                }
                Event::Padding { entries } => {
                    let bytes = (entries as u64).saturating_mul(TABLE_ENTRY_BYTES);
                    *packet_start = packet_start.saturating_add(bytes);
                }
                Event::Payload(_) => {}
            }
        }
        Ok(None)
    }
}

fn is_empty(packet: &Packet) -> bool {
    match packet {
        Packet::DeviceState(_) => false,
        Packet::Ram(packet) => {
            !packet.is_sync() && packet.normal().is_empty() && packet.zero().is_empty()
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing at all");
        }
        for (index, byte) in self.0.iter().enumerate() {
            let gap = if index > 0 { " " } else { "" };
            write!(f, "{gap}{byte:02x}")?;
        }
        Ok(())
    }
}
