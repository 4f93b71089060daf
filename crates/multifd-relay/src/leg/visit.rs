//! A visit to the relay at the far end of a trunk: it shows what a migration would find there, and
//! begins none.

use std::io;
use std::time::{Duration, Instant};

use multifd_codec::delta::memory;
use multifd_transport::{DIAL_TIMEOUT, DialError, Target};
use multifd_wire::Method;

use super::call::{Refused, UNNAMED, agree};
use super::{Encryption, LegAddress, PLAIN, VERIFY, abilities, extension, has, process, random};
use crate::trunk::{
    Accepted, Chosen, Compression, Connection, DeltaTerms, HandshakeFault, Name, Offers, Preface,
    Refusal, RefusalCode, StrandTerms, Versions, Visit,
};

/// The calls that the round trip is measured with. The shortest is the network's.
const CALLS: usize = 4;

/// How long one of these may take.
const CALL: Duration = Duration::from_secs(1);

/// What a visitor asks for: a migration's wishes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Visitor {
    /// The far relay's address.
    pub address: LegAddress,
    /// TLS, if the leg uses it.
    pub encryption: Encryption,
    /// The guest's name. A far relay may allow some only.
    pub name: Option<Name>,
    /// The methods that this host writes.
    pub methods: Vec<Method>,
    /// The time limit for each step.
    pub within: Duration,
}

/// A step of a visit that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VisitStep {
    /// The name was looked up.
    Resolved {
        /// The numbers that it stands for; none for a unix socket.
        hosts: Vec<String>,
        /// How long it took.
        took: Duration,
    },
    /// The far host has answered.
    Connected {
        /// How long it took.
        took: Duration,
    },
    /// TLS has begun. The far relay may still refuse the certificate of this end.
    Secured {
        /// How long it took.
        took: Duration,
    },
}

/// Why a visit led to no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VisitError {
    /// The name cannot be looked up.
    #[error(transparent)]
    Resolve(DialError),
    /// The far host was not reached.
    #[error(transparent)]
    Connect(DialError),
    /// One of the ends refuses the other's TLS.
    #[error(transparent)]
    Tls(DialError),
    /// No relay has answered.
    #[error(transparent)]
    Answer(DialError),
    /// The relay would take no such migration.
    #[error("the relay there refuses: {words}")]
    Refused {
        /// The relay's words, fit to be shown.
        words: String,
    },
    /// The relay does not know visits. It has refused, and no migration has begun.
    #[error("the relay there is older than this one, and takes no visits")]
    Older,
}

/// What a migration would find at the far end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FarRelay {
    /// The version of the trunk.
    pub version: u16,
    /// The method that it would choose of those that were offered.
    pub method: Method,
    /// The methods that it reads, the best first.
    pub methods: Vec<Method>,
    /// Main is compressed.
    pub compresses_main: bool,
    /// It takes migrations with verification only.
    pub only_verified: bool,
    /// It can verify pages.
    pub verifies: bool,
    /// Packets may have the method `none` among others, as an automatic effort needs it.
    pub plain_packets: bool,
    /// The bytes that it would keep for differences at the moment.
    pub delta_bytes: u64,
    /// The most connections that carry one channel.
    pub strands: u8,
    /// The shortest time that the far host took to answer a call.
    pub round_trip: Duration,
    /// How long the relay took to answer.
    pub answer: Duration,
}

impl Visitor {
    /// The usual visit.
    pub const fn new(address: LegAddress, encryption: Encryption, methods: Vec<Method>) -> Self {
        Self {
            address,
            encryption,
            name: None,
            methods,
            within: DIAL_TIMEOUT,
        }
    }

    /// Asks the relay. No migration begins, neither here nor there. A QEMU at the address would
    /// take the call for its migration's.
    ///
    /// # Errors
    /// The step that did not go well.
    pub fn visit(
        &self,
        given_up: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(VisitStep),
    ) -> Result<FarRelay, VisitError> {
        let begun = Instant::now();
        let target = Target::resolve_within(&self.address.address, self.within, given_up)
            .map_err(VisitError::Resolve)?;
        let hosts = target.hosts().iter();
        observe(VisitStep::Resolved {
            hosts: hosts.map(|host| host.ip().to_string()).collect(),
            took: begun.elapsed(),
        });
        let begun = Instant::now();
        let stream = target.dial(self.within, given_up);
        let stream = stream.map_err(VisitError::Connect)?;
        let mut round_trip = begun.elapsed();
        observe(VisitStep::Connected { took: round_trip });
        #[cfg(feature = "tls")]
        let stream = {
            let begun = Instant::now();
            let address = target.address();
            let secured = self
                .encryption
                .secure(stream, address, self.within, given_up);
            let secured = secured.map_err(VisitError::Tls)?;
            if self.address.tls {
                let took = begun.elapsed();
                observe(VisitStep::Secured { took });
            }
            secured
        };
        let preface = self.preface().map_err(into_answer)?;
        let begun = Instant::now();
        let accepted = agree(&stream, &preface, begun + self.within, given_up)
            .map_err(|error| self.unanswered(error))?
            .ok_or_else(|| self.silent())?;
        let answer = begun.elapsed();
        drop(stream);
        for _ in 1..CALLS {
            let begun = Instant::now();
            // The relay has answered: a call that fails now only ends the measurement.
            if target.dial(self.within.min(CALL), given_up).is_err() {
                break;
            }
            round_trip = round_trip.min(begun.elapsed());
        }
        FarRelay::of(&preface, &accepted, round_trip, answer)
            .map_err(|fault| into_answer(io::Error::new(io::ErrorKind::InvalidData, fault)))
    }

    fn preface(&self) -> io::Result<Preface> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => Name::new(UNNAMED).map_err(io::Error::other)?,
        };
        let strands = StrandTerms {
            count: StrandTerms::MAX_STRANDS,
            group: 0,
        };
        Ok(Preface {
            versions: Versions::OURS,
            migration: random()?,
            process: process()?,
            name,
            connection: Connection::Main {
                has_channels: true,
                may_be_postcopy: false,
                is_recovery: false,
            },
            offers: Offers::of(&abilities(self.methods.clone())),
            extensions: vec![
                extension(VERIFY),
                extension(PLAIN),
                DeltaTerms { bytes: u64::MAX }.extension(),
                strands.extension(),
                Visit::wish(),
            ],
        })
    }

    fn silent(&self) -> VisitError {
        VisitError::Answer(DialError::TimedOut {
            within: self.within,
            tried: self.address.to_string(),
        })
    }

    /// The meaning of an error in the place of an answer. In TLS 1.3 the server's refusal of a
    /// certificate comes there too.
    fn unanswered(&self, error: DialError) -> VisitError {
        let DialError::Io(error) = error else {
            return VisitError::Answer(error);
        };
        let inner = error.get_ref();
        let refusal = inner.and_then(|inner| inner.downcast_ref::<Refused>());
        match refusal.map(|refused| &refused.refusal) {
            Some(refusal) if refusal.code == RefusalCode::EXTENSION => VisitError::Older,
            Some(refusal) => VisitError::Refused {
                words: refusal.to_string(),
            },
            None => {
                let is_trunks = inner.is_some_and(|inner| inner.is::<HandshakeFault>())
                    || error.kind() == io::ErrorKind::ConnectionReset;
                match self.address.tls && !is_trunks {
                    true => VisitError::Tls(error.into()),
                    false => VisitError::Answer(error.into()),
                }
            }
        }
    }
}

fn into_answer(error: io::Error) -> VisitError {
    VisitError::Answer(error.into())
}

impl FarRelay {
    fn of(
        preface: &Preface,
        accepted: &Accepted,
        round_trip: Duration,
        answer: Duration,
    ) -> Result<Self, HandshakeFault> {
        let understood = [VERIFY, PLAIN, DeltaTerms::ID, StrandTerms::ID, Visit::ID];
        let chosen = accepted.chosen(preface, &understood)?;
        let shown = Visit::among(&accepted.extensions)?;
        // A server that has answered without it would have begun a migration.
        let shown = shown.ok_or(HandshakeFault::ExtensionNeeded { id: Visit::ID })?;
        let delta = DeltaTerms::among(&accepted.extensions)?;
        let strands = StrandTerms::among(&accepted.extensions)?;
        Ok(Self {
            version: chosen.version,
            method: chosen.method,
            methods: shown.methods,
            compresses_main: chosen.compression != Compression::None,
            only_verified: shown.only_verified,
            verifies: has(VERIFY, &accepted.extensions),
            plain_packets: has(PLAIN, &accepted.extensions),
            delta_bytes: delta.map_or(0, |terms| terms.bytes),
            strands: strands.map_or(1, |terms| terms.count),
            round_trip,
            answer,
        })
    }
}

/// The answer that a migration would get, for a caller that only asks. Nothing is set apart.
/// `methods` are those that this host reads, `delta_memory` is what one migration may keep, and it
/// `ends` if it takes no new migrations.
pub(super) fn shown(
    preface: &Preface,
    chosen: Chosen,
    methods: &[Method],
    only_verified: bool,
    delta_memory: u64,
    ends: bool,
) -> Result<Accepted, Refusal> {
    if ends {
        return Err(Refusal::new(RefusalCode::ENDS, ""));
    }
    let terms = DeltaTerms::among(&preface.extensions)?;
    let strands = StrandTerms::among(&preface.extensions)?;
    let mut accepted = Accepted::from(chosen);
    for id in [VERIFY, PLAIN] {
        if has(id, &preface.extensions) {
            accepted.extensions.push(extension(id));
        }
    }
    let free = memory::limit().saturating_sub(memory::held());
    let free = free.min(delta_memory);
    let kept = terms.map(|terms| terms.bytes.min(free));
    let kept = kept.filter(|bytes| *bytes > 0);
    let kept = kept.map(|bytes| DeltaTerms { bytes }.extension());
    accepted.extensions.extend(kept);
    let strands = strands.map(StrandTerms::extension);
    accepted.extensions.extend(strands);
    let visit = Visit {
        only_verified,
        methods: methods.to_vec(),
    };
    accepted.extensions.push(visit.extension());
    Ok(accepted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trunk::choose;

    #[test]
    fn an_answer_shows_what_a_migration_would_find() {
        let address = "trunk+unix:/run/t".parse().unwrap();
        let offered = vec![Method::Zstd, Method::None];
        let preface = Visitor::new(address, Encryption::default(), offered)
            .preface()
            .unwrap();
        let methods = [Method::Zlib, Method::None];
        let chosen = choose(&preface, &abilities(methods.to_vec())).unwrap();
        let answer = |delta_memory, ends| {
            let shown = shown(&preface, chosen, &methods, true, delta_memory, ends);
            shown.map_err(|refusal| refusal.code)
        };
        let far =
            |accepted: &Accepted| FarRelay::of(&preface, accepted, Duration::ZERO, Duration::ZERO);
        let accepted = answer(1 << 20, false).unwrap();
        let found = far(&accepted).unwrap();
        assert_eq!((found.method, found.strands), (Method::None, 16));
        assert_eq!(found.methods, methods);
        assert!(found.only_verified && found.verifies && found.plain_packets);
        assert!(found.delta_bytes > 0 && found.delta_bytes <= 1 << 20);
        let none = far(&answer(0, false).unwrap()).unwrap();
        assert_eq!(none.delta_bytes, 0);
        assert_eq!(answer(1 << 20, true), Err(RefusalCode::ENDS));
        // Such a server takes the visit for a migration.
        let mut without = accepted;
        without
            .extensions
            .retain(|extension| extension.id != Visit::ID);
        let needed = HandshakeFault::ExtensionNeeded { id: Visit::ID };
        assert_eq!(far(&without), Err(needed));
    }
}
