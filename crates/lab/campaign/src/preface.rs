//! The preface of a trunk's connection, as docs/trunk.md describes it.

use crate::plan::Who;

/// A preface's magic number.
pub const MAGIC: &[u8; 4] = b"MFDT";

/// Whether more bytes are needed to identify the connection.
#[must_use]
pub fn is_part(bytes: &[u8]) -> bool {
    match bytes.strip_prefix(MAGIC) {
        Some([high, low, body @ ..]) => body.len() < usize::from(u16::from_be_bytes([*high, *low])),
        Some(_) => true,
        None => !bytes.is_empty() && MAGIC.starts_with(bytes),
    }
}

/// Identifies the connection.
#[must_use]
pub fn who(bytes: &[u8]) -> Option<Who> {
    // The versions, and the two numbers of 16 bytes.
    let body = bytes.get(6..)?;
    let body = body.get(2 + 32..)?;
    let (&name, body) = body.split_first()?;
    let (&connection, body) = body.get(usize::from(name)..)?.split_first()?;
    match connection {
        0 => Some(Who::Main),
        1 => body.get(16).map(|&id| Who::Channel(id)),
        // The first connections of a client have low numbers, so what happens to some channel
        // happens to strands too.
        3 => body.first().map(|&group| Who::Channel(group)),
        _ => None,
    }
}

/// A preface for a main channel, or for channel 0, of a migration with this number.
#[must_use]
pub fn preface(migration: u8, is_main: bool) -> Vec<u8> {
    let mut body = vec![1, 1];
    body.extend_from_slice(&[migration; 16]);
    body.extend_from_slice(&[0x22; 16]);
    body.extend_from_slice(b"\x02vm");
    if is_main {
        body.extend_from_slice(&[0, 1, 0, 0]);
    } else {
        body.push(1);
        body.extend_from_slice(&[0; 16 + 1 + 39]);
    }
    body.extend_from_slice(&[3, 2, 1, 0, 2, 1, 0, 2, 1, 0, 0]);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preface_says_whose_it_is() {
        let main = preface(7, true);
        let channel = preface(7, false);
        assert_eq!(who(&main), Some(Who::Main));
        assert_eq!(who(&channel), Some(Who::Channel(0)));
        assert!(!is_part(&main) && !is_part(b"QEVM") && !is_part(b"MULTI"));
        assert!(is_part(b"M") && is_part(&main[..5]) && is_part(&main[..main.len() - 1]));
    }
}
