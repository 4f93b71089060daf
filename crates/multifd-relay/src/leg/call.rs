//! Calls the destination of a leg. On a trunk both relays first agree on terms.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use multifd_transport::{Address, DialError, RateLimit, Stream, Target};
use multifd_wire::{Hello, Method};

use super::carried::Carried;
use super::strands::Strands;
use super::{
    Encryption, LegAddress, PLAIN, Protocol, VERIFY, abilities, extension, has, process, random,
};
use crate::relay::RelayConfig;
use crate::trunk::{
    Accepted, Answer, AnswerReceiver, Chosen, Connection, DeltaTerms, Extension, Name, Offers,
    Preface, Refusal, StrandTerms, Versions,
};

/// While it waits for an answer, a caller looks this often whether it is to give up.
const TICK: Duration = Duration::from_millis(50);

/// The name of a migration without a name.
pub(super) const UNNAMED: &str = "vm";

/// A migration, as it is introduced to the destination.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) name: Option<Name>,
    /// Its number, if it came over a trunk.
    pub(crate) migration: Option<[u8; 16]>,
    /// The methods that this relay can write, the best first. A QEMU gets the first.
    pub(crate) methods: Vec<Method>,
    /// Packets may have the method `none` instead, if the other end takes it.
    pub(crate) has_plain_packets: bool,
    pub(crate) has_channels: bool,
    pub(crate) may_be_postcopy: bool,
    pub(crate) is_recovery: bool,
    /// Both relays may keep this many bytes of pages for differences; 0 for none.
    pub(crate) delta_bytes: u64,
    /// Both relays compare the pages that they carry.
    pub(crate) verify: bool,
    /// The number of connections that carry each channel of pages, at most
    /// [`StrandTerms::MAX_STRANDS`].
    pub(crate) strands: u8,
}

/// The terms of a whole migration. Its main channel has agreed on them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The method of payloads.
    pub(crate) method: Method,
    /// Packets may have the method `none` instead.
    pub(crate) has_plain_packets: bool,
    /// The other relay keeps this many bytes of pages for differences. A QEMU keeps none.
    pub(crate) delta_bytes: u64,
}

/// Calls one destination, once for each connection of a migration.
#[derive(Debug)]
pub(crate) struct Caller {
    address: LegAddress,
    target: Target,
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "a build without TLS")
    )]
    encryption: Encryption,
    rate_limit: Option<RateLimit>,
    preface: Option<Preface>,
    /// The number of connections that carry each channel of pages.
    strands: u8,
    /// The smallest number that the other relay has taken for a channel.
    fewest_strands: AtomicU8,
    /// The number of the next group of strands.
    next_group: AtomicU16,
    /// The method for a QEMU, which is not asked.
    method: Method,
}

/// The other relay does not take the migration.
#[derive(Debug, thiserror::Error)]
#[error("the relay there refuses: {refusal}")]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
}

impl Caller {
    /// Looks up the destination, as long as `given_up` does not answer true.
    ///
    /// # Errors
    /// If there is no such host, or the system has no random numbers.
    pub(crate) fn resolve(
        address: LegAddress,
        config: &RelayConfig,
        introduction: &Introduction,
        given_up: &dyn Fn() -> bool,
    ) -> Result<Self, DialError> {
        let target = Target::resolve(&address.address, given_up)?;
        let preface = match address.protocol {
            Protocol::Qemu => None,
            Protocol::Trunk => Some(introduction.preface()?),
        };
        Ok(Self {
            address,
            target,
            encryption: config.encryption.clone(),
            rate_limit: config.rate_limit.clone(),
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

    /// The destination's address.
    pub(crate) fn address(&self) -> &LegAddress {
        &self.address
    }

    /// The socket's address.
    pub(crate) fn socket_address(&self) -> &Address {
        self.target.address()
    }

    /// Whether the destination is another relay. A channel's hello then goes into its preface, and
    /// not into its stream.
    pub(crate) fn is_relay(&self) -> bool {
        self.preface.is_some()
    }

    /// The number of connections that the other relay takes for a channel, if it takes fewer than
    /// wanted.
    pub(crate) fn fewer_strands(&self) -> Option<u8> {
        let fewest = self.fewest_strands.load(Ordering::Relaxed);
        (self.is_relay() && fewest < self.strands).then_some(fewest)
    }

    /// Calls for the main channel. Also returns the terms.
    ///
    /// # Errors
    /// As [`Target::dial`], and if the other relay refuses.
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
            stream.hold_to_rate();
            return Ok((stream, terms));
        };
        let mut preface = preface.clone();
        if let Some(connection) = connection {
            preface.connection = connection;
            // The terms of main hold for all connections of the migration.
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
        stream.hold_to_rate();
        let is_stream = agreement.is_stream;
        let carried =
            Carried::new(stream, &agreement.chosen, is_stream).map_err(io::Error::other)?;
        let stream = Stream::layered(carried.with_notes(agreement.has_notes));
        Ok((stream, agreement.terms))
    }

    /// Calls, and starts TLS if the leg is encrypted.
    fn dial(&self, deadline: Instant, given_up: &dyn Fn() -> bool) -> Result<Stream, DialError> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let stream = self.target.dial(left(), given_up)?;
        let stream = stream.with_rate_limit(self.rate_limit.as_ref());
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

/// Writes the preface and waits for the answer. `None`: no answer came in time.
pub(super) fn agree(
    stream: &Stream,
    preface: &Preface,
    deadline: Instant,
    given_up: &dyn Fn() -> bool,
) -> Result<Option<Accepted>, DialError> {
    let bytes = preface.encode().map_err(io::Error::other)?;
    stream.write_all_of_two(&bytes, &[]).map_err(closed)?;
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
            other => other.map_err(closed)?,
        };
        if count == 0 {
            return Err(unanswered().into());
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

/// The other end has closed, cleanly or not. An error of TLS says more than that.
fn closed(error: io::Error) -> io::Error {
    let gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    match error.get_ref() {
        None if gone.contains(&error.kind()) => unanswered(),
        _ => error,
    }
}

fn unanswered() -> io::Error {
    let words = "it closed without an answer: does a relay listen there, for a trunk?";
    io::Error::new(io::ErrorKind::ConnectionReset, words)
}

/// How an accepted connection goes on.
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
        // A server may offer to keep more than it was asked for. The rest stays unused.
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
