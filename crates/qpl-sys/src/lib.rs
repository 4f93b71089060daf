//! Intel Query Processing Library (libqpl): its C ABI, opened at run time.
//!
//! libqpl compresses and decompresses deflate on Intel's In-Memory Analytics Accelerator (IAA) or,
//! its *software path*, on the processor. This crate is the part of its C interface that a codec of
//! memory pages needs: jobs, deflate Huffman tables, statistics, the version. Filters, CRC64,
//! dictionaries, serialisation and random access are left out.
//!
//! - Nothing is linked. [`Library::open`] finds `libqpl.so.1` at run time, so one binary serves
//!   hosts with and without it, and the build needs no header.
//! - C enumerations are integers ([`Path`], [`Operation`], ...), never Rust enums, because the
//!   library returns values that its header does not list.
//! - Types have the C layout of libqpl 0.3 to 1.9 on x86-64 (it never changed). Compile-time
//!   assertions check it, and a test compares it with the real header if that is present.
//! - Ownership is the caller's. The functions are those of C: the caller keeps the rules that each
//!   function states.
//!
//! Names are libqpl's without their prefix; each has the C name as a search alias. The C manual is
//! Intel's *Query Processing Library Documentation*, chapter "C API Reference"; the structures are
//! in `qpl/c_api/*.h`. Statements about behaviour were observed on libqpl 1.9.0 unless noted.

#![warn(clippy::exhaustive_enums, unreachable_pub)]
#![expect(
    clippy::exhaustive_structs,
    reason = "libqpl's C ABI fixes the structures"
)]

mod library;
mod status;
mod types;

pub use library::{Library, OpenError};
pub use status::Status;
pub use types::{
    Allocator, CompressionLevel, DecompressEnd, Flags, Histogram, HuffmanTable, Job, JobData,
    MiniBlockSize, NumaId, OpaqueDictionary, OpaqueHuffmanTable, Operation, Path, StatisticsMode,
    TableType,
};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
