//! Memory for the windows of `zstd` decoders: one bound for all of them in this process.
//!
//! A peer's frame header states the window that its decoder has to keep: from 1 KiB to terabytes in
//! a few bytes. So this module reads the number before libzstd sees it. A window larger than 32 MiB
//! is refused. A smaller one counts towards the total of all decoders of the process ([`limit`]),
//! and is refused if that is exhausted. A decoder returns its share when it is dropped.
//!
//! # Other memory that a peer can make a codec hold
//!
//! A peer chooses the bounds of no other buffer. `tests/memory.rs` measures them with the longest
//! packets:
//!
//! | decoder of | a channel holds at most | which is |
//! | --- | --- | --- |
//! | `none` | nothing | |
//! | `zlib`, by zlib-rs | 64 KiB | a window of 32 KiB, and tables |
//! | `zlib` | 128 KiB, and as much for each helper | a window of 32 KiB, and tables |
//! | `zstd` | 192 KiB, and as much for each helper | libzstd's context |
//! | | its window and up to 384 KiB | libzstd's buffers |
//! | `qpl`, `canned` | 128 KiB, and as much for each helper | tables |
//!
//! A decoder has tools for up to seven helpers, and for none with
//! [`Accel::None`](crate::Accel::None). The helpers themselves are threads of the process: one for
//! each processor but one and at most 64, for any number of channels. Payloads and pages are in the
//! caller's buffers: a compressed payload has up to
//! [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES), a packet's pages are 512 KiB.
//!
//! An encoder's memory is its operator's choice ([`ZstdLevel`](crate::ZstdLevel) has numbers),
//! times the number of channels that the source opens.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::DecodeError;
use crate::error::DecodeFault;

/// The largest accepted window: that of QEMU's highest level, 20. (libzstd uses larger ones from
/// level 21 on, and a stock receiver accepts them up to 128 MiB; no QEMU sends them.)
pub(crate) const MAX_WINDOW_BYTES: u64 = 1 << 25;

/// The limit for all decoders of a process until [`set_limit`] changes it.
///
/// It is enough for two migrations of 16 channels, or four of 8, at level 20, with slightly more
/// than 32 MiB per channel. At level 1, with slightly more than 512 KiB per channel, it is enough
/// for more than five migrations of 255 channels.
const DEFAULT_LIMIT: u64 = 1280 << 20;

static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);
static HELD: AtomicU64 = AtomicU64::new(0);

/// The number of bytes that all decoders of this process may hold.
#[must_use]
pub fn limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// Sets the number of bytes that all decoders of this process may hold, instead of 1.25 GiB. It
/// applies to new windows; a decoder keeps the window it has.
pub fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// The number of bytes that all decoders of this process hold now.
#[must_use]
pub fn held() -> u64 {
    HELD.load(Ordering::Relaxed)
}

/// One decoder's share.
#[derive(Debug, Default)]
pub(crate) struct Share {
    bytes: u64,
}

impl Share {
    /// Reserves memory for the frame that `input` begins with. Without the complete header of a
    /// frame with content, libzstd allocates nothing.
    pub(crate) fn admit(&mut self, input: &[u8]) -> Result<(), DecodeError> {
        let Some(window) = window_of(input) else {
            return Ok(());
        };
        if window > MAX_WINDOW_BYTES {
            return Err(DecodeError(DecodeFault::Window {
                found: window,
                allowed: MAX_WINDOW_BYTES,
            }));
        }
        // A decoder keeps its largest buffers.
        let more = buffers_of(window).saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let allowed = limit();
        let taken = HELD.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|&held| held <= allowed)
        });
        match taken {
            Ok(_) => {
                self.bytes += more;
                Ok(())
            }
            Err(held) => Err(DecodeError(DecodeFault::WindowMemory {
                window,
                left: allowed.saturating_sub(held),
                allowed,
            })),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// libzstd's memory for reading a frame with this window: the window and two blocks of output, and
/// one block of input.
fn buffers_of(window: u64) -> u64 {
    window + 3 * window.min(MAX_BLOCK_BYTES) + 2 * OVERLENGTH
}

/// The window of the frame at the start of `input` (RFC 8878, section 3.1.1.1); `None` if `input`
/// does not start with a complete frame header.
pub(crate) fn window_of(input: &[u8]) -> Option<u64> {
    let (magic, header) = input.split_first_chunk()?;
    if u32::from_le_bytes(*magic) != MAGIC {
        return None;
    }
    let (&descriptor, fields) = header.split_first()?;
    let is_single_segment = descriptor & 1 << 5 != 0;
    let (window, fields) = if is_single_segment {
        (None, fields)
    } else {
        let (&byte, fields) = fields.split_first()?;
        let base = 1_u64 << (MIN_WINDOW_BITS + (byte >> 3));
        (Some(base + base / 8 * u64::from(byte & 7)), fields)
    };
    let dictionary_id_len = match descriptor & 3 {
        3 => 4,
        len => usize::from(len),
    };
    let content_len_field = match descriptor >> 6 {
        0 => usize::from(is_single_segment),
        bits => 1 << bits,
    };
    let content_len = fields.get(dictionary_id_len..dictionary_id_len + content_len_field)?;
    Some(window.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        bytes
            .iter_mut()
            .zip(content_len)
            .for_each(|(to, &from)| *to = from);
        // Two-byte lengths start where one-byte lengths end.
        let len = u64::from_le_bytes(bytes) + if content_len_field == 2 { 256 } else { 0 };
        len.max(1 << MIN_WINDOW_BITS)
    }))
}

const MAGIC: u32 = 0xfd2f_b528;
const MIN_WINDOW_BITS: u8 = 10;
/// The largest block of any frame (RFC 8878, section 3.1.1.2).
const MAX_BLOCK_BYTES: u64 = 128 << 10;
/// The most bytes that libzstd copies past an end.
const OVERLENGTH: u64 = 32;

#[cfg(test)]
mod tests {
    use zstd_safe::{DCtx, InBuffer, OutBuffer};

    use super::*;

    /// A frame's header, from its fields.
    fn header(descriptor: u8, fields: &[&[u8]]) -> Vec<u8> {
        [&MAGIC.to_le_bytes()[..], &[descriptor], &fields.concat()].concat()
    }

    #[test]
    fn windows_are_read_as_libzstd_reads_them() {
        let exponents = (0..16).map(|bits| header(0, &[&[bits << 3 | bits & 7]]));
        let with_all = header(
            0b1100_0011,
            &[&[5 << 3], &[1, 2, 3, 4], &[0, 0, 16, 0, 0, 0, 0, 0]],
        );
        let single = [
            header(0b0010_0000, &[&[200]]),
            header(0b0110_0000, &[&[0, 255]]),
            header(0b1010_0000, &[&(3_u32 << 20).to_le_bytes()]),
            header(0b1110_0000, &[&(1_u64 << 25).to_le_bytes()]),
        ];
        for header in exponents.chain([with_all]).chain(single) {
            let window = window_of(&header).unwrap();
            for len in 0..header.len() {
                assert_eq!(window_of(&header[..len]), None, "{header:?}");
            }
            let mut stream = DCtx::create();
            let before = stream.sizeof();
            // libzstd allocates its buffers once it has the header, and checks a dictionary's
            // number before.
            let mut frame = header.clone();
            frame[4] &= !3;
            if header[4] & 3 != 0 {
                frame.drain(6..10);
            }
            frame.extend([0, 0, 0]);
            let mut input = InBuffer::around(&frame);
            let mut room = [0; 1];
            let mut output = OutBuffer::around(&mut room[..]);
            stream.decompress_stream(&mut output, &mut input).unwrap();
            let made = (stream.sizeof() - before) as u64;
            let counted = buffers_of(window);
            assert!(
                made <= counted,
                "{header:?}: {made} made, {counted} counted"
            );
            // Content that is known to be short needs only its own size.
            let is_known = header[4] >> 5 != 0;
            assert!(
                is_known || made + MAX_BLOCK_BYTES >= counted,
                "{header:?}: {made} made"
            );
        }
    }

    #[test]
    fn what_is_no_frame_has_no_window() {
        assert_eq!(window_of(b""), None);
        assert_eq!(window_of(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0]), None);
        assert_eq!(window_of(&[0x78, 0x01, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_context_is_as_large_as_it_says() {
        assert!(DCtx::create().sizeof() <= 192 << 10);
    }
}
