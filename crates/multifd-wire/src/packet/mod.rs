//! The two kinds of packets that follow a hello.
//!
//! Both begin with the same twelve bytes: magic, version, flags. The flags say which kind it is.

mod device_state;
mod ram;

use alloc::vec::Vec;
use core::ops::Range;

pub use self::device_state::DeviceStatePacket;
pub use self::ram::RamPacket;
pub(crate) use self::ram::{FixedPart, MAX_TABLE_ENTRIES, MIN_TABLE_ENTRIES, TABLE_ENTRY_LEN};
use crate::bytes::{be32, put};
use crate::fault::Fault;
use crate::flags::Flags;
use crate::hello::{MAGIC, VERSION, check_magic, check_version};

/// A packet's header, checked: it exists only if every rule of the format holds. The payload is not
/// part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the format knows no other packets")]
pub enum Packet {
    /// Pages of a RAM block, a synchronisation mark, or both.
    Ram(RamPacket),
    /// The state of a device.
    DeviceState(DeviceStatePacket),
}

impl Packet {
    /// The packet's flag word.
    #[must_use]
    pub fn flags(&self) -> Flags {
        match self {
            Self::Ram(packet) => packet.flags(),
            Self::DeviceState(packet) => packet.flags(),
        }
    }

    /// Bytes of payload that follow the header on the wire.
    #[must_use]
    pub fn payload_len(&self) -> u32 {
        match self {
            Self::Ram(packet) => packet.payload_len(),
            Self::DeviceState(packet) => packet.payload_len(),
        }
    }

    /// Appends the header's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ram(packet) => packet.encode(out),
            Self::DeviceState(packet) => packet.encode(out),
        }
    }
}

impl From<RamPacket> for Packet {
    fn from(packet: RamPacket) -> Self {
        Self::Ram(packet)
    }
}

impl From<DeviceStatePacket> for Packet {
    fn from(packet: DeviceStatePacket) -> Self {
        Self::DeviceState(packet)
    }
}

/// Checks what all packets begin with, and answers the flags, which say what follows.
pub(crate) fn parse_common(common: &[u8; COMMON_LEN]) -> Result<Flags, Fault> {
    check_magic(be32(common, MAGIC_FIELD))?;
    check_version(be32(common, VERSION_FIELD))?;
    let flags = Flags::from_bits(be32(common, FLAGS_FIELD));
    if flags.is_sync() && flags.is_device_state() {
        return Err(Fault::SyncWithDeviceState {
            flags: flags.bits(),
        });
    }
    Ok(flags)
}

/// Writes what all packets begin with.
fn put_common<const LEN: usize>(header: &mut [u8; LEN], flags: Flags) {
    put(header, MAGIC_FIELD, &MAGIC.to_be_bytes());
    put(header, VERSION_FIELD, &VERSION.to_be_bytes());
    put(header, FLAGS_FIELD, &flags.bits().to_be_bytes());
}

/// Bytes which are the same in both kinds of packets.
pub(crate) const COMMON_LEN: usize = 12;

const MAGIC_FIELD: Range<usize> = 0..4;
const VERSION_FIELD: Range<usize> = MAGIC_FIELD.end..MAGIC_FIELD.end + 4;
const FLAGS_FIELD: Range<usize> = VERSION_FIELD.end..VERSION_FIELD.end + 4;
const _: () = assert!(FLAGS_FIELD.end == COMMON_LEN);
