//! Executes descriptors.
//!
//! ## The AECS, as used by libqpl 1.9.0
//!
//! The *Analytics Engine Configuration and State* is a block of memory besides the buffers, for
//! data that does not fit into a descriptor.
//!
//! For a compression it has 1568 bytes: initial CRC-32 and XOR (0, 4), the number of bits before
//! the first token (28) and these bits (32), then the Huffman codes laid out like a histogram
//! (288), each word with a code in bits 0 to 14, most significant bit first, and its length in bits
//! 15 to 18. The bits before the first token are the block header: libqpl writes the fixed one, or
//! the dynamic one made on the processor from the histogram of a first pass, or none for canned
//! mode. So the codes are always those of the AECS, and the device never chooses.
//!
//! For a decompression it has 5376 bytes, or 1248 without history, and its content is private to
//! the device: libqpl sets CRC, accumulators and the parser's state and leaves the rest. A table
//! for canned mode is made by letting the device parse a dynamic header and write its state, which
//! a canned job reads later. This engine keeps the code lengths there, in its own form.

use crate::deflate::{
    self, CodeLengths, Codes, End, EndRules, Error, FIXED_DISTANCES, FIXED_LITERAL_LENGTHS,
    Histogram, Start,
};
use crate::descriptor::{
    Descriptor, Record, compress_flag, decompress_flag, op_flag, opcode, status,
};
use crate::memory::Work;

/// Does the work, except writing the completion record.
pub(crate) fn execute(work: &Work, max_transfer_bytes: u64) -> Record {
    let descriptor = work.descriptor();
    match attempt(work, max_transfer_bytes) {
        Ok(record) => record,
        Err(Refusal::Descriptor(status)) => Record::failure(status, 0),
        Err(Refusal::Stream(error)) => Record {
            // The consumed input of a failure is not specified; report all of it.
            bytes_completed: descriptor.source_len(),
            ..Record::failure(status::ANALYTICS_ERROR, error as u8)
        },
    }
}

/// Why there is no result.
enum Refusal {
    /// The status byte.
    Descriptor(u8),
    /// The error byte.
    Stream(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Stream(error)
    }
}

fn attempt(work: &Work, max_transfer_bytes: u64) -> Result<Record, Refusal> {
    let descriptor = work.descriptor();
    let longest = descriptor.source_len().max(descriptor.destination_len());
    if u64::from(longest) > max_transfer_bytes {
        return Err(Refusal::Descriptor(status::TRANSFER_SIZE));
    }
    if descriptor.has(op_flag::CRC32C) {
        return Err(Refusal::Descriptor(status::INVALID_OP_FLAG));
    }
    match descriptor.opcode() {
        opcode::NOOP => Ok(Record::failure(status::SUCCESS, 0)),
        opcode::COMPRESS => compress(work),
        opcode::DECOMPRESS => decompress(work),
        _ => Err(Refusal::Descriptor(status::UNSUPPORTED_OPCODE)),
    }
}

fn compress(work: &Work) -> Result<Record, Refusal> {
    use compress_flag::{END_MASK, END_OF_BLOCK, FLUSH, LITERALS_ONLY, STATISTICS};

    let descriptor = work.descriptor();
    let flags = descriptor.flags();
    let end_of_block = match flags & END_MASK {
        0 => false,
        END_OF_BLOCK => true,
        _ => return Err(Refusal::Descriptor(status::INVALID_FLAG)),
    };
    if flags & !(STATISTICS | FLUSH | END_MASK | LITERALS_ONLY) != 0 {
        return Err(Refusal::Descriptor(status::INVALID_FLAG));
    }
    let source = work.source();
    let tokens = deflate::tokenize(&source, flags & LITERALS_ONLY != 0);
    if flags & STATISTICS != 0 {
        let histogram = Histogram::of(&tokens, end_of_block).to_bytes();
        if histogram.len() > descriptor.destination_len() as usize {
            return Err(Error::OutputOverflow.into());
        }
        work.write_destination(&histogram);
        let seeds = Checksums::default();
        return Ok(success(descriptor, &histogram, 0, seeds.over(&source)));
    }

    // A stream over several jobs would continue in the AECS that such a job writes.
    if !descriptor.has(op_flag::READ_AECS) || descriptor.has(op_flag::WRITE_AECS) {
        return Err(Refusal::Descriptor(status::INVALID_OP_FLAG));
    }
    let aecs = CompressAecs::read(work)?;
    let encoded = deflate::encode(
        &aecs.head,
        aecs.head_bits,
        &aecs.codes,
        &tokens,
        end_of_block,
    )?;
    if encoded.bytes.len() > descriptor.destination_len() as usize {
        return Err(Error::OutputOverflow.into());
    }
    work.write_destination(&encoded.bytes);
    let checksums = aecs.checksums.over(&source);
    Ok(success(
        descriptor,
        &encoded.bytes,
        encoded.last_bits,
        checksums,
    ))
}

fn decompress(work: &Work) -> Result<Record, Refusal> {
    use decompress_flag::{
        CHECK_FOR_END_OF_BLOCK, ENABLE, FLUSH, IGNORE_END_BITS_MASK, IGNORE_END_BITS_SHIFT,
        ONLY_FINAL, STOP_ON_END_OF_BLOCK, SUPPRESS_OUTPUT,
    };
    const KNOWN: u16 = ENABLE
        | FLUSH
        | STOP_ON_END_OF_BLOCK
        | CHECK_FOR_END_OF_BLOCK
        | ONLY_FINAL
        | IGNORE_END_BITS_MASK
        | SUPPRESS_OUTPUT;

    let descriptor = work.descriptor();
    let flags = descriptor.flags();
    if flags & !KNOWN != 0 || flags & ENABLE == 0 {
        return Err(Refusal::Descriptor(status::INVALID_FLAG));
    }
    let (start, checksums) = if descriptor.has(op_flag::READ_AECS) {
        let aecs = DecompressAecs::read(work)?;
        (Start::Body(Box::new(aecs.lengths)), aecs.checksums)
    } else {
        (Start::Header, Checksums::default())
    };
    let suppressed = flags & SUPPRESS_OUTPUT != 0;
    let decoded = deflate::decode(
        &work.source(),
        usize::from((flags & IGNORE_END_BITS_MASK) >> IGNORE_END_BITS_SHIFT),
        start,
        EndRules {
            stop: flags & STOP_ON_END_OF_BLOCK != 0,
            check: flags & CHECK_FOR_END_OF_BLOCK != 0,
            only_final: flags & ONLY_FINAL != 0,
        },
        if suppressed {
            usize::MAX
        } else {
            descriptor.destination_len() as usize
        },
    )?;
    let checksums = checksums.over(&decoded.output);
    let output = if suppressed { &[] } else { &*decoded.output };
    work.write_destination(output);

    match decoded.end {
        End::OutputFull => Ok(Record {
            status: status::OUTPUT_OVERFLOW,
            bytes_completed: decoded.bytes_used as u32,
            ..success(descriptor, output, 0, checksums)
        }),
        End::InBlock(lengths) if descriptor.has(op_flag::WRITE_AECS) => {
            work.write_aecs(&DecompressAecs::write(&lengths, descriptor.aecs_len()));
            Ok(success(descriptor, output, 0, checksums))
        }
        // A stream over several jobs would continue from a state that this engine does not keep.
        End::Done if descriptor.has(op_flag::WRITE_AECS) => {
            Err(Refusal::Descriptor(status::INVALID_OP_FLAG))
        }
        End::Done | End::InBlock(_) => Ok(success(descriptor, output, 0, checksums)),
    }
}

fn success(
    descriptor: &Descriptor,
    output: &[u8],
    output_bits: u8,
    checksums: Checksums,
) -> Record {
    Record {
        status: status::SUCCESS,
        error: 0,
        bytes_completed: descriptor.source_len(),
        fault_address: 0,
        output_len: output.len() as u32,
        output_bits,
        xor: checksums.xor,
        crc: checksums.crc,
    }
}

/// Checksums of the uncompressed bytes.
#[derive(Clone, Copy, Default)]
struct Checksums {
    crc: u32,
    xor: u16,
}

impl Checksums {
    fn over(self, bytes: &[u8]) -> Checksums {
        let mut crc = crc32fast::Hasher::new_with_initial(self.crc);
        crc.update(bytes);
        let words = bytes
            .chunks(2)
            .map(|word| u16::from_le_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
        Checksums {
            crc: crc.finalize(),
            xor: words.fold(self.xor, |xor, word| xor ^ word),
        }
    }

    /// Both kinds of AECS begin with them.
    fn read(aecs: &[u8]) -> Result<Checksums, Error> {
        let xor = word(aecs, 4)?;
        Ok(Checksums {
            crc: word(aecs, 0)?,
            xor: xor as u16,
        })
    }
}

struct CompressAecs {
    checksums: Checksums,
    head: Vec<u8>,
    head_bits: usize,
    codes: Codes,
}

impl CompressAecs {
    fn read(work: &Work) -> Result<CompressAecs, Error> {
        const HEAD_BITS: usize = 28;
        const HEAD: usize = 32;
        const CODES: usize = 288;

        let aecs = work.aecs();
        let head = aecs.get(HEAD..CODES).ok_or(Error::Aecs)?;
        let head_bits = word(&aecs, HEAD_BITS)? as usize;
        if head_bits > 8 * head.len() {
            return Err(Error::Aecs);
        }
        let codes = aecs.get(CODES..).and_then(<[u8]>::first_chunk);
        Ok(CompressAecs {
            checksums: Checksums::read(&aecs)?,
            head: head.to_vec(),
            head_bits,
            codes: Codes::from_bytes(codes.ok_or(Error::Aecs)?),
        })
    }
}

/// The state in the middle of a decompression: a block's codes.
struct DecompressAecs {
    checksums: Checksums,
    lengths: CodeLengths,
}

impl DecompressAecs {
    /// The position of our decoding tables, between the fields that libqpl fills in by name.
    const TABLES: usize = 560;
    /// Distinguishes our tables from another writer's.
    const MARK: u32 = 0x5349_4141;

    fn read(work: &Work) -> Result<DecompressAecs, Error> {
        let aecs = work.aecs();
        if word(&aecs, Self::TABLES)? != Self::MARK {
            return Err(Error::Aecs);
        }
        let nibbles = aecs.get(Self::TABLES + 4..).ok_or(Error::Aecs)?;
        let length = |index: usize| (nibbles[index / 2] >> (4 * (index % 2))) & 0xf;
        if nibbles.len() < (FIXED_LITERAL_LENGTHS + FIXED_DISTANCES) / 2 {
            return Err(Error::Aecs);
        }
        Ok(DecompressAecs {
            checksums: Checksums::read(&aecs)?,
            lengths: CodeLengths {
                literal_lengths: std::array::from_fn(length),
                distances: std::array::from_fn(|symbol| length(FIXED_LITERAL_LENGTHS + symbol)),
            },
        })
    }

    fn write(lengths: &CodeLengths, len_bytes: u32) -> Vec<u8> {
        let mut aecs = vec![0; Self::TABLES];
        aecs.extend(Self::MARK.to_le_bytes());
        let all = [&lengths.literal_lengths[..], &lengths.distances[..]].concat();
        aecs.extend(all.chunks(2).map(|pair| pair[0] | pair[1] << 4));
        aecs.resize(len_bytes as usize, 0);
        aecs
    }
}

fn word(bytes: &[u8], offset: usize) -> Result<u32, Error> {
    let word = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    word.map(|word| u32::from_le_bytes(*word))
        .ok_or(Error::Aecs)
}
