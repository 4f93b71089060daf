//! A writer of bits; the first bit of a byte is the lowest.

/// Appends bits to a buffer.
pub(super) struct BitWriter<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Bits that do not fill a byte yet.
    pub(super) bits: u64,
    /// The number of these bits, at most 7.
    pub(super) count: u32,
}

impl<'a> BitWriter<'a> {
    /// Starts on a byte boundary.
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            bits: 0,
            count: 0,
        }
    }

    /// Appends the lowest `count` bits of `bits`, at most 32; the others are 0.
    pub(super) fn put(&mut self, bits: u32, count: u32) {
        self.bits |= u64::from(bits) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    /// Begins a burst of many bits after those already written.
    #[inline(always)]
    pub(super) fn begin(&self) -> Burst {
        Burst {
            at: 0,
            pending: self.bits,
            // The mask tells the compiler the range.
            count: self.count & 7,
        }
    }

    /// Takes over the bytes that a burst has written. The burst can go on afterwards.
    #[inline(always)]
    pub(super) fn take(&mut self, burst: Burst, bytes: &BurstBytes) -> Burst {
        self.out
            .extend_from_slice(&bytes[..burst.at.min(Burst::MOST_BYTES)]);
        self.bits = burst.pending;
        self.count = burst.count;
        self.begin()
    }

    /// Appends the rest of a stored block after its header: zero bits to a byte boundary, the
    /// length of `bytes`, then `bytes`, up to 65,535 of them (RFC 1951 section 3.2.4).
    pub(super) fn stored(&mut self, bytes: &[u8]) {
        self.align();
        let len = bytes.len() as u16;
        debug_assert_eq!(usize::from(len), bytes.len());
        self.out.extend_from_slice(&len.to_le_bytes());
        self.out.extend_from_slice(&(!len).to_le_bytes());
        self.out.extend_from_slice(bytes);
    }

    /// Fills the last byte with zero bits.
    pub(super) fn align(&mut self) {
        if self.count > 0 {
            self.out.push(self.bits as u8);
            self.bits = 0;
            self.count = 0;
        }
    }
}

/// The buffer of a [`Burst`].
pub(super) type BurstBytes = [u8; Burst::MOST_BYTES + 7];

/// The write position in a buffer of fixed size, for many bits in a row. Passed by value, so that
/// it stays in registers.
#[derive(Clone, Copy)]
pub(super) struct Burst {
    /// Complete bytes.
    at: usize,
    /// Bits that do not fill a byte yet.
    pending: u64,
    /// The number of these bits, at most 7.
    count: u32,
}

impl Burst {
    /// Bytes that fit before they must be taken. A power of two, so that masking an index needs no
    /// branch.
    pub(super) const MOST_BYTES: usize = 2048;
    /// Bits that one call may write: with up to 7 pending, the sum must stay below 64.
    pub(super) const MOST_BITS: u32 = 56;

    /// A buffer for a burst.
    #[inline(always)]
    pub(super) const fn buffer() -> BurstBytes {
        [0; Self::MOST_BYTES + 7]
    }

    /// The number of complete bytes.
    pub(super) fn len(self) -> usize {
        self.at
    }

    /// Writes the lowest `count` bits of `bits`; the others are 0.
    #[inline(always)]
    pub(super) fn put(self, bits: u64, count: u32, bytes: &mut BurstBytes) -> Self {
        debug_assert!(count <= Self::MOST_BITS && self.at < Self::MOST_BYTES);
        let pending = self.pending | bits << (self.count & 7);
        let count = self.count + count;
        let at = self.at % Self::MOST_BYTES;
        bytes[at..at + 8].copy_from_slice(&pending.to_le_bytes());
        Self {
            at: self.at + (count >> 3) as usize,
            pending: pending >> (count & 56),
            count: count & 7,
        }
    }
}
