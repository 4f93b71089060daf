//! Types and constants of `qpl/c_api/*.h`.
//!
//! Each C enumeration is a transparent integer of its C width with named values. The layout of each
//! structure is asserted at the end.

use std::ffi::c_void;
use std::ops::BitOr;

/// Declares a transparent integer type with named values.
macro_rules! integers {
    ($($(#[$type_doc:meta])* $type_name:ident: $repr:ty {
        $($(#[$doc:meta])* $name:ident = $value:expr,)*
    })*) => {$(
        $(#[$type_doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $type_name(pub $repr);

        impl $type_name {
            $($(#[$doc])* pub const $name: $type_name = $type_name($value);)*
        }
    )*};
}

integers! {
    /// The processor of the job (C: `qpl_path_t`, `qpl/c_api/defs.h`).
    #[doc(alias = "qpl_path_t")]
    Path: u32 {
        /// The device, and the processor if the device cannot; the library does not report which
        /// one.
        AUTO = 0,
        /// The device only.
        HARDWARE = 1,
        /// The processor only. Never opens a device.
        SOFTWARE = 2,
    }

    /// The operation of a job (C: `qpl_operation`, `qpl/c_api/defs.h`). Filters and CRC64 are left
    /// out.
    #[doc(alias = "qpl_operation")]
    Operation: u32 {
        /// Inflate.
        DECOMPRESS = 0,
        /// Deflate, with a window of 4096 bytes.
        COMPRESS = 1,
    }

    /// The effort of compression (C: `qpl_compression_levels`, `qpl/c_api/defs.h`). Every other
    /// number, including the 0 of a fresh job, gives
    /// [`Status::UNSUPPORTED_COMPRESSION_LEVEL`](crate::Status::UNSUPPORTED_COMPRESSION_LEVEL).
    #[doc(alias = "qpl_compression_levels")]
    CompressionLevel: u32 {
        /// The device's effort; on the software path the fast one.
        DEFAULT = 1,
    }

    /// The output of [`Operation::COMPRESS`] (C: `qpl_statistics_mode`, `qpl/c_api/statistics.h`).
    #[doc(alias = "qpl_statistics_mode")]
    StatisticsMode: u32 {
        /// A compressed stream.
        COMPRESSION = 0,
    }

    /// The spacing of entries in [`Job::idx_array`] (C: `qpl_mini_block_size`, `qpl/c_api/defs.h`).
    #[doc(alias = "qpl_mini_block_size")]
    MiniBlockSize: u32 {
        /// No index.
        NONE = 0,
    }

    /// Where decompression stops and how the stream must end; only used by a job with
    /// [`Flags::LAST`] (C: `qpl_decomp_end_proc`, `qpl/c_api/defs.h`). 7 is reserved.
    #[doc(alias = "qpl_decomp_end_proc")]
    DecompressEnd: u8 {
        /// Stops at the end of the final block and requires it.
        STOP_AND_CHECK_FOR_BFINAL_EOB = 0,
        /// Neither stops nor checks.
        DONT_STOP_OR_CHECK = 1,
        /// Requires that the input ends with a block.
        CHECK_FOR_ANY_EOB = 5,
    }

    /// The devices that a hardware job may use; a value of 0 or above is a NUMA node
    /// (`QPL_DEVICE_NUMA_ID_*`, `qpl/c_api/defs.h`). Only
    /// [`Library::submit_job`](crate::Library::submit_job) uses it;
    /// [`Library::execute_job`](crate::Library::execute_job) does not.
    NumaId: i32 {
        /// Devices of the calling thread's socket (before 1.6: of its NUMA node). The value of a
        /// fresh job.
        SOCKET = -1,
        /// Devices of the calling thread's NUMA node.
        CURRENT = -2,
        /// Every device.
        ANY = -3,
    }

    /// The directions that a Huffman table serves (C: `qpl_huffman_table_type_e`,
    /// `qpl/c_api/huffman_table.h`).
    #[doc(alias = "qpl_huffman_table_type_e")]
    TableType: u32 {
        /// Both directions.
        COMBINED = 0,
        /// Compression. Using it to decompress crashes the library.
        COMPRESSION = 1,
    }

    /// Options of a job, combined with `|` (C: `QPL_FLAG_*`, `qpl/c_api/defs.h`). The options of
    /// filters and CRC64 are left out.
    Flags: u32 {
        /// No option.
        NONE = 0,
        /// First job of a stream: resets `total_in`, `total_out`, `crc` and the number of index
        /// entries.
        FIRST = 0x1,
        /// Last job of a stream: the block is final and the output ends on a byte boundary.
        LAST = 0x2,
        /// A Huffman code made from the data: a dynamic block.
        DYNAMIC_HUFFMAN = 0x2000,
        /// Compression skips the verification of its own output.
        OMIT_VERIFY = 0x4000,
        /// zlib wrapper: written (window 4096) by compression, skipped (its trailer is not
        /// verified) by decompression. Incompatible with `QPL_FLAG_GZIP_MODE`. On the hardware path
        /// of 1.9.0 the Adler-32 continues from one stream of the job to the next and is only right
        /// in the first.
        ZLIB_MODE = 0x8_0000,
        /// The codes of [`Job::huffman_table`] without a block header. Incompatible with
        /// [`Flags::DYNAMIC_HUFFMAN`]: the library accepts both, and the result is broken. On the
        /// hardware path of 1.9.0 the job must not have written a block header before: that header
        /// would be written again. Decompression there needs a table made for [`Path::HARDWARE`] or
        /// [`Path::AUTO`].
        CANNED_MODE = 0x40_0000,
    }
}

impl BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// Literal and match length symbols in a [`Histogram`] (C: `QPL_LITERALS_MATCHES_TABLE_SIZE`; RFC
/// 1951, section 3.2.5).
const HISTOGRAM_LITERAL_LENGTHS: usize = 286;
/// Distance symbols in a [`Histogram`] (C: `QPL_DEFAULT_OFFSETS_NUMBER`; RFC 1951, section 3.2.5).
const HISTOGRAM_DISTANCES: usize = 30;

/// One job: the visible head of an allocation of [`Library::job_size`](crate::Library::job_size)
/// bytes (C: `qpl_job`, `qpl/c_api/job.h`).
///
/// Never built or held by value: the caller allocates the whole job and passes its address to
/// [`Library::init_job`](crate::Library::init_job). From then on the allocation must not move,
/// because it holds addresses into itself. The library advances `next_*` and `available_*` like
/// zlib and leaves them in any state after a failure, so set every input field before each run.
///
/// Private fields keep the layout: those of filters and CRC64, which the operations listed here do
/// not use.
#[doc(alias = "qpl_job")]
#[repr(C)]
#[derive(Debug)]
pub struct Job {
    /// Next byte of input.
    pub next_in_ptr: *mut u8,
    /// Bytes at `next_in_ptr`; 0 is refused. Random after a canned decompression.
    pub available_in: u32,
    /// Bytes of input consumed since [`Flags::FIRST`]. Random after a canned decompression.
    pub total_in: u32,
    /// Next byte of output.
    pub next_out_ptr: *mut u8,
    /// Room at `next_out_ptr` in bytes; 0 is refused when compressing.
    pub available_out: u32,
    /// Bytes of output since [`Flags::FIRST`]. Undefined after a failure.
    pub total_out: u32,
    /// The operation.
    pub op: Operation,
    /// Options.
    pub flags: Flags,
    /// CRC-32 (zlib's) of the uncompressed bytes since [`Flags::FIRST`], on output.
    pub crc: u32,
    _xor_checksum: u32,
    /// Hardware path: bits used in the last byte of output, 0 for all eight. Software path: always
    /// 0.
    pub last_bit_offset: u32,
    /// Effort.
    pub level: CompressionLevel,
    /// The output of compression.
    pub statistics_mode: StatisticsMode,
    /// The table of canned mode, else null.
    pub huffman_table: HuffmanTable,
    /// A preset dictionary, else null.
    pub dictionary: *mut OpaqueDictionary,
    /// The spacing of index entries.
    pub mini_block_size: MiniBlockSize,
    /// Room for index entries, each a `qpl_index`.
    pub idx_array: *mut u64,
    /// Capacity of `idx_array` in entries.
    pub idx_max_size: u32,
    _idx_num_written: u32,
    /// Where decompression stops.
    pub decomp_end_processing: DecompressEnd,
    /// Bits to skip at the start of the first byte of input, 0..=7.
    pub ignore_start_bits: u8,
    /// Bits to skip at the end of the last byte of input, 0..=7.
    pub ignore_end_bits: u8,
    // Filters and CRC64, and two bytes of padding in front.
    _filters: [u32; 20],
    /// The devices that may be used.
    pub numa_id: NumaId,
    /// Private data of the library.
    pub data_ptr: JobData,
}

/// The library's private part of a [`Job`]: addresses within the job's allocation (C: `qpl_data`,
/// `qpl/c_api/job.h`).
#[doc(alias = "qpl_data")]
#[repr(C)]
#[derive(Debug)]
pub struct JobData {
    compress_state_ptr: *mut u8,
    decompress_state_ptr: *mut u8,
    analytics_state_ptr: *mut u8,
    middle_layer_buffer_ptr: *mut u8,
    hw_state_ptr: *mut u8,
    /// The path in use: the one passed to [`Library::init_job`](crate::Library::init_job). But
    /// [`Path::AUTO`] becomes [`Path::SOFTWARE`] if no device is usable, and so does
    /// [`Path::HARDWARE`] after a refusal.
    pub path: Path,
}

/// The count of each deflate symbol (C: `qpl_histogram`, `qpl/c_api/statistics.h`).
#[doc(alias = "qpl_histogram")]
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Literals (0..256), end of block (256), match lengths (257..).
    pub literal_lengths: [u32; HISTOGRAM_LITERAL_LENGTHS],
    _reserved_literal_lengths: [u32; 2],
    /// Distances.
    pub distances: [u32; HISTOGRAM_DISTANCES],
    _reserved_distances: [u32; 2],
}

impl Default for Histogram {
    /// All counts 0.
    fn default() -> Self {
        Histogram {
            literal_lengths: [0; HISTOGRAM_LITERAL_LENGTHS],
            _reserved_literal_lengths: [0; 2],
            distances: [0; HISTOGRAM_DISTANCES],
            _reserved_distances: [0; 2],
        }
    }
}

/// The allocator of a table's memory (C: `allocator_t`, `qpl/c_api/huffman_table.h`); passed by
/// value.
///
/// `free` receives no size, so C's `malloc` and `free` fit and Rust's allocator does not.
#[doc(alias = "allocator_t")]
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    /// Returns `len_bytes` bytes with the alignment of `malloc`, or null.
    pub allocate: unsafe extern "C" fn(len_bytes: usize) -> *mut c_void,
    /// Frees such memory.
    pub free: unsafe extern "C" fn(memory: *mut c_void),
}

/// A Huffman table made by the library (C: `qpl_huffman_table_t`, `qpl/c_api/huffman_table.h`).
#[doc(alias = "qpl_huffman_table_t")]
pub type HuffmanTable = *mut OpaqueHuffmanTable;

/// The target of a [`HuffmanTable`].
#[repr(C)]
#[derive(Debug)]
pub struct OpaqueHuffmanTable {
    _opaque: [u8; 0],
}

/// The target of [`Job::dictionary`] (C: `qpl_dictionary`, `qpl/c_api/dictionary.h`).
#[doc(alias = "qpl_dictionary")]
#[repr(C)]
#[derive(Debug)]
pub struct OpaqueDictionary {
    _opaque: [u8; 0],
}

/// Asserts size, alignment and the offset of every named field.
macro_rules! layout {
    ($type_name:ty: size $size:literal, align $align:literal, {
        $($field:ident @ $offset:literal),* $(,)?
    }) => {
        const _: () = {
            use std::mem::{align_of, offset_of, size_of};
            assert!(size_of::<$type_name>() == $size);
            assert!(align_of::<$type_name>() == $align);
            $(assert!(offset_of!($type_name, $field) == $offset, stringify!($field));)*
        };
    };
}

// libqpl only exists for x86-64, and the numbers below are those of its System V ABI.
layout!(Job: size 240, align 8, {
    next_in_ptr @ 0, available_in @ 8, total_in @ 12, next_out_ptr @ 16, available_out @ 24,
    total_out @ 28, op @ 32, flags @ 36, crc @ 40, _xor_checksum @ 44, last_bit_offset @ 48,
    level @ 52, statistics_mode @ 56, huffman_table @ 64, dictionary @ 72, mini_block_size @ 80,
    idx_array @ 88, idx_max_size @ 96, _idx_num_written @ 100, decomp_end_processing @ 104,
    ignore_start_bits @ 105, ignore_end_bits @ 106, _filters @ 108, numa_id @ 188, data_ptr @ 192,
});
layout!(JobData: size 48, align 8, {
    compress_state_ptr @ 0, decompress_state_ptr @ 8, analytics_state_ptr @ 16,
    middle_layer_buffer_ptr @ 24, hw_state_ptr @ 32, path @ 40,
});
layout!(Histogram: size 1280, align 4, {
    literal_lengths @ 0, _reserved_literal_lengths @ 1144, distances @ 1152,
    _reserved_distances @ 1272,
});
layout!(Allocator: size 16, align 8, { allocate @ 0, free @ 8 });
