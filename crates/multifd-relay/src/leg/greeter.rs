//! Answering at a trunk: what calls says what it is, and becomes part of a migration or is refused.
//!
//! One thread listens to all callers at once. None of them holds up another, and none takes more than a socket and some
//! hundred bytes before it has said what it is.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use multifd_codec::Settings;
use multifd_transport::Stream;
use multifd_transport::incoming::{
    Arrival, Door, HELLO_TIMEOUT, Holder, Inbox, Incoming, IncomingChannel, Note, Origin, Reason,
    Ticket, describe,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::carried::Carried;
use super::{Protocol, abilities, readable};
use crate::trunk::{
    Abilities, Accepted, Answer, Connection, Preface, PrefaceReceiver, Refusal, RefusalCode, choose,
};

/// How long an answer may take to be written. It fits the buffer of a socket that is new.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Callers that have not said what they are, of which the oldest goes when there are more. A migration has up to 257
/// connections, and several may begin at once.
const MOST_CALLERS: usize = 1024;

/// How long the poll waits at most: time limits are looked at then.
const TICK: Duration = Duration::from_millis(250);

/// Answers the callers of one address.
#[derive(Debug)]
pub(crate) struct Greeter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    wake: OwnedFd,
    door: Door,
    abilities: Abilities,
}

#[derive(Default)]
struct State {
    /// Accepted, and not listened to so far.
    new: VecDeque<Stream>,
    migrations: HashMap<[u8; 16], Migration>,
    next_ticket: u64,
    refuses_new: bool,
    stop: bool,
}

/// A migration under way.
struct Migration {
    ticket: u64,
    inbox: Inbox,
}

/// A connection that has not said what it is.
struct Caller {
    stream: Stream,
    receiver: PrefaceReceiver,
    since: Instant,
}

/// What became of a caller.
enum Outcome {
    Waits,
    Said(Preface),
    Refused(Refusal),
    Gone(io::Error),
}

impl Greeter {
    /// Takes the trunk connections that come to `door`, and nothing else comes in by it where `protocol` is the trunk.
    /// Where it is a QEMU's, they are refused with the reason.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(door: Door, protocol: Protocol, settings: &Settings) -> io::Result<Self> {
        let abilities = abilities(readable(settings));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            door: door.clone(),
            abilities,
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("greet".to_owned())
            .spawn(move || serve(&serving, protocol))?;
        let queue = Arc::clone(&shared);
        let is_trunk = |said: &[u8; 4]| *said == crate::trunk::PREFACE_MAGIC;
        let others = (protocol == Protocol::Trunk).then_some(
            "it speaks a QEMU's protocol, and this address is a trunk's: let a relay call it, or listen with tcp: or unix:",
        );
        door.claim(is_trunk, others, move |stream| {
            let mut state = queue.lock();
            if state.new.len() >= MOST_CALLERS {
                state.new.pop_front();
            }
            state.new.push_back(stream);
            queue.wake();
        });
        let thread = Some(thread);
        Ok(Self { shared, thread })
    }

    /// From now on no migration begins here; those under way go on.
    pub(crate) fn refuse_new(&self) {
        self.shared.lock().refuses_new = true;
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.shared.door.unclaim();
        self.shared.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has nothing left to clean up.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // It fails only when the counter is full: then the thread is woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Every change is one call, so a thread that panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_over(&self, stream: &Stream, words: String) {
        let peer = describe(stream);
        let reason = Reason::Other(words);
        self.door.note(&Note::PassedOver { peer, reason });
    }

    /// Makes a caller that has said what it is part of a migration.
    fn welcome(self: &Arc<Self>, stream: Stream, preface: &Preface) {
        let refuse = |stream: &Stream, refusal: Refusal| {
            let words = format!("refused: {refusal}");
            answer(stream, &Answer::Refused(refusal));
            self.pass_over(stream, words);
        };
        let chosen = match choose(preface, &self.abilities) {
            Ok(chosen) => chosen,
            Err(refusal) => return refuse(&stream, refusal),
        };
        // A channel joins what its main channel has begun.
        let inbox = {
            let mut state = self.lock();
            match (preface.connection, state.migrations.get(&preface.migration)) {
                (Connection::Main { .. }, Some(_)) => {
                    drop(state);
                    let words = "a migration of this number is under way here: does the way lead back to this relay?";
                    return refuse(&stream, Refusal::new(RefusalCode::ITSELF, words));
                }
                (Connection::Main { .. }, None) if state.refuses_new => {
                    drop(state);
                    let refusal = Refusal::new(RefusalCode::ENDS, "");
                    return refuse(&stream, refusal);
                }
                (Connection::Main { .. }, None) => {
                    state.next_ticket = state.next_ticket.saturating_add(1);
                    let (ticket, inbox) = (state.next_ticket, Inbox::default());
                    let migration = Migration {
                        ticket,
                        inbox: inbox.clone(),
                    };
                    state.migrations.insert(preface.migration, migration);
                    inbox
                }
                (_, Some(migration)) => migration.inbox.clone(),
                (_, None) => {
                    drop(state);
                    return refuse(&stream, Refusal::new(RefusalCode::UNKNOWN_MIGRATION, ""));
                }
            }
        };
        let accepted = Answer::Accepted(Accepted::from(chosen));
        let peer = describe(&stream);
        let is_stream = !matches!(preface.connection, Connection::Channel(_));
        let carried = match answer(&stream, &accepted) {
            true => Carried::new(stream, &chosen, is_stream).map(Stream::layered),
            false => return self.forget(preface),
        };
        let stream = match carried {
            Ok(stream) => stream,
            // It was chosen because it is there.
            Err(_) => return self.forget(preface),
        };
        match preface.connection {
            Connection::Main {
                has_channels,
                may_be_postcopy,
                is_recovery,
            } => self.door.begin(Incoming {
                main: Arc::new(stream),
                main_start: Vec::new(),
                channels: inbox,
                has_channels,
                may_be_postcopy,
                peer,
                is_recovery,
                origin: Some(Origin {
                    name: preface.name.as_str().to_owned(),
                    migration: preface.migration,
                }),
                ticket: self.ticket(preface),
            }),
            Connection::Channel(hello) => {
                inbox.put(Arrival::Channel(IncomingChannel { hello, stream }));
            }
            Connection::Preempt => inbox.put(Arrival::Preempt(stream)),
        }
    }

    /// The caller has gone before it had its answer.
    fn forget(&self, preface: &Preface) {
        if matches!(preface.connection, Connection::Main { .. }) {
            self.lock().migrations.remove(&preface.migration);
        }
    }

    fn ticket(self: &Arc<Self>, preface: &Preface) -> Ticket {
        let number = self
            .lock()
            .migrations
            .get(&preface.migration)
            .map_or(0, |migration| migration.ticket);
        Ticket::new(number, Arc::clone(self) as Arc<dyn Holder>)
    }
}

impl Holder for Shared {
    /// A number says whose a connection is, so that nothing is in doubt.
    fn settle(&self, _: u64) {}

    fn end(&self, id: u64) {
        self.lock()
            .migrations
            .retain(|_, migration| migration.ticket != id);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Listens to all callers until the greeter is dropped.
fn serve(shared: &Arc<Shared>, protocol: Protocol) {
    let mut callers: Vec<Caller> = Vec::new();
    loop {
        wait(shared, &callers);
        let new = {
            let mut state = shared.lock();
            if state.stop {
                return;
            }
            std::mem::take(&mut state.new)
        };
        let now = Instant::now();
        callers.extend(new.into_iter().map(|stream| Caller {
            stream,
            receiver: PrefaceReceiver::default(),
            since: now,
        }));
        while callers.len() > MOST_CALLERS {
            let oldest = callers.remove(0);
            shared.pass_over(&oldest.stream, Reason::Crowded.to_string());
        }
        let mut index = 0;
        while let Some(caller) = callers.get_mut(index) {
            let outcome = caller.listen();
            if matches!(outcome, Outcome::Waits) && now.duration_since(caller.since) < HELLO_TIMEOUT
            {
                index += 1;
                continue;
            }
            let Caller { stream, .. } = callers.remove(index);
            match outcome {
                Outcome::Said(preface) if protocol == Protocol::Trunk => {
                    shared.welcome(stream, &preface);
                }
                Outcome::Said(_) => {
                    let words = "this address is a QEMU's: listen with trunk:, trunk+tcp: or trunk+unix: there";
                    let refusal = Refusal::new(RefusalCode::OTHER, words);
                    answer(&stream, &Answer::Refused(refusal));
                    shared.pass_over(&stream, format!("it called for a trunk, and {words}"));
                }
                Outcome::Refused(refusal) => {
                    let words = refusal.to_string();
                    answer(&stream, &Answer::Refused(refusal));
                    shared.pass_over(&stream, words);
                }
                Outcome::Gone(error) => shared.pass_over(&stream, error.to_string()),
                Outcome::Waits => {
                    let within = HELLO_TIMEOUT;
                    shared.pass_over(&stream, Reason::Silent { within }.to_string());
                }
            }
        }
    }
}

/// Waits until a caller says more.
fn wait(shared: &Shared, callers: &[Caller]) {
    let mut sources = vec![PollFd::new(&shared.wake, PollFlags::IN)];
    sources.extend(
        callers
            .iter()
            .map(|caller| PollFd::new(&caller.stream, PollFlags::IN)),
    );
    let timeout = Timespec::try_from(TICK).ok();
    // A poll that fails is made anew, after what there is to do.
    let _ = poll(&mut sources, timeout.as_ref());
    // The counter only says that there is something.
    let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
}

impl Caller {
    /// Takes what it has said.
    fn listen(&mut self) -> Outcome {
        let mut buffer = [0; 512];
        loop {
            let most = self.receiver.wanted().min(buffer.len());
            let space = buffer.get_mut(..most).unwrap_or_default();
            let count = match self.stream.read_now(space) {
                Ok(0) => return Outcome::Gone(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Waits,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Outcome::Gone(error),
            };
            let mut said = buffer.get(..count).unwrap_or_default();
            match self.receiver.push(&mut said) {
                Ok(None) => {}
                Ok(Some(preface)) => return Outcome::Said(preface),
                Err(fault) => return Outcome::Refused(fault.into()),
            }
        }
    }
}

/// Writes an answer; whether it was written.
fn answer(stream: &Stream, answer: &Answer) -> bool {
    let Ok(bytes) = answer.encode() else {
        return false;
    };
    let is_written = stream.set_timeouts(Some(ANSWER_TIMEOUT)).is_ok()
        && stream.write_all_of_two(&bytes, &[]).is_ok();
    is_written && stream.set_timeouts(None).is_ok()
}
