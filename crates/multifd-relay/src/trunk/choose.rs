//! The choice among the abilities of two relays.

use multifd_wire::Method;

use super::preface::not_understood;
use super::{Digest, Preface, Refusal, RefusalCode, Versions};

/// The abilities of an end. The server's order is its order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abilities {
    /// Methods of payloads: those that a client can write, or a server can read.
    pub methods: Vec<Method>,
    /// Digests of frames.
    pub digests: Vec<Digest>,
    /// Compressions of byte streams. [`Compression::available`] says which there are.
    pub compressions: Vec<Compression>,
    /// Ids of extensions.
    pub extensions: Vec<u16>,
}

/// The choices for a connection of the trunk, in force after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The version of the trunk.
    pub version: u16,
    /// The method of the client's payloads.
    pub method: Method,
    /// The digest of frames, in both directions.
    pub digest: Digest,
    /// The compression of byte streams, in both directions.
    pub compression: Compression,
}

/// How a byte stream may be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all. Code 0.
    None,
    /// In frames of zstd, each by itself. Code 1.
    Zstd,
}

impl Compression {
    /// The abilities of this build, the best first.
    #[must_use]
    pub const fn available() -> &'static [Self] {
        if cfg!(feature = "zstd") {
            &[Self::Zstd, Self::None]
        } else {
            &[Self::None]
        }
    }

    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zstd => 1,
        }
    }

    /// The compression of a code, if this crate knows it.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Chooses what both ends understand, in the server's order of preference.
///
/// # Errors
/// A refusal: no common version, a needed extension that is not understood, or nothing in common.
pub fn choose(preface: &Preface, abilities: &Abilities) -> Result<Chosen, Refusal> {
    let (theirs, ours) = (preface.versions, Versions::OURS);
    let version = theirs.common(ours).ok_or_else(|| {
        let fault = super::HandshakeFault::Versions {
            found: theirs,
            allowed: ours,
        };
        Refusal::from(fault)
    })?;
    if let Some(id) = not_understood(&preface.extensions, &abilities.extensions) {
        let words = format!("the preface needs extension {id:#06x}");
        return Err(Refusal::new(RefusalCode::EXTENSION, &words));
    }
    let offers = &preface.offers;
    Ok(Chosen {
        version,
        method: first_common("method", &abilities.methods, &offers.methods, method_code)?,
        digest: first_common("digest", &abilities.digests, &offers.digests, |digest| {
            Some(digest.code())
        })?,
        compression: first_common(
            "compression",
            &abilities.compressions,
            &offers.compressions,
            |way| Some(way.code()),
        )?,
    })
}

fn first_common<T: Copy>(
    what: &str,
    ours: &[T],
    theirs: &[u8],
    code: impl Fn(T) -> Option<u8>,
) -> Result<T, Refusal> {
    let is_theirs = |&ours: &T| code(ours).is_some_and(|code| theirs.contains(&code));
    ours.iter().copied().find(is_theirs).ok_or_else(|| {
        let known: Vec<u8> = ours.iter().filter_map(|&ours| code(ours)).collect();
        let words = format!("no common {what}: codes {theirs:?} are offered, {known:?} are known");
        Refusal::new(RefusalCode::NOTHING_COMMON, &words)
    })
}

/// The code of a method on the wire. Methods that no relay writes have none.
pub(super) const fn method_code(method: Method) -> Option<u8> {
    match method {
        Method::None => Some(0),
        Method::Zlib => Some(1),
        Method::Zstd => Some(2),
        Method::Qpl => Some(3),
        Method::Canned => Some(4),
        _ => None,
    }
}

pub(super) fn method_of_code(code: u8) -> Option<Method> {
    let mut all = Method::ALL.into_iter();
    all.find(|&method| method_code(method) == Some(code))
}
