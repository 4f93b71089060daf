//! The sending direction of a channel with several streams: every packet's pages in runs, each compressed by itself.

use multifd_wire::{Method, PageSize};

use crate::channel::{WritePayload, give};
use crate::pipeline::{Ends, One, Packet};
use crate::streams::Crew;
use crate::{EncodeError, Flow, PageBuffer, Pages, PathCounts, Streams};

/// How a method compresses a run.
pub(crate) trait CompressRun: Send {
    const METHOD: Method;
    /// What one thread needs for it.
    type Tools: Send;
    /// What has to be known of a run's packet.
    type Context: Default + Send + Sync;

    /// Looks at the channel's next packet, and writes what precedes its runs.
    fn begin(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Self::Context;

    /// Appends a run. It must not matter what these tools have been used for.
    fn compress(
        tools: &mut Self::Tools,
        context: &Self::Context,
        run: &[u8],
        payload: &mut Vec<u8>,
    ) -> Result<(), EncodeError>;
}

/// The sending direction.
pub(crate) struct WriteRuns<R: CompressRun> {
    codec: R,
    crew: Crew<R::Tools>,
    streams: Streams,
    copy: Vec<u8>,
}

impl<R: CompressRun> WriteRuns<R> {
    /// # Errors
    ///
    /// What `tools` has said.
    pub(crate) fn new<E>(
        codec: R,
        streams: Streams,
        tools: impl FnMut() -> Result<R::Tools, E>,
    ) -> Result<Self, E> {
        Ok(Self {
            codec,
            crew: Crew::new(streams, tools)?,
            streams,
            copy: Vec::new(),
        })
    }
}

impl<R: CompressRun> WritePayload for WriteRuns<R> {
    const METHOD: Method = R::METHOD;

    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError> {
        let bytes = pages.gather(&mut self.copy);
        let context = self.codec.begin(bytes, out);
        let packet = cut(bytes, pages.page_size(), self.streams, context);
        self.crew
            .compress(&mut One::new(packet, out, |_| ()), R::compress)?;
        Ok(PathCounts::software(pages.len()))
    }

    fn write_flow(
        &mut self,
        flow: &mut dyn Flow,
        page_size: PageSize,
        counts: &mut PathCounts,
        _: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let mut ends = FlowEnds {
            codec: &mut self.codec,
            flow,
            page_size,
            streams: self.streams,
            counts,
        };
        self.crew.compress(&mut ends, R::compress)
    }
}

fn cut<B: AsRef<[u8]>, C>(
    bytes: B,
    page_size: PageSize,
    streams: Streams,
    context: C,
) -> Packet<B, C> {
    let pages = bytes.as_ref().len() / page_size.bytes();
    Packet {
        bytes,
        part_bytes: page_size.bytes(),
        runs: streams.value().min(pages),
        context,
    }
}

/// A flow's packets, cut into runs.
struct FlowEnds<'f, R> {
    codec: &'f mut R,
    flow: &'f mut dyn Flow,
    page_size: PageSize,
    streams: Streams,
    counts: &'f mut PathCounts,
}

impl<R: CompressRun> Ends for FlowEnds<'_, R> {
    type Bytes = PageBuffer;
    type Context = R::Context;
    type Error = EncodeError;

    fn next(
        &mut self,
        payload: &mut Vec<u8>,
    ) -> Result<Option<Packet<PageBuffer, R::Context>>, EncodeError> {
        let Some(bytes) = self.flow.next() else {
            return Ok(None);
        };
        let pages = Pages::private(bytes.as_ref(), self.page_size).map_err(EncodeError::Buffer)?;
        // A packet without pages has no payload.
        let context = if pages.is_empty() {
            R::Context::default()
        } else {
            self.codec.begin(bytes.as_ref(), payload)
        };
        Ok(Some(cut(bytes, self.page_size, self.streams, context)))
    }

    fn done(
        &mut self,
        packet: Packet<PageBuffer, R::Context>,
        payload: &mut Vec<u8>,
        _: &[usize],
    ) -> Result<(), EncodeError> {
        let pages = packet.bytes.as_ref().len() / self.page_size.bytes();
        give(self.flow, R::METHOD, packet.bytes, payload)?;
        *self.counts += PathCounts::software(pages);
        Ok(())
    }
}
