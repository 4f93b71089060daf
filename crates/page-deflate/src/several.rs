//! Decodes independent pieces of compressed data, two of them at a time.

use super::inflate::{Codes, InflateError, Run};
use super::lane::{Stop, fast_two};
use super::table::{Tables, Use};
use crate::inflate::InflateFault;

/// A piece of compressed data, and the room that its content fills.
pub(super) type Piece<'d> = (&'d [u8], &'d mut [u8]);

/// The kind of a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A complete deflate stream.
    Page,
    /// Blocks that end with an empty stored one.
    Run,
    /// The body of a block under codes that are known.
    Body,
}

/// The tables for one of the two pieces.
enum Codebook<'t> {
    /// Room for those of a block.
    Own(&'t mut Tables),
    Known(&'t Tables),
}

/// Decodes complete streams, each of which must end in its last byte and fill its page.
///
/// # Errors
///
/// The error of one of the bad pieces, which is not always the first. The content of any piece may
/// be meaningless then. This holds for all these functions.
pub(super) fn inflate_pages<'d>(
    pages: &mut dyn Iterator<Item = Piece<'d>>,
    tables: &mut [Box<Tables>; 2],
) -> Result<(), InflateError> {
    inflate(
        pages,
        Form::Page,
        tables.each_mut().map(|own| Codebook::Own(own)),
    )
}

/// Decodes runs without references to earlier data.
pub(super) fn inflate_runs<'d>(
    runs: &mut dyn Iterator<Item = Piece<'d>>,
    tables: &mut [Box<Tables>; 2],
) -> Result<(), InflateError> {
    inflate(
        runs,
        Form::Run,
        tables.each_mut().map(|own| Codebook::Own(own)),
    )
}

/// Decodes bodies of blocks under the codes of these tables.
pub(super) fn inflate_bodies<'d>(
    bodies: &mut dyn Iterator<Item = Piece<'d>>,
    tables: &Tables,
) -> Result<(), InflateError> {
    inflate(bodies, Form::Body, [tables, tables].map(Codebook::Known))
}

fn inflate<'d>(
    pieces: &mut dyn Iterator<Item = Piece<'d>>,
    form: Form,
    codebooks: [Codebook<'_>; 2],
) -> Result<(), InflateError> {
    let mut strands = codebooks.map(|codebook| Strand {
        run: Run::new(&[], &mut [], &[]),
        form,
        codebook,
        block: None,
    });
    loop {
        for strand in &mut strands {
            while strand.block.is_none()
                && let Some((input, output)) = pieces.next()
            {
                strand.begin(input, output)?;
            }
        }
        let [a, b] = &mut strands;
        match (a.block, b.block) {
            (None, None) => return Ok(()),
            (Some(_), None) => a.alone()?,
            (None, Some(_)) => b.alone()?,
            (Some(block_a), Some(block_b)) => {
                let tables = [a.codebook.of(block_a), b.codebook.of(block_b)];
                let lanes = [&mut a.run.lane, &mut b.run.lane];
                let [stop_a, stop_b] = fast_two(lanes, tables);
                if let Some(stop) = stop_a {
                    a.settle(stop)?;
                }
                if let Some(stop) = stop_b {
                    b.settle(stop)?;
                }
            }
        }
    }
}

/// One of the two pieces in work.
struct Strand<'d, 't> {
    run: Run<'d, 'd>,
    form: Form,
    codebook: Codebook<'t>,
    /// The block whose symbols are being decoded; none if the piece has ended.
    block: Option<Symbols>,
}

/// A block's symbols.
#[derive(Clone, Copy)]
struct Symbols {
    codes: Codes,
    is_final: bool,
}

impl Codebook<'_> {
    fn of(&self, block: Symbols) -> &Tables {
        match self {
            Self::Own(own) => block.codes.tables(own),
            Self::Known(tables) => tables,
        }
    }
}

impl<'d> Strand<'d, '_> {
    fn begin(&mut self, input: &'d [u8], output: &'d mut [u8]) -> Result<(), InflateError> {
        self.run = Run::new(input, output, &[]);
        self.next_block()
    }

    /// Goes to the symbols of the next block, or to the end of the piece.
    fn next_block(&mut self) -> Result<(), InflateError> {
        loop {
            let own = match &mut self.codebook {
                Codebook::Own(own) => own,
                Codebook::Known(_) => {
                    let (codes, is_final) = (Codes::Own, true);
                    self.block = Some(Symbols { codes, is_final });
                    return Ok(());
                }
            };
            let usage = match self.form {
                Form::Run => Use::Pages,
                Form::Page | Form::Body => Use::Page,
            };
            let block = self.run.begin(own, usage)?;
            let is_final = block.is_final;
            self.block = block.codes.map(|codes| Symbols { codes, is_final });
            if self.block.is_some() || self.is_end(is_final, block.is_empty_stored)? {
                return Ok(());
            }
        }
    }

    /// Returns whether the piece ends with this block, which has been decoded.
    fn is_end(&mut self, is_final: bool, is_empty_stored: bool) -> Result<bool, InflateError> {
        let is_end = match self.form {
            Form::Run if is_final => return Err(InflateError(InflateFault::UnexpectedFinalBlock)),
            Form::Run => is_empty_stored && self.run.unused() == 0,
            Form::Page | Form::Body => is_final,
        };
        if is_end {
            self.run.finish_all()?;
        }
        Ok(is_end)
    }

    /// Decodes symbols without the other piece.
    fn alone(&mut self) -> Result<(), InflateError> {
        let Some(block) = self.block else {
            return Ok(());
        };
        let stop = self.run.lane.fast(self.codebook.of(block));
        self.settle(stop)
    }

    /// Deals with the reason why the loop stopped.
    fn settle(&mut self, stop: Stop) -> Result<(), InflateError> {
        let Some(block) = self.block else {
            return Ok(());
        };
        if self.run.settle(stop, self.codebook.of(block))? {
            self.block = None;
            if !self.is_end(block.is_final, false)? {
                self.next_block()?;
            }
        }
        Ok(())
    }
}
