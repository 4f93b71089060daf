//! One end of a TLS connection without its socket: bytes in, bytes out.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, Error, ProtocolVersion, ServerConfig};

/// The most plaintext that one record holds, by RFC 8446 section 5.1.
pub(super) const RECORD_BYTES: usize = 1 << 14;

/// The most bytes of a record's frame: header, explicit nonce of TLS 1.2, content type and tag.
const FRAME_BYTES: usize = 64;

/// The state of a connection: keys, numbers of records, the progress of the handshake.
pub(super) struct Engine {
    side: Side,
    /// The peer has said its end.
    closed: bool,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// The reason why [`Engine::take`] has stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// It has given the contents of at least one record. There may be more.
    Data,
    /// It needs more bytes from the peer.
    NeedsMore,
    /// The peer has said its end.
    Closed,
}

/// The outcome of one call into rustls.
enum Step {
    Again,
    Stop(Stop),
}

impl Engine {
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        let connection = UnbufferedClientConnection::new(config, name)?;
        Ok(Self::new(Side::Client(connection)))
    }

    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Side::Server(connection)))
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            closed: false,
        }
    }

    /// Whether the handshake is over. A server may write before it has heard the client's last
    /// word; that is not yet it.
    pub(super) fn is_established(&self) -> bool {
        match &self.side {
            Side::Client(connection) => !connection.is_handshaking(),
            Side::Server(connection) => !connection.is_handshaking(),
        }
    }

    /// Whether the peer has said its end.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        match &self.side {
            Side::Client(connection) => connection.protocol_version(),
            Side::Server(connection) => connection.protocol_version(),
        }
    }

    pub(super) fn suite(&self) -> Option<rustls::SupportedCipherSuite> {
        match &self.side {
            Side::Client(connection) => connection.negotiated_cipher_suite(),
            Side::Server(connection) => connection.negotiated_cipher_suite(),
        }
    }

    fn wants_write(&self) -> bool {
        match &self.side {
            Side::Client(connection) => connection.wants_write(),
            Side::Server(connection) => connection.wants_write(),
        }
    }

    /// Takes records from the front of `incoming` until one has given data, or until it needs more.
    /// Appends what the peer is to get to `outgoing`, and gives data to `plain`. Returns how many
    /// bytes were taken.
    ///
    /// rustls keeps places within `incoming` while a message of the handshake is not whole. So the
    /// bytes that are left must stand at the front of `incoming` at the next call, of this or of
    /// [`encrypt`](Self::encrypt).
    pub(super) fn take(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Vec<u8>,
        plain: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<Stop, Error>) {
        let mut taken = 0;
        loop {
            let left = incoming.get_mut(taken..).unwrap_or_default();
            let (discard, step) = self.step(left, outgoing, plain);
            taken = taken.saturating_add(discard).min(incoming.len());
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Stop(stop)) => return (taken, Ok(stop)),
                Err(error) => {
                    let left = incoming.get_mut(taken..).unwrap_or_default();
                    self.last_words(left, outgoing);
                    return (taken, Err(error));
                }
            }
        }
    }

    fn step(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Vec<u8>,
        plain: &mut dyn FnMut(&[u8]),
    ) -> (usize, Result<Step, Error>) {
        if self.closed {
            return (0, Ok(Step::Stop(Stop::Closed)));
        }
        let (discard, step) = match &mut self.side {
            Side::Client(connection) => {
                handle(connection.process_tls_records(incoming), outgoing, plain)
            }
            Side::Server(connection) => {
                handle(connection.process_tls_records(incoming), outgoing, plain)
            }
        };
        let step = step.map(|done| match done {
            Done::Again => Step::Again,
            Done::Data => Step::Stop(Stop::Data),
            Done::Blocked | Done::Writable => Step::Stop(Stop::NeedsMore),
            Done::Closed | Done::Over => {
                self.closed = true;
                Step::Stop(Stop::Closed)
            }
        });
        (discard, step)
    }

    /// After an error: the alert that says so to the peer, if there is one.
    fn last_words(&mut self, incoming: &mut [u8], outgoing: &mut Vec<u8>) {
        while self.wants_write() {
            match self.step(incoming, outgoing, &mut |_| {}) {
                (0, Ok(Step::Again)) => {}
                _ => return,
            }
        }
    }

    /// Appends the records of `plain` to `outgoing`. `incoming` holds what [`take`](Self::take) has
    /// left, if it has left whole records; its places are kept, and no byte of it is taken where
    /// there is no data in it.
    pub(super) fn encrypt(
        &mut self,
        plain: &[u8],
        outgoing: &mut Vec<u8>,
        incoming: &mut Incoming,
    ) -> Result<(), Error> {
        self.write(Write::Data(plain), outgoing, incoming)
    }

    /// Appends the record that says this end's end to `outgoing`.
    pub(super) fn close(
        &mut self,
        outgoing: &mut Vec<u8>,
        incoming: &mut Incoming,
    ) -> Result<(), Error> {
        self.write(Write::Close, outgoing, incoming)
    }

    fn write(
        &mut self,
        what: Write<'_>,
        outgoing: &mut Vec<u8>,
        incoming: &mut Incoming,
    ) -> Result<(), Error> {
        loop {
            let Incoming { held, plain } = incoming;
            let give = &mut |data: &[u8]| plain.extend_from_slice(data);
            let (discard, done) = match &mut self.side {
                Side::Client(connection) => {
                    write(connection.process_tls_records(held), what, outgoing, give)
                }
                Side::Server(connection) => {
                    write(connection.process_tls_records(held), what, outgoing, give)
                }
            };
            held.drain(..discard.min(held.len()));
            match done? {
                Written::All => return Ok(()),
                Written::Again => {}
                Written::Closed => self.closed = true,
            }
        }
    }
}

/// Bytes from the peer that the engine, and not the reader, keeps.
#[derive(Default)]
pub(super) struct Incoming {
    /// Records that rustls has looked at and needs again, and what follows them. Nearly always
    /// empty: a message of the handshake has come in parts.
    pub(super) held: Vec<u8>,
    /// Plaintext that is not yet read.
    pub(super) plain: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Write<'a> {
    Data(&'a [u8]),
    Close,
}

enum Written {
    All,
    Again,
    Closed,
}

enum Done {
    Again,
    Data,
    Blocked,
    Writable,
    Closed,
    /// Both ends were said.
    Over,
}

fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    plain: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Done, Error>) {
    let mut discard = status.discard;
    let done = status.state.and_then(|state| {
        other(state, outgoing, plain, &mut discard).map(|state| match state {
            Other::Done(done) => done,
            Other::Write(_) => Done::Writable,
        })
    });
    (discard, done)
}

fn write<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    what: Write<'_>,
    outgoing: &mut Vec<u8>,
    plain: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Written, Error>) {
    let mut discard = status.discard;
    let done = status.state.and_then(|state| {
        match other(state, outgoing, plain, &mut discard)? {
            Other::Done(Done::Again | Done::Data) => Ok(Written::Again),
            Other::Done(Done::Closed) => Ok(Written::Closed),
            // Writes come only between the handshake and the end of both directions.
            Other::Done(Done::Blocked | Done::Writable | Done::Over) => {
                Err(Error::HandshakeNotComplete)
            }
            Other::Write(mut traffic) => {
                let room = match what {
                    Write::Data(data) => room(data.len()),
                    Write::Close => 2 * FRAME_BYTES,
                };
                append(outgoing, room, |free| match what {
                    Write::Data(data) => traffic.encrypt(data, free),
                    Write::Close => traffic.queue_close_notify(free),
                })?;
                Ok(Written::All)
            }
        }
    });
    (discard, done)
}

/// The length of `bytes` of plaintext as records.
fn room(bytes: usize) -> usize {
    bytes.saturating_add(
        (bytes / RECORD_BYTES)
            .saturating_add(1)
            .saturating_mul(FRAME_BYTES),
    )
}

enum Other<'c, Data> {
    Done(Done),
    Write(rustls::unbuffered::WriteTraffic<'c, Data>),
}

fn other<'c, Data>(
    state: ConnectionState<'c, '_, Data>,
    outgoing: &mut Vec<u8>,
    plain: &mut dyn FnMut(&[u8]),
    discard: &mut usize,
) -> Result<Other<'c, Data>, Error> {
    let done = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                *discard = discard.saturating_add(record.discard);
                plain(record.payload);
            }
            Done::Data
        }
        ConnectionState::EncodeTlsData(mut data) => {
            append(outgoing, 0, |free| data.encode(free))?;
            Done::Again
        }
        ConnectionState::TransmitTlsData(data) => {
            // It is in `outgoing`, before all that follows.
            data.done();
            Done::Again
        }
        ConnectionState::WriteTraffic(traffic) => return Ok(Other::Write(traffic)),
        ConnectionState::BlockedHandshake => Done::Blocked,
        ConnectionState::PeerClosed => Done::Closed,
        ConnectionState::Closed => Done::Over,
        // Early data: it was not allowed. And states of a later rustls.
        _ => return Err(Error::General("an unknown state of rustls".to_owned())),
    };
    Ok(Other::Done(done))
}

/// Lets `fill` write after the end of `outgoing`, with at least `room` bytes.
fn append<E: Into<Short>>(
    outgoing: &mut Vec<u8>,
    mut room: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), Error> {
    let before = outgoing.len();
    for _ in 0..2 {
        outgoing.resize(before.saturating_add(room), 0);
        let free = outgoing.get_mut(before..).unwrap_or_default();
        match fill(free).map_err(Into::into) {
            Ok(count) => {
                outgoing.truncate(before.saturating_add(count));
                return Ok(());
            }
            Err(Short(Some(needed))) => room = needed,
            Err(Short(None)) => break,
        }
    }
    outgoing.truncate(before);
    Err(Error::EncryptError)
}

/// Why bytes were not written: the room that they need, if that is the reason.
struct Short(Option<usize>);

impl From<EncodeError> for Short {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(size) => Short(Some(size.required_size)),
            EncodeError::AlreadyEncoded => Short(None),
        }
    }
}

impl From<EncryptError> for Short {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(size) => Short(Some(size.required_size)),
            EncryptError::EncryptExhausted => Short(None),
        }
    }
}

/// Whether a whole record stands at the front of `bytes`.
pub(super) fn has_record(bytes: &[u8]) -> bool {
    match bytes {
        [_, _, _, high, low, rest @ ..] => {
            rest.len() >= usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}
