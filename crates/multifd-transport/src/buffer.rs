//! Reused buffers.

/// The first `len_bytes` bytes of `buffer`, which grows when it is too small and is never cleared
/// again: whoever asks overwrites them.
pub(crate) fn space(buffer: &mut Vec<u8>, len_bytes: usize) -> &mut [u8] {
    if buffer.len() < len_bytes {
        buffer.resize(len_bytes, 0);
    }
    buffer.get_mut(..len_bytes).unwrap_or_default()
}
