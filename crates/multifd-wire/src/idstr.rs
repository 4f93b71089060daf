//! QEMU's `idstr`: the name of a RAM block, of a device, of a section.

use alloc::vec::Vec;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};

use crate::escape::Printable;
use crate::fault::Fault;
use crate::reader::{Reader, Stop};

/// A name as QEMU sends it: up to 255 bytes, none of them NUL. `pc.ram`, `/rom@etc/acpi/tables`,
/// `timer`.
///
/// In packets a name is in a field of 256 bytes, padded after a NUL. The sender's bytes after the
/// NUL are kept, so that a packet is rewritten identically; comparisons ignore them.
#[derive(Clone)]
pub struct IdStr {
    field: [u8; FIELD_LEN],
    len: u8,
}

/// The [`IdStr`] of a RAM block. Empty only in packets without pages.
pub type BlockName = IdStr;

/// The bytes are not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct IdStrError(#[from] NameFault);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum NameFault {
    /// A name has at most 255 bytes.
    #[error("a name of {found} bytes is too long: {allowed} are allowed")]
    TooLong {
        /// Its length in bytes.
        found: usize,
        /// The longest length allowed.
        allowed: usize,
    },
    /// A NUL would end the name early on the wire.
    #[error("a name with a NUL byte at {at}")]
    Nul {
        /// The position of the first NUL.
        at: usize,
    },
}

impl IdStr {
    /// The empty name, for packets without pages.
    pub const EMPTY: Self = Self {
        field: [0; FIELD_LEN],
        len: 0,
    };

    /// The longest name in bytes: its length must fit in the one byte that the main stream has for
    /// it, and a NUL must follow it in a packet.
    pub const MAX_LEN: usize = FIELD_LEN - 1;

    /// Makes a name of these bytes.
    ///
    /// # Errors
    /// If there are more than 255, or one is NUL.
    pub fn new(name: &[u8]) -> Result<Self, IdStrError> {
        let too_long = NameFault::TooLong {
            found: name.len(),
            allowed: Self::MAX_LEN,
        };
        let len = u8::try_from(name.len()).map_err(|_| too_long)?;
        if let Some(at) = name.iter().position(|&byte| byte == 0) {
            return Err(NameFault::Nul { at }.into());
        }
        let mut field = [0; FIELD_LEN];
        field
            .get_mut(..name.len())
            .ok_or(too_long)?
            .copy_from_slice(name);
        Ok(Self { field, len })
    }

    /// The name in a packet's field: up to the first NUL. The last byte always counts as NUL,
    /// because QEMU overwrites it when it reads.
    pub(crate) fn from_field(field: [u8; FIELD_LEN]) -> Self {
        let nul = field.iter().position(|&byte| byte == 0);
        let len = nul
            .and_then(|len| u8::try_from(len).ok())
            .unwrap_or(u8::MAX);
        Self { field, len }
    }

    /// The field of a packet with this name.
    pub(crate) fn field(&self) -> &[u8; FIELD_LEN] {
        &self.field
    }

    /// Reads a name in the main stream's format: a byte with its length, then the name, which must
    /// not be empty.
    pub(crate) fn take_counted(reader: &mut Reader<'_>) -> Result<Self, Stop> {
        let len = reader.u8()?;
        Self::take(reader, usize::from(len))
    }

    /// Reads a name of the next `len` bytes, which must not be empty.
    pub(crate) fn take(reader: &mut Reader<'_>, len: usize) -> Result<Self, Stop> {
        let name = reader.take(len)?;
        if name.is_empty() {
            return Err(Fault::EmptyName.into());
        }
        let name = Self::new(name).map_err(|error| match error.0 {
            NameFault::TooLong { found, allowed } => Fault::NameLength { found, allowed },
            NameFault::Nul { .. } => Fault::UnterminatedName,
        })?;
        Ok(name)
    }

    /// Appends a byte with the length, then the name.
    pub(crate) fn put_counted(&self, out: &mut Vec<u8>) {
        out.push(self.len);
        out.extend_from_slice(self.as_bytes());
    }

    /// The name's bytes, without a NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let len = usize::from(self.len);
        // The length never exceeds the field, so the fallback never applies.
        self.field.get(..len).unwrap_or(&self.field)
    }

    /// Returns whether the name has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl PartialEq for IdStr {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for IdStr {}

impl PartialOrd for IdStr {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for IdStr {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for IdStr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// Allows lookups by bytes alone in a map from names.
impl Borrow<[u8]> for IdStr {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl TryFrom<&str> for IdStr {
    type Error = IdStrError;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        Self::new(name.as_bytes())
    }
}

/// The name is a peer's choice, so terminal controls are escaped: see [`Printable`].
impl fmt::Display for IdStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(self.as_bytes()).fmt(f)
    }
}

impl fmt::Debug for IdStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// Bytes of a name's field in a packet.
pub(crate) const FIELD_LEN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn names_have_at_most_255_bytes_and_no_nul() {
        assert_eq!(IdStr::new(&[b'a'; 255]).unwrap().as_bytes(), [b'a'; 255]);
        assert_eq!(
            IdStr::new(&[b'a'; 256]),
            Err(IdStrError(NameFault::TooLong {
                found: 256,
                allowed: 255
            }))
        );
        assert_eq!(
            IdStr::new(b"pc\0ram"),
            Err(IdStrError(NameFault::Nul { at: 2 }))
        );
        assert!(IdStr::new(b"").unwrap().is_empty());
    }

    #[test]
    fn a_field_ends_at_its_nul_or_at_byte_255() {
        let mut field = [b'x'; FIELD_LEN];
        assert_eq!(IdStr::from_field(field).as_bytes(), [b'x'; 255]);
        field[3] = 0;
        let name = IdStr::from_field(field);
        assert_eq!(name.as_bytes(), b"xxx");
        assert_eq!(
            name,
            IdStr::new(b"xxx").unwrap(),
            "what follows the NUL does not count"
        );
        assert_eq!(name.field(), &field, "but it is kept");
    }

    #[test]
    fn shows_itself_as_text() {
        assert_eq!(IdStr::new(b"pc.ram").unwrap().to_string(), "pc.ram");
        assert_eq!(
            IdStr::new(b"a\xff\x1b\n").unwrap().to_string(),
            r"a\xff\u{1b}\n"
        );
    }
}
