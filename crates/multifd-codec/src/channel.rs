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

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes payloads of the lengths given, one after the other; a length of 0 is a failure.
    struct Lengths(Vec<usize>);

    impl WritePayload for Lengths {
        const METHOD: Method = Method::Zlib;

        fn write_payload(
            &mut self,
            _pages: &Pages<'_>,
            out: &mut Vec<u8>,
        ) -> Result<(), EncodeError> {
            match self.0.remove(0) {
                0 => Err(EncodeError::Library {
                    method: Method::Zlib,
                    source: "out of order".into(),
                }),
                len => {
                    out.resize(len, 1);
                    Ok(())
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
        let mut channel = Channel::new(Lengths(vec![
            7,
            MAX_PAYLOAD_BYTES,
            MAX_PAYLOAD_BYTES + 1,
            7,
        ]));
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
        let mut channel = Channel::new(Lengths(vec![7, 0, 7, 7]));
        assert_eq!(encode(&mut channel).unwrap(), 7);
        assert!(matches!(
            encode(&mut channel),
            Err(EncodeError::Library { .. })
        ));
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
