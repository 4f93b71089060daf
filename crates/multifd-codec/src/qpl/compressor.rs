//! Compresses the pieces of a packet by hardware or software, or leaves them raw.

use std::convert::Infallible;
use std::ops::Range;

use qpl_sys::{Library, Path, Status};

use super::hardware::{Batch, Hardware, Landed};
use super::job::{Job, Work};
use super::outcome::Outcome;
use crate::{Backend, BackendKind, Pages, PathCounts};

/// The compressor of one channel.
pub(crate) struct Compressor {
    library: &'static Library,
    hardware: Option<Hardware>,
    /// Does the pieces that the hardware does not.
    software: Job,
}

/// A piece in its final form.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece<'a> {
    /// One complete raw deflate stream, or the body of a block, shorter than the piece.
    Deflated {
        stream: &'a [u8],
        /// The uncompressed content.
        content: &'a [u8],
        /// Unused bits at the end of its last byte, if the backend reports them.
        spare_bits: Option<u32>,
    },
    /// The uncompressed piece.
    Raw(&'a [u8]),
}

impl Compressor {
    /// A compressor on the hardware found by [`hardware`](super::hardware).
    ///
    /// # Errors
    /// libqpl's status.
    pub(crate) fn on_hardware(library: &'static Library) -> Result<Self, Status> {
        Ok(Self {
            hardware: Some(Hardware::new(library)),
            ..Self::in_software(library)?
        })
    }

    /// A compressor on the software path.
    ///
    /// # Errors
    /// libqpl's status.
    pub(crate) fn in_software(library: &'static Library) -> Result<Self, Status> {
        Ok(Self {
            library,
            hardware: None,
            software: Job::new(library, Path::SOFTWARE)?,
        })
    }

    pub(super) const fn library(&self) -> &'static Library {
        self.library
    }

    /// The backend, unless it is only the chosen hardware.
    pub(super) fn backend(&self) -> Option<Backend> {
        self.hardware.as_ref()?.backend(BackendKind::QplSoftware)
    }

    /// Compresses pieces, each given as a range of `pages`, and passes them to `sink` in order.
    /// `sink` returns whether it has accepted a piece as given; if not, it has written it raw.
    /// `work` is of the same kind throughout a compressor's life.
    pub(super) fn run(
        &mut self,
        work: &Work,
        pages: &Pages<'_>,
        pieces: &[Range<usize>],
        sink: impl FnMut(Piece<'_>) -> bool,
    ) -> PathCounts {
        let mut packet = Packet {
            pages,
            pieces,
            work,
            software: &mut self.software,
            sink,
            counts: PathCounts::default(),
        };
        let Ok(()) = match &mut self.hardware {
            Some(hardware) => hardware.run(&mut packet),
            None => (0..pieces.len()).try_for_each(|piece| packet.take(piece, Landed::NotDone)),
        };
        packet.counts
    }
}

struct Packet<'a, S> {
    pages: &'a Pages<'a>,
    pieces: &'a [Range<usize>],
    work: &'a Work,
    software: &'a mut Job,
    sink: S,
    counts: PathCounts,
}

impl<S> Packet<'_, S> {
    fn range(&self, piece: usize) -> Range<usize> {
        self.pieces.get(piece).cloned().unwrap_or_default()
    }

    /// A piece that does not get smaller stays raw, so the room is one byte less than its size.
    fn room(&self, piece: usize) -> usize {
        (self.range(piece).len() * self.pages.page_size().bytes()).saturating_sub(1)
    }
}

impl<S: FnMut(Piece<'_>) -> bool> Batch for Packet<'_, S> {
    type Error = Infallible;

    fn len(&self) -> usize {
        self.pieces.len()
    }

    fn fill(&self, piece: usize, input: &mut Vec<u8>) -> Option<(Work, usize)> {
        self.pages.append_range(self.range(piece), input);
        Some((self.work.clone(), self.room(piece)))
    }

    fn take(&mut self, piece: usize, landed: Landed<'_>) -> Result<(), Infallible> {
        let pages = self.range(piece).len();
        let (deflated, counts) = match landed {
            Landed::Done(product) => (
                Piece::Deflated {
                    stream: product.output,
                    content: product.input,
                    spare_bits: Some(product.spare_bits),
                },
                PathCounts::hardware(pages),
            ),
            Landed::NoRoom(content) => (Piece::Raw(content), PathCounts::raw(pages)),
            Landed::NotDone => {
                let room = self.room(piece);
                self.software.input().clear();
                self.pages
                    .append_range(self.range(piece), self.software.input());
                let done = Outcome::of(self.software.run(self.work, room)) == Outcome::Done;
                match self.software.product().filter(|_| done) {
                    Some(product) => (
                        Piece::Deflated {
                            stream: product.output,
                            content: product.input,
                            spare_bits: None,
                        },
                        PathCounts::software(pages),
                    ),
                    // The uncompressed page is correct for every reason.
                    None => (
                        Piece::Raw(self.software.last_input()),
                        PathCounts::raw(pages),
                    ),
                }
            }
        };
        self.counts += if (self.sink)(deflated) {
            counts
        } else {
            PathCounts::raw(pages)
        };
        Ok(())
    }
}
