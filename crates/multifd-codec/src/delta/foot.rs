//! The foot: the last bytes of a payload, which describe the parts before it.

use multifd_wire::Method;

use super::DeltaError;

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
        out.push(LAYOUT | code.unwrap_or(LAYOUT.into()) as u8);
    }

    /// Reads the foot of a payload. Returns the number of bytes before it, too.
    pub(crate) fn of(payload: &[u8]) -> Result<(Self, usize), DeltaError> {
        let found = payload.len();
        let Some((before, foot)) = payload.split_last_chunk::<{ Self::LEN }>() else {
            return Err(DeltaError::Short { found });
        };
        let mut rest = &foot[..];
        let foot = Self {
            digest: u64::from_be_bytes(take(&mut rest)),
            area_bytes: u32::from_be_bytes(take(&mut rest)),
            pages: u16::from_be_bytes(take(&mut rest)),
            directory_bytes: u16::from_be_bytes(take(&mut rest)),
            method: method(take(&mut rest))?,
        };
        Ok((foot, before.len()))
    }
}

/// Reads the method of a payload's pages from its last byte.
///
/// # Errors
///
/// [`DeltaError::Short`] and [`DeltaError::Layout`].
pub fn payload_method(payload: &[u8]) -> Result<Method, DeltaError> {
    let found = payload.len();
    let layout = payload.last_chunk().ok_or(DeltaError::Short { found })?;
    method(*layout)
}

fn method([found]: [u8; 1]) -> Result<Method, DeltaError> {
    let code = found.checked_sub(LAYOUT).map(usize::from);
    let method = code.and_then(|code| METHODS.get(code));
    method.copied().ok_or(DeltaError::Layout { found })
}

/// Takes a field from the front: the fields together are as long as the foot.
fn take<const LEN: usize>(from: &mut &[u8]) -> [u8; LEN] {
    let (field, rest) = from.split_first_chunk().unwrap_or((&[0; LEN], &[]));
    *from = rest;
    *field
}

/// The upper half of the last byte. The lower half is the method's code.
const LAYOUT: u8 = 0x10;
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
        for method in METHODS {
            let foot = Foot {
                digest: 0x0102_0304_0506_0708,
                area_bytes: 0x090a_0b0c,
                pages: 0x0d0e,
                directory_bytes: 0x0f10,
                method,
            };
            let mut payload = vec![9; 3];
            foot.append_to(&mut payload);
            assert_eq!(payload.len(), 3 + Foot::LEN);
            let (found, before) = Foot::of(&payload).unwrap();
            assert_eq!((found, before), (foot, 3));
            assert_eq!(payload_method(&payload).unwrap(), method);
        }
    }

    #[test]
    fn payloads_without_a_foot_are_refused() {
        let error = Foot::of(&[1; Foot::LEN - 1]).unwrap_err();
        assert!(matches!(error, DeltaError::Short { found: 16 }));
        assert!(matches!(
            payload_method(b""),
            Err(DeltaError::Short { found: 0 })
        ));
        for layout in [0, 7, 0x15, 0x1f, 0x20, 0xff] {
            let error = Foot::of(&[layout; Foot::LEN]).unwrap_err();
            assert!(matches!(error, DeltaError::Layout { found } if found == layout));
        }
    }
}
