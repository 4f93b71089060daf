//! Legs: the two sides of a relay, and their protocols.
//!
//! A QEMU leg has QEMU's own protocol. A trunk is the leg between two relays: each of its
//! connections carries one of QEMU's connections in frames (docs/trunk.md).

mod address;
mod call;
mod carried;
mod encryption;
mod gathering;
mod greeter;
mod reading;
mod strands;
mod visit;

use std::io;
use std::sync::OnceLock;

use multifd_codec::Unsupported;
use multifd_wire::Method;
use rustix::rand::{GetRandomFlags, getrandom};

pub use self::address::{LegAddress, LegAddressError, Protocol};
pub(crate) use self::call::{Caller, Introduction, Terms};
pub use self::carried::FarFailure;
pub use self::encryption::{Encryption, EncryptionError, EncryptionOptions, Rule};
pub(crate) use self::greeter::Greeter;
pub use self::visit::{FarRelay, VisitError, VisitStep, Visitor};
#[cfg(feature = "tls")]
pub use crate::tls::{Endpoint, Examined, FolderError, examine};
use crate::trunk::{Abilities, Compression, DeltaTerms, Digest, Extension, StrandTerms, Visit};
pub use crate::trunk::{Name, NameFault};

/// The extension for verification: sums of pages are sent beside the main channel.
const VERIFY: u16 = 1;

/// The extension that allows packets of the method `none` among those of the chosen method.
const PLAIN: u16 = 3;

/// This host's abilities on a trunk, if it writes `methods`.
fn abilities(methods: Vec<Method>) -> Abilities {
    Abilities {
        methods,
        digests: vec![Digest::Xxh3],
        compressions: Compression::available().to_vec(),
        extensions: vec![VERIFY, DeltaTerms::ID, PLAIN, StrandTerms::ID, Visit::ID],
    }
}

/// Whether an extension without a value is in the list.
fn has(id: u16, extensions: &[Extension]) -> bool {
    extensions.iter().any(|extension| extension.id == id)
}

fn extension(id: u16) -> Extension {
    let bytes = Vec::new();
    Extension { id, bytes }
}

/// The methods that this host can read with `settings`.
fn readable(settings: &multifd_codec::Settings) -> Vec<Method> {
    let can_read = |method: &Method| -> bool {
        let decoder: Result<_, Unsupported> = multifd_codec::decoder(*method, settings);
        decoder.is_ok()
    };
    let all = [
        Method::Zstd,
        Method::Zlib,
        Method::Canned,
        Method::Qpl,
        Method::None,
    ];
    all.into_iter().filter(can_read).collect()
}

/// A random number, drawn once for this process.
///
/// # Errors
/// As [`random`].
fn process() -> io::Result<[u8; 16]> {
    static PROCESS: OnceLock<[u8; 16]> = OnceLock::new();
    match PROCESS.get() {
        Some(process) => Ok(*process),
        None => {
            let drawn = random()?;
            Ok(*PROCESS.get_or_init(|| drawn))
        }
    }
}

/// A random number of 128 bits, which no other process draws.
///
/// # Errors
/// If the system has no random numbers.
fn random() -> io::Result<[u8; 16]> {
    let mut number = [0; 16];
    // So few bytes are never returned in part (getrandom(2)).
    match getrandom(&mut number[..], GetRandomFlags::empty())? {
        16 => Ok(number),
        _ => Err(io::Error::other("the system has no random numbers")),
    }
}
