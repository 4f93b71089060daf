//! Accepting the connections of one migration: the main channel and all multifd channels.
//!
//! How many channels there are stands nowhere in the stream. But a source ends the setup part of its RAM section only
//! when every channel has been opened and has written its hello and a SYNC. So main is read up to there, and every
//! channel is by then at least waiting to be accepted. (QEMU 8.0 and later open all of them even before main's first
//! byte; 7.2 with a return path does not.) Nothing that a source does before that point waits for its destination.
//! The relay passes nothing of main on before, so the rule holds behind a relay too.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use multifd_wire::main_stream::{self, MainEvent, MainReceiver};
use multifd_wire::{Fault, Hello, Limits, control};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::destination::Peer;
pub(crate) use crate::failure::SetupFault;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::{Address, Listener, Stream};

/// How long an opened connection may take to say which channel it is. A source says it at once; the time covers a slow network.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection opened after a main channel may stay silent and still be taken for one of
/// its channels. If it is the main channel of the next migration, this one waits so long for it.
const CHANNEL_SILENCE: Duration = Duration::from_secs(2);

/// How long to look for further TCP connections once the main channel has spoken: over a network the last packet of a connection's opening may
/// arrive after the first byte of another connection.
const TCP_SETTLE: Duration = Duration::from_millis(20);

/// How soon to look again at a connection that has sent fewer bytes than tell what it is.
const PARTIAL_MAGIC_PAUSE: Duration = Duration::from_millis(1);

/// How much of main is read at once before the channels are known.
const SETUP_PIECE_BYTES: usize = 4 << 10;

/// The most that is kept of main before the channels are known. The list of RAM blocks takes some
/// hundred bytes; devices that send their state first (virtio-mem) some megabytes.
const SETUP_LIMIT_BYTES: usize = 64 << 20;

const MAIN_MAGIC: [u8; 4] = main_stream::MAGIC.to_be_bytes();
const CHANNEL_MAGIC: [u8; 4] = multifd_wire::MAGIC.to_be_bytes();
const ENGINE_MAGIC: [u8; 4] = control::MAGIC.to_be_bytes();
/// The record type and major version which every TLS connection begins with (RFC 8446 section 5.1).
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// A main channel and as many multifd channels as there are ids. What comes beyond waits with the system.
const MOST_CONNECTIONS: usize = 1 + 256;

/// All connections of one migration.
#[derive(Debug)]
pub struct Incoming {
    /// The main channel.
    pub main: Stream,
    /// What has been read of it: everything up to some point behind the RAM section's setup.
    pub main_start: Vec<u8>,
    /// The multifd channels in the order of their ids, which are 0 to N - 1. All belong to one VM.
    pub channels: Vec<IncomingChannel>,
}

/// A multifd connection whose hello has been read.
#[derive(Debug)]
pub struct IncomingChannel {
    /// What it said of itself.
    pub hello: Hello,
    /// The connection, standing behind the hello.
    pub stream: Stream,
}

/// Accepts one migration after another.
///
/// The connections of a migration which begins while another one is served wait here or with the
/// system.
#[derive(Debug)]
pub struct Acceptor {
    listener: Listener,
    /// Accepted and not yet assigned, oldest first: each migration's main connection stands before
    /// its channels.
    pub(crate) waiting: Vec<Stream>,
}

impl Acceptor {
    /// Listens on `address`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(address: &Address) -> io::Result<Acceptor> {
        Acceptor::on(Listener::bind(address)?)
    }

    /// Accepts what comes to `listener`.
    ///
    /// # Errors
    /// None so far.
    pub fn on(listener: Listener) -> io::Result<Acceptor> {
        let waiting = Vec::new();
        Ok(Acceptor { listener, waiting })
    }

    /// Where it listens: the port is real even if 0 was asked for.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Waits for a migration and accepts it whole.
    ///
    /// Connections that close without having said anything, or begin as none of a migration does, are passed over: they
    /// are closed. But one that comes with a migration is an error.
    ///
    /// # Errors
    /// When a connection is none of a migration, or the channels do not fit together. All of this
    /// migration are closed then, and the next one can be accepted.
    pub fn accept(&mut self) -> Result<Incoming, Failure> {
        let (main, main_start, others) = self.next_group()?;
        let mut channels = others
            .into_iter()
            .map(read_hello)
            .collect::<Result<Vec<_>, Failure>>()?;
        channels.sort_by_key(|channel| channel.hello.channel);
        check_set(&channels)?;
        Ok(Incoming {
            main,
            main_start,
            channels,
        })
    }

    /// A main connection with what was read of it, and the multifd connections that belong to it.
    fn next_group(&mut self) -> Result<(Stream, Vec<u8>, Vec<Stream>), Failure> {
        let index = self.wait_for_main().map_err(unnamed)?;
        // Over a network, channels may have overtaken their main connection. Behind another one
        // which has not spoken yet they are that one's.
        let overtaken = self.waiting.iter().take(index).all(is_multifd);
        let first = if overtaken { 0 } else { index };
        let main = self.waiting.remove(index);
        let main_start = self.read_setup(&main);
        self.accept_rest()
            .map_err(|error| unnamed(Cause::Listener(error)))?;
        let mut last = index;
        while let Some(stream) = self.waiting.get(last) {
            match wait_for_kind(stream).map_err(unnamed)? {
                Kind::Multifd => last += 1,
                Kind::Closed => drop(self.waiting.remove(last)),
                Kind::Stranger(fault) => {
                    self.waiting.drain(first..=last);
                    return Err(unnamed(fault.into()));
                }
                // The next migration's.
                Kind::Main | Kind::Engine | Kind::Unknown(_) => break,
            }
        }
        let channels = self.waiting.drain(first..last).collect();
        // Only now: the channels of an attempt that has failed here are to go with it.
        let main_start = main_start.map_err(|cause| Failure {
            channel: Channel::Main,
            leg: Leg::Source,
            block: None,
            cause,
        })?;
        Ok((main, main_start, channels))
    }

    /// Reads main until the setup part of its RAM section is over. Connections are accepted
    /// meanwhile: the source may have to wait for that before it goes on.
    fn read_setup(&mut self, main: &Stream) -> Result<Vec<u8>, Cause> {
        let mut receiver = MainReceiver::new(Limits::default());
        let mut start = Vec::new();
        let mut piece = [0; SETUP_PIECE_BYTES];
        loop {
            let room = self.waiting.len() < MOST_CONNECTIONS;
            let mut sources = vec![PollFd::new(main, PollFlags::IN)];
            if room {
                sources.push(PollFd::new(&self.listener, PollFlags::IN));
            }
            poll_retrying(&mut sources, None)?;
            let readable = sources
                .first()
                .is_some_and(|main| !main.revents().is_empty());
            self.accept_waiting().map_err(Cause::Listener)?;
            if !readable {
                continue;
            }
            let count = main.read_some(&mut piece)?;
            let mut bytes = piece.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                return Err(Cause::Incomplete);
            }
            start.extend_from_slice(bytes);
            if start.len() > SETUP_LIMIT_BYTES {
                let limit_bytes = SETUP_LIMIT_BYTES;
                return Err(SetupFault::TooLong { limit_bytes }.into());
            }
            while let Some(event) = receiver.push(&mut bytes)? {
                // A stream without a RAM section has no channels either.
                if matches!(event, MainEvent::RamEndOfSection | MainEvent::Eof) {
                    return Ok(start);
                }
            }
        }
    }

    /// Waits until a connection shows itself as a QEMU's main channel; its place in `waiting`.
    fn wait_for_main(&mut self) -> Result<usize, Cause> {
        loop {
            match self.look_for_main()? {
                Some((index, Peer::Qemu)) => return Ok(index),
                Some((index, Peer::Engine)) => {
                    self.waiting.remove(index);
                    return Err(SetupFault::Engine.into());
                }
                None => {
                    self.wait_for_news(None, is_channel)
                        .map_err(Cause::Listener)?;
                    self.accept_waiting().map_err(Cause::Listener)?;
                }
            }
        }
    }

    /// The place in `waiting` of a connection that begins a migration, if there is one.
    pub(crate) fn look_for_main(&mut self) -> Result<Option<(usize, Peer)>, Cause> {
        let mut index = 0;
        // Somebody who has not spoken may be a main channel, which what stands behind comes with.
        let mut may_be_with_main = false;
        let is_full = self.waiting.len() >= MOST_CONNECTIONS;
        while let Some(stream) = self.waiting.get(index) {
            match kind(stream) {
                Ok(Kind::Main) => return Ok(Some((index, Peer::Qemu))),
                Ok(Kind::Engine) => return Ok(Some((index, Peer::Engine))),
                // The oldest connection was to be a main channel: the attempt which it began
                // is over, and with it the channels opened before the next attempt.
                Ok(Kind::Closed) if index == 0 => {
                    self.waiting.remove(0);
                    let next = self.waiting.iter().position(|other| !is_multifd(other));
                    self.waiting.drain(..next.unwrap_or(self.waiting.len()));
                }
                Ok(Kind::Closed) => drop(self.waiting.remove(index)),
                Ok(Kind::Stranger(_)) if !may_be_with_main || is_full => {
                    self.waiting.remove(index);
                }
                Ok(Kind::Stranger(_) | Kind::Multifd) => index += 1,
                Ok(Kind::Unknown(_)) => {
                    may_be_with_main = true;
                    index += 1;
                }
                Err(cause) => {
                    self.waiting.remove(index);
                    return Err(cause);
                }
            }
        }
        Ok(None)
    }

    /// Returns when there is a connection to accept, or one that waits has something to tell; or after `timeout`. `told`
    /// says of what a connection has shown itself to be that there is nothing more to learn from it for the caller.
    ///
    /// What a connection has said since the caller looked at it counts too.
    pub(crate) fn wait_for_news(
        &self,
        timeout: Option<Duration>,
        told: impl Fn(&Kind) -> bool,
    ) -> io::Result<()> {
        let mut sources = Vec::new();
        for stream in &self.waiting {
            match kind(stream) {
                // Such a connection is readable all the time, so polling would not wait.
                Ok(Kind::Unknown(1..)) => {
                    std::thread::sleep(PARTIAL_MAGIC_PAUSE);
                    return Ok(());
                }
                Ok(Kind::Stranger(_)) => {}
                Ok(kind) if told(&kind) => {}
                _ => sources.push(PollFd::new(stream, PollFlags::IN)),
            }
        }
        if self.waiting.len() < MOST_CONNECTIONS {
            sources.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        poll_retrying(&mut sources, timeout)?;
        Ok(())
    }

    /// Accepts what is waiting, and over TCP what comes soon after.
    fn accept_rest(&mut self) -> io::Result<()> {
        loop {
            self.accept_waiting()?;
            let settle = match self.address() {
                Address::Unix(_) => return Ok(()),
                Address::Tcp(_) => TCP_SETTLE,
            };
            let mut source = [PollFd::new(&self.listener, PollFlags::IN)];
            if self.waiting.len() >= MOST_CONNECTIONS || !poll_retrying(&mut source, Some(settle))?
            {
                return Ok(());
            }
        }
    }

    pub(crate) fn accept_waiting(&mut self) -> io::Result<()> {
        while self.waiting.len() < MOST_CONNECTIONS {
            match self.listener.try_accept()? {
                Some(stream) => self.waiting.push(stream),
                None => break,
            }
        }
        Ok(())
    }
}

/// What a connection shows itself to be.
pub(crate) enum Kind {
    /// Not enough bytes to tell; how many there are.
    Unknown(usize),
    /// The main channel of a QEMU.
    Main,
    /// The main connection of a source engine.
    Engine,
    Multifd,
    /// None of a migration, and how that shows.
    Stranger(Fault),
    Closed,
}

pub(crate) fn kind(stream: &Stream) -> Result<Kind, Cause> {
    let mut start = [0; 4];
    let count = match stream.peek(&mut start) {
        Ok(0) => return Ok(Kind::Closed),
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Kind::Unknown(0)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Kind::Closed),
        Err(error) => return Err(error.into()),
    };
    match start {
        MAIN_MAGIC => Ok(Kind::Main),
        ENGINE_MAGIC => Ok(Kind::Engine),
        CHANNEL_MAGIC => Ok(Kind::Multifd),
        _ if start.starts_with(&TLS_HANDSHAKE) => Err(SetupFault::Tls.into()),
        _ if count == start.len() => Ok(Kind::Stranger(Fault::Magic {
            found: u32::from_be_bytes(start),
            allowed: multifd_wire::MAGIC,
        })),
        // No more will come.
        _ if stream.peer_has_closed() => Ok(Kind::Closed),
        _ => Ok(Kind::Unknown(count)),
    }
}

fn is_multifd(stream: &Stream) -> bool {
    kind(stream).is_ok_and(|kind| is_channel(&kind))
}

/// It waits for its main connection.
pub(crate) fn is_channel(kind: &Kind) -> bool {
    matches!(kind, Kind::Multifd)
}

/// Gives a connection time to tell what it is. A channel's hello was sent at once, so one that stays
/// silent is no channel.
fn wait_for_kind(stream: &Stream) -> Result<Kind, Cause> {
    let deadline = Instant::now() + CHANNEL_SILENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match kind(stream)? {
            Kind::Unknown(count) if left.is_zero() => return Ok(Kind::Unknown(count)),
            Kind::Unknown(0) => {
                poll_retrying(&mut [PollFd::new(stream, PollFlags::IN)], Some(left))?;
            }
            Kind::Unknown(_) => std::thread::sleep(PARTIAL_MAGIC_PAUSE),
            known => return Ok(known),
        }
    }
}

/// Polls; `false` when `timeout` ran out.
fn poll_retrying(sources: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // At most HELLO_TIMEOUT, so it fits a timespec.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(sources, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// Whether reading a channel's hello would not wait.
pub(crate) fn has_hello(stream: &Stream) -> bool {
    let mut hello = [0; Hello::LEN];
    matches!(stream.peek(&mut hello), Ok(Hello::LEN))
}

pub(crate) fn read_hello(stream: Stream) -> Result<IncomingChannel, Failure> {
    read_hello_bytes(&stream)
        .and_then(|bytes| Ok(Hello::parse(&bytes)?))
        .map(|hello| IncomingChannel { hello, stream })
        .map_err(unnamed)
}

fn read_hello_bytes(stream: &Stream) -> Result<[u8; Hello::LEN], Cause> {
    let mut bytes = [0; Hello::LEN];
    let deadline = Instant::now() + HELLO_TIMEOUT;
    let mut filled = 0;
    while filled < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SetupFault::Silent.into());
        }
        stream.set_read_timeout(Some(left))?;
        match (&mut &*stream).read(bytes.get_mut(filled..).unwrap_or_default()) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => filled += count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(bytes)
}

/// `channels` in the order of their ids.
fn check_set(channels: &[IncomingChannel]) -> Result<(), Failure> {
    let mut before: Option<&IncomingChannel> = None;
    for (index, channel) in channels.iter().enumerate() {
        let id = channel.hello.channel;
        let fault = match before {
            Some(other) if other.hello.channel == id => Some(SetupFault::ChannelTwice { id }),
            Some(other) if other.hello.uuid != channel.hello.uuid => Some(SetupFault::Uuid {
                found: channel.hello.uuid,
                expected: other.hello.uuid,
            }),
            _ if usize::from(id) != index => Some(SetupFault::ChannelId {
                found: id,
                channels: channels.len(),
            }),
            _ => None,
        };
        if let Some(fault) = fault {
            return Err(Failure {
                channel: Channel::Multifd(id),
                leg: Leg::Source,
                block: None,
                cause: fault.into(),
            });
        }
        before = Some(channel);
    }
    Ok(())
}

pub(crate) fn unnamed(cause: Cause) -> Failure {
    Failure {
        channel: Channel::Unnamed,
        leg: Leg::Source,
        block: None,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A main channel up to the end of its RAM section's setup, of one block.
    const MAIN: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\
        \x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
        \0\0\0\0\x01\0\0\x04\x06pc.ram\0\0\0\0\x01\0\0\0\
        \0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

    #[test]
    fn who_speaks_after_being_looked_at_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut acceptor = Acceptor::bind(&Address::Unix(folder.path().join("s"))).unwrap();
        let patience = Duration::from_secs(60);
        let started = Instant::now();
        let main = dial(&acceptor, b"");
        acceptor.accept_waiting().unwrap();
        assert!(acceptor.look_for_main().unwrap().is_none());
        (&main).write_all(&MAIN_MAGIC).unwrap();
        let news = acceptor.wait_for_news(Some(patience), is_channel);
        news.unwrap();
        assert!(started.elapsed() < patience);
        assert!(acceptor.look_for_main().unwrap().is_some());
    }

    /// Dials and says `bytes`.
    fn dial(acceptor: &Acceptor, bytes: &[u8]) -> Stream {
        dial_at(acceptor.address(), bytes)
    }

    fn dial_at(address: &Address, bytes: &[u8]) -> Stream {
        let stream = Stream::connect(address).unwrap();
        (&stream).write_all(bytes).unwrap();
        stream
    }

    fn hello(channel: u8, uuid: u8) -> [u8; Hello::LEN] {
        let reserved = [0; 39];
        Hello {
            uuid: [uuid; 16],
            channel,
            reserved,
        }
        .to_bytes()
    }

    fn acceptors() -> (tempfile::TempDir, [Acceptor; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let unix = Address::Unix(folder.path().join("s"));
        let tcp = "tcp:127.0.0.1:0".parse().unwrap();
        (
            folder,
            [unix, tcp].map(|address| Acceptor::bind(&address).unwrap()),
        )
    }

    /// A main connection may speak between the look at it and the wait for it.
    #[test]
    fn what_was_said_before_the_wait_is_news() {
        let (_folder, acceptors) = acceptors();
        for mut acceptor in acceptors {
            let _channel = dial(&acceptor, &hello(0, 1));
            let main = dial(&acceptor, b"");
            while acceptor.waiting.len() < 2 {
                acceptor.accept_waiting().unwrap();
            }
            while acceptor.look_for_main().unwrap().is_some() || !is_multifd(&acceptor.waiting[0]) {
            }
            (&main).write_all(MAIN).unwrap();
            while acceptor.look_for_main().unwrap().is_none() {}
            let begun = Instant::now();
            acceptor
                .wait_for_news(Some(HELLO_TIMEOUT), is_channel)
                .unwrap();
            assert!(begun.elapsed() < HELLO_TIMEOUT);
        }
    }

    #[test]
    fn channels_are_sorted_whatever_comes_first() {
        let (_folder, mut acceptors) = acceptors();
        for acceptor in &mut acceptors {
            let _two = dial(acceptor, &hello(2, 7));
            let _main = dial(acceptor, MAIN);
            let _zero = dial(acceptor, &hello(0, 7));
            let _one = dial(acceptor, &hello(1, 7));
            let incoming = acceptor.accept().unwrap();
            let ids: Vec<u8> = incoming.channels.iter().map(|c| c.hello.channel).collect();
            assert_eq!(ids, [0, 1, 2]);
            assert_eq!(incoming.main_start, MAIN);
        }
    }

    #[test]
    fn a_channel_may_come_after_main_has_begun() {
        let (_folder, mut acceptors) = acceptors();
        for acceptor in &mut acceptors {
            let (first, rest) = MAIN.split_at(MAIN.len() - 10);
            let main = dial(acceptor, first);
            let address = acceptor.address().clone();
            std::thread::scope(|scope| {
                let accepted = scope.spawn(|| acceptor.accept());
                std::thread::sleep(Duration::from_millis(100));
                let _channel = dial_at(&address, &hello(0, 1));
                (&main).write_all(rest).unwrap();
                assert_eq!(accepted.join().unwrap().unwrap().channels.len(), 1);
            });
        }
    }

    #[test]
    fn a_source_that_gives_up_in_setup_leaves_nothing_behind() {
        let (_folder, mut acceptors) = acceptors();
        for acceptor in &mut acceptors {
            drop(dial(acceptor, &MAIN[..20]));
            let _channel = dial(acceptor, &hello(0, 1));
            let failure = acceptor.accept().unwrap_err();
            assert!(
                matches!(failure.cause, Cause::Incomplete),
                "{}",
                failure.explain()
            );
            let _next = (dial(acceptor, MAIN), dial(acceptor, &hello(0, 2)));
            let incoming = acceptor.accept().unwrap();
            assert_eq!(incoming.channels[0].hello.uuid, [2; 16]);
        }
    }

    #[test]
    fn an_attempt_that_ended_before_it_began_leaves_nothing_behind() {
        let (_folder, mut acceptors) = acceptors();
        for acceptor in &mut acceptors {
            // With the next attempt there already.
            drop(dial(acceptor, b""));
            let _old_channel = dial(acceptor, &hello(0, 1));
            let _all_at_once = (dial(acceptor, MAIN), dial(acceptor, &hello(0, 2)));
            let incoming = acceptor.accept().unwrap();
            assert_eq!(incoming.channels.len(), 1);
            assert_eq!(incoming.channels[0].hello.uuid, [2; 16]);

            // And with one that comes later.
            drop(dial(acceptor, b""));
            let _old_channel = dial(acceptor, &hello(0, 1));
            let address = acceptor.address().clone();
            std::thread::scope(|scope| {
                let accepted = scope.spawn(|| acceptor.accept());
                // The old attempt is to be seen before the new one comes.
                std::thread::sleep(Duration::from_millis(100));
                let main = dial_at(&address, &MAIN[..2]);
                let _channel = dial_at(&address, &hello(0, 3));
                (&main).write_all(&MAIN[2..]).unwrap();
                let incoming = accepted.join().unwrap().unwrap();
                assert_eq!(incoming.channels.len(), 1);
                assert_eq!(incoming.channels[0].hello.uuid, [3; 16]);
            });
        }
    }

    #[test]
    fn migrations_that_wait_together_are_kept_apart() {
        let (_folder, mut acceptors) = acceptors();
        for acceptor in &mut acceptors {
            let _first = [dial(acceptor, MAIN), dial(acceptor, &hello(0, 1))];
            let silent_main = dial(acceptor, b"");
            let _second = dial(acceptor, &hello(0, 2));
            let incoming = acceptor.accept().unwrap();
            assert_eq!(incoming.channels.len(), 1);
            assert_eq!(incoming.channels[0].hello.uuid, [1; 16]);
            (&silent_main).write_all(MAIN).unwrap();
            let incoming = acceptor.accept().unwrap();
            assert_eq!(incoming.channels.len(), 1);
            assert_eq!(incoming.channels[0].hello.uuid, [2; 16]);
        }
    }

    #[test]
    fn connections_that_do_not_fit_together_are_named() {
        let twice = |id| Cause::Setup(SetupFault::ChannelTwice { id });
        let wrong_id = |found, channels| Cause::Setup(SetupFault::ChannelId { found, channels });
        let uuid = Cause::Setup(SetupFault::Uuid {
            found: [9; 16],
            expected: [7; 16],
        });
        let cases: [(&[[u8; Hello::LEN]], Channel, Cause); 4] = [
            (&[hello(0, 7), hello(0, 7)], Channel::Multifd(0), twice(0)),
            (&[hello(1, 7)], Channel::Multifd(1), wrong_id(1, 1)),
            (
                &[hello(0, 7), hello(2, 7)],
                Channel::Multifd(2),
                wrong_id(2, 2),
            ),
            (&[hello(0, 7), hello(1, 9)], Channel::Multifd(1), uuid),
        ];
        let (_folder, [mut acceptor, _]) = acceptors();
        for (hellos, channel, cause) in cases {
            let _main = dial(&acceptor, MAIN);
            let _channels: Vec<_> = hellos.iter().map(|hello| dial(&acceptor, hello)).collect();
            let failure = acceptor.accept().unwrap_err();
            assert_eq!(failure.channel, channel);
            assert_eq!(failure.cause.to_string(), cause.to_string());
        }
    }

    #[test]
    fn strangers_before_a_migration_are_passed_over() {
        let (_folder, mut acceptors) = acceptors();
        for acceptor in &mut acceptors {
            // What asks for a page and waits, what has said too little to tell and gone, and more than there is room for.
            let asks = dial(acceptor, b"GET / HTTP/1.0\r\n\r\n");
            drop(dial(acceptor, b"hi"));
            for _ in 0..=MOST_CONNECTIONS / 100 {
                for _ in 0..100 {
                    drop(dial(acceptor, b"HELO"));
                }
                acceptor.accept_waiting().unwrap();
                assert!(acceptor.look_for_main().unwrap().is_none());
            }
            let _next = (dial(acceptor, MAIN), dial(acceptor, &hello(0, 2)));
            let incoming = acceptor.accept().unwrap();
            assert_eq!(incoming.channels.len(), 1);
            assert!(asks.peer_has_closed());
        }
    }

    #[test]
    fn what_is_no_migration_is_refused_with_its_reason() {
        let (_folder, [mut acceptor, _]) = acceptors();
        let _tls = dial(&acceptor, &[0x16, 0x03, 0x01, 0x02]);
        let failure = acceptor.accept().unwrap_err();
        assert!(
            matches!(failure.cause, Cause::Setup(SetupFault::Tls)),
            "{}",
            failure.explain()
        );

        let _main = dial(&acceptor, MAIN);
        let _other = dial(&acceptor, &[b'x'; Hello::LEN]);
        let failure = acceptor.accept().unwrap_err();
        assert!(
            matches!(failure.cause, Cause::Wire(_)),
            "{}",
            failure.explain()
        );
    }
}
