//! The extension by which two relays agree to send differences: see [`multifd_codec::delta`].

use super::{Extension, HandshakeFault};

/// The budget of pages that both ends of a migration keep. The client asks for an amount; the
/// server answers with as much or less. Without an answer nothing is kept, and all pages go whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaTerms {
    /// Bytes of pages.
    pub bytes: u64,
}

impl DeltaTerms {
    /// The extension's id. A server that does not know it sends nothing back.
    pub const ID: u16 = 2;

    /// The layout of payloads with differences. One that a peer does not know is no layout for it.
    const LAYOUT: u8 = 1;

    /// The extension that says so.
    #[must_use]
    pub fn extension(self) -> Extension {
        let mut bytes = vec![Self::LAYOUT];
        bytes.extend_from_slice(&self.bytes.to_be_bytes());
        Extension {
            id: Self::ID,
            bytes,
        }
    }

    /// The terms among `extensions`, if they are there and in a layout that this crate knows.
    ///
    /// # Errors
    /// [`HandshakeFault::ExtensionValue`] when they are too short or too long.
    pub fn among(extensions: &[Extension]) -> Result<Option<Self>, HandshakeFault> {
        let Some(extension) = extensions.iter().find(|one| one.id == Self::ID) else {
            return Ok(None);
        };
        let malformed = HandshakeFault::ExtensionValue { id: Self::ID };
        let (&layout, rest) = extension.bytes.split_first().ok_or(malformed)?;
        if layout != Self::LAYOUT {
            return Ok(None);
        }
        let bytes = rest.try_into().map_err(|_| malformed)?;
        Ok(Some(Self {
            bytes: u64::from_be_bytes(bytes),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_come_back() {
        let terms = DeltaTerms { bytes: 3 << 30 };
        let other = Extension {
            id: 7,
            bytes: vec![1],
        };
        let extensions = [other, terms.extension()];
        assert_eq!(DeltaTerms::among(&extensions), Ok(Some(terms)));
        assert_eq!(DeltaTerms::among(&extensions[..1]), Ok(None));
    }

    #[test]
    fn another_layout_is_none_and_another_length_is_a_fault() {
        let of = |bytes: &[u8]| {
            DeltaTerms::among(&[Extension {
                id: DeltaTerms::ID,
                bytes: bytes.to_vec(),
            }])
        };
        assert_eq!(of(&[2, 1]), Ok(None));
        let malformed = Err(HandshakeFault::ExtensionValue { id: 2 });
        assert_eq!(of(&[]), malformed);
        assert_eq!(of(&[1; 8]), malformed);
        assert_eq!(of(&[1; 10]), malformed);
    }
}
