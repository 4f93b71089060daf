//! The extension by which a client asks what the server understands, and begins no migration.

use multifd_wire::Method;

use super::choose::{method_code, method_of_code};
use super::{Extension, HandshakeFault, MAX_CODES};

/// What a server says of itself to a client that only asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// Only migrations that both relays verify are taken.
    pub only_verified: bool,
    /// The methods that the server reads, the best first. Codes that this crate does not know are
    /// left out.
    pub methods: Vec<Method>,
}

impl Visit {
    /// The extension's id. Its top bit makes a server refuse that does not know it: such a server
    /// would begin a migration.
    pub const ID: u16 = Extension::NEEDED | 5;

    /// The client's extension.
    #[must_use]
    pub const fn wish() -> Extension {
        Extension {
            id: Self::ID,
            bytes: Vec::new(),
        }
    }

    /// The server's extension.
    #[must_use]
    pub fn extension(&self) -> Extension {
        let codes = self.methods.iter().copied().filter_map(method_code);
        let flags = u8::from(self.only_verified);
        Extension {
            id: Self::ID,
            bytes: std::iter::once(flags)
                .chain(codes.take(MAX_CODES))
                .collect(),
        }
    }

    /// The answer among a server's `extensions`, if it is there.
    ///
    /// # Errors
    /// [`HandshakeFault::ExtensionValue`] when it is too short or too long.
    pub fn among(extensions: &[Extension]) -> Result<Option<Self>, HandshakeFault> {
        let Some(extension) = extensions.iter().find(|one| one.id == Self::ID) else {
            return Ok(None);
        };
        match extension.bytes.split_first() {
            Some((flags, codes)) if codes.len() <= MAX_CODES => Ok(Some(Self {
                only_verified: flags & 1 != 0,
                methods: codes
                    .iter()
                    .filter_map(|code| method_of_code(*code))
                    .collect(),
            })),
            _ => Err(HandshakeFault::ExtensionValue { id: Self::ID }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_and_others_are_faults() {
        let visit = Visit {
            only_verified: true,
            methods: vec![Method::Zstd, Method::None],
        };
        let mut extension = visit.extension();
        assert!(extension.is_needed() && Visit::wish().is_needed());
        assert_eq!(extension.bytes, [1, 2, 0]);
        let among = |extension: &Extension| Visit::among(std::slice::from_ref(extension));
        assert_eq!(among(&extension), Ok(Some(visit.clone())));
        // A method of a later version.
        extension.bytes.push(200);
        assert_eq!(among(&extension), Ok(Some(visit)));
        assert_eq!(Visit::among(&[]), Ok(None));
        let fault = Err(HandshakeFault::ExtensionValue { id: Visit::ID });
        extension.bytes = vec![0; MAX_CODES + 2];
        assert_eq!(among(&extension), fault);
        assert_eq!(among(&Visit::wish()), fault);
    }
}
