//! The digest of a frame.

use twox_hash::xxhash3_64::{DEFAULT_SECRET_LENGTH, Hasher, RawHasher, SecretBuffer};

/// The digest of a frame's bytes and place. It finds accidents. It does not find an attack: TLS
/// does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Digest {
    /// Nothing is checked. Code 0.
    None,
    /// XXH3 with 64 bits, with the frame's number as seed. Code 1.
    Xxh3,
}

impl Digest {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Xxh3 => 1,
        }
    }

    /// The digest of a code, if this crate knows it.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Xxh3),
            _ => None,
        }
    }

    /// Of `bytes`: the head and the body of the frame of this number.
    pub(super) fn of(self, number: u64, bytes: &[u8]) -> u64 {
        match self {
            Self::None => 0,
            Self::Xxh3 => Hasher::oneshot_with_seed(number, bytes),
        }
    }

    /// The same where the body is in several parts. It allocates nothing.
    pub(super) fn of_parts(self, number: u64, head: [u8; 8], parts: &[&[u8]]) -> u64 {
        if self == Self::None {
            return 0;
        }
        match SecretBuffer::with_seed(number, [0; DEFAULT_SECRET_LENGTH]) {
            Ok(secret) => finish(RawHasher::new(secret), head, parts),
            // It does not happen: the secret's length is right. This way is right too, and
            // allocates.
            Err(_) => finish(Hasher::with_seed(number), head, parts),
        }
    }
}

fn finish(mut hasher: impl std::hash::Hasher, head: [u8; 8], parts: &[&[u8]]) -> u64 {
    hasher.write(&head);
    for part in parts {
        hasher.write(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_whole_have_the_same_digest() {
        let body: Vec<u8> = (0..5000_u32).map(|at| ((at * at) >> 3) as u8).collect();
        let head = *b"\0\0\0\0\0\0\x13\x88";
        for len in [0, 1, 8, 9, 120, 121, 232, 233, 300, 1024, 5000] {
            let (left, right) = body[..len].split_at(len / 3);
            let whole = [&head, &body[..len]].concat();
            for number in [0, 1, u64::MAX] {
                assert_eq!(
                    Digest::Xxh3.of_parts(number, head, &[left, &[], right]),
                    Digest::Xxh3.of(number, &whole)
                );
            }
        }
        assert_eq!(Digest::None.of(3, &body), 0);
        assert_eq!(Digest::None.of_parts(3, head, &[&body]), 0);
    }
}
