//! Big-endian numbers in headers of fixed length.
//!
//! A field is a range of its header's field map: a constant of ours, over an array. The array's
//! length is compared with the map's total at compile time. A peer's number is never used as a
//! position.

use core::ops::Range;

/// The big-endian number in `field` of a header.
#[expect(
    clippy::indexing_slicing,
    reason = "field maps are constants whose totals are asserted against the header"
)]
fn number<const N: usize>(header: &[u8; N], field: Range<usize>) -> u64 {
    header[field]
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The 4-byte big-endian number in `field` of a header.
pub(crate) fn be32<const N: usize>(header: &[u8; N], field: Range<usize>) -> u32 {
    debug_assert_eq!(field.len(), 4);
    // Four bytes are at most 32 bits.
    number(header, field) as u32
}

/// The 8-byte big-endian number in `field` of a header.
pub(crate) fn be64<const N: usize>(header: &[u8; N], field: Range<usize>) -> u64 {
    debug_assert_eq!(field.len(), 8);
    number(header, field)
}

/// The `LEN` bytes in `field` of a header.
#[expect(
    clippy::indexing_slicing,
    reason = "field maps are constants whose totals are asserted against the header"
)]
pub(crate) fn array<const N: usize, const LEN: usize>(
    header: &[u8; N],
    field: Range<usize>,
) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes.copy_from_slice(&header[field]);
    bytes
}

/// Writes `bytes` to `field` of a header; both have the same length.
#[expect(
    clippy::indexing_slicing,
    reason = "field maps are constants whose totals are asserted against the header"
)]
pub(crate) fn put<const N: usize>(header: &mut [u8; N], field: Range<usize>, bytes: &[u8]) {
    header[field].copy_from_slice(bytes);
}
