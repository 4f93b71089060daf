//! A stream of bits that is being written, the first of a byte lowest.

/// Bits on their way into a buffer.
pub(super) struct BitWriter<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Bits that do not fill a byte yet.
    pub(super) bits: u64,
    /// How many, at most 7.
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

    /// Appends what follows the header of a stored block: up to 65,535 bytes on a byte boundary, after their number
    /// (RFC 1951 section 3.2.4).
    pub(super) fn stored(&mut self, bytes: &[u8]) {
        self.align();
        let len = bytes.len() as u16;
        debug_assert_eq!(usize::from(len), bytes.len());
        self.out.extend_from_slice(&len.to_le_bytes());
        self.out.extend_from_slice(&(!len).to_le_bytes());
        self.out.extend_from_slice(bytes);
    }

    /// Fills the last byte with zeros.
    pub(super) fn align(&mut self) {
        if self.count > 0 {
            self.out.push(self.bits as u8);
            self.bits = 0;
            self.count = 0;
        }
    }
}
