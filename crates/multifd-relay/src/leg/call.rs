//! Calling the destination of a leg: dialling, and on a trunk what is agreed upon first.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use multifd_transport::dial::{DialError, Target};
use multifd_transport::{Address, Stream};
use multifd_wire::{Hello, Method};

use super::carried::Carried;
use super::strands::Strands;
use super::{
    Encryption, LegAddress, PLAIN, Protocol, VERIFY, abilities, extension, has, process, random,
};
use crate::trunk::{
    Accepted, Answer, AnswerReceiver, Chosen, Connection, DeltaTerms, Extension, Name, Offers,
    Preface, Refusal, StrandTerms, Versions,
};

/// How soon a wish to end is noticed while an answer is awaited.
const TICK: Duration = Duration::from_millis(50);

/// The name of a migration that nobody has named.
const UNNAMED: &str = "vm";

/// What a migration is, for the one that is called.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) name: Option<Name>,
    /// The number that it came with, over a trunk.
    pub(crate) migration: Option<[u8; 16]>,
    /// The methods that payloads can be written in, the best first. A QEMU gets the first.
    pub(crate) methods: Vec<Method>,
    /// Packets may have the method `none` instead, where the other end takes it.
    pub(crate) has_plain_packets: bool,
    pub(crate) has_channels: bool,
    pub(crate) may_be_postcopy: bool,
    pub(crate) is_recovery: bool,
    /// The bytes of pages that both relays may keep for differences; 0 for none.
    pub(crate) delta_bytes: u64,
    /// The pages that arrive are to be compared with those that went.
    pub(crate) verify: bool,
    /// The connections that are to carry each channel of pages, at most
    /// [`StrandTerms::MAX_STRANDS`].
    pub(crate) strands: u8,
}

/// What was agreed on for a whole migration, by its main channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The method that payloads are written in.
    pub(crate) method: Method,
    /// Packets may have the method `none` instead.
    pub(crate) has_plain_packets: bool,
    /// The bytes of pages that the other relay keeps for differences: none at a QEMU.
    pub(crate) delta_bytes: u64,
}

/// Calls one destination, for each connection of a migration.
#[derive(Debug)]
pub(crate) struct Caller {
    address: LegAddress,
    target: Target,
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "a build without TLS")
    )]
    encryption: Encryption,
    preface: Option<Preface>,
    /// The connections that are to carry each channel of pages.
    strands: u8,
    /// The fewest that the other relay has taken for one.
    fewest_strands: AtomicU8,
    /// The number of the next ones.
    next_group: AtomicU16,
    /// The method for a destination that is not asked.
    method: Method,
}

/// The other relay does not take the migration.
#[derive(Debug, thiserror::Error)]
#[error("the relay there refuses: {refusal}")]
struct Refused {
    refusal: Refusal,
}

impl Caller {
    /// Looks the destination up.
    ///
    /// # Errors
    /// When there is no such host, or the system has no random numbers.
    pub(crate) fn resolve(
        address: LegAddress,
        encryption: Encryption,
        introduction: &Introduction,
    ) -> io::Result<Self> {
        let target = Target::resolve(&address.address)?;
        let preface = match address.protocol {
            Protocol::Qemu => None,
            Protocol::Trunk => Some(introduction.preface()?),
        };
        Ok(Self {
            address,
            target,
            encryption,
            preface,
            strands: introduction.strands,
            fewest_strands: AtomicU8::new(introduction.strands),
            next_group: AtomicU16::new(0),
            method: introduction
                .methods
                .first()
                .copied()
                .unwrap_or(Method::None),
        })
    }

    /// Whom it calls.
    pub(crate) fn address(&self) -> &LegAddress {
        &self.address
    }

    /// The socket's address.
    pub(crate) fn socket_address(&self) -> &Address {
        self.target.address()
    }

    /// Whether it calls another relay, over a trunk. A channel's hello is said in its preface then,
    /// and not in its stream.
    pub(crate) fn is_relay(&self) -> bool {
        self.preface.is_some()
    }

    /// The connections that the other relay takes for a channel, where they are fewer than wanted.
    pub(crate) fn fewer_strands(&self) -> Option<u8> {
        let fewest = self.fewest_strands.load(Ordering::Relaxed);
        (self.is_relay() && fewest < self.strands).then_some(fewest)
    }

    /// Calls for the main channel. Also returns what was agreed on.
    ///
    /// # Errors
    /// As [`Target::dial`]; and when the other relay refuses.
    pub(crate) fn main(
        &self,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(Stream, Terms), DialError> {
        self.call(None, within, given_up)
    }

    /// Calls for a multifd channel.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn channel(
        &self,
        hello: &Hello,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Stream, DialError> {
        let called = self.call(Some(Connection::Channel(*hello)), within, given_up);
        called.map(|(stream, _)| stream)
    }

    /// Calls for postcopy's preempt connection.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn preempt(
        &self,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Stream, DialError> {
        let called = self.call(Some(Connection::Preempt), within, given_up);
        called.map(|(stream, _)| stream)
    }

    fn call(
        &self,
        connection: Option<Connection>,
        within: Duration,
        given_up: &dyn Fn() -> bool,
    ) -> Result<(Stream, Terms), DialError> {
        let deadline = Instant::now() + within;
        let stream = self.dial(deadline, given_up)?;
        let Some(preface) = &self.preface else {
            let terms = Terms {
                method: self.method,
                has_plain_packets: false,
                delta_bytes: 0,
            };
            return Ok((stream, terms));
        };
        let mut preface = preface.clone();
        if let Some(connection) = connection {
            preface.connection = connection;
            // What main has agreed on holds for all connections of the migration.
            let is_delta = |extension: &Extension| extension.id == DeltaTerms::ID;
            preface.extensions.retain(|extension| !is_delta(extension));
        }
        let has_pages = match preface.connection {
            Connection::Main { has_channels, .. } => !has_channels,
            Connection::Channel(_) => true,
            Connection::Preempt | Connection::Strand { .. } => false,
        };
        if has_pages && self.strands > 1 {
            let (count, group) = (self.strands, &self.next_group);
            let group = group.fetch_add(1, Ordering::Relaxed);
            preface
                .extensions
                .push(StrandTerms { count, group }.extension());
        }
        let silent = || DialError::TimedOut {
            within,
            tried: self.address.to_string(),
        };
        let accepted = agree(&stream, &preface, deadline, given_up)?.ok_or_else(silent)?;
        let agreement = Agreement::of(&preface, &accepted)?;
        let mut more = Vec::new();
        if let Some(StrandTerms { count, group }) = agreement.strands {
            self.fewest_strands.fetch_min(count, Ordering::Relaxed);
            preface.extensions.clear();
            for number in 1..count {
                let stream = self.dial(deadline, given_up)?;
                preface.connection = Connection::Strand { group, number };
                agree(&stream, &preface, deadline, given_up)?.ok_or_else(silent)?;
                more.push(stream);
            }
        } else if has_pages {
            self.fewest_strands.store(1, Ordering::Relaxed);
        }
        let stream = Strands::joined(stream, more);
        let is_stream = agreement.is_stream;
        let carried =
            Carried::new(stream, &agreement.chosen, is_stream).map_err(io::Error::other)?;
        let stream = Stream::layered(carried.with_notes(agreement.has_notes));
        Ok((stream, agreement.terms))
    }

    /// Calls, and encrypts where the leg is encrypted.
    fn dial(&self, deadline: Instant, given_up: &dyn Fn() -> bool) -> Result<Stream, DialError> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let stream = self.target.dial(left(), given_up)?;
        #[cfg(feature = "tls")]
        let stream = {
            let address = self.target.address();
            self.encryption.secure(stream, address, left(), given_up)?
        };
        Ok(stream)
    }
}

impl Introduction {
    fn preface(&self) -> io::Result<Preface> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => Name::new(UNNAMED).map_err(io::Error::other)?,
        };
        Ok(Preface {
            versions: Versions::OURS,
            migration: self.migration.map_or_else(random, Ok)?,
            process: process()?,
            name,
            connection: Connection::Main {
                has_channels: self.has_channels,
                may_be_postcopy: self.may_be_postcopy,
                is_recovery: self.is_recovery,
            },
            offers: Offers::of(&abilities(self.methods.clone())),
            extensions: {
                let verify = self.verify.then(|| extension(VERIFY));
                let plain = self.has_plain_packets.then(|| extension(PLAIN));
                let bytes = self.delta_bytes;
                let delta = (bytes > 0).then(|| DeltaTerms { bytes }.extension());
                [verify, plain, delta].into_iter().flatten().collect()
            },
        })
    }
}

/// Says the preface and waits for the answer. `None`: no answer came in time.
fn agree(
    stream: &Stream,
    preface: &Preface,
    deadline: Instant,
    given_up: &dyn Fn() -> bool,
) -> Result<Option<Accepted>, DialError> {
    let bytes = preface.encode().map_err(io::Error::other)?;
    stream.write_all_of_two(&bytes, &[])?;
    let mut receiver = AnswerReceiver::default();
    let mut buffer = [0; 512];
    let answer = loop {
        if given_up() {
            return Err(DialError::GivenUp);
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        if !stream.is_readable_within(TICK)? {
            continue;
        }
        let most = receiver.wanted().min(buffer.len());
        let space = buffer.get_mut(..most).unwrap_or_default();
        let count = match stream.read_now(space) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            other => other?,
        };
        if count == 0 {
            let words = "it closed without an answer: does a relay listen there, for a trunk?";
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, words).into());
        }
        let mut said = buffer.get(..count).unwrap_or_default();
        let taken = receiver.push(&mut said);
        if let Some(answer) =
            taken.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?
        {
            break answer;
        }
    };
    match answer {
        Answer::Refused(refusal) => {
            let refused = Refused { refusal };
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, refused).into())
        }
        Answer::Accepted(accepted) => Ok(Some(accepted)),
    }
}

/// What an accepted connection does.
struct Agreement {
    chosen: Chosen,
    terms: Terms,
    is_stream: bool,
    has_notes: bool,
    strands: Option<StrandTerms>,
}

impl Agreement {
    fn of(preface: &Preface, accepted: &Accepted) -> io::Result<Self> {
        let malformed = |fault| io::Error::new(io::ErrorKind::InvalidData, fault);
        let chosen = accepted
            .chosen(preface, &[DeltaTerms::ID, PLAIN, StrandTerms::ID])
            .map_err(malformed)?;
        let asked = DeltaTerms::among(&preface.extensions).map_err(malformed)?;
        let kept = DeltaTerms::among(&accepted.extensions).map_err(malformed)?;
        // What a server keeps beyond what it was asked for is not used.
        let delta_bytes = match (asked, kept) {
            (Some(asked), Some(kept)) => kept.bytes.min(asked.bytes),
            _ => 0,
        };
        let has_notes = has(VERIFY, &accepted.extensions);
        if has(VERIFY, &preface.extensions) && !has_notes {
            let words = "the relay there does not verify pages: bring it to this version, or leave out --verify";
            return Err(io::Error::new(io::ErrorKind::Unsupported, words));
        }
        let has_plain_packets = [&preface.extensions, &accepted.extensions]
            .iter()
            .all(|said| has(PLAIN, said));
        let asked = StrandTerms::among(&preface.extensions).map_err(malformed)?;
        let strands = StrandTerms::among(&accepted.extensions).map_err(malformed)?;
        if let Some(granted) = strands
            && asked.is_none_or(|asked| granted.group != asked.group || granted.count > asked.count)
        {
            let words = "the relay there takes more connections for one than it was asked for";
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        Ok(Self {
            chosen,
            terms: Terms {
                method: chosen.method,
                has_plain_packets,
                delta_bytes,
            },
            is_stream: !matches!(preface.connection, Connection::Channel(_)),
            has_notes,
            strands,
        })
    }
}
