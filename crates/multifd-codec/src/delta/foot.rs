//! The foot: the last bytes of a payload, which describe the parts before it.

use multifd_wire::Method;

use super::{Bases, DeltaError};
use crate::delta::error::DeltaFault;

/// The last bytes of a payload. It stands behind the method's payload and the directory, because
/// its numbers are known only then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foot {
    pub(crate) digest: u64,
    pub(crate) area_bytes: u32,
    /// N': the pages of the method's payload.
    pub(crate) pages: u16,
    pub(crate) directory_bytes: u16,
    /// The method of these pages.
    pub(crate) method: Method,
    pub(crate) bases: Bases,
}

impl Foot {
    pub(crate) const LEN: usize = 17;

    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend(self.digest.to_be_bytes());
        out.extend(self.area_bytes.to_be_bytes());
        out.extend(self.pages.to_be_bytes());
        out.extend(self.directory_bytes.to_be_bytes());
        let code = METHODS.iter().position(|method| *method == self.method);
        // No encoder has another method.
        let code = code.unwrap_or(METHODS.len()) as u8;
        out.push(layout(self.bases) | code);
    }

    /// Reads the foot of a payload with differences to such bases. Returns the number of bytes
    /// before it, too.
    pub(crate) fn of(payload: &[u8], bases: Bases) -> Result<(Self, usize), DeltaError> {
        let found = payload.len();
        let Some((before, foot)) = payload.split_last_chunk::<{ Self::LEN }>() else {
            return Err(DeltaError(DeltaFault::Short { found }));
        };
        let mut rest = &foot[..];
        let foot = Self {
            digest: u64::from_be_bytes(take(&mut rest)),
            area_bytes: u32::from_be_bytes(take(&mut rest)),
            pages: u16::from_be_bytes(take(&mut rest)),
            directory_bytes: u16::from_be_bytes(take(&mut rest)),
            method: method(take(&mut rest), bases)?,
            bases,
        };
        Ok((foot, before.len()))
    }
}

/// Reads the method of a payload's pages from its last byte, if its bases are in slots.
///
/// # Errors
///
/// If the payload is too short for one, or its layout is unknown.
pub fn payload_method(payload: &[u8]) -> Result<Method, DeltaError> {
    let found = payload.len();
    let layout = payload
        .last_chunk()
        .ok_or(DeltaError(DeltaFault::Short { found }))?;
    method(*layout, Bases::Slots)
}

fn method([found]: [u8; 1], bases: Bases) -> Result<Method, DeltaError> {
    let code = found.checked_sub(layout(bases)).map(usize::from);
    let method = code.and_then(|code| METHODS.get(code));
    method
        .copied()
        .ok_or(DeltaError(DeltaFault::Layout { found }))
}

/// Takes a field from the front: the fields together are as long as the foot.
fn take<const LEN: usize>(from: &mut &[u8]) -> [u8; LEN] {
    let (field, rest) = from.split_first_chunk().unwrap_or((&[0; LEN], &[]));
    *from = rest;
    *field
}

/// The upper half of the last byte. The lower half is the method's code.
const fn layout(bases: Bases) -> u8 {
    match bases {
        Bases::Slots => 0x10,
        Bases::InPlace => 0x20,
    }
}

/// A method's code is its index.
const METHODS: [Method; 5] = [
    Method::None,
    Method::Zlib,
    Method::Zstd,
    Method::Qpl,
    Method::Canned,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foot_comes_back() {
        for (method, bases) in METHODS
            .into_iter()
            .zip([Bases::Slots, Bases::InPlace].repeat(3))
        {
            let foot = Foot {
                digest: 0x0102_0304_0506_0708,
                area_bytes: 0x090a_0b0c,
                pages: 0x0d0e,
                directory_bytes: 0x0f10,
                method,
                bases,
            };
            let mut payload = vec![9; 3];
            foot.append_to(&mut payload);
            assert_eq!(payload.len(), 3 + Foot::LEN);
            let (found, before) = Foot::of(&payload, bases).unwrap();
            assert_eq!((found, before), (foot, 3));
            let outside = payload_method(&payload).ok();
            assert_eq!(outside, (bases == Bases::Slots).then_some(method));
        }
    }

    #[test]
    fn payloads_without_a_foot_are_refused() {
        let error = Foot::of(&[1; Foot::LEN - 1], Bases::Slots).unwrap_err();
        assert!(matches!(error, DeltaError(DeltaFault::Short { found: 16 })));
        assert!(matches!(
            payload_method(b""),
            Err(DeltaError(DeltaFault::Short { found: 0 }))
        ));
        for (bases, wrong) in [
            (Bases::Slots, [0, 7, 0x15, 0x1f, 0x20, 0xff]),
            (Bases::InPlace, [0, 7, 0x10, 0x25, 0x2f, 0xff]),
        ] {
            for layout in wrong {
                let error = Foot::of(&[layout; Foot::LEN], bases).unwrap_err();
                assert!(
                    matches!(error, DeltaError(DeltaFault::Layout { found }) if found == layout)
                );
            }
        }
    }
}
