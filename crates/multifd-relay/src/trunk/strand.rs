//! The extension by which one connection of the trunk is carried by several.

use super::{Extension, HandshakeFault};

/// The number of connections that carry one channel. The client asks for a number; the server
/// answers with as many or fewer. Without an answer there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrandTerms {
    /// The number, 2 to [`MAX_STRANDS`](Self::MAX_STRANDS); the first is the connection that says
    /// this.
    pub count: u8,
    /// A number of the client's for these, by which the others name them. No two connections of a
    /// migration have the same.
    pub group: u16,
}

impl StrandTerms {
    /// The extension's id. A server that does not know it sends nothing back.
    pub const ID: u16 = 4;

    /// The most strands of one connection.
    pub const MAX_STRANDS: u8 = 16;

    /// The extension that says so.
    #[must_use]
    pub fn extension(self) -> Extension {
        let [high, low] = self.group.to_be_bytes();
        Extension {
            id: Self::ID,
            bytes: vec![self.count, high, low],
        }
    }

    /// The terms among `extensions`, if they are there.
    ///
    /// # Errors
    /// [`HandshakeFault::ExtensionValue`] when they are too short or too long, or their number is
    /// not allowed.
    pub fn among(extensions: &[Extension]) -> Result<Option<Self>, HandshakeFault> {
        let Some(extension) = extensions.iter().find(|one| one.id == Self::ID) else {
            return Ok(None);
        };
        match *extension.bytes {
            [count @ 2..=Self::MAX_STRANDS, high, low] => Ok(Some(Self {
                count,
                group: u16::from_be_bytes([high, low]),
            })),
            _ => Err(HandshakeFault::ExtensionValue { id: Self::ID }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_come_back_and_others_are_faults() {
        let count = 16;
        let terms = StrandTerms { count, group: 700 };
        let among = StrandTerms::among(&[terms.extension()]);
        assert_eq!(among, Ok(Some(terms)));
        assert_eq!(StrandTerms::among(&[]), Ok(None));
        for bytes in [
            &[][..],
            &[2, 0],
            &[2, 0, 0, 0],
            &[0, 0, 0],
            &[1, 0, 0],
            &[17, 0, 0],
        ] {
            let bytes = bytes.to_vec();
            let id = StrandTerms::ID;
            let found = StrandTerms::among(&[Extension { id, bytes }]);
            assert_eq!(found, Err(HandshakeFault::ExtensionValue { id }));
        }
    }
}
