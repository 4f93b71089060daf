//! The core decoder: decodes blocks to output of known size.

use super::format::{
    DISTANCE_SYMBOLS, DYNAMIC, FIXED, LITLEN_SYMBOLS, PRECODE_ORDER, PRECODE_SYMBOLS, STORED,
};
use super::lane::{Lane, Stop};
use super::several;
use super::table::{BadCode, Precode, Tables, Use};

/// Why deflate data is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct InflateError(#[from] pub(crate) InflateFault);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InflateFault {
    /// The input ends inside a block, or before the requested end.
    #[error("the compressed data ends early, after {found_bytes} of {expected_bytes} bytes")]
    Truncated {
        /// Output so far.
        found_bytes: usize,
        /// Requested output.
        expected_bytes: usize,
    },
    /// The input ends correctly but produces too little output.
    #[error("the compressed data gives {found_bytes} bytes instead of {expected_bytes}")]
    TooShort {
        /// Output produced.
        found_bytes: usize,
        /// Requested output.
        expected_bytes: usize,
    },
    /// The input produces too much output.
    #[error("the compressed data gives more than {expected_bytes} bytes")]
    TooLong {
        /// Requested output.
        expected_bytes: usize,
    },
    /// Bytes follow the end of the compressed data.
    #[error("{found_bytes} bytes follow the end of the compressed data")]
    TrailingData {
        /// The number of these bytes.
        found_bytes: usize,
    },
    /// A final block in a stream without end.
    #[error("a final block in a stream without end")]
    UnexpectedFinalBlock,
    /// The zlib header is not one that this decoder accepts.
    #[error("bytes {found:02x?} are not a zlib header")]
    BadHeader {
        /// The first two bytes.
        found: [u8; 2],
    },
    /// Block type 3.
    #[error("reserved block type 3")]
    ReservedBlockType,
    /// A stored block's length and its complement disagree.
    #[error("stored block length {len:#06x} with complement {complement:#06x}")]
    StoredLength {
        /// The length.
        len: u16,
        /// The field that should be its complement.
        complement: u16,
    },
    /// A block describes codes that are not prefix codes, or that leave bit patterns unused.
    #[error("invalid code description")]
    InvalidCode,
    /// A code without a meaning.
    #[error("invalid symbol")]
    InvalidSymbol,
    /// A match reaches back before the data, or before the kept history.
    #[error("distance {found_bytes} where {available_bytes} bytes of history are at hand")]
    DistanceTooFar {
        /// The distance.
        found_bytes: usize,
        /// The greatest possible distance.
        available_bytes: usize,
    },
}

impl From<BadCode> for InflateError {
    fn from(BadCode: BadCode) -> Self {
        InflateError(InflateFault::InvalidCode)
    }
}

/// The codes of a block's symbols.
#[derive(Clone, Copy)]
pub(super) enum Codes {
    /// The format's fixed code.
    Fixed,
    /// The block's own: the tables last built.
    Own,
}

impl Codes {
    pub(super) fn tables(self, own: &Tables) -> &Tables {
        match self {
            Self::Fixed => Tables::fixed(),
            Self::Own => own,
        }
    }
}

/// The beginning of a block.
pub(super) struct Block {
    pub(super) is_final: bool,
    pub(super) is_empty_stored: bool,
    /// `None` for a stored block, which has been read to its end.
    pub(super) codes: Option<Codes>,
}

/// One decoding run over one input and one output.
pub(super) struct Run<'i, 'o> {
    pub(super) lane: Lane<'i, 'o>,
    /// The data before the output, the nearest last.
    history: &'i [u8],
}

impl<'i, 'o> Run<'i, 'o> {
    pub(super) fn new(input: &'i [u8], output: &'o mut [u8], history: &'i [u8]) -> Self {
        Self {
            lane: Lane::new(input, output),
            history,
        }
    }

    /// Bytes of the input after the one that holds the last bit used.
    pub(super) fn unused(&mut self) -> usize {
        self.lane.bits.align().len()
    }

    /// Succeeds only if the output is complete.
    pub(super) fn finish(&self) -> Result<(), InflateError> {
        let (found_bytes, expected_bytes) = (self.lane.at, self.lane.output.len());
        if found_bytes < expected_bytes {
            return Err(InflateError(InflateFault::TooShort {
                found_bytes,
                expected_bytes,
            }));
        }
        Ok(())
    }

    /// Succeeds only if both the input and the output are complete.
    pub(super) fn finish_all(&mut self) -> Result<(), InflateError> {
        match self.unused() {
            0 => self.finish(),
            found_bytes => Err(InflateError(InflateFault::TrailingData { found_bytes })),
        }
    }

    /// Decodes one block. `tables` is space for a block with its own codes.
    pub(super) fn block(&mut self, tables: &mut Tables, usage: Use) -> Result<Block, InflateError> {
        let block = self.begin(tables, usage)?;
        if let Some(codes) = block.codes {
            self.lane.rest(codes.tables(tables), self.history)?;
        }
        Ok(block)
    }

    /// Reads the beginning of a block, or all of a stored one.
    pub(super) fn begin(&mut self, tables: &mut Tables, usage: Use) -> Result<Block, InflateError> {
        let header = self.take(3)?;
        let mut block = Block {
            is_final: header & 1 == 1,
            is_empty_stored: false,
            codes: None,
        };
        match header >> 1 {
            STORED => block.is_empty_stored = self.stored()? == 0,
            FIXED => block.codes = Some(Codes::Fixed),
            DYNAMIC => {
                self.description(tables, usage)?;
                block.codes = Some(Codes::Own);
            }
            _ => return Err(InflateError(InflateFault::ReservedBlockType)),
        }
        Ok(block)
    }

    /// Deals with the reason why a fast loop stopped. Returns true at the end of the block;
    /// otherwise the loop can go on.
    pub(super) fn settle(&mut self, stop: Stop, tables: &Tables) -> Result<bool, InflateError> {
        self.lane.settle(stop, tables, self.history)
    }

    /// Decodes a stored block and returns its length.
    fn stored(&mut self) -> Result<usize, InflateError> {
        let lane = &mut self.lane;
        let bytes = lane.bits.align();
        let Some((&[a, b, c, d], bytes)) = bytes.split_first_chunk() else {
            return Err(lane.truncated());
        };
        let (len, complement) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if len != !complement {
            return Err(InflateError(InflateFault::StoredLength { len, complement }));
        }
        let len = usize::from(len);
        let Some(source) = bytes.get(..len) else {
            return Err(lane.truncated());
        };
        let Some(target) = lane.output.get_mut(lane.at..lane.at + len) else {
            return Err(lane.too_long());
        };
        target.copy_from_slice(source);
        lane.at += len;
        lane.bits.next += 4 + len;
        Ok(len)
    }

    fn description(&mut self, tables: &mut Tables, usage: Use) -> Result<(), InflateError> {
        let mut lengths = DescribedLengths::new();
        let (litlen, distance) = self.lengths(&mut lengths)?;
        Ok(tables.build(litlen, distance, usage)?)
    }

    /// Reads the code lengths that a block describes: those of literals and lengths, and those of
    /// distances.
    fn lengths<'l>(
        &mut self,
        all: &'l mut DescribedLengths,
    ) -> Result<(&'l [u8], &'l [u8]), InflateError> {
        let litlens = self.take(5)? as usize + 257;
        let distances = self.take(5)? as usize + 1;
        let described = self.take(4)? as usize + 4;
        if litlens > LITLEN_SYMBOLS || distances > DISTANCE_SYMBOLS {
            return Err(InflateError(InflateFault::InvalidCode));
        }
        let mut lengths = [0; PRECODE_SYMBOLS];
        for &symbol in PRECODE_ORDER.iter().take(described) {
            lengths[usize::from(symbol)] = self.take(3)? as u8;
        }
        let precode = Precode::new(&lengths)?;

        let count = litlens + distances;
        let mut done = 0;
        let mut previous = None;
        while done < count {
            if self.lane.bits.count < Precode::MOST_BITS {
                self.lane.bits.refill();
            }
            let said = precode.next(self.lane.bits.bits);
            if !self.lane.bits.drop(said.bits) {
                return Err(self.lane.truncated());
            }
            let length = if said.is_previous {
                previous.ok_or(InflateError(InflateFault::InvalidCode))?
            } else {
                said.length
            };
            previous = Some(length);
            // Most repetitions are short. What is written too much is overwritten.
            let places = &mut all.0[done..];
            match places.first_chunk_mut::<8>() {
                Some(places) if said.count <= 8 => {
                    *places = (u64::from(length) * 0x0101_0101_0101_0101).to_le_bytes();
                }
                _ => places[..said.count].fill(length),
            }
            done += said.count;
        }
        if done > count {
            return Err(InflateError(InflateFault::InvalidCode));
        }
        Ok(all.0[..count].split_at(litlens))
    }

    fn take(&mut self, count: u32) -> Result<u32, InflateError> {
        self.lane
            .bits
            .take(count)
            .ok_or_else(|| self.lane.truncated())
    }
}

/// Room for the code lengths that a block describes, and for what its last symbol may add.
pub(super) struct DescribedLengths([u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS + Precode::MOST]);

impl DescribedLengths {
    pub(super) const fn new() -> Self {
        Self([0; LITLEN_SYMBOLS + DISTANCE_SYMBOLS + Precode::MOST])
    }
}

/// Decodes the body of a block with known tables. The body must end in the last byte of `body` and
/// fill `page`.
pub(super) fn inflate_body(
    tables: &Tables,
    body: &[u8],
    page: &mut [u8],
) -> Result<(), InflateError> {
    let mut run = Run::new(body, page, &[]);
    run.lane.rest(tables, &[])?;
    run.finish_all()
}

/// The content of a final dynamic block's header.
pub(super) struct Header<'l> {
    pub(super) litlen: &'l [u8],
    pub(super) distance: &'l [u8],
    /// Bytes after the one with the header's last bit.
    pub(super) unused: usize,
    /// Whether the remaining bits of this byte are 0.
    pub(super) ends_in_zeros: bool,
}

/// Reads the header of a final dynamic block that begins with the first bit of `input`. Returns
/// `None` if another kind of block begins there.
pub(super) fn read_header<'l>(
    input: &[u8],
    lengths: &'l mut DescribedLengths,
) -> Result<Option<Header<'l>>, InflateError> {
    let mut run = Run::new(input, &mut [], &[]);
    if run.take(3)? != 1 | DYNAMIC << 1 {
        return Ok(None);
    }
    let (litlen, distance) = run.lengths(lengths)?;
    let spare_bits = run.lane.bits.count % 8;
    let ends_in_zeros = run.lane.bits.take(spare_bits) == Some(0);
    Ok(Some(Header {
        litlen,
        distance,
        unused: run.unused(),
        ends_in_zeros,
    }))
}

/// Decodes complete deflate streams, page by page.
pub struct PageInflater {
    tables: [Box<Tables>; 2],
}

impl Default for PageInflater {
    fn default() -> Self {
        Self::new()
    }
}

impl PageInflater {
    /// Makes a decoder with room for the tables of two blocks.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tables: [Tables::new(), Tables::new()],
        }
    }

    /// Decodes a complete raw deflate stream of a single block like [`PageInflater::inflate`], and
    /// returns the number of unused bits in its last byte, 0 to 7.
    ///
    /// # Errors
    ///
    /// [`InflateError`]. A stream of several blocks counts as one that ends early.
    pub fn inflate_block(&mut self, stream: &[u8], page: &mut [u8]) -> Result<u32, InflateError> {
        let [tables, _] = &mut self.tables;
        let mut run = Run::new(stream, page, &[]);
        if !run.block(tables, Use::Page)?.is_final {
            return Err(run.lane.truncated());
        }
        let spare_bits = run.lane.bits.count % 8;
        run.finish_all().map(|()| spare_bits)
    }

    /// Decodes one complete raw deflate stream, which must end in the last byte of `stream` and
    /// fill `page`.
    ///
    /// After an error the content of `page` is meaningless, and the decoder can go on with another
    /// stream.
    ///
    /// # Errors
    ///
    /// [`InflateError`] unless exactly `stream` produces exactly `page`.
    pub fn inflate(&mut self, stream: &[u8], page: &mut [u8]) -> Result<(), InflateError> {
        let [tables, _] = &mut self.tables;
        let mut run = Run::new(stream, page, &[]);
        while !run.block(tables, Use::Page)?.is_final {}
        run.finish_all()
    }

    /// Decodes several streams like [`PageInflater::inflate`], which takes less time than one after
    /// the other. Each item is a stream and its page.
    ///
    /// # Errors
    ///
    /// The error of a bad stream, which is not always the first one. The content of all pages is
    /// meaningless then.
    pub fn inflate_all<'d>(
        &mut self,
        mut pages: impl Iterator<Item = (&'d [u8], &'d mut [u8])>,
    ) -> Result<(), InflateError> {
        several::inflate_pages(&mut pages, &mut self.tables)
    }
}
