//! Status codes.

use std::fmt;

/// The result of every libqpl function (C: `qpl_status`).
///
/// The number identifies the origin: 0..50 the progress of a job, 50..100 a parameter, 100..200 the
/// library's own work, 200..300 the error byte of the device's completion record (200 + byte; the
/// software path uses the same numbers), 300..500 its status byte if there is no error byte (300 +
/// byte; a page fault on write adds 128), 500.. the opening of the device.
///
/// Any number is possible: a status that is not listed here is still a valid value.
#[doc(alias = "qpl_status")]
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Status(pub u32);

/// Declares each status of libqpl 1.9.0's header: a constant where callers tell it from others,
/// and a name for messages.
macro_rules! statuses {
    ($($(#[$doc:meta])* $($name:ident =)? $value:literal, $c_name:literal;)*) => {
        impl Status {
            $(statuses!(@constant [$(#[$doc])*] [$($name)?] $value, $c_name);)*

            /// The name in `qpl/c_api/status.h`, or `None` for a number that is not listed there.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($c_name),)*
                    _ => None,
                }
            }
        }
    };
    (@constant [] [] $value:literal, $c_name:literal) => {};
    (@constant [$(#[$doc:meta])*] [$name:ident] $value:literal, $c_name:literal) => {
        $(#[$doc])* #[doc(alias = $c_name)] pub const $name: Status = Status($value);
    };
}

statuses! {
    /// Done. After a decompression, this alone does not prove that the stream was complete: see
    /// [`Library::execute_job`](crate::Library).
    OK = 0, "QPL_STS_OK";
    /// Still with the device; check again. Only from [`Library::check_job`](crate::Library).
    BEING_PROCESSED = 1, "QPL_STS_BEING_PROCESSED";
    /// The output buffer is too small for the result.
    MORE_OUTPUT_NEEDED = 2, "QPL_STS_MORE_OUTPUT_NEEDED";
    // The input ends inside a wrapper's header (or that header asks for a preset dictionary).
    3, "QPL_STS_MORE_INPUT_NEEDED";
    // A job after the end of a chain does not carry [`Flags::FIRST`](crate::Flags::FIRST).
    4, "QPL_STS_JOB_NOT_CONTINUABLE_ERR";
    /// No work queue accepts a descriptor now. The job was not submitted and may be submitted again
    /// unchanged.
    QUEUES_ARE_BUSY = 5, "QPL_STS_QUEUES_ARE_BUSY_ERR";
    // The library found itself in an unknown state.
    6, "QPL_STS_LIBRARY_INTERNAL_ERR";
    /// A job was checked or waited for that is not with the device. Hardware path only.
    JOB_NOT_SUBMITTED = 7, "QPL_STS_JOB_NOT_SUBMITTED";
    /// The work queues are configured (`op_config`) to refuse this operation.
    NOT_SUPPORTED_BY_WQ = 8, "QPL_STS_NOT_SUPPORTED_BY_WQ";

    // A pointer is null; also canned mode without a table.
    50, "QPL_STS_NULL_PTR_ERR";
    // [`Job::op`](crate::Job::op) is not an operation.
    51, "QPL_STS_OPERATION_ERR";
    /// The mode is not supported.
    NOT_SUPPORTED_MODE = 52, "QPL_STS_NOT_SUPPORTED_MODE_ERR";
    // The job's fields do not fit the operation.
    53, "QPL_STS_BAD_JOB_STRUCT_ERR";
    /// The path is none of the three.
    PATH = 54, "QPL_STS_PATH_ERR";
    // The job's fields contradict one another.
    55, "QPL_STS_INVALID_PARAM_ERR";
    // The flags contradict one another.
    56, "QPL_STS_FLAG_CONFLICT_ERR";
    /// `available_in` or `available_out` is 0, as after the previous run of the same job.
    SIZE = 57, "QPL_STS_SIZE_ERR";
    /// The buffer is larger than the library supports. Replaced by
    /// [`Status::TRANSFER_SIZE_INVALID`] in 1.9.
    BUFFER_TOO_LARGE = 58, "QPL_STS_BUFFER_TOO_LARGE_ERR";
    // Input and output overlap.
    59, "QPL_STS_BUFFER_OVERLAP_ERR";
    // CRC64: the polynomial is wrong.
    60, "QPL_STS_CRC64_BAD_POLYNOM";
    // Filters: the set is too large.
    70, "QPL_STS_SET_TOO_LARGE_ERR";
    // Filters: the parser is unknown.
    71, "QPL_STS_PARSER_ERR";
    // Filters: the output width is unknown.
    72, "QPL_STS_OUT_FORMAT_ERR";
    // Filters: more bits are dropped than there are.
    73, "QPL_STS_DROP_BITS_OVERFLOW_ERR";
    // Filters: the bit width does not fit the output format.
    74, "QPL_STS_BIT_WIDTH_OUT_EXTENDED_ERR";
    // Filters: the number of bytes to drop is wrong.
    75, "QPL_STS_DROP_BYTES_ERR";
    // The flags need a Huffman table and there is none.
    80, "QPL_STS_MISSING_HUFFMAN_TABLE_ERR";
    // The Huffman table's contents are wrong.
    81, "QPL_STS_INVALID_HUFFMAN_TABLE_ERR";
    // Indexing is on and there is no index array.
    82, "QPL_STS_MISSING_INDEX_TABLE_ERR";
    // Fixed, dynamic or the table changed within a chain of jobs.
    83, "QPL_STS_INVALID_COMPRESS_STYLE_ERR";
    // The stream needs a preset dictionary.
    84, "QPL_STS_INFLATE_NEED_DICT_ERR";
    // [`Job::decomp_end_processing`](crate::Job::decomp_end_processing) is unknown.
    85, "QPL_STS_INVALID_DECOMP_END_PROC_ERR";
    // The mini-block size is wrong.
    86, "QPL_STS_INVALID_BLOCK_SIZE_ERR";
    /// The level is neither 1 nor 3, or 3 on hardware.
    UNSUPPORTED_COMPRESSION_LEVEL = 87, "QPL_STS_UNSUPPORTED_COMPRESSION_LEVEL";
    // The Huffman table's type is wrong.
    88, "QPL_STS_HUFFMAN_TABLE_TYPE_ERROR";
    // The dump is not in a known serialisation format.
    90, "QPL_STS_SERIALIZATION_FORMAT_ERROR";
    // The dump cannot be turned into a table (never observed: the library does not check).
    91, "QPL_STS_SERIALIZATION_CORRUPTED_DUMP";
    // Huffman-only, big-endian: more than 7 bits to ignore, on IAA 1.0.
    95, "QPL_STS_HUFFMAN_BE_IGNORE_MORE_THAN_7_BITS_ERR";
    // Huffman-only, big-endian: an odd number of input bytes.
    96, "QPL_STS_HUFFMAN_BE_ODD_INPUT_SIZE_ERR";

    // Not used by the library.
    100, "QPL_STS_INVALID_DEFLATE_DATA_ERR";
    // No memory.
    101, "QPL_STS_NO_MEM_ERR";
    // The index array is too small.
    102, "QPL_STS_INDEX_ARRAY_TOO_SMALL";
    // A mini-block could not be made.
    103, "QPL_STS_INDEX_GENERATION_ERR";
    // The zlib or gzip header is malformed.
    104, "QPL_STS_ARCHIVE_HEADER_ERR";
    // The zlib or gzip header names a compression other than deflate.
    105, "QPL_STS_ARCHIVE_UNSUP_METHOD_ERR";
    // The Huffman table could not be allocated.
    106, "QPL_STS_OBJECT_ALLOCATION_ERR";

    // The input ends within a block header that does not fit the input buffer.
    201, "QPL_STS_BIG_HEADER_ERR";
    // A code-length code is not defined.
    202, "QPL_STS_UNDEF_CL_CODE_ERR";
    // The first literal/length code length is the repeat symbol 16.
    203, "QPL_STS_FIRST_LL_CODE_16_ERR";
    // The first distance code length is the repeat symbol 16.
    204, "QPL_STS_FIRST_D_CODE_16_ERR";
    // All literal/length codes have length 0.
    205, "QPL_STS_NO_LL_CODE_ERR";
    // The number of literal/length codes is not the one announced.
    206, "QPL_STS_WRONG_NUM_LL_CODES_ERR";
    // The number of distance codes is not the one announced.
    207, "QPL_STS_WRONG_NUM_DIST_CODES_ERR";
    // Code-length codes are over-subscribed.
    208, "QPL_STS_BAD_CL_CODE_LEN_ERR";
    // Literal/length codes are over-subscribed.
    209, "QPL_STS_BAD_LL_CODE_LEN_ERR";
    // Distance codes are over-subscribed.
    210, "QPL_STS_BAD_DIST_CODE_LEN_ERR";
    // A literal/length code is not defined.
    211, "QPL_STS_BAD_LL_CODE_ERR";
    // A distance code is not defined.
    212, "QPL_STS_BAD_D_CODE_ERR";
    /// A block has the reserved type 3.
    INVALID_BLOCK_TYPE = 213, "QPL_STS_INVALID_BLOCK_TYPE";
    /// A stored block's length and its complement disagree.
    INVALID_STORED_LEN = 214, "QPL_STS_INVALID_STORED_LEN_ERR";
    /// The stream does not end where
    /// [`Job::decomp_end_processing`](crate::Job::decomp_end_processing) requires: cut off, or no
    /// final block. Hardware only; the software path was never observed to return it.
    BAD_EOF = 215, "QPL_STS_BAD_EOF_ERR";
    // A match length is 0 or above 258.
    216, "QPL_STS_BAD_LEN_ERR";
    /// A match distance is 0 or beyond the history buffer of 4096 bytes.
    BAD_DIST = 217, "QPL_STS_BAD_DIST_ERR";
    /// A match reaches back before the start of the output.
    REF_BEFORE_START = 218, "QPL_STS_REF_BEFORE_START_ERR";
    /// There is input, but no progress.
    TIMEOUT = 219, "QPL_STS_TIMEOUT_ERR";
    // Filters: the PRLE stream is malformed.
    220, "QPL_STS_PRLE_FORMAT_ERR";
    // Filters: an output index does not fit the output type.
    221, "QPL_STS_OUTPUT_OVERFLOW_ERR";
    /// Internal: the AECS is wrong.
    INTL_AECS = 222, "QPL_STS_INTL_AECS_ERR";
    // Filters: source 1 is too short.
    223, "QPL_STS_SRC1_TOO_SMALL_ERR";
    // Filters: source 2 is too short.
    224, "QPL_STS_SRC2_IS_SHORT_ERR";
    // The output buffer is too small and nothing more fits.
    225, "QPL_STS_DST_IS_SHORT_ERR";
    // Verification: a match spans mini-blocks.
    226, "QPL_STS_INTL_DIST_SPANS_MINI_BLOCKS";
    // Verification: a length spans mini-blocks.
    227, "QPL_STS_INTL_LEN_SPANS_MINI_BLOCKS";
    // Verification: a mini-block has a wrong size.
    228, "QPL_STS_INTL_VERIF_INVALID_BLOCK_SIZE";
    /// Verification of the compressed data failed. The software path reports this wrongly for
    /// inputs above about 32 KiB.
    INTL_VERIFY = 229, "QPL_STS_INTL_VERIFY_ERR";
    // The compression table has no code for a symbol of the input.
    230, "QPL_STS_INVALID_HUFFCODE_ERR";
    // Filters: the bit width is outside 1..=32.
    231, "QPL_STS_BIT_WIDTH_ERR";
    // Filters: the input ends before the announced number of elements.
    232, "QPL_STS_SRC_IS_SHORT_ERR";
    // Internal: a count is wrong.
    233, "QPL_STS_INTL_INVALID_COUNT";
    /// A block header announces more than 286 literal/length codes.
    TOO_MANY_LL_CODES = 235, "QPL_STS_TOO_MANY_LL_CODES_ERR";
    /// A block header announces more than 30 distance codes.
    TOO_MANY_D_CODES = 236, "QPL_STS_TOO_MANY_D_CODES_ERR";

    // Internal: the completion record is not written yet.
    300, "QPL_STS_INTL_INPROG";
    // Internal: the completion record says success.
    301, "QPL_STS_INTL_SUCCESS";
    /// The device could not read a page and the library's one retry is used up.
    INTL_PAGE_FAULT = 303, "QPL_STS_INTL_PAGE_FAULT";
    // The page request service answered a read with an error.
    304, "QPL_STS_INTL_INVALID_PAGE_REQ";
    // The device reports an error without naming it.
    310, "QPL_STS_INTL_ANALYTIC_ERROR";
    /// The device's output overflowed.
    INTL_OUTPUT_OVERFLOW = 311, "QPL_STS_INTL_OUTPUT_OVERFLOW";
    // Descriptor refused: opcode.
    316, "QPL_STS_INTL_UNSUPPORTED_OPCODE";
    /// Descriptor refused: operation flags.
    INTL_INVALID_OP_FLAG = 317, "QPL_STS_INTL_INVALID_OP_FLAG";
    // Descriptor refused: a reserved field is not zero.
    318, "QPL_STS_INTL_NONZERO_RESERVED_FIELD";
    /// The transfer is larger than the work queue's `max_transfer_size`; also from submission.
    TRANSFER_SIZE_INVALID = 319, "QPL_STS_TRANSFER_SIZE_INVALID";
    // Descriptor refused: buffers overlap.
    322, "QPL_STS_INTL_OVERLAPPING_BUFFERS";
    // Descriptor refused: interrupt handle.
    325, "QPL_STS_INTL_INVALID_COMP_HANDLE";
    // A page fault while the device translated an address for reading.
    326, "QPL_STS_INTL_TRANSLATION_PAGE_FAULT";
    // Descriptor refused: the completion record is not aligned.
    327, "QPL_STS_INTL_COMPL_RECORD_UNALIGN";
    // Descriptor refused: an address is not aligned.
    328, "QPL_STS_INTL_MISALIGNED_ADDRESS";
    // Descriptor refused: privilege.
    329, "QPL_STS_INTL_PRIVILIGE_ERROR";
    // Descriptor refused: traffic class.
    330, "QPL_STS_INTL_TRAFFIC_CLASS_ERROR";
    // A page fault in a drain descriptor.
    331, "QPL_STS_INTL_DRAIN_PAGE_FAULT";
    // The bus answered "unsupported request" or "completer abort".
    332, "QPL_STS_INTL_INVALID_UR_CA_RESPONSE";
    // A read-back did not finish in time.
    333, "QPL_STS_INTL_READBACK_TIMEOUT";
    /// The device did not finish in time.
    INTL_HARDWARE_TIMEOUT = 334, "QPL_STS_INTL_HARDWARE_TIMEOUT";
    // A page request was not answered in time.
    335, "QPL_STS_INTL_PAGE_REQUEST_TIMEOUT";
    // The device's watchdog fired.
    336, "QPL_STS_INTL_WATCHDOG_TIMER_EXPIRE";
    // The process's address space identifier is wrong.
    340, "QPL_STS_INTL_PASID_ERROR";
    // Inter-domain: handle.
    341, "QPL_STS_INTL_INVALID_IDPTE_HANDLE";
    // Inter-domain: permission.
    342, "QPL_STS_INTL_IDTPE_PERMISSION_ERROR";
    // Inter-domain: window.
    343, "QPL_STS_INTL_ID_WINDOW_ERROR";
    // Inter-domain: update.
    344, "QPL_STS_INTL_UPDATE_INVALID_IDPTE";
    // Inter-domain: window control.
    345, "QPL_STS_INTL_INVALID_WINDOW_CONTROL";
    // Inter-domain: not accessible.
    346, "QPL_STS_INTL_INACCESSIBLE_DOMAIN";
    // Descriptor refused: decompression flags.
    348, "QPL_STS_INTL_INVALID_DECOMP_FLAG";
    // Descriptor refused: filter flags.
    349, "QPL_STS_INTL_INVALID_FILTER_FLAG";
    // Descriptor refused: input size.
    350, "QPL_STS_INTL_INVALID_INPUT_SIZE";
    // Filters: no elements.
    351, "QPL_STS_INVALID_NUM_ELEM";
    // Filters: source 1's bit width.
    352, "QPL_STS_INVALID_SRC1_WIDTH";
    // Filters: the inverted output is not a bit vector.
    353, "QPL_STS_INV_OUTPUT";
    /// The device could not write a page and the library's one retry is used up.
    INTL_W_PAGE_FAULT = 431, "QPL_STS_INTL_W_PAGE_FAULT";
    // The page request service answered a write with an error.
    432, "QPL_STS_INTL_W_INVALID_PAGE_REQ";
    /// A page fault while the device translated an address for writing.
    INTL_W_TRANSLATION_PF = 454, "QPL_STS_INTL_W_TRANSLATION_PF";

    /// The hardware path cannot run here: descriptors are refused by the kernel, or the kernel is
    /// too old for the device.
    INIT_HW_NOT_SUPPORTED = 500, "QPL_STS_INIT_HW_NOT_SUPPORTED";
    /// `libaccel-config.so.1` is not found, lacks a function, or is too old for the device.
    INIT_LIBACCEL_NOT_FOUND = 501, "QPL_STS_INIT_LIBACCEL_NOT_FOUND";
    /// libaccel-config failed.
    INIT_LIBACCEL_ERROR = 502, "QPL_STS_INIT_LIBACCEL_ERROR";
    /// No usable work queue: no device, none enabled, none shared, no permission; at submission:
    /// none that fits [`Job::numa_id`](crate::Job::numa_id).
    INIT_WORK_QUEUES_NOT_AVAILABLE = 503, "QPL_STS_INIT_WORK_QUEUES_NOT_AVAILABLE";
}

/// The C name and the number, or only the number if it has no name.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "libqpl status {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn a_listed_status_prints_its_c_name_and_number() {
        assert_eq!(
            Status::QUEUES_ARE_BUSY.to_string(),
            "QPL_STS_QUEUES_ARE_BUSY_ERR (5)"
        );
    }

    #[test]
    fn a_status_without_name_prints_its_number() {
        assert_eq!(Status(299).to_string(), "libqpl status 299");
    }
}
