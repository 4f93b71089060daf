//! Bodies in postcard's encoding. Every list and text in them is read in place, so a stated length
//! sizes nothing.

use serde::{Deserialize, Serialize};

use super::preface::{Extension, MAX_EXTENSIONS};
use super::{HandshakeFault, Words};

/// Takes a value from the front of `body`.
pub(super) fn take<'a, T: Deserialize<'a>>(body: &mut &'a [u8]) -> Result<T, HandshakeFault> {
    let (value, rest) = postcard::take_from_bytes(body).map_err(|_| HandshakeFault::Body)?;
    *body = rest;
    Ok(value)
}

/// Appends a value.
pub(super) fn put(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), HandshakeFault> {
    let written = postcard::to_extend(value, std::mem::take(out));
    *out = written.map_err(|_| HandshakeFault::Body)?;
    Ok(())
}

/// Nothing may be left.
pub(super) fn end(body: &[u8]) -> Result<(), HandshakeFault> {
    match body.len() {
        0 => Ok(()),
        found => Err(HandshakeFault::Trailing { found }),
    }
}

/// Takes words.
pub(super) fn take_words(body: &mut &[u8]) -> Result<Words, HandshakeFault> {
    let words: &str = take(body)?;
    let (found, allowed) = (words.len(), Words::MAX_LEN);
    if found > allowed {
        return Err(HandshakeFault::Words { found, allowed });
    }
    Ok(Words::new(words))
}

/// Takes a list of extensions.
pub(super) fn take_extensions(body: &mut &[u8]) -> Result<Vec<Extension>, HandshakeFault> {
    let count: u64 = take(body)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    check_count(count)?;
    let mut extensions = Vec::new();
    for _ in 0..count {
        let (id, bytes): (u16, &[u8]) = take(body)?;
        let bytes = bytes.into();
        extensions.push(Extension { id, bytes });
        check_ids(&extensions)?;
    }
    Ok(extensions)
}

/// Appends a list of extensions.
pub(super) fn put_extensions(
    extensions: &[Extension],
    out: &mut Vec<u8>,
) -> Result<(), HandshakeFault> {
    check_count(extensions.len())?;
    check_ids(extensions)?;
    put(&extensions.len(), out)?;
    for extension in extensions {
        put(&(extension.id, extension.bytes.as_slice()), out)?;
    }
    Ok(())
}

fn check_count(found: usize) -> Result<(), HandshakeFault> {
    let allowed = MAX_EXTENSIONS;
    match found <= allowed {
        true => Ok(()),
        false => Err(HandshakeFault::Extensions { found, allowed }),
    }
}

fn check_ids(extensions: &[Extension]) -> Result<(), HandshakeFault> {
    let mut ids: Vec<u16> = extensions.iter().map(|extension| extension.id).collect();
    ids.sort_unstable();
    let twice = ids.iter().zip(ids.iter().skip(1)).find(|(a, b)| a == b);
    match twice {
        None => Ok(()),
        Some((&id, _)) => Err(HandshakeFault::ExtensionTwice { id }),
    }
}
