//! The rules that hold for every method, so that a method's file has only what is its own.

use multifd_wire::{Method, PageSize};

use crate::{
    Backend, DecodeError, Decoder, EncodeError, Encoder, Flow, PageBuffer, Pages, PathCounts,
};

/// The longest payload a stock QEMU takes: it reads every payload into a buffer of 1 MiB and, up to 10.0 at least, does
/// not check that it fits. The largest packet is half of that before compression.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// What a method does to make a payload. There is at least one page, and `out` is empty.
pub(crate) trait WritePayload: Send {
    const METHOD: Method;

    /// Also says which way the pages went.
    fn write_payload(
        &mut self,
        pages: &Pages<'_>,
        out: &mut Vec<u8>,
    ) -> Result<PathCounts, EncodeError>;

    /// The same for all packets of a flow, whose payloads [`give`] hands over. `counts` grows with every packet that is.
    /// `payload` is memory.
    fn write_flow(
        &mut self,
        flow: &mut dyn Flow,
        page_size: PageSize,
        counts: &mut PathCounts,
        payload: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        write_one_by_one(self, flow, page_size, counts, payload)
    }

    /// See [`Encoder::backend`], of streams whose back end may change.
    fn backend(&self) -> Option<Backend> {
        None
    }
}

/// What a method does to read a payload. `pages` is at least one whole page.
pub(crate) trait ReadPayload: Send {
    const METHOD: Method;

    fn read_payload(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<PathCounts, DecodeError>;

    /// See [`Decoder::backend`], of streams whose back end may change.
    fn backend(&self) -> Option<Backend> {
        None
    }
}

/// One direction of one channel. After the stream's first error nothing can be read out of, or appended to it: it has a
/// hole.
pub(crate) struct Channel<S> {
    stream: S,
    backend: Backend,
    is_whole: bool,
    counts: PathCounts,
    /// A flow's payloads, one after the other.
    payload: Vec<u8>,
}

impl<S> Channel<S> {
    pub(crate) const fn new(stream: S, backend: Backend) -> Self {
        Self {
            stream,
            backend,
            is_whole: true,
            counts: PathCounts::raw(0),
            payload: Vec::new(),
        }
    }

    /// Whether the stream is whole. It is not from now on, until the packet at hand has gone well.
    fn begin(&mut self) -> bool {
        std::mem::replace(&mut self.is_whole, false)
    }

    fn end(&mut self, counts: PathCounts) {
        self.counts += counts;
        self.is_whole = true;
    }
}

impl<S: WritePayload> Encoder for Channel<S> {
    fn method(&self) -> Method {
        S::METHOD
    }

    fn encode(&mut self, pages: &Pages<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.clear();
        let method = S::METHOD;
        if !self.begin() {
            return Err(EncodeError::Poisoned { method });
        }
        let mut counts = PathCounts::default();
        // A packet without normal pages has no payload, and its compression stream does not notice it.
        if !pages.is_empty() {
            counts = self.stream.write_payload(pages, out)?;
            check_payload_len(out.len())?;
        }
        self.end(counts);
        Ok(())
    }

    fn encode_flow(&mut self, flow: &mut dyn Flow, page_size: PageSize) -> Result<(), EncodeError> {
        let method = S::METHOD;
        if !self.begin() {
            return Err(EncodeError::Poisoned { method });
        }
        let Self {
            stream,
            counts,
            payload,
            ..
        } = self;
        stream.write_flow(flow, page_size, counts, payload)?;
        self.is_whole = true;
        Ok(())
    }

    fn backend(&self) -> Backend {
        let current = self.stream.backend();
        current.unwrap_or_else(|| self.backend.clone())
    }

    fn counts(&self) -> PathCounts {
        self.counts
    }
}

impl<S: ReadPayload> Decoder for Channel<S> {
    fn method(&self) -> Method {
        S::METHOD
    }

    fn decode(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<(), DecodeError> {
        let method = S::METHOD;
        if !self.begin() {
            return Err(DecodeError::Poisoned { method });
        }
        Pages::private(pages, page_size).map_err(DecodeError::Buffer)?;
        let mut counts = PathCounts::default();
        if !pages.is_empty() {
            counts = self.stream.read_payload(payload, page_size, pages)?;
        } else if !payload.is_empty() {
            return Err(DecodeError::Trailing {
                found: payload.len(),
            });
        }
        self.end(counts);
        Ok(())
    }

    fn backend(&self) -> Backend {
        let current = self.stream.backend();
        current.unwrap_or_else(|| self.backend.clone())
    }

    fn counts(&self) -> PathCounts {
        self.counts
    }
}

/// Writes a flow's packets without having more than one in work.
pub(crate) fn write_one_by_one<S: WritePayload + ?Sized>(
    stream: &mut S,
    flow: &mut dyn Flow,
    page_size: PageSize,
    counts: &mut PathCounts,
    payload: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    while let Some(bytes) = flow.next() {
        payload.clear();
        let pages = Pages::private(bytes.as_ref(), page_size).map_err(EncodeError::Buffer)?;
        let mut ways = PathCounts::default();
        if !pages.is_empty() {
            ways = stream.write_payload(&pages, payload)?;
        }
        give(flow, S::METHOD, bytes, payload)?;
        *counts += ways;
    }
    Ok(())
}

/// Hands a payload over, if it is one that a receiver takes.
pub(crate) fn give(
    flow: &mut dyn Flow,
    method: Method,
    pages: PageBuffer,
    payload: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    check_payload_len(payload.len())?;
    if flow.done(pages, payload) {
        Ok(())
    } else {
        Err(EncodeError::Stopped { method })
    }
}

/// Encoders whose output has no bound of its own also ask this while they write.
pub(crate) fn check_payload_len(len_bytes: usize) -> Result<(), EncodeError> {
    if len_bytes > MAX_PAYLOAD_BYTES {
        return Err(EncodeError::TooLarge {
            found: len_bytes,
            allowed: MAX_PAYLOAD_BYTES,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;

    /// Writes payloads of the lengths given, one after the other; a length of 0 is a failure.
    struct Lengths(Vec<usize>);

    impl WritePayload for Lengths {
        const METHOD: Method = Method::Zlib;

        fn write_payload(
            &mut self,
            pages: &Pages<'_>,
            out: &mut Vec<u8>,
        ) -> Result<PathCounts, EncodeError> {
            match self.0.remove(0) {
                0 => Err(EncodeError::Library {
                    method: Method::Zlib,
                    source: "out of order".into(),
                }),
                len => {
                    out.resize(len, 1);
                    Ok(PathCounts::software(pages.len()))
                }
            }
        }
    }

    fn encode(channel: &mut Channel<Lengths>) -> Result<usize, EncodeError> {
        let mut out = vec![0; 10];
        channel.encode(&Pages::private(&[0; 4096], PageSize::K4).unwrap(), &mut out)?;
        Ok(out.len())
    }

    #[test]
    fn a_payload_too_large_for_a_stock_receiver_never_gets_out() {
        let lengths = vec![7, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 7];
        let mut channel = Channel::new(Lengths(lengths), Backend::new(Engine::Plain));
        assert_eq!(encode(&mut channel).unwrap(), 7);
        assert_eq!(encode(&mut channel).unwrap(), MAX_PAYLOAD_BYTES);
        let error = encode(&mut channel).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a payload of 1048577 bytes or more, but a stock receiver takes 1048576"
        );
        assert!(matches!(
            encode(&mut channel),
            Err(EncodeError::Poisoned { .. })
        ));
    }

    #[test]
    fn an_encoder_that_failed_writes_nothing_more() {
        let mut channel = Channel::new(Lengths(vec![7, 0, 7, 7]), Backend::new(Engine::Plain));
        assert_eq!(encode(&mut channel).unwrap(), 7);
        assert!(matches!(
            encode(&mut channel),
            Err(EncodeError::Library { .. })
        ));
        assert_eq!(channel.counts(), PathCounts::software(1));
        for _ in 0..2 {
            assert!(matches!(
                encode(&mut channel),
                Err(EncodeError::Poisoned { .. })
            ));
        }
    }

    #[test]
    fn what_is_sent_here_is_received_here() {
        let limits = multifd_wire::Limits::default();
        assert_eq!(limits.compressed_payload_bytes as usize, MAX_PAYLOAD_BYTES);
    }
}
