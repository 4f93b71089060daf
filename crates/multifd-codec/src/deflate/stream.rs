//! A zlib stream without end, one packet after the other.

use super::format::MAX_WINDOW;
use super::inflate::{InflateError, Run};
use super::table::{Pairs, Tables};

/// Decodes the zlib stream of one channel: made by the C zlib, by this crate, or by whoever ends each packet with a
/// sync flush.
pub struct StreamInflater {
    tables: Box<Tables>,
    /// The last output, as far as a match may reach.
    history: Vec<u8>,
    started: bool,
}

impl Default for StreamInflater {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamInflater {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            tables: Tables::new(),
            history: Vec::with_capacity(MAX_WINDOW),
            started: false,
        }
    }

    /// Decodes one packet: `payload` must fill `pages` and end with an empty stored block.
    ///
    /// The first packet starts with the zlib header. After an error the stream cannot go on, and the content of `pages`
    /// is of no use.
    pub fn inflate(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<(), InflateError> {
        let blocks = self.blocks(payload, pages.len())?;
        inflate(blocks, pages, &self.history, &mut self.tables)?;
        self.go_on(pages);
        Ok(())
    }

    /// Decodes blocks as [`inflate`](Self::inflate) does, but those of another stream, at its start and behind its header.
    pub(crate) fn inflate_alone(
        &mut self,
        blocks: &[u8],
        pages: &mut [u8],
    ) -> Result<(), InflateError> {
        inflate(blocks, pages, &[], &mut self.tables)
    }

    /// The blocks of the next packet's payload, which is to become so many bytes.
    pub(crate) fn blocks<'p>(
        &self,
        payload: &'p [u8],
        expected_bytes: usize,
    ) -> Result<&'p [u8], InflateError> {
        match self.started {
            true => Ok(payload),
            false => header(payload, expected_bytes),
        }
    }

    /// Goes on behind a packet whose blocks have become `pages`.
    pub(crate) fn go_on(&mut self, pages: &[u8]) {
        self.started = true;
        self.keep(pages);
    }

    /// What the packets so far have left for the next to refer to; nothing at the start of a stream.
    ///
    /// A packet that was refused has not changed it.
    pub(crate) fn history(&self) -> Option<&[u8]> {
        self.started.then_some(&self.history)
    }

    fn keep(&mut self, pages: &[u8]) {
        let new = pages.len().min(MAX_WINDOW);
        let surplus = (self.history.len() + new).saturating_sub(MAX_WINDOW);
        self.history.drain(..surplus);
        self.history.extend_from_slice(&pages[pages.len() - new..]);
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
        let block = run.block(tables, Pairs::Build)?;
        if block.is_final {
            return Err(InflateError::UnexpectedFinalBlock);
        }
        if block.is_empty_stored && run.unused() == 0 {
            break;
        }
    }
    run.finish()
}

/// Takes off the two bytes of RFC 1950: deflate, a window of at most 32 KiB, no dictionary, a good check value.
fn header(payload: &[u8], expected_bytes: usize) -> Result<&[u8], InflateError> {
    let Some((&found, blocks)) = payload.split_first_chunk() else {
        return Err(InflateError::Truncated {
            found_bytes: 0,
            expected_bytes,
        });
    };
    let [method, flags] = found;
    let is_good = u16::from_be_bytes(found).is_multiple_of(31)
        && method & 0x0f == 8
        && method >> 4 <= 7
        && flags & 0x20 == 0;
    if is_good {
        Ok(blocks)
    } else {
        Err(InflateError::BadHeader { found })
    }
}
