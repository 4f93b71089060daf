//! The first 64 bytes of every multifd connection.

use core::ops::Range;

use crate::bytes::{array, be32, put};
use crate::fault::Fault;

/// What a multifd connection begins with. All QEMUs since 4.0 send the same 64 bytes; nothing is
/// ever sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the format fixes its fields")]
pub struct Hello {
    /// The VM's UUID (`-uuid`) in the order of its text; all zero when the VM has none. Both ends
    /// must have the same.
    pub uuid: [u8; 16],
    /// The channel's number. QEMU counts from 0 and uses each number once; how many channels there
    /// are is not said.
    pub channel: u8,
    /// Zero from all known senders, ignored by all known receivers.
    pub reserved: [u8; 39],
}

/// As many multifd channels as a migration can have: the number of a channel is one byte. QEMU's
/// `multifd-channels` ends at 255.
pub const MAX_CHANNELS: usize = 1 << u8::BITS;

impl Hello {
    /// Bytes of a hello on the wire.
    pub const LEN: usize = 64;

    /// The hello of a channel, as QEMU writes it.
    #[must_use]
    pub const fn new(uuid: [u8; 16], channel: u8) -> Self {
        Self {
            uuid,
            channel,
            reserved: [0; 39],
        }
    }

    /// Takes a hello apart.
    ///
    /// # Errors
    /// [`Fault::Magic`] and [`Fault::Version`].
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, Fault> {
        check_magic(be32(bytes, MAGIC_FIELD))?;
        check_version(be32(bytes, VERSION_FIELD))?;
        let [channel] = array(bytes, CHANNEL_FIELD);
        Ok(Self {
            uuid: array(bytes, UUID_FIELD),
            channel,
            reserved: array(bytes, RESERVED_FIELD),
        })
    }

    /// The hello's bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put(&mut bytes, MAGIC_FIELD, &MAGIC.to_be_bytes());
        put(&mut bytes, VERSION_FIELD, &VERSION.to_be_bytes());
        put(&mut bytes, UUID_FIELD, &self.uuid);
        put(&mut bytes, CHANNEL_FIELD, &[self.channel]);
        put(&mut bytes, RESERVED_FIELD, &self.reserved);
        bytes
    }
}

/// The number which begins a hello and every packet.
pub const MAGIC: u32 = 0x1122_3344;

/// The version in a hello and in every packet: 1 in all QEMUs since 4.0.
pub const VERSION: u32 = 1;

pub(crate) fn check_magic(found: u32) -> Result<(), Fault> {
    if found == MAGIC {
        return Ok(());
    }
    Err(Fault::Magic {
        found,
        allowed: MAGIC,
    })
}

pub(crate) fn check_version(found: u32) -> Result<(), Fault> {
    if found == VERSION {
        return Ok(());
    }
    Err(Fault::Version {
        found,
        allowed: VERSION,
    })
}

const MAGIC_FIELD: Range<usize> = 0..4;
const VERSION_FIELD: Range<usize> = MAGIC_FIELD.end..MAGIC_FIELD.end + 4;
const UUID_FIELD: Range<usize> = VERSION_FIELD.end..VERSION_FIELD.end + 16;
const CHANNEL_FIELD: Range<usize> = UUID_FIELD.end..UUID_FIELD.end + 1;
const RESERVED_FIELD: Range<usize> = CHANNEL_FIELD.end..CHANNEL_FIELD.end + 39;
const _: () = assert!(RESERVED_FIELD.end == Hello::LEN);

#[cfg(test)]
mod tests {
    use super::*;

    /// As a QEMU 10.0 with `-uuid 01234567-89ab-cdef-0123-456789abcdef` sends it on its second
    /// channel.
    const SECOND_CHANNEL: [u8; 64] = *b"\x11\x22\x33\x44\0\0\0\x01\
        \x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef\x01\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    #[test]
    fn comes_apart_and_together_to_the_byte() {
        let hello = Hello::parse(&SECOND_CHANNEL).unwrap();
        assert_eq!(hello.channel, 1);
        assert_eq!(hello.uuid[..4], [0x01, 0x23, 0x45, 0x67]);
        assert_eq!(hello.to_bytes(), SECOND_CHANNEL);
    }

    #[test]
    fn reserved_bytes_are_kept() {
        let mut bytes = SECOND_CHANNEL;
        bytes[25..].fill(0xa5);
        assert_eq!(Hello::parse(&bytes).unwrap().to_bytes(), bytes);
    }

    #[test]
    fn refuses_another_magic_or_version() {
        let mut bytes = SECOND_CHANNEL;
        bytes[0] = 0x51;
        let found = 0x5122_3344;
        assert_eq!(
            Hello::parse(&bytes),
            Err(Fault::Magic {
                found,
                allowed: MAGIC
            })
        );
        let mut bytes = SECOND_CHANNEL;
        bytes[7] = 2;
        assert_eq!(
            Hello::parse(&bytes),
            Err(Fault::Version {
                found: 2,
                allowed: 1
            })
        );
    }
}
