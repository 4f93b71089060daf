//! The sending direction of a channel with several streams: every packet's pages in independently
//! compressed runs.

use multifd_wire::PageSize;

use crate::encoder::WriteTogether;
use crate::pipeline::{CompressPiece, Packet, Pipeline};
use crate::{EncodeError, PageBuffer, PathCounts, Streams};

/// A method's preparation of a packet before its runs are compressed.
pub(crate) trait BeginRuns: Send {
    /// The tools of one compressing thread.
    type Tools: Send + 'static;
    /// The context of a run's packet.
    type Context: Default + Send + Sync + 'static;

    /// The number of runs of a packet of `pages`.
    fn runs(streams: Streams, pages: usize, _page_size: PageSize) -> usize {
        streams.value().min(pages)
    }

    /// Examines the channel's next packet, and writes the bytes before its runs.
    fn begin(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Self::Context;
}

/// The sending direction.
pub(crate) struct WriteRuns<R: BeginRuns> {
    codec: R,
    pipeline: Pipeline<R::Tools, R::Context>,
    streams: Streams,
}

impl<R: BeginRuns> WriteRuns<R> {
    /// # Errors
    ///
    /// The errors of `tools`.
    pub(crate) fn new<E>(
        codec: R,
        streams: Streams,
        tools: impl FnMut() -> Result<R::Tools, E>,
        compress: CompressPiece<R::Tools, R::Context>,
    ) -> Result<Self, E> {
        Ok(Self {
            codec,
            pipeline: Pipeline::new(streams, tools, compress)?,
            streams,
        })
    }
}

impl<R: BeginRuns> WriteTogether for WriteRuns<R> {
    fn room(&self) -> usize {
        self.pipeline.room()
    }

    fn has_place(&self) -> bool {
        self.pipeline.has_place()
    }

    fn push(&mut self, pages: PageBuffer, page_size: PageSize) -> Result<(), EncodeError> {
        let payload = self.pipeline.next_payload();
        let context = match pages.as_ref() {
            [] => R::Context::default(),
            bytes => self.codec.begin(bytes, payload),
        };
        let count = pages.as_ref().len() / page_size.bytes();
        self.pipeline.push(Packet {
            pages,
            part_bytes: page_size.bytes(),
            runs: R::runs(self.streams, count, page_size),
            context,
        });
        Ok(())
    }

    fn pop(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<(PageBuffer, PathCounts)>, EncodeError> {
        let Some(whole) = self.pipeline.pop(payload)? else {
            return Ok(None);
        };
        let Packet {
            pages, part_bytes, ..
        } = whole.packet;
        let counts = PathCounts::software(pages.as_ref().len() / part_bytes);
        Ok(Some((pages, counts)))
    }
}
