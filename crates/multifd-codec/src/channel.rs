//! Rules common to all methods.

use multifd_wire::{Method, PageSize};

use crate::error::{DecodeFault, EncodeFault};
use crate::{Backend, DecodeError, Decoder, EncodeError, PageBuffer, Pages, PathCounts};

/// The longest payload for a stock QEMU: it reads every payload into a buffer of 1 MiB and, at
/// least up to 10.0, does not check that it fits. The largest packet is half of that before
/// compression.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// A packet to be decoded: the payload, and pages of the length that it has to fill.
#[derive(Default)]
pub(crate) struct Arrived {
    pub(crate) payload: Vec<u8>,
    pub(crate) pages: PageBuffer,
}

/// Reads a payload by one method. There is at least one whole page.
pub(crate) trait ReadPayload: Send {
    const METHOD: Method;

    fn read_payload(
        &mut self,
        packet: &mut Arrived,
        page_size: PageSize,
    ) -> Result<PathCounts, DecodeError>;

    /// See [`Decoder::backend`]. For streams whose backend may change.
    fn backend(&self) -> Option<Backend> {
        None
    }
}

/// The receiving direction of one channel. After the stream's first error it reads nothing more:
/// the stream has a hole.
pub(crate) struct Channel<S> {
    stream: S,
    backend: Backend,
    is_whole: bool,
    counts: PathCounts,
    /// Copies of borrowed payloads and pages.
    arrived: Arrived,
}

impl<S> Channel<S> {
    pub(crate) fn new(stream: S, backend: Backend) -> Self {
        Self {
            stream,
            backend,
            is_whole: true,
            counts: PathCounts::raw(0),
            arrived: Arrived::default(),
        }
    }

    /// Returns false if an earlier packet failed. Marks the stream broken until [`Self::end`].
    fn begin(&mut self) -> bool {
        std::mem::replace(&mut self.is_whole, false)
    }

    fn end(&mut self, counts: PathCounts) {
        self.counts += counts;
        self.is_whole = true;
    }
}

impl<S: ReadPayload> Channel<S> {
    fn read(&mut self, packet: &mut Arrived, page_size: PageSize) -> Result<(), DecodeError> {
        let method = S::METHOD;
        if !self.begin() {
            return Err(DecodeError(DecodeFault::Poisoned { method }));
        }
        let pages = packet.pages.as_ref();
        Pages::private(pages, page_size).map_err(DecodeFault::Buffer)?;
        let mut counts = PathCounts::default();
        if !pages.is_empty() {
            counts = self.stream.read_payload(packet, page_size)?;
        } else if !packet.payload.is_empty() {
            return Err(DecodeError(DecodeFault::Trailing {
                found: packet.payload.len(),
            }));
        }
        self.end(counts);
        Ok(())
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
        let mut packet = std::mem::take(&mut self.arrived);
        packet.payload.clear();
        packet.payload.extend_from_slice(payload);
        packet.pages.space(pages.len());
        let outcome = self.read(&mut packet, page_size);
        for (page, arrived) in pages.iter_mut().zip(packet.pages.as_ref()) {
            *page = *arrived;
        }
        self.arrived = packet;
        outcome
    }

    fn decode_owned(
        &mut self,
        payload: &mut Vec<u8>,
        page_size: PageSize,
        pages: &mut PageBuffer,
    ) -> Result<(), DecodeError> {
        let mut packet = Arrived {
            payload: std::mem::take(payload),
            pages: std::mem::take(pages),
        };
        let outcome = self.read(&mut packet, page_size);
        (*payload, *pages) = (packet.payload, packet.pages);
        outcome
    }

    fn backend(&self) -> Backend {
        let current = self.stream.backend();
        current.unwrap_or_else(|| self.backend.clone())
    }

    fn counts(&self) -> PathCounts {
        self.counts
    }
}

/// Encoders whose output has no inherent bound also check this while they write.
pub(crate) fn check_payload_len(len_bytes: usize) -> Result<(), EncodeError> {
    if len_bytes > MAX_PAYLOAD_BYTES {
        return Err(EncodeError(EncodeFault::TooLarge {
            found: len_bytes,
            allowed: MAX_PAYLOAD_BYTES,
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_here_is_received_here() {
        let limits = multifd_wire::Limits::default();
        assert_eq!(limits.compressed_payload_bytes as usize, MAX_PAYLOAD_BYTES);
    }
}
