//! The end of a payload: what is before it.

use super::DeltaError;

/// What stands behind the method's payload and the directory. They are made and read in this order,
/// and no byte moves for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Foot {
    pub(crate) digest: u64,
    pub(crate) area_bytes: u32,
    /// N': pages that the method has.
    pub(crate) pages: u16,
    pub(crate) directory_bytes: u16,
    /// The pages stand as they are.
    pub(crate) is_stored: bool,
}

impl Foot {
    pub(crate) const LEN: usize = 17;

    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend(self.digest.to_be_bytes());
        out.extend(self.area_bytes.to_be_bytes());
        out.extend(self.pages.to_be_bytes());
        out.extend(self.directory_bytes.to_be_bytes());
        out.push(if self.is_stored { STORED } else { CODED });
    }

    /// Reads the foot of a payload, and the number of bytes before it.
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
            is_stored: match take(&mut rest) {
                [CODED] => false,
                [STORED] => true,
                [found] => return Err(DeltaError::Layout { found }),
            },
        };
        Ok((foot, before.len()))
    }
}

/// The fields together are as long as the foot.
fn take<const LEN: usize>(from: &mut &[u8]) -> [u8; LEN] {
    let (field, rest) = from.split_first_chunk().unwrap_or((&[0; LEN], &[]));
    *from = rest;
    *field
}

const CODED: u8 = 1;
const STORED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foot_comes_back() {
        for is_stored in [false, true] {
            let foot = Foot {
                digest: 0x0102_0304_0506_0708,
                area_bytes: 0x090a_0b0c,
                pages: 0x0d0e,
                directory_bytes: 0x0f10,
                is_stored,
            };
            let mut payload = vec![9; 3];
            foot.append_to(&mut payload);
            assert_eq!(payload.len(), 3 + Foot::LEN);
            let (found, before) = Foot::of(&payload).unwrap();
            assert_eq!((found, before), (foot, 3));
        }
    }

    #[test]
    fn what_has_no_foot_is_told() {
        let error = Foot::of(&[1; Foot::LEN - 1]).unwrap_err();
        assert!(matches!(error, DeltaError::Short { found: 16 }));
        let error = Foot::of(&[7; Foot::LEN]).unwrap_err();
        assert!(matches!(error, DeltaError::Layout { found: 7 }));
    }
}
