//! A Huffman table of libqpl's, for bodies of blocks.
//!
//! libqpl makes tables from counts, not from code lengths. Counts of 2^-length are those for which
//! Huffman's algorithm has no choice: a code costs the entropy of such counts only if it has
//! exactly these lengths. libqpl keeps codes for distances within 12 bits, and loses longer ones.
//! The lengths that come here have been made for less ([`CodeLengths`]).
//!
//! A table for compression alone, made on the software path, is all that a device needs to
//! compress; a table for decompression would have libqpl wait without limit for the device.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use page_deflate::CodeLengths;
use qpl_sys::{Allocator, Histogram, HuffmanTable, Library, Path, Status, TableType};

/// A table for compression. Every symbol has a code.
#[derive(Debug)]
pub(crate) struct Table {
    library: &'static Library,
    raw: HuffmanTable,
    /// The code that ends a block, its first bit lowest, and its length.
    end_of_block: (u16, u8),
}

// SAFETY: the table is memory of C's allocator, which any thread may use and free.
unsafe impl Send for Table {}
// SAFETY: nothing writes to a table once `new` has filled it. libqpl does so only in jobs of
// several runs, and a `Job` is always a stream of its own.
unsafe impl Sync for Table {}

impl Table {
    /// # Errors
    /// libqpl's status.
    pub(crate) fn new(library: &'static Library, lengths: &CodeLengths) -> Result<Self, Status> {
        let mut counts = Histogram::default();
        let symbols = counts.literal_lengths.iter_mut().zip(lengths.litlen());
        let distances = counts.distances.iter_mut().zip(lengths.distance());
        for (count, length) in symbols.chain(distances) {
            *count = 1 << LONGEST.saturating_sub(*length);
        }
        let allocator = Allocator {
            allocate: malloc,
            free,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the allocator is C's, and `raw` is writable.
        let status = unsafe {
            (library.deflate_huffman_table_create)(
                TableType::COMPRESSION,
                Path::SOFTWARE,
                allocator,
                &mut raw,
            )
        };
        if status != Status::OK {
            return Err(status);
        }
        let table = Self {
            library,
            raw,
            end_of_block: lengths.end_of_block(),
        };
        // SAFETY: the table was just made, for compression; the histogram is alive.
        match unsafe { (library.huffman_table_init_with_histogram)(raw, &counts) } {
            Status::OK => Ok(table),
            refused => Err(refused),
        }
    }

    /// Where the body of a block ends, in bits, of which a job has made `bytes`; `None` if that is
    /// not what they are.
    ///
    /// A device tells how many bits are to spare in the last byte. The software path does not, and
    /// puts an empty block behind the body, the final one of the stream: bits `1` and `1` `0`, and
    /// the seven zeros that end it in the fixed code.
    pub(super) fn body_bits(&self, bytes: &[u8], spare_bits: Option<u32>) -> Option<usize> {
        let bits = 8 * bytes.len();
        let end = match spare_bits {
            Some(spare_bits) => bits.checked_sub(spare_bits as usize)?,
            None => {
                let zeros = bytes.iter().rev().take_while(|&&byte| byte == 0).count();
                let last = bytes.get(bytes.len().checked_sub(zeros + 1)?)?;
                let behind_last_one = bits - 8 * zeros - last.leading_zeros() as usize;
                let end = behind_last_one.checked_sub(2)?;
                let is_filled_up = (end + EMPTY_BLOCK_BITS).div_ceil(8) == bytes.len();
                (is_filled_up && bits_at(bytes, end, 2) == Some(0b11)).then_some(end)?
            }
        };
        let (code, length) = self.end_of_block;
        let start = end.checked_sub(length.into())?;
        (bits_at(bytes, start, length) == Some(code)).then_some(end)
    }

    /// For a job that lives no longer than this table.
    pub(super) fn raw(&self) -> HuffmanTable {
        self.raw
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: `new` has made it, and jobs that refer to it keep it alive. There is nothing to
        // do about a refusal.
        let _refused = unsafe { (self.library.huffman_table_destroy)(self.raw) };
    }
}

/// The `count` bits from a position on, at most 15, the first of them lowest.
fn bits_at(bytes: &[u8], position: usize, count: u8) -> Option<u16> {
    let first = position / 8;
    let last = (position + usize::from(count)).div_ceil(8);
    let bytes = bytes.get(first..last)?.iter().rev();
    let word = bytes.fold(0_u32, |word, &byte| word << 8 | u32::from(byte));
    Some((word >> (position % 8)) as u16 & ((1 << count) - 1))
}

unsafe extern "C" {
    fn malloc(len_bytes: usize) -> *mut c_void;
    fn free(memory: *mut c_void);
}

/// Bits that the counts of all symbols together have, which is more than any length has.
const LONGEST: u8 = 15;

/// An empty block in the fixed code.
const EMPTY_BLOCK_BITS: usize = 3 + 7;
