//! Decodes a zlib stream without end, run by run.

use super::format::MAX_WINDOW;
use super::inflate::{InflateError, Run};
use super::several;
use super::table::{Tables, Use};
use crate::inflate::InflateFault;

/// Decodes a zlib stream without end, run by run: the stream of a [`Deflater`](crate::Deflater), of
/// the C zlib, or of any writer that ends each run with a sync flush.
pub struct StreamInflater {
    tables: Box<Tables>,
    /// The last output, as far back as a match may reach.
    history: Vec<u8>,
    started: bool,
}

impl Default for StreamInflater {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamInflater {
    /// Makes a decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tables: Tables::new(),
            history: Vec::with_capacity(MAX_WINDOW),
            started: false,
        }
    }

    /// Decodes the next run, or several consecutive ones: `run` must fill `pages` and end with an
    /// empty stored block.
    ///
    /// The first run starts with the zlib header.
    ///
    /// # Errors
    ///
    /// [`InflateError`]. The stream cannot go on then, and the content of `pages` is meaningless.
    /// [`StreamInflater::history`] has not changed, so another decoder can try.
    pub fn inflate(&mut self, run: &[u8], pages: &mut [u8]) -> Result<(), InflateError> {
        let blocks = self.blocks(run, pages.len())?;
        inflate(blocks, pages, &self.history, &mut self.tables)?;
        self.skip(pages);
        Ok(())
    }

    /// The blocks of the next run: `run` without the zlib header at the start of the first run.
    ///
    /// # Errors
    ///
    /// If the header is another one, or is cut off; `expected_bytes` is for the message.
    #[inline]
    pub fn blocks<'r>(
        &self,
        run: &'r [u8],
        expected_bytes: usize,
    ) -> Result<&'r [u8], InflateError> {
        if self.started {
            Ok(run)
        } else {
            header(run, expected_bytes)
        }
    }

    /// Advances past a run that another decoder, such as a [`RunInflater`], has decoded to `pages`.
    pub fn skip(&mut self, pages: &[u8]) {
        self.started = true;
        self.keep(pages);
    }

    /// The end of the output so far, up to 32 KiB: the data that the next run may refer to. `None`
    /// at the start of a stream.
    #[must_use]
    pub fn history(&self) -> Option<&[u8]> {
        self.started.then_some(&self.history)
    }

    fn keep(&mut self, pages: &[u8]) {
        let new = pages.len().min(MAX_WINDOW);
        let surplus = (self.history.len() + new).saturating_sub(MAX_WINDOW);
        self.history.drain(..surplus);
        self.history.extend_from_slice(&pages[pages.len() - new..]);
    }
}

/// Decodes runs that refer to no earlier data, in any order. The runs are those of
/// [`Deflater::compress_alone`](crate::Deflater::compress_alone).
pub struct RunInflater {
    tables: [Box<Tables>; 2],
}

impl Default for RunInflater {
    fn default() -> Self {
        Self::new()
    }
}

impl RunInflater {
    /// Makes a decoder with room for the tables of two blocks.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tables: [Tables::new(), Tables::new()],
        }
    }

    /// Decodes one run without a zlib header, or several: `run` must fill `pages` and end with an
    /// empty stored block.
    ///
    /// # Errors
    ///
    /// [`InflateError`]. The content of `pages` is meaningless then, and the decoder can go on with
    /// another run.
    pub fn inflate(&mut self, run: &[u8], pages: &mut [u8]) -> Result<(), InflateError> {
        let [tables, _] = &mut self.tables;
        inflate(run, pages, &[], tables)
    }

    /// Decodes several inputs like [`RunInflater::inflate`], which takes less time than one after
    /// the other. Each item is a run and its pages.
    ///
    /// # Errors
    ///
    /// The error of a bad run, which is not always the first one. The content of all pages is
    /// meaningless then.
    pub fn inflate_all<'d>(
        &mut self,
        mut runs: impl Iterator<Item = (&'d [u8], &'d mut [u8])>,
    ) -> Result<(), InflateError> {
        several::inflate_runs(&mut runs, &mut self.tables)
    }
}

/// Decodes blocks that fill `pages` and end with an empty stored one.
fn inflate(
    blocks: &[u8],
    pages: &mut [u8],
    history: &[u8],
    tables: &mut Tables,
) -> Result<(), InflateError> {
    let mut run = Run::new(blocks, pages, history);
    loop {
        let block = run.block(tables, Use::Pages)?;
        if block.is_final {
            return Err(InflateError(InflateFault::UnexpectedFinalBlock));
        }
        if block.is_empty_stored && run.unused() == 0 {
            break;
        }
    }
    run.finish()
}

/// Removes the two header bytes of RFC 1950: deflate, a window of at most 32 KiB, no dictionary, a
/// valid check value.
fn header(run: &[u8], expected_bytes: usize) -> Result<&[u8], InflateError> {
    let Some((&found, blocks)) = run.split_first_chunk() else {
        return Err(InflateError(InflateFault::Truncated {
            found_bytes: 0,
            expected_bytes,
        }));
    };
    let [method, flags] = found;
    let is_good = u16::from_be_bytes(found).is_multiple_of(31)
        && method & 0x0f == 8
        && method >> 4 <= 7
        && flags & 0x20 == 0;
    if is_good {
        Ok(blocks)
    } else {
        Err(InflateError(InflateFault::BadHeader { found }))
    }
}
