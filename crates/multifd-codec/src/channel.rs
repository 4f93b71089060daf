//! The rules that hold for every method, so that a method's file has only what is its own.

use multifd_wire::{Method, PageSize};

use crate::{DecodeError, Decoder, EncodeError, Encoder, Pages};

/// The longest payload a stock QEMU takes: it reads every payload into a buffer of 1 MiB and, up to 10.0 at least, does
/// not check that it fits. The largest packet is half of that before compression.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// What a method does to make a payload. There is at least one page, and `out` is empty.
pub(crate) trait WritePayload: Send {
    const METHOD: Method;

    fn write_payload(&mut self, pages: &Pages<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// What a method does to read a payload. `pages` is at least one whole page.
pub(crate) trait ReadPayload: Send {
    const METHOD: Method;

    fn read_payload(
        &mut self,
        payload: &[u8],
        page_size: PageSize,
        pages: &mut [u8],
    ) -> Result<(), DecodeError>;
}

/// One direction of one channel. The stream is gone after its first error, so that nothing can be read out of, or
/// appended to, a stream with a hole in it.
pub(crate) struct Channel<S>(Option<S>);

impl<S> Channel<S> {
    pub(crate) const fn new(stream: S) -> Self {
        Self(Some(stream))
    }
}

impl<S: WritePayload> Encoder for Channel<S> {
    fn method(&self) -> Method {
        S::METHOD
    }

    fn encode(&mut self, pages: &Pages<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.clear();
        let method = S::METHOD;
        let mut stream = self.0.take().ok_or(EncodeError::Poisoned { method })?;
        // A packet without normal pages has no payload, and its compression stream does not notice it.
        if !pages.is_empty() {
            stream.write_payload(pages, out)?;
            check_payload_len(out.len())?;
        }
        self.0 = Some(stream);
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
        let method = S::METHOD;
        let mut stream = self.0.take().ok_or(DecodeError::Poisoned { method })?;
        Pages::private(pages, page_size).map_err(DecodeError::Buffer)?;
        if !pages.is_empty() {
            stream.read_payload(payload, page_size, pages)?;
        } else if !payload.is_empty() {
            return Err(DecodeError::Trailing {
                found: payload.len(),
            });
        }
        self.0 = Some(stream);
        Ok(())
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
