//! Bits of a stream that does not end on a byte boundary.

/// Appends the first `bits` bits of `bytes`, which has at least as many, padded with zero bits.
pub(super) fn push_bits(bytes: &[u8], bits: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(bytes.get(..bits.div_ceil(8)).unwrap_or(bytes));
    if let Some(last) = out.last_mut().filter(|_| !bits.is_multiple_of(8)) {
        *last &= (1 << (bits % 8)) - 1;
    }
}
