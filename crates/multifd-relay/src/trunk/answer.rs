//! The server's first words.

use std::fmt;

use super::body::{end, put, put_extensions, take, take_extensions, take_words};
use super::choose::{Compression, method_code, method_of_code};
use super::envelope::{ANSWER_MAGIC, seal};
use super::preface::{Extension, not_understood};
use super::{Choice, Chosen, Digest, HandshakeFault, Preface, Versions, Words};

/// A server's answer to a preface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Frames follow, in both directions.
    Accepted(Accepted),
    /// Nothing follows.
    Refused(Refusal),
}

/// The choices for both ends, as codes on the wire: [`Accepted::chosen`] checks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The version of the trunk.
    pub version: u16,
    /// The method of the client's payloads.
    pub method: u8,
    /// The digest of frames.
    pub digest: u8,
    /// The compression of byte streams.
    pub compression: u8,
    /// Parts that this version has no field for. At most [`MAX_EXTENSIONS`](super::MAX_EXTENSIONS),
    /// no id twice.
    pub extensions: Vec<Extension>,
}

/// Why a server does not take a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of reason, for programs.
    pub code: RefusalCode,
    /// The reason, for people.
    pub words: Words,
}

/// The kind of reason of a [`Refusal`]. A client shows a code that it does not know as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RefusalCode(pub u16);

impl RefusalCode {
    /// Anything else.
    pub const OTHER: Self = Self(0);
    /// The preface breaks a rule.
    pub const MALFORMED: Self = Self(1);
    /// No common version.
    pub const VERSION: Self = Self(2);
    /// An extension is needed and not understood.
    pub const EXTENSION: Self = Self(3);
    /// No common method, digest or compression.
    pub const NOTHING_COMMON: Self = Self(4);
    /// The client may not use this name.
    pub const NAME_NOT_ALLOWED: Self = Self(5);
    /// No guest of this name is waited for.
    pub const NO_SUCH_NAME: Self = Self(6);
    /// The guest's destination or the relay has no room now.
    pub const BUSY: Self = Self(7);
    /// The relay ends, and takes no new migrations.
    pub const ENDS: Self = Self(8);
    /// A migration of this number is under way here: the way leads back to this relay.
    pub const ITSELF: Self = Self(9);
    /// No main channel of this migration has come.
    pub const UNKNOWN_MIGRATION: Self = Self(10);

    /// Its meaning, if this crate knows it.
    #[must_use]
    pub const fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::OTHER => "refused",
            Self::MALFORMED => "malformed preface",
            Self::VERSION => "no common version",
            Self::EXTENSION => "missing extension",
            Self::NOTHING_COMMON => "nothing in common",
            Self::NAME_NOT_ALLOWED => "name not allowed",
            Self::NO_SUCH_NAME => "no such name",
            Self::BUSY => "busy",
            Self::ENDS => "the relay ends",
            Self::ITSELF => "the relay reaches itself",
            Self::UNKNOWN_MIGRATION => "unknown migration",
            _ => return None,
        })
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => f.write_str(meaning),
            None => write!(f, "refusal {}", self.0),
        }
    }
}

impl Refusal {
    /// A refusal; its words are cut as [`Words::new`] does.
    #[must_use]
    pub fn new(code: RefusalCode, words: &str) -> Self {
        let words = Words::new(words);
        Self { code, words }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words.as_str() {
            "" => self.code.fmt(f),
            words if self.code == RefusalCode::OTHER => f.write_str(&Words::new(words).to_string()),
            _ => write!(f, "{}: {}", self.code, self.words),
        }
    }
}

/// A server's answer to a broken preface.
impl From<HandshakeFault> for Refusal {
    fn from(fault: HandshakeFault) -> Self {
        let code = match fault {
            HandshakeFault::Versions { .. } => RefusalCode::VERSION,
            _ => RefusalCode::MALFORMED,
        };
        Self::new(code, &fault.to_string())
    }
}

impl Answer {
    /// The whole answer: magic number, length, body and checksum.
    ///
    /// # Errors
    /// When it breaks a rule that a client checks.
    pub fn encode(&self) -> Result<Vec<u8>, HandshakeFault> {
        let mut body = Vec::new();
        match self {
            Self::Accepted(accepted) => {
                put(&ACCEPTED, &mut body)?;
                let choices = (
                    accepted.version,
                    accepted.method,
                    accepted.digest,
                    accepted.compression,
                );
                put(&choices, &mut body)?;
                put_extensions(&accepted.extensions, &mut body)?;
            }
            Self::Refused(refusal) => {
                put(&REFUSED, &mut body)?;
                put(&(refusal.code.0, refusal.words.as_str()), &mut body)?;
            }
        }
        seal(ANSWER_MAGIC, &body)
    }

    /// Takes a body apart.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, HandshakeFault> {
        let answer = match take::<u32>(&mut body)? {
            ACCEPTED => {
                let version: u16 = take(&mut body)?;
                // The rest is in the layout of that version.
                if !Versions::OURS.contains(version) {
                    return Err(not_offered(Choice::Version, version));
                }
                let (method, digest, compression) = take(&mut body)?;
                Self::Accepted(Accepted {
                    version,
                    method,
                    digest,
                    compression,
                    extensions: take_extensions(&mut body)?,
                })
            }
            REFUSED => Self::Refused(Refusal {
                code: RefusalCode(take(&mut body)?),
                words: take_words(&mut body)?,
            }),
            _ => return Err(HandshakeFault::Body),
        };
        end(body)?;
        Ok(answer)
    }
}

impl Accepted {
    /// The server's choice among the offers of `preface`. `understood` are the ids of extensions
    /// that this end understands.
    ///
    /// # Errors
    /// [`HandshakeFault::NotOffered`] and [`HandshakeFault::ExtensionNeeded`].
    pub fn chosen(&self, preface: &Preface, understood: &[u16]) -> Result<Chosen, HandshakeFault> {
        if !preface.versions.contains(self.version) {
            return Err(not_offered(Choice::Version, self.version));
        }
        if let Some(id) = not_understood(&self.extensions, understood) {
            return Err(HandshakeFault::ExtensionNeeded { id });
        }
        let offers = &preface.offers;
        Ok(Chosen {
            version: self.version,
            method: offered(Choice::Method, &offers.methods, self.method, method_of_code)?,
            digest: offered(
                Choice::Digest,
                &offers.digests,
                self.digest,
                Digest::from_code,
            )?,
            compression: offered(
                Choice::Compression,
                &offers.compressions,
                self.compression,
                Compression::from_code,
            )?,
        })
    }
}

impl From<Chosen> for Accepted {
    fn from(chosen: Chosen) -> Self {
        Self {
            version: chosen.version,
            // A method without a code is never chosen.
            method: method_code(chosen.method).unwrap_or(u8::MAX),
            digest: chosen.digest.code(),
            compression: chosen.compression.code(),
            extensions: Vec::new(),
        }
    }
}

/// The meaning of a code, if it was offered.
fn offered<T>(
    choice: Choice,
    offers: &[u8],
    code: u8,
    meaning: impl Fn(u8) -> Option<T>,
) -> Result<T, HandshakeFault> {
    match meaning(code).filter(|_| offers.contains(&code)) {
        Some(meaning) => Ok(meaning),
        None => Err(not_offered(choice, code.into())),
    }
}

fn not_offered(choice: Choice, found: u16) -> HandshakeFault {
    HandshakeFault::NotOffered { choice, found }
}

const ACCEPTED: u32 = 0;
const REFUSED: u32 = 1;
