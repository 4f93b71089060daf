//! The client's first words.

use multifd_wire::Hello;
use serde::{Deserialize, Serialize};

use super::body::{end, put, put_extensions, take, take_extensions};
use super::envelope::{PREFACE_MAGIC, seal};
use super::{Abilities, HandshakeFault, Name, Versions};

/// A client's first message on each connection of a trunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preface {
    /// The versions of the trunk that the client speaks. The preface itself is in the layout of the
    /// oldest.
    pub versions: Versions,
    /// A random number, one for each migration: all its connections have the same.
    pub migration: [u8; 16],
    /// A random number of the client's process, by which migrations of one relay can be
    /// distinguished.
    pub process: [u8; 16],
    /// The guest's name. The server maps it to a socket of its destination.
    pub name: Name,
    /// The QEMU's connection that this one carries.
    pub connection: Connection,
    /// The client's abilities.
    pub offers: Offers,
    /// Parts that this version has no field for: at most [`MAX_EXTENSIONS`], no id twice.
    pub extensions: Vec<Extension>,
}

/// The QEMU's connection that a trunk connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// The main channel.
    Main {
        /// Multifd channels belong to the migration.
        has_channels: bool,
        /// The migration may switch to postcopy.
        may_be_postcopy: bool,
        /// The connection goes on with a postcopy that was interrupted.
        is_recovery: bool,
    },
    /// A multifd channel. This is the hello that the source has sent; the frames do not repeat it.
    Channel(Hello),
    /// Postcopy's preempt connection.
    Preempt,
    /// One more connection for the bytes of another one: [`StrandTerms`](super::StrandTerms).
    Strand {
        /// The number that the other one has said for its strands.
        group: u16,
        /// The strand's number.
        number: u8,
    },
}

/// A client's abilities, as codes on the wire. A server passes over codes that it does not know.
/// Each list has at most [`MAX_CODES`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offers {
    /// Methods in which the client can write payloads.
    pub methods: Vec<u8>,
    /// Digests of frames.
    pub digests: Vec<u8>,
    /// Compressions of byte streams.
    pub compressions: Vec<u8>,
}

/// Something that a later relay says, which this version has no field for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its id. An id with the bit [`Extension::NEEDED`] must be understood or refused; another one
    /// may be ignored.
    pub id: u16,
    /// Its value.
    pub bytes: Vec<u8>,
}

/// The most codes in one list of [`Offers`]: many times what there is, and three full lists leave
/// most of a preface free.
pub const MAX_CODES: usize = 64;

/// The most extensions in a preface or an answer: so few that each can be compared with each.
pub const MAX_EXTENSIONS: usize = 16;

impl Preface {
    /// The whole preface: magic number, length, body and checksum.
    ///
    /// # Errors
    /// When it breaks a rule that a server checks.
    pub fn encode(&self) -> Result<Vec<u8>, HandshakeFault> {
        check_versions(self.versions)?;
        self.offers.check()?;
        let mut body = Vec::new();
        put(&(self.versions.oldest, self.versions.newest), &mut body)?;
        let raw = RawPreface {
            migration: self.migration,
            process: self.process,
            name: self.name.as_str(),
            connection: self.connection.into(),
            methods: &self.offers.methods,
            digests: &self.offers.digests,
            compressions: &self.offers.compressions,
        };
        put(&raw, &mut body)?;
        put_extensions(&self.extensions, &mut body)?;
        seal(PREFACE_MAGIC, &body)
    }

    /// Takes a body apart. The versions are looked at before anything after them.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, HandshakeFault> {
        let (oldest, newest) = take(&mut body)?;
        let versions = Versions { oldest, newest };
        check_versions(versions)?;
        let raw: RawPreface<'_> = take(&mut body)?;
        let extensions = take_extensions(&mut body)?;
        end(body)?;
        let offers = Offers {
            methods: raw.methods.into(),
            digests: raw.digests.into(),
            compressions: raw.compressions.into(),
        };
        offers.check()?;
        Ok(Self {
            versions,
            migration: raw.migration,
            process: raw.process,
            name: Name::new(raw.name)?,
            connection: raw.connection.into(),
            offers,
            extensions,
        })
    }
}

impl Offers {
    /// All that `abilities` have.
    #[must_use]
    pub fn of(abilities: &Abilities) -> Self {
        let codes = |codes: &mut dyn Iterator<Item = u8>| codes.take(MAX_CODES).collect();
        let methods = &mut abilities.methods.iter();
        Self {
            methods: codes(&mut methods.filter_map(|&method| super::choose::method_code(method))),
            digests: codes(&mut abilities.digests.iter().map(|digest| digest.code())),
            compressions: codes(&mut abilities.compressions.iter().map(|way| way.code())),
        }
    }

    fn check(&self) -> Result<(), HandshakeFault> {
        let allowed = MAX_CODES;
        let lists = [&self.methods, &self.digests, &self.compressions];
        match lists.into_iter().find(|list| list.len() > allowed) {
            None => Ok(()),
            Some(list) => {
                let found = list.len();
                Err(HandshakeFault::Codes { found, allowed })
            }
        }
    }
}

impl Extension {
    /// The bit of an id that says "refuse if you do not understand this".
    pub const NEEDED: u16 = 0x8000;

    /// Whether the peer must refuse when it does not understand this.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        self.id & Self::NEEDED != 0
    }
}

/// The first of `extensions` that must be understood and is not among the ids in `understood`.
pub(super) fn not_understood(extensions: &[Extension], understood: &[u16]) -> Option<u16> {
    let mut needed = extensions.iter().filter(|extension| extension.is_needed());
    needed
        .find(|extension| !understood.contains(&extension.id))
        .map(|extension| extension.id)
}

/// There is a common version, and this crate has the layout of the oldest.
fn check_versions(found: Versions) -> Result<(), HandshakeFault> {
    let allowed = Versions::OURS;
    match found.common(allowed).is_some() && allowed.contains(found.oldest) {
        true => Ok(()),
        false => Err(HandshakeFault::Versions { found, allowed }),
    }
}

/// The fields between the versions and the extensions.
#[derive(Serialize, Deserialize)]
struct RawPreface<'a> {
    migration: [u8; 16],
    process: [u8; 16],
    name: &'a str,
    connection: RawConnection,
    methods: &'a [u8],
    digests: &'a [u8],
    compressions: &'a [u8],
}

#[derive(Serialize, Deserialize)]
enum RawConnection {
    Main {
        has_channels: bool,
        may_be_postcopy: bool,
        is_recovery: bool,
    },
    Channel {
        uuid: [u8; 16],
        id: u8,
        /// One array of 39 bytes. serde has none that long, and postcard puts nothing between its
        /// parts.
        reserved: ([u8; 32], [u8; 7]),
    },
    Preempt,
    Strand {
        group: u16,
        number: u8,
    },
}

impl From<Connection> for RawConnection {
    fn from(connection: Connection) -> Self {
        match connection {
            Connection::Main {
                has_channels,
                may_be_postcopy,
                is_recovery,
            } => Self::Main {
                has_channels,
                may_be_postcopy,
                is_recovery,
            },
            Connection::Channel(hello) => {
                let mut reserved = ([0; 32], [0; 7]);
                let (first, second) = (&mut reserved.0, &mut reserved.1);
                let to = first.iter_mut().chain(second);
                to.zip(hello.reserved).for_each(|(to, from)| *to = from);
                Self::Channel {
                    uuid: hello.uuid,
                    id: hello.channel,
                    reserved,
                }
            }
            Connection::Preempt => Self::Preempt,
            Connection::Strand { group, number } => Self::Strand { group, number },
        }
    }
}

impl From<RawConnection> for Connection {
    fn from(raw: RawConnection) -> Self {
        match raw {
            RawConnection::Main {
                has_channels,
                may_be_postcopy,
                is_recovery,
            } => Self::Main {
                has_channels,
                may_be_postcopy,
                is_recovery,
            },
            RawConnection::Channel {
                uuid,
                id,
                reserved: (first, second),
            } => {
                let mut reserved = [0; 39];
                let from = first.into_iter().chain(second);
                reserved
                    .iter_mut()
                    .zip(from)
                    .for_each(|(to, from)| *to = from);
                Self::Channel(Hello {
                    uuid,
                    channel: id,
                    reserved,
                })
            }
            RawConnection::Preempt => Self::Preempt,
            RawConnection::Strand { group, number } => Self::Strand { group, number },
        }
    }
}
