//! Intel Query Processing Library (libqpl): its C ABI, opened at run time.
//!
//! libqpl compresses and decompresses deflate on Intel's In-Memory Analytics Accelerator (IAA) or,
//! on its *software path*, on the processor. This crate is the part of its C interface which a
//! codec of memory pages needs: jobs, deflate Huffman tables and their serialisation, statistics,
//! the version. Filters, CRC64, dictionaries and random access are left out.
//!
//! - Nothing is linked. [`Library::open`] finds `libqpl.so.1` when the program runs, so one binary
//!   serves hosts with and without it, and the build needs no header.
//! - C enumerations are integers ([`Path`], [`Operation`], ...), never Rust enums, because the
//!   library returns values which its header does not list.
//! - Types have the C layout of libqpl 0.3 to 1.9 on x86-64 (it never changed), checked when this
//!   crate is compiled, and against the real header by a test where that header is present.
//! - Ownership is the caller's. The functions are what C has: who calls them keeps the rules which
//!   each states.
//!
//! Names are libqpl's without their prefix; each carries the C name as a search alias. The C manual
//! is Intel's *Query Processing Library Documentation*, chapter "C API Reference"; the structures
//! stand in `qpl/c_api/*.h`. What is said here about behaviour was seen on libqpl 1.9.0 unless
//! marked otherwise.

#![warn(clippy::exhaustive_enums, unreachable_pub)]
#![expect(
    clippy::exhaustive_structs,
    reason = "libqpl's C ABI fixes the structures"
)]

mod library;
mod status;
mod types;

pub use library::{Library, OpenError, SONAME};
pub use status::Status;
pub use types::{
    Allocator, CompressionLevel, DecompressEnd, Flags, HISTOGRAM_DISTANCES,
    HISTOGRAM_LITERAL_LENGTHS, Histogram, HuffmanTable, Index, Job, JobData, MiniBlockSize, NumaId,
    OpaqueDictionary, OpaqueHuffmanTable, Operation, Path, SerializationFormat,
    SerializationOptions, StatisticsMode, TableType,
};
