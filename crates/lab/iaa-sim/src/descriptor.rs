//! The two structures between a program and the device, each 64 bytes, little-endian.
//!
//! The source is the Intel In-Memory Analytics Accelerator Architecture Specification (chapters
//! "Descriptor formats" and "Completion record"); libqpl 1.9.0's use of the fields was observed by
//! running it.

/// Length of a descriptor and of a completion record.
pub(crate) const LEN: usize = 64;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor([u8; LEN]);

/// Operation codes.
pub(crate) mod opcode {
    /// Does nothing; libqpl tries a queue with it.
    pub(crate) const NOOP: u8 = 0x00;
    /// Inflate.
    pub(crate) const DECOMPRESS: u8 = 0x42;
    /// Deflate, or its statistics.
    pub(crate) const COMPRESS: u8 = 0x43;
}

/// Operation flags, bits 0 to 23 of the word at offset 4.
pub(crate) mod op_flag {
    /// The device waits for a missing page instead of reporting it.
    pub(crate) const BLOCK_ON_FAULT: u32 = 1 << 1;
    /// The AECS is read.
    pub(crate) const READ_AECS: u32 = 1 << 16;
    /// The AECS is always written.
    pub(crate) const WRITE_AECS: u32 = 1 << 18;
    /// CRC-32C instead of CRC-32.
    pub(crate) const CRC32C: u32 = 1 << 21;
    /// The second of the two AECS is read and the first is written.
    pub(crate) const AECS_TOGGLE: u32 = 1 << 22;
}

/// Compression flags.
pub(crate) mod compress_flag {
    /// The destination gets a histogram.
    pub(crate) const STATISTICS: u16 = 1 << 0;
    /// The last byte is written even if it is incomplete.
    pub(crate) const FLUSH: u16 = 1 << 1;
    /// The two bits for the end after the last token: 1 is an end of block.
    pub(crate) const END_MASK: u16 = 3 << 2;
    /// The end of block.
    pub(crate) const END_OF_BLOCK: u16 = 1 << 2;
    /// No matches.
    pub(crate) const LITERALS_ONLY: u16 = 1 << 4;
}

/// Decompression flags.
pub(crate) mod decompress_flag {
    /// Decompression takes place.
    pub(crate) const ENABLE: u16 = 1 << 0;
    /// All output is written, not only whole 8-byte words.
    pub(crate) const FLUSH: u16 = 1 << 1;
    /// The work stops after a block.
    pub(crate) const STOP_ON_END_OF_BLOCK: u16 = 1 << 2;
    /// The input has to end with a block.
    pub(crate) const CHECK_FOR_END_OF_BLOCK: u16 = 1 << 3;
    /// Both apply to the final block only.
    pub(crate) const ONLY_FINAL: u16 = 1 << 4;
    /// The position of the number of bits to ignore at the end of the input.
    pub(crate) const IGNORE_END_BITS_SHIFT: u16 = 6;
    /// The mask of that number.
    pub(crate) const IGNORE_END_BITS_MASK: u16 = 7 << IGNORE_END_BITS_SHIFT;
    /// The output is dropped.
    pub(crate) const SUPPRESS_OUTPUT: u16 = 1 << 9;
}

impl Descriptor {
    pub(crate) const fn new(bytes: [u8; LEN]) -> Descriptor {
        Descriptor(bytes)
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[7]
    }

    pub(crate) fn op_flags(&self) -> u32 {
        self.u32_at(4) & 0x00ff_ffff
    }

    pub(crate) fn has(&self, op_flag: u32) -> bool {
        self.op_flags() & op_flag != 0
    }

    pub(crate) fn completion_address(&self) -> u64 {
        self.u64_at(8)
    }

    pub(crate) fn source_address(&self) -> u64 {
        self.u64_at(16)
    }

    pub(crate) fn destination_address(&self) -> u64 {
        self.u64_at(24)
    }

    pub(crate) fn source_len(&self) -> u32 {
        self.u32_at(32)
    }

    /// Compression or decompression flags, depending on the operation.
    pub(crate) fn flags(&self) -> u16 {
        u16::from_le_bytes(self.array_at(38))
    }

    pub(crate) fn destination_len(&self) -> u32 {
        self.u32_at(48)
    }

    /// Length of one AECS, of which there may be two in a row.
    pub(crate) fn aecs_len(&self) -> u32 {
        self.u32_at(52)
    }

    /// The AECS to read.
    pub(crate) fn aecs_to_read(&self) -> u64 {
        self.aecs(self.has(op_flag::AECS_TOGGLE))
    }

    /// The AECS to write.
    pub(crate) fn aecs_to_write(&self) -> u64 {
        self.aecs(!self.has(op_flag::AECS_TOGGLE))
    }

    fn aecs(&self, second: bool) -> u64 {
        let first = self.u64_at(40);
        if second {
            first.wrapping_add(u64::from(self.aecs_len()))
        } else {
            first
        }
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array_at(offset))
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array_at(offset))
    }

    fn array_at<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|index| self.0[offset + index])
    }
}

/// The completion record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The status, never 0.
    pub(crate) status: u8,
    /// The error with [`status::ANALYTICS_ERROR`].
    pub(crate) error: u8,
    /// Bytes of input consumed.
    pub(crate) bytes_completed: u32,
    /// The address of a page fault.
    pub(crate) fault_address: u64,
    /// Bytes of output written.
    pub(crate) output_len: u32,
    /// Bits used in the last byte of output, 0 for all.
    pub(crate) output_bits: u8,
    /// XOR of the uncompressed bytes as 16-bit words.
    pub(crate) xor: u16,
    /// CRC-32 of the uncompressed bytes.
    pub(crate) crc: u32,
}

/// Status bytes of a completion record.
pub(crate) mod status {
    /// Done.
    pub(crate) const SUCCESS: u8 = 0x01;
    /// A page of the input is missing.
    pub(crate) const READ_PAGE_FAULT: u8 = 0x03;
    /// The work failed; the error byte gives the reason.
    pub(crate) const ANALYTICS_ERROR: u8 = 0x0a;
    /// The output does not fit; it is truncated.
    pub(crate) const OUTPUT_OVERFLOW: u8 = 0x0b;
    /// The operation code is unknown.
    pub(crate) const UNSUPPORTED_OPCODE: u8 = 0x10;
    /// An operation flag is unknown or out of place.
    pub(crate) const INVALID_OP_FLAG: u8 = 0x11;
    /// A length is beyond the queue's limit.
    pub(crate) const TRANSFER_SIZE: u8 = 0x13;
    /// A compression or decompression flag is unknown or out of place.
    pub(crate) const INVALID_FLAG: u8 = 0x30;
    /// A page of the output is missing.
    pub(crate) const WRITE_PAGE_FAULT: u8 = 0x83;
}

impl Record {
    /// A record with these two bytes.
    pub(crate) fn failure(status: u8, error: u8) -> Record {
        Record {
            status,
            error,
            ..Record::default()
        }
    }

    /// The record's form in memory. Byte 0 is the status, to be written last.
    pub(crate) fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        put(0, &[self.status, self.error]);
        put(4, &self.bytes_completed.to_le_bytes());
        put(8, &self.fault_address.to_le_bytes());
        put(24, &self.output_len.to_le_bytes());
        put(28, &[self.output_bits]);
        put(30, &self.xor.to_le_bytes());
        put(32, &self.crc.to_le_bytes());
        bytes
    }
}
