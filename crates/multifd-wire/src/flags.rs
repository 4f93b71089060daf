//! A packet's flag word, and the compression method inside it.

use core::fmt;
use core::str::FromStr;

/// The flag word of a packet. All bits are kept, known or not: QEMU 10.0 ignores bits it does not
/// know, and so do we.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

/// How a packet's pages are compressed: the methods of QEMU's `multifd-compression`, and one of our
/// own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Pages as they are. QEMU 4.0 and later.
    None,
    /// One zlib stream per channel, never ended, flushed at the end of each packet. QEMU 5.0 and
    /// later.
    Zlib,
    /// One zstd stream per channel, flushed at the end of each packet. QEMU 5.0 and later.
    Zstd,
    /// Each page a raw deflate stream of its own or left as it is, behind a table of lengths. QEMU
    /// 9.1 and later.
    Qpl,
    /// Each page a zlib stream of its own or left as it is, behind a table of lengths. QEMU 9.1 and
    /// later.
    Uadk,
    /// All pages of a packet in one run of gzip members. QEMU 9.2 and later.
    Qatzip,
    /// Each page coded in a Huffman table that both ends keep, or left as it is, behind a table of
    /// lengths. No QEMU knows it: it is spoken between two ends of our own, such as two relays.
    Canned,
}

/// The method bits of a flag word name no known method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("method bits {bits:#04x} name no known compression method")]
#[expect(
    clippy::exhaustive_structs,
    reason = "its bits are all that is known of it"
)]
pub struct UnknownMethod {
    /// The bits of the method field, still in their place in the word.
    pub bits: u32,
}

/// The name given is no compression method's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no such compression method: it must be one of none, zlib, zstd, qpl, uadk, qatzip, canned"
)]
#[expect(
    clippy::exhaustive_structs,
    reason = "its bits are all that is known of it"
)]
pub struct UnknownMethodName;

impl Flags {
    /// The flags of a packet which does nothing but mark a synchronisation.
    pub const SYNC: Self = Self(SYNC);
    /// The flags of a device-state packet.
    pub const DEVICE_STATE: Self = Self(DEVICE_STATE);

    /// The flag word `bits`.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The whole word.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all channels synchronise here. The packet may carry pages as well (QEMU 8.2 and
    /// earlier); they belong before the synchronisation.
    #[must_use]
    pub const fn is_sync(self) -> bool {
        self.0 & SYNC != 0
    }

    /// Whether the packet carries a device's state rather than RAM. QEMU 10.0 and later.
    #[must_use]
    pub(crate) const fn is_device_state(self) -> bool {
        self.0 & DEVICE_STATE != 0
    }

    /// The method in which the packet's pages are compressed. Means nothing in a packet without
    /// pages.
    ///
    /// # Errors
    /// When the field holds none of the known values; it is one value, not a set of bits.
    pub fn method(self) -> Result<Method, UnknownMethod> {
        let bits = self.0 & METHOD;
        Method::ALL
            .into_iter()
            .find(|method| method.bits() == bits)
            .ok_or(UnknownMethod { bits })
    }

    /// The same flags with another method.
    #[must_use]
    pub(crate) const fn with_method(self, method: Method) -> Self {
        Self(self.0 & !METHOD | method.bits())
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#x})", self.0)
    }
}

impl Method {
    /// Every method this crate knows, in the order of their bits.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Zlib,
        Self::Zstd,
        Self::Qpl,
        Self::Uadk,
        Self::Qatzip,
        Self::Canned,
    ];

    /// The method's value in a flag word.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Zlib => 0x02,
            Self::Zstd => 0x04,
            Self::Qpl => 0x08,
            Self::Uadk => 0x10,
            Self::Qatzip => 0x20,
            Self::Canned => CANNED,
        }
    }

    /// QEMU's name for the method, or ours for our own.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
            Self::Qatzip => "qatzip",
            Self::Canned => "canned",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Method {
    type Err = UnknownMethodName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|method| method.as_str() == name)
            .ok_or(UnknownMethodName)
    }
}

/// Bit 0: QEMU 4.0 and later.
const SYNC: u32 = 0x01;
/// Bits 1 to 5. The field was bits 1 to 3 until QEMU 9.1 brought `qpl` and `uadk`, and 9.2
/// `qatzip`.
const METHOD: u32 = 0x3e;
/// Our own value. QEMU gives each of its methods one bit, so a value with all of them set is the
/// last it could come to use, and a QEMU that is sent it by mistake answers with an error.
const CANNED: u32 = METHOD;
/// Bit 6: QEMU 10.0 and later.
const DEVICE_STATE: u32 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn methods_go_into_a_flag_word_and_come_back() {
        for method in Method::ALL {
            let flags = Flags::from_bits(0xffff_ffff).with_method(method);
            assert_eq!(flags.method(), Ok(method));
            assert_eq!(flags.bits() | METHOD, 0xffff_ffff, "other bits stay");
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        assert_eq!("deflate".parse::<Method>(), Err(UnknownMethodName));
    }

    #[test]
    fn the_method_is_one_value_and_not_a_set() {
        assert_eq!(
            Flags::from_bits(0x07).method(),
            Err(UnknownMethod { bits: 0x06 })
        );
        assert_eq!(Flags::from_bits(0xc1).method(), Ok(Method::None));
    }
}
