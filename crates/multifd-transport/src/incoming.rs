//! Accepting the connections of one migration: the main channel and all multifd channels.
//!
//! A source opens the main connection first, then all multifd connections at once, and sends the first byte of the main channel when all of
//! them are open (observed with QEMU 7.2 to 11.1). So when that byte is here, every channel is at least waiting to be accepted, and their
//! number is known although it stands nowhere in the stream. The relay keeps this order when it dials, so it holds behind a relay too.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use multifd_wire::{Hello, main_stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Cause, Channel, Failure, Leg, SetupFault};
use crate::{Address, Listener, Stream};

/// How long an opened connection may take to say which channel it is. A source says it at once; the time covers a slow network.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to look for further TCP connections once the main channel has spoken: over a network the last packet of a connection's opening may
/// arrive after the first byte of another connection.
const TCP_SETTLE: Duration = Duration::from_millis(20);

/// How soon to look again at a connection that has sent fewer bytes than tell what it is.
const PARTIAL_MAGIC_PAUSE: Duration = Duration::from_millis(1);

const MAIN_MAGIC: [u8; 4] = main_stream::MAGIC.to_be_bytes();
/// The record type and major version which every TLS connection begins with (RFC 8446 section 5.1).
const TLS_HANDSHAKE: [u8; 2] = [0x16, 0x03];

/// A main channel and as many multifd channels as there are ids. What comes beyond waits with the system.
const MOST_CONNECTIONS: usize = 1 + 256;

/// All connections of one migration.
#[derive(Debug)]
pub struct Incoming {
    /// The main channel, nothing read yet.
    pub main: Stream,
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

impl Incoming {
    /// Waits for a migration and accepts it whole.
    ///
    /// Connections that close without having said anything are passed over. On an error all connections are closed, and the listener can be
    /// used for the next migration.
    pub fn accept(listener: &Listener) -> Result<Incoming, Failure> {
        let (main, others) = wait_for_main(listener)?;
        let mut channels = others
            .into_iter()
            .map(read_hello)
            .collect::<Result<Vec<_>, Failure>>()?;
        channels.sort_by_key(|channel| channel.hello.channel);
        check_set(&channels)?;
        Ok(Incoming { main, channels })
    }
}

enum Kind {
    /// Not enough bytes to tell; how many there are.
    Unknown(usize),
    Main,
    Multifd,
    Closed,
}

fn kind(stream: &Stream) -> Result<Kind, Cause> {
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
        // Whatever else a whole word holds is for the hello's decoder to name.
        _ if count == start.len() && !start.starts_with(&TLS_HANDSHAKE) => Ok(Kind::Multifd),
        _ if start.starts_with(&TLS_HANDSHAKE) => Err(SetupFault::Tls.into()),
        _ => Ok(Kind::Unknown(count)),
    }
}

/// Accepts until one connection shows itself as the main channel; returns it and all the others.
fn wait_for_main(listener: &Listener) -> Result<(Stream, Vec<Stream>), Failure> {
    let mut waiting: Vec<Stream> = Vec::new();
    loop {
        let mut partial = false;
        let mut index = 0;
        while let Some(stream) = waiting.get(index) {
            match kind(stream).map_err(unnamed)? {
                Kind::Main => {
                    let main = waiting.remove(index);
                    accept_rest(listener, &mut waiting)
                        .map_err(|error| unnamed(Cause::Listener(error)))?;
                    return Ok((main, waiting));
                }
                // The oldest connection was to be the main channel: the attempt which it began is over.
                Kind::Closed if index == 0 => waiting.clear(),
                Kind::Closed => drop(waiting.remove(index)),
                Kind::Unknown(count) => {
                    partial |= count > 0;
                    index += 1;
                }
                Kind::Multifd => index += 1,
            }
        }
        wait_for_news(listener, &waiting, partial)
            .map_err(|error| unnamed(Cause::Listener(error)))?;
        accept_waiting(listener, &mut waiting).map_err(|error| unnamed(Cause::Listener(error)))?;
    }
}

/// Returns when there is a connection to accept, or one of `waiting` has bytes that were not there before.
fn wait_for_news(listener: &Listener, waiting: &[Stream], partial: bool) -> io::Result<()> {
    if partial {
        // Such a connection is readable all the time, so polling would not wait.
        std::thread::sleep(PARTIAL_MAGIC_PAUSE);
        return Ok(());
    }
    // A multifd channel has spoken and waits for main: it is readable, and there is nothing more to learn from it.
    let silent = waiting
        .iter()
        .filter(|stream| !matches!(kind(stream), Ok(Kind::Multifd)));
    let mut sources: Vec<_> = silent
        .map(|stream| PollFd::new(stream, PollFlags::IN))
        .collect();
    if waiting.len() < MOST_CONNECTIONS {
        sources.push(PollFd::new(listener, PollFlags::IN));
    }
    poll_retrying(&mut sources, None)?;
    Ok(())
}

/// Accepts what is waiting, and over TCP what comes soon after.
fn accept_rest(listener: &Listener, accepted: &mut Vec<Stream>) -> io::Result<()> {
    loop {
        accept_waiting(listener, accepted)?;
        let settle = match listener.address() {
            Address::Unix(_) => return Ok(()),
            Address::Tcp(_) => TCP_SETTLE,
        };
        if !poll_retrying(&mut [PollFd::new(listener, PollFlags::IN)], Some(settle))? {
            return Ok(());
        }
    }
}

fn accept_waiting(listener: &Listener, accepted: &mut Vec<Stream>) -> io::Result<()> {
    while accepted.len() < MOST_CONNECTIONS {
        match listener.try_accept()? {
            Some(stream) => accepted.push(stream),
            None => break,
        }
    }
    Ok(())
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

fn read_hello(stream: Stream) -> Result<IncomingChannel, Failure> {
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
        if bytes.starts_with(&MAIN_MAGIC) {
            return Err(SetupFault::SecondMain.into());
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

fn unnamed(cause: Cause) -> Failure {
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

    /// Dials `listener` and says `bytes`.
    fn dial(listener: &Listener, bytes: &[u8]) -> Stream {
        let stream = Stream::connect(listener.address()).unwrap();
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

    fn listeners() -> (tempfile::TempDir, [Listener; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let unix = Address::Unix(folder.path().join("s"));
        let tcp = "tcp:127.0.0.1:0".parse().unwrap();
        (
            folder,
            [unix, tcp].map(|address| Listener::bind(&address).unwrap()),
        )
    }

    #[test]
    fn channels_are_sorted_whatever_comes_first() {
        let (_folder, listeners) = listeners();
        for listener in &listeners {
            let _two = dial(listener, &hello(2, 7));
            let _main = dial(listener, b"QEVM");
            let _zero = dial(listener, &hello(0, 7));
            let _one = dial(listener, &hello(1, 7));
            let incoming = Incoming::accept(listener).unwrap();
            let ids: Vec<u8> = incoming.channels.iter().map(|c| c.hello.channel).collect();
            assert_eq!(ids, [0, 1, 2]);
            assert_eq!(
                incoming.main.peek(&mut [0; 8]).unwrap(),
                4,
                "nothing of main is taken"
            );
        }
    }

    #[test]
    fn an_attempt_that_ended_before_it_began_leaves_nothing_behind() {
        let (_folder, listeners) = listeners();
        for listener in &listeners {
            drop(dial(listener, b""));
            let _old_channel = dial(listener, &hello(0, 1));
            std::thread::scope(|scope| {
                let accepted = scope.spawn(|| Incoming::accept(listener));
                // The old attempt is to be seen before the new one comes.
                std::thread::sleep(Duration::from_millis(100));
                let _main = dial(listener, b"QE");
                let _channel = dial(listener, &hello(0, 2));
                (&_main).write_all(b"VM").unwrap();
                let incoming = accepted.join().unwrap().unwrap();
                assert_eq!(incoming.channels.len(), 1);
                assert_eq!(incoming.channels[0].hello.uuid, [2; 16]);
            });
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
        let (_folder, [listener, _]) = listeners();
        for (hellos, channel, cause) in cases {
            let _main = dial(&listener, b"QEVM");
            let _channels: Vec<_> = hellos.iter().map(|hello| dial(&listener, hello)).collect();
            let failure = Incoming::accept(&listener).unwrap_err();
            assert_eq!(failure.channel, channel);
            assert_eq!(failure.cause.to_string(), cause.to_string());
        }
    }

    #[test]
    fn what_is_no_migration_is_refused_with_its_reason() {
        let (_folder, [listener, _]) = listeners();
        let _tls = dial(&listener, &[0x16, 0x03, 0x01, 0x02]);
        let failure = Incoming::accept(&listener).unwrap_err();
        assert!(
            matches!(failure.cause, Cause::Setup(SetupFault::Tls)),
            "{}",
            failure.explain()
        );

        let _main = dial(&listener, b"QEVM");
        let _other = dial(&listener, &[b'x'; Hello::LEN]);
        let failure = Incoming::accept(&listener).unwrap_err();
        assert!(
            matches!(failure.cause, Cause::Wire(_)),
            "{}",
            failure.explain()
        );

        let _main = dial(&listener, b"QEVM");
        let _second = dial(&listener, b"QEVM");
        let failure = Incoming::accept(&listener).unwrap_err();
        assert!(
            matches!(failure.cause, Cause::Setup(SetupFault::SecondMain)),
            "{}",
            failure.explain()
        );
    }
}
