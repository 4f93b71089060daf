//! The file a recorded migration is kept in.
//!
//! A recording holds every byte the source wrote, of all its connections, interleaved in the order
//! of arrival. It is a header followed by chunks; all numbers are big-endian.
//!
//! ```text
//! header  0  8  magic 89 'm' 'u' 'l' 't' 'i' 'f' 'd'
//!         8  4  version, 1
//!        12  4  CRC-32 of the bytes before
//!
//! chunk   0  1  kind: 1 open, 2 data, 3 end of stream, 4 end of recording
//!         1  1  zero
//!         2  2  stream
//!         4  4  length of the body in bytes
//!         8  4  CRC-32 of the bytes before and of the body
//!        12     body
//! ```
//!
//! | kind | stream | body |
//! | --- | --- | --- |
//! | open | the next free number, from 0 | one byte: 0 the main channel, 1 a multifd channel |
//! | data | an open one | 1 to [`MAX_DATA_BYTES`] bytes the source wrote |
//! | end of stream | an open one, which this closes | empty |
//! | end of recording | 0 | be64 number of chunks before this one, be64 bytes in data chunks |
//!
//! A whole recording has exactly one main channel, closes every stream it opens, and stops after
//! its last chunk. The checksums make damage, and the last chunk makes truncation, an error with a
//! place.

use std::io::{self, Read, Seek, Write};

use multifd_wire::MAX_CHANNELS;

/// The first bytes of every recording. The first is not ASCII, so that no text file and no captured
/// channel starts so.
pub(crate) const MAGIC: [u8; 8] = *b"\x89multifd";

/// The most bytes of one stream in one chunk. This bounds the memory of a reader of recordings.
pub const MAX_DATA_BYTES: usize = 256 * 1024;

/// The most connections of one migration: the main channel and the multifd channels.
pub const MAX_STREAMS: usize = 1 + MAX_CHANNELS;

const VERSION: u32 = 1;
const FILE_HEADER_LEN: usize = 16;
const CHUNK_HEADER_LEN: usize = 12;

/// The kind of a recorded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the format of a recording fixes it"
)]
pub enum Role {
    /// The main channel.
    Main,
    /// A multifd channel.
    Channel,
}

/// One piece of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the format of a recording fixes it"
)]
pub enum Chunk<'a> {
    /// A connection was made.
    Open {
        /// Its number from now on.
        stream: u16,
        /// Its kind.
        role: Role,
    },
    /// The source wrote.
    Data {
        /// On which connection.
        stream: u16,
        /// The bytes that it wrote.
        bytes: &'a [u8],
    },
    /// The source closed a connection.
    Eof {
        /// The stream.
        stream: u16,
    },
}

/// Why a file is not a whole recording.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RecordingError(#[from] RecordingFault);

impl RecordingError {
    /// The file cannot be opened.
    pub(crate) fn unopened(source: io::Error) -> Self {
        Self(RecordingFault::Io { offset: 0, source })
    }
}

/// Offsets are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
enum RecordingFault {
    /// The file could not be read.
    #[error("reading the recording at offset {offset} failed")]
    Io {
        /// The offset in the file.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The file does not start like a recording.
    #[error("not a recording: it starts with {found:02x?}")]
    NotARecording {
        /// Its first bytes.
        found: [u8; 8],
    },
    /// The file is of a version this program does not know.
    #[error("recording of version {found}, only version {VERSION} is known")]
    Version {
        /// The version it states.
        found: u32,
    },
    /// The file ends before the recording does.
    #[error("recording cut short: the chunk at offset {offset} is not all there")]
    Truncated {
        /// The offset of the unfinished chunk.
        offset: u64,
    },
    /// A checksum does not hold.
    #[error("recording damaged at offset {offset}: checksum {computed:08x}, expected {stored:08x}")]
    Damaged {
        /// The offset of the damaged chunk.
        offset: u64,
        /// The checksum in the file.
        stored: u32,
        /// The checksum of what is in the file.
        computed: u32,
    },
    /// A chunk is longer than its kind allows.
    #[error("chunk at offset {offset} claims {found} bytes, at most {allowed} are allowed")]
    ChunkLength {
        /// The offset of the chunk.
        offset: u64,
        /// The length it claims.
        found: u32,
        /// The most that is allowed.
        allowed: usize,
    },
    /// A chunk which is whole says something that no recording says.
    #[error("chunk at offset {offset} makes no sense: {what}")]
    Nonsense {
        /// The offset of the chunk.
        offset: u64,
        /// The fault.
        what: &'static str,
    },
}

/// Writes a recording, chunk by chunk.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    streams: u16,
    chunks: u64,
    data_bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Starts a recording by writing its header.
    ///
    /// # Errors
    ///
    /// What `out` answers.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut header = Vec::with_capacity(FILE_HEADER_LEN);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_be_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_be_bytes());
        out.write_all(&header)?;
        Ok(Self {
            out,
            streams: 0,
            chunks: 0,
            data_bytes: 0,
        })
    }

    /// Notes a new connection and gives the number of its stream.
    ///
    /// # Errors
    ///
    /// What the output answers; `InvalidInput` for more connections than a migration can have.
    pub fn open(&mut self, role: Role) -> io::Result<u16> {
        if usize::from(self.streams) >= MAX_STREAMS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a recording holds at most {MAX_STREAMS} connections"),
            ));
        }
        let stream = self.streams;
        self.chunk(Kind::Open, stream, &[role.to_byte()])?;
        self.streams = self.streams.saturating_add(1);
        Ok(stream)
    }

    /// Keeps bytes the source wrote on `stream`.
    ///
    /// # Errors
    ///
    /// What the output answers.
    pub fn data(&mut self, stream: u16, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(MAX_DATA_BYTES) {
            self.chunk(Kind::Data, stream, piece)?;
            self.data_bytes = self.data_bytes.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Notes that the source closed `stream`.
    ///
    /// # Errors
    ///
    /// What the output answers.
    pub fn eof(&mut self, stream: u16) -> io::Result<()> {
        self.chunk(Kind::Eof, stream, &[])
    }

    /// Hands what is written so far to the system.
    ///
    /// # Errors
    ///
    /// What the output answers.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the recording and gives the output back, flushed.
    ///
    /// # Errors
    ///
    /// What the output answers.
    pub fn finish(mut self) -> io::Result<W> {
        let mut totals = Vec::with_capacity(TOTALS_LEN);
        totals.extend_from_slice(&self.chunks.to_be_bytes());
        totals.extend_from_slice(&self.data_bytes.to_be_bytes());
        self.chunk(Kind::End, 0, &totals)?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// The output, to reach what lies behind it.
    pub fn output(&self) -> &W {
        &self.out
    }

    fn chunk(&mut self, kind: Kind, stream: u16, body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "chunk too long"))?;
        let head = ChunkHead {
            kind: kind as u8,
            reserved: 0,
            stream,
            len,
        }
        .to_bytes();
        let crc = checksum(&head, body);
        self.out.write_all(&head)?;
        self.out.write_all(&crc.to_be_bytes())?;
        self.out.write_all(body)?;
        self.chunks = self.chunks.saturating_add(1);
        Ok(())
    }
}

/// Reads a recording from its start to its end, checking everything it passes.
///
/// Memory: one chunk's body, up to [`MAX_DATA_BYTES`].
#[derive(Debug)]
pub struct Reader<R> {
    chunks_in: Chunks<R>,
    /// Whether each stream opened so far is still open.
    open: Vec<bool>,
    main: Option<u16>,
    chunks: u64,
    data_bytes: u64,
    ended: bool,
}

/// Reads one stream of a recording, and passes over all others unread.
///
/// It is for many readers of one file which a [`Reader`] has found whole before: only what belongs
/// to the stream is checked. Memory: one chunk's body, up to [`MAX_DATA_BYTES`].
#[derive(Debug)]
pub struct StreamReader<R> {
    chunks_in: Chunks<R>,
    stream: u16,
    ended: bool,
}

/// A recording's chunks, each with a header that makes sense and a checksum.
#[derive(Debug)]
struct Chunks<R> {
    input: R,
    /// The offset of the next one.
    offset: u64,
    body: Vec<u8>,
}

impl<R: Read> Chunks<R> {
    fn new(mut input: R) -> Result<Self, RecordingFault> {
        let mut header = [0; FILE_HEADER_LEN];
        read_exact_at(&mut input, &mut header, 0)?;
        let [
            m0,
            m1,
            m2,
            m3,
            m4,
            m5,
            m6,
            m7,
            v0,
            v1,
            v2,
            v3,
            c0,
            c1,
            c2,
            c3,
        ] = header;
        let magic = [m0, m1, m2, m3, m4, m5, m6, m7];
        if magic != MAGIC {
            return Err(RecordingFault::NotARecording { found: magic });
        }
        let stored = u32::from_be_bytes([c0, c1, c2, c3]);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&magic);
        hasher.update(&[v0, v1, v2, v3]);
        let computed = hasher.finalize();
        if stored != computed {
            return Err(RecordingFault::Damaged {
                offset: 0,
                stored,
                computed,
            });
        }
        let version = u32::from_be_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(RecordingFault::Version { found: version });
        }
        Ok(Self {
            input,
            offset: FILE_HEADER_LEN as u64,
            body: Vec::new(),
        })
    }

    /// Reads a chunk's header and checks its kind and length, so that its body may be read or
    /// passed over.
    fn head(&mut self) -> Result<(Kind, ChunkHead, u32), RecordingFault> {
        let offset = self.offset;
        let mut bytes = [0; CHUNK_HEADER_LEN];
        read_exact_at(&mut self.input, &mut bytes, offset)?;
        let [kind, reserved, s0, s1, l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        let head = ChunkHead {
            kind,
            reserved,
            stream: u16::from_be_bytes([s0, s1]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        };
        let kind =
            Kind::from_byte(kind)
                .filter(|_| reserved == 0)
                .ok_or(RecordingFault::Nonsense {
                    offset,
                    what: "its kind is unknown",
                })?;
        if !kind.lengths().contains(&(head.len as usize)) {
            return Err(RecordingFault::ChunkLength {
                offset,
                found: head.len,
                allowed: *kind.lengths().end(),
            });
        }
        Ok((kind, head, u32::from_be_bytes([c0, c1, c2, c3])))
    }

    /// Reads the body of the chunk whose header was just read, and checks the checksum over both.
    fn body_of(&mut self, head: &ChunkHead, stored: u32) -> Result<(), RecordingFault> {
        self.body.resize(head.len as usize, 0);
        read_exact_at(&mut self.input, &mut self.body, self.offset)?;
        let computed = checksum(&head.to_bytes(), &self.body);
        if stored != computed {
            return Err(RecordingFault::Damaged {
                offset: self.offset,
                stored,
                computed,
            });
        }
        self.offset = after(self.offset, head);
        Ok(())
    }
}

impl<R: Read> Reader<R> {
    /// Starts to read: the header is read and checked. `input` should be buffered.
    ///
    /// # Errors
    ///
    /// When the header is not a recording's.
    pub fn new(input: R) -> Result<Self, RecordingError> {
        Ok(Self {
            chunks_in: Chunks::new(input)?,
            open: Vec::new(),
            main: None,
            chunks: 0,
            data_bytes: 0,
            ended: false,
        })
    }

    /// The next chunk; `None` once the recording has ended whole.
    ///
    /// # Errors
    ///
    /// When the file is damaged, cut short or breaks a rule of the format. Do not go on after an
    /// error.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk<'_>>, RecordingError> {
        if self.ended {
            return Ok(None);
        }
        let offset = self.chunks_in.offset;
        let (kind, head, stored) = self.chunks_in.head()?;
        let stream = head.stream;
        self.chunks_in.body_of(&head, stored)?;
        let Chunks {
            input,
            offset: end,
            body,
        } = &mut self.chunks_in;
        let body = body.as_slice();
        let wrong = |what| RecordingError(RecordingFault::Nonsense { offset, what });
        let chunk = match kind {
            Kind::Open => {
                if usize::from(stream) != self.open.len() || self.open.len() >= MAX_STREAMS {
                    return Err(wrong("a stream is opened out of turn"));
                }
                let role = body
                    .first()
                    .copied()
                    .and_then(Role::from_byte)
                    .ok_or_else(|| wrong("a stream is neither main nor channel"))?;
                if role == Role::Main && self.main.replace(stream).is_some() {
                    return Err(wrong("a second main channel is opened"));
                }
                self.open.push(true);
                Some(Chunk::Open { stream, role })
            }
            Kind::Data | Kind::Eof => {
                let open = self
                    .open
                    .get_mut(usize::from(stream))
                    .filter(|open| **open)
                    .ok_or_else(|| wrong("it is of a stream that is not open"))?;
                if kind == Kind::Eof {
                    *open = false;
                    Some(Chunk::Eof { stream })
                } else {
                    self.data_bytes = self.data_bytes.saturating_add(body.len() as u64);
                    Some(Chunk::Data {
                        stream,
                        bytes: body,
                    })
                }
            }
            Kind::End => {
                if stream != 0 {
                    return Err(wrong("its end is that of a stream"));
                }
                if self.open.contains(&true) {
                    return Err(wrong("the recording ends while a stream is open"));
                }
                if self.main.is_none() {
                    return Err(wrong("the recording ends without a main channel"));
                }
                let mut totals = Vec::with_capacity(TOTALS_LEN);
                totals.extend_from_slice(&self.chunks.to_be_bytes());
                totals.extend_from_slice(&self.data_bytes.to_be_bytes());
                if body != totals {
                    return Err(wrong("its totals are not those of the recording"));
                }
                check_end(input, *end)?;
                self.ended = true;
                None
            }
        };
        self.chunks = self.chunks.saturating_add(1);
        Ok(chunk)
    }

    /// The offset of the next chunk in the file, in bytes.
    pub fn offset(&self) -> u64 {
        self.chunks_in.offset
    }
}

impl<R: Read + Seek> StreamReader<R> {
    /// Starts to read `stream`: the recording's header is read and checked. `input` should be
    /// buffered.
    ///
    /// # Errors
    ///
    /// When the header is not a recording's.
    pub fn new(input: R, stream: u16) -> Result<Self, RecordingError> {
        Ok(Self {
            chunks_in: Chunks::new(input)?,
            stream,
            ended: false,
        })
    }

    /// The stream's next bytes; `None` where it ends.
    ///
    /// # Errors
    ///
    /// When the file is damaged or cut short where it was read.
    pub fn next_data(&mut self) -> Result<Option<&[u8]>, RecordingError> {
        let chunks = &mut self.chunks_in;
        while !self.ended {
            let (kind, head, stored) = chunks.head()?;
            match kind {
                Kind::Data if head.stream == self.stream => {
                    chunks.body_of(&head, stored)?;
                    return Ok(Some(&chunks.body));
                }
                Kind::Eof if head.stream == self.stream => {
                    chunks.body_of(&head, stored)?;
                    self.ended = true;
                }
                Kind::End => self.ended = true,
                Kind::Open | Kind::Data | Kind::Eof => chunks.pass_over(&head)?,
            }
        }
        Ok(None)
    }
}

impl<R: Seek> Chunks<R> {
    fn pass_over(&mut self, head: &ChunkHead) -> Result<(), RecordingFault> {
        self.input
            .seek_relative(i64::from(head.len))
            .map_err(|source| RecordingFault::Io {
                offset: self.offset,
                source,
            })?;
        self.offset = after(self.offset, head);
        Ok(())
    }
}

const TOTALS_LEN: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open = 1,
    Data = 2,
    Eof = 3,
    End = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Open, Self::Data, Self::Eof, Self::End]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    fn lengths(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Open => 1..=1,
            Self::Data => 1..=MAX_DATA_BYTES,
            Self::Eof => 0..=0,
            Self::End => TOTALS_LEN..=TOTALS_LEN,
        }
    }
}

impl Role {
    fn to_byte(self) -> u8 {
        match self {
            Self::Main => 0,
            Self::Channel => 1,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Main, Self::Channel]
            .into_iter()
            .find(|role| role.to_byte() == byte)
    }
}

/// The part of a chunk's header that its checksum covers.
struct ChunkHead {
    kind: u8,
    reserved: u8,
    stream: u16,
    len: u32,
}

impl ChunkHead {
    fn to_bytes(&self) -> [u8; 8] {
        let [s0, s1] = self.stream.to_be_bytes();
        let [l0, l1, l2, l3] = self.len.to_be_bytes();
        [self.kind, self.reserved, s0, s1, l0, l1, l2, l3]
    }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// Nothing may stand after the last chunk, which ends at `offset`.
fn check_end<R: Read>(input: &mut R, offset: u64) -> Result<(), RecordingFault> {
    match input.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(RecordingFault::Nonsense {
            offset,
            what: "it comes after the end of the recording",
        }),
        Err(source) => Err(RecordingFault::Io { offset, source }),
    }
}

/// The offset of the chunk after the one at `offset`.
fn after(offset: u64, head: &ChunkHead) -> u64 {
    let len = u64::from(head.len).saturating_add(CHUNK_HEADER_LEN as u64);
    offset.saturating_add(len)
}

/// Fills `buffer` with bytes of the chunk which starts at `offset`.
fn read_exact_at<R: Read>(
    input: &mut R,
    buffer: &mut [u8],
    offset: u64,
) -> Result<(), RecordingFault> {
    input
        .read_exact(buffer)
        .map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => RecordingFault::Truncated { offset },
            _ => RecordingFault::Io { offset, source },
        })
}

#[cfg(test)]
mod tests;
