//! The faults of a peer on a trunk.

use std::fmt;

use super::{NameFault, Versions};

/// How a preface or an answer breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeFault {
    /// The peer speaks something else.
    #[error("a trunk's first bytes are {allowed:02x?}, not {found:02x?}")]
    Magic {
        /// The first bytes.
        found: [u8; 4],
        /// Those due.
        allowed: [u8; 4],
    },
    /// A body is longer than allowed.
    #[error("a preface or answer of {found} bytes, {allowed} are allowed")]
    Length {
        /// Its length.
        found: usize,
        /// The most allowed.
        allowed: usize,
    },
    /// The connection ends in the middle.
    #[error("the connection ends {missing} bytes before the next step of its preface or answer")]
    Truncated {
        /// Bytes which the present step still needs.
        missing: usize,
    },
    /// Something was changed on the way.
    #[error("a preface or answer has checksum {found:#010x}, not {computed:#010x}")]
    Checksum {
        /// The checksum stated.
        found: u32,
        /// That of the bytes that came.
        computed: u32,
    },
    /// A preface offers no version that this crate speaks, or its oldest is older or newer than
    /// those.
    #[error(
        "the peer speaks versions {} to {} of the trunk, this relay speaks {} to {}",
        found.oldest, found.newest, allowed.oldest, allowed.newest
    )]
    Versions {
        /// The versions offered.
        found: Versions,
        /// Those which this crate speaks.
        allowed: Versions,
    },
    /// A body is not what its version has.
    #[error("a malformed preface or answer")]
    Body,
    /// A body goes on after its last field.
    #[error("{found} bytes after the last field of a preface or answer")]
    Trailing {
        /// Bytes too many.
        found: usize,
    },
    /// The guest's name breaks a rule.
    #[error(transparent)]
    Name(#[from] NameFault),
    /// An offer is too long.
    #[error("{found} codes in an offer, {allowed} are allowed")]
    Codes {
        /// Codes of it.
        found: usize,
        /// The most allowed.
        allowed: usize,
    },
    /// Words are too long.
    #[error("words of {found} bytes, {allowed} are allowed")]
    Words {
        /// Bytes of them.
        found: usize,
        /// The most allowed.
        allowed: usize,
    },
    /// There are too many extensions.
    #[error("{found} extensions, {allowed} are allowed")]
    Extensions {
        /// The number.
        found: usize,
        /// The most allowed.
        allowed: usize,
    },
    /// One extension comes twice.
    #[error("extension {id:#06x} comes twice")]
    ExtensionTwice {
        /// The extension's id.
        id: u16,
    },
    /// An extension's value is not what its id has.
    #[error("extension {id:#06x} has a malformed value")]
    ExtensionValue {
        /// The extension's id.
        id: u16,
    },
    /// An answer needs an extension that this end does not understand.
    #[error("the answer needs extension {id:#06x}, which this relay does not understand")]
    ExtensionNeeded {
        /// The extension's id.
        id: u16,
    },
    /// An answer chooses what was not offered.
    #[error("the answer chooses {choice} {found}, which was not offered")]
    NotOffered {
        /// The subject of the choice.
        choice: Choice,
        /// The number of the choice.
        found: u16,
    },
}

/// The subject of the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The version of the trunk.
    Version,
    /// The method of payloads.
    Method,
    /// The digest of frames.
    Digest,
    /// The compression of byte streams.
    Compression,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Method => "method",
            Self::Digest => "digest",
            Self::Compression => "compression",
        })
    }
}

/// How a stream of frames breaks the rules. Frames are numbered from 0, in each direction by
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// No frame of this kind is allowed here.
    #[error("frame {number} is of kind {found}")]
    Kind {
        /// The frame.
        number: u64,
        /// Its kind.
        found: u8,
    },
    /// A compressed frame, and no compression was chosen.
    #[error("frame {number} is compressed, but no compression was chosen")]
    NotChosen {
        /// The frame.
        number: u64,
    },
    /// Bits that are 0 in this version are not.
    #[error("frame {number} has flags {flags:#04x} and reserved bits {reserved:#06x}, not zero")]
    Reserved {
        /// The frame.
        number: u64,
        /// Its flags.
        flags: u8,
        /// Its reserved field.
        reserved: u16,
    },
    /// A body is shorter or longer than its kind may be.
    #[error(
        "frame {number} of kind {kind} has a body of {found} bytes, {least} to {most} are allowed"
    )]
    Length {
        /// The frame.
        number: u64,
        /// Its kind.
        kind: u8,
        /// The length stated.
        found: u32,
        /// The least allowed.
        least: u32,
        /// The most allowed.
        most: u32,
    },
    /// A frame was changed, lost, repeated or moved.
    #[error("frame {number} has digest {found:#018x}, not {computed:#018x}")]
    Digest {
        /// The number of the frame that is due.
        number: u64,
        /// The digest stated.
        found: u64,
        /// The digest of the bytes that came; 0 when none was chosen.
        computed: u64,
    },
    /// The length that a compressed frame states for its content is not allowed.
    #[error("frame {number} states a content of {found} bytes, 1 to {allowed} are allowed")]
    RawLength {
        /// The frame.
        number: u64,
        /// The length stated.
        found: u32,
        /// The most allowed.
        allowed: u32,
    },
    /// A compressed frame needs a larger window than allowed, or it has no readable header.
    #[error("frame {number} is compressed with a window beyond 2^{allowed} bytes, or malformed")]
    Window {
        /// The frame.
        number: u64,
        /// The largest allowed, as a power of two.
        allowed: u32,
    },
    /// A frame is longer than what every connection has room for, and the memory for such frames of
    /// all connections is in use.
    #[error(
        "frame {number} is a long one, and of the {allowed} bytes for long frames of all \
         connections {left} are left: let fewer guests migrate at once, or let the other relay \
         write frames of at most 128 KiB"
    )]
    Memory {
        /// The frame.
        number: u64,
        /// Bytes that are left.
        left: u64,
        /// The most allowed, over all connections of the process.
        allowed: u64,
    },
    /// The body of a compressed frame is not one zstd frame of the length stated.
    #[error("frame {number} does not decompress to the {expected} bytes that it states")]
    Compressed {
        /// The frame.
        number: u64,
        /// The length stated.
        expected: u32,
    },
    /// The body of a failure is malformed.
    #[error("frame {number} states a failure, but is malformed")]
    Failure {
        /// The frame.
        number: u64,
    },
    /// Bytes come after a frame that ends its direction.
    #[error("bytes after the frame that ends its direction")]
    AfterEnd,
    /// The connection ends without a frame that says so.
    #[error("the connection breaks: no frame has ended it")]
    NoEnd,
    /// The caller says that it has filled more than it was offered.
    #[error("{found} bytes filled, where there was space for {allowed}")]
    Overfilled {
        /// Bytes stated.
        found: usize,
        /// Bytes offered.
        allowed: usize,
    },
}

/// A misuse of a [`FrameWriter`](super::FrameWriter) by its caller. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriterMisuse {
    /// This direction has been ended.
    #[error("a frame after the one that ends its direction")]
    Ended,
    /// A data frame has a length that it cannot have.
    #[error("a data frame of {found} bytes, 1 to {allowed} are allowed")]
    Length {
        /// Bytes of it.
        found: usize,
        /// The most allowed.
        allowed: usize,
    },
    /// The compressor failed: libzstd has no memory.
    #[error("libzstd cannot compress")]
    Compressor,
}

/// Why there is no compression of byte streams here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoCompression {
    /// This crate was built without its feature `zstd`.
    #[error("built without zstd")]
    NotBuilt,
    /// libzstd has no memory for its context.
    #[error("no memory for zstd")]
    NoMemory,
}
