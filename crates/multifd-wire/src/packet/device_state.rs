//! Packets with the state of a device (VFIO). QEMU 10.0 and later.

use alloc::vec::Vec;
use core::ops::Range;

use super::{COMMON_LEN, put_common};
use crate::bytes::{array, be32, put};
use crate::fault::Fault;
use crate::flags::Flags;
use crate::idstr::{FIELD_LEN, IdStr};
use crate::limits::Limits;

/// The header of a packet with the state of a device. The payload's format belongs to the device
/// and is opaque here.
///
/// Such packets can appear between RAM packets on any channel and after the last SYNC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatePacket {
    flags: Flags,
    idstr: IdStr,
    instance_id: u32,
    payload_len: u32,
}

impl DeviceStatePacket {
    /// Bytes of the header on the wire.
    pub(crate) const LEN: usize = 276;

    /// Makes the header of a packet with `payload_len` bytes of the state of instance `instance_id`
    /// of device `idstr`.
    ///
    /// # Errors
    /// [`Fault::EmptyName`], and [`Fault::PayloadLength`] if the payload is empty.
    pub fn new(idstr: IdStr, instance_id: u32, payload_len: u32) -> Result<Self, Fault> {
        let packet = Self {
            flags: Flags::DEVICE_STATE,
            idstr,
            instance_id,
            payload_len,
        };
        packet.check(u32::MAX)?;
        Ok(packet)
    }

    pub(crate) fn parse(
        flags: Flags,
        header: &[u8; Self::LEN],
        limits: &Limits,
    ) -> Result<Self, Fault> {
        let field: [u8; FIELD_LEN] = array(header, IDSTR_FIELD);
        // Unlike in RAM packets, QEMU 10.0 requires the NUL here.
        if field.last() != Some(&0) {
            return Err(Fault::UnterminatedName);
        }
        let packet = Self {
            flags,
            idstr: IdStr::from_field(field),
            instance_id: be32(header, INSTANCE_ID_FIELD),
            payload_len: be32(header, NEXT_PACKET_SIZE_FIELD),
        };
        packet.check(limits.device_state_bytes)?;
        Ok(packet)
    }

    fn check(&self, most: u32) -> Result<(), Fault> {
        if self.idstr.is_empty() {
            return Err(Fault::EmptyName);
        }
        if self.payload_len == 0 || self.payload_len > most {
            return Err(Fault::PayloadLength {
                found: self.payload_len,
                least: 1,
                most,
            });
        }
        Ok(())
    }

    /// The packet's flag word.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// The device's name.
    #[must_use]
    pub fn idstr(&self) -> &IdStr {
        &self.idstr
    }

    /// The number among devices of that name.
    #[must_use]
    pub fn instance_id(&self) -> u32 {
        self.instance_id
    }

    /// Bytes of payload that follow the header on the wire; never 0.
    #[must_use]
    pub fn payload_len(&self) -> u32 {
        self.payload_len
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut header = [0; Self::LEN];
        put_common(&mut header, self.flags);
        put(&mut header, IDSTR_FIELD, self.idstr.field());
        put(
            &mut header,
            INSTANCE_ID_FIELD,
            &self.instance_id.to_be_bytes(),
        );
        put(
            &mut header,
            NEXT_PACKET_SIZE_FIELD,
            &self.payload_len.to_be_bytes(),
        );
        out.extend_from_slice(&header);
    }
}

const IDSTR_FIELD: Range<usize> = COMMON_LEN..COMMON_LEN + FIELD_LEN;
const INSTANCE_ID_FIELD: Range<usize> = IDSTR_FIELD.end..IDSTR_FIELD.end + 4;
const NEXT_PACKET_SIZE_FIELD: Range<usize> = INSTANCE_ID_FIELD.end..INSTANCE_ID_FIELD.end + 4;
const _: () = assert!(NEXT_PACKET_SIZE_FIELD.end == DeviceStatePacket::LEN);
