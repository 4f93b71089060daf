//! Answers to a source on the return path, for `receive` and `record`.
//!
//! They begin once the source opens the return path: PONG for each PING, SWITCHOVER_ACK if the
//! source may wait for it, and SHUT last. SHUT has status 0 once everything is kept, and 1 after a
//! failure.
//!
//! # SWITCHOVER_ACK
//!
//! A source with capability `switchover-ack` does not stop its guest before it has one; the stream
//! does not say whether it has that capability. `docs/qemu-notes.md` has the table: releases and
//! machine types that wait for it, ignore it or fail.
//!
//! So a machine type from 8.1 to 11.0 gets one, and one from before 8.1 when the multifd channels
//! show a QEMU of 9.0 or later. A machine type without a version (`none`, `sun4u`, a distribution's
//! `pc-q35-noble`) gets one if the user says that the source waits for it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use multifd_wire::main_stream::{Command, MainEvent};
use multifd_wire::return_path::Message;
use rustix::net::{SendFlags, send};

use multifd_transport::{RoundFault, Stream};

/// The first machine type which stands for a QEMU that knows SWITCHOVER_ACK.
const ACK_SINCE: (u32, u32) = (8, 1);

/// The first machine type whose sources count what their devices ask for, and take no other
/// SWITCHOVER_ACK.
const ACK_COUNTED_SINCE: (u32, u32) = (11, 1);

/// The answers of one migration.
#[derive(Debug)]
pub(crate) struct Answers {
    state: Mutex<State>,
    /// The source waits for a SWITCHOVER_ACK, for all that is known.
    on_demand: bool,
    /// The source is a QEMU that knows SWITCHOVER_ACK, whatever its machine type.
    recent: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    asked: bool,
    stage: Stage,
    ack: Ack,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The source has not opened the return path: nothing may be written.
    #[default]
    Closed,
    Open,
    /// The last word has been given, or would have been if the source had asked.
    Settled,
    Refused,
}

/// Whether SWITCHOVER_ACK is to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ack {
    /// It could make the source fail. Or it has been written.
    #[default]
    No,
    /// As soon as the source shows itself to be a recent QEMU.
    IfRecent,
    Yes,
}

impl Answers {
    /// `switchover_ack`: whether the source waits for one, for machine types that do not tell.
    pub(crate) fn new(switchover_ack: bool) -> Self {
        Self {
            state: Mutex::default(),
            on_demand: switchover_ack,
            recent: AtomicBool::new(false),
        }
    }

    /// Answers what the main channel asks for.
    ///
    /// # Errors
    ///
    /// When the answer cannot be written.
    pub(crate) fn react(&self, event: &MainEvent, stream: &Stream) -> io::Result<()> {
        let ack = self.change(|state| {
            match event {
                MainEvent::Configuration(configuration) => {
                    state.ack = Ack::to(&configuration.machine.to_string(), self.on_demand);
                }
                MainEvent::Command(Command::OpenReturnPath) if state.stage == Stage::Closed => {
                    state.stage = Stage::Open;
                    state.asked = true;
                }
                _ => {}
            }
            let due = match state.ack {
                Ack::No => false,
                Ack::IfRecent => self.recent.load(Ordering::Relaxed),
                Ack::Yes => true,
            };
            let due = due && state.stage == Stage::Open;
            if due {
                state.ack = Ack::No;
            }
            due
        });
        if ack {
            // Nothing here has to be loaded before the guest may stop, so the source gets its
            // answer as soon as possible.
            answer(stream, &Message::SwitchoverAck)?;
        }
        match event {
            MainEvent::Command(Command::Ping(value)) if self.stage() == Stage::Open => {
                answer(stream, &Message::Pong(*value))
            }
            _ => Ok(()),
        }
    }

    /// A multifd channel has shown that the source is QEMU 9.0 or later.
    pub(crate) fn source_is_recent(&self) {
        self.recent.store(true, Ordering::Relaxed);
    }

    /// Notes that everything has arrived. Returns whether the source wants to hear about it. From
    /// now on only the caller writes to it.
    ///
    /// # Errors
    ///
    /// When the source has already got the word that the migration failed.
    pub(crate) fn settle(&self) -> Result<bool, RoundFault> {
        self.change(|state| match state.stage {
            Stage::Refused => Err(RoundFault::Stopped),
            before => {
                state.stage = Stage::Settled;
                Ok(before == Stage::Open)
            }
        })
    }

    /// Gives the last word to a source that wants it.
    ///
    /// # Errors
    ///
    /// When the answer cannot be written.
    pub(crate) fn shut(&self, well: bool, stream: &Stream) -> io::Result<()> {
        answer(stream, &Message::Shut(u32::from(!well)))
    }

    /// The migration has failed: tells the source, if it listens, so that its guest goes on at
    /// once. Returns whether everything had arrived before: then it has not failed.
    pub(crate) fn refuse(&self, stream: &Stream) -> bool {
        let before = self.change(|state| {
            let before = state.stage;
            if before != Stage::Settled {
                state.stage = Stage::Refused;
            }
            before
        });
        if before == Stage::Open {
            let mut bytes = Vec::new();
            Message::Shut(1).encode(&mut bytes);
            // Without waiting: to a source that does not read, the closing of the connection
            // reports it.
            let _ = send(stream, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        before == Stage::Settled
    }

    /// Whether the source has opened the return path, so that it waits for the last word.
    pub(crate) fn was_asked(&self) -> bool {
        self.change(|state| state.asked)
    }

    /// Whether everything had arrived.
    pub(crate) fn is_settled(&self) -> bool {
        self.stage() == Stage::Settled
    }

    fn stage(&self) -> Stage {
        self.change(|state| state.stage)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ack {
    fn to(machine: &str, on_demand: bool) -> Self {
        match version(machine) {
            Some(version) if version >= ACK_COUNTED_SINCE => Self::No,
            Some(version) if version >= ACK_SINCE => Self::Yes,
            _ if on_demand => Self::Yes,
            Some(_) => Self::IfRecent,
            None => Self::No,
        }
    }
}

/// The version in the name of a machine type, as in `pc-q35-10.0`.
fn version(machine: &str) -> Option<(u32, u32)> {
    let (_, version) = machine.rsplit_once('-')?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn answer(mut stream: &Stream, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_wire::IdStr;
    use multifd_wire::main_stream::Configuration;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// The answers that a source of `machine` gets after `script`.
    fn heard_by(machine: &str, on_demand: bool, script: impl FnOnce(&Answers, &Stream)) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = Stream::from(ours);
        let answers = Answers::new(on_demand);
        let machine = IdStr::new(machine.as_bytes()).unwrap();
        let configuration = MainEvent::Configuration(Configuration::new(machine));
        answers.react(&configuration, &stream).unwrap();
        script(&answers, &stream);
        drop(stream);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).unwrap();
        heard
    }

    fn heard(machine: &str, script: impl FnOnce(&Answers, &Stream)) -> Vec<u8> {
        heard_by(machine, false, script)
    }

    const ACK: [u8; 4] = [0, 7, 0, 0];
    const OPEN: MainEvent = MainEvent::Command(Command::OpenReturnPath);
    const PING: MainEvent = MainEvent::Command(Command::Ping(5));

    #[test]
    fn nothing_is_said_before_the_return_path_is_open() {
        let said = heard("pc-q35-10.0", |answers, stream| {
            answers.react(&PING, stream).unwrap();
            assert!(!answers.settle().unwrap());
            assert!(answers.refuse(stream), "nothing is missing");
        });
        assert_eq!(said, b"");
    }

    #[test]
    fn each_machine_type_gets_what_its_qemu_understands() {
        let after_open = |machine: &str, recent: bool| {
            heard(machine, |answers, stream| {
                answers.react(&OPEN, stream).unwrap();
                if recent {
                    answers.source_is_recent();
                }
                answers.react(&MainEvent::Flush, stream).unwrap();
                answers.react(&MainEvent::Flush, stream).unwrap();
            })
        };
        for machine in [
            "pc-q35-8.1",
            "virt-9.2",
            "pc-i440fx-11.0",
            "s390-ccw-virtio-10.1",
        ] {
            assert_eq!(after_open(machine, false), ACK, "{machine}");
        }
        for machine in [
            "pc-q35-11.1",
            "virt-12.0",
            "none",
            "sun4u",
            "pc-q35-rhel9.4.0",
        ] {
            assert_eq!(after_open(machine, true), b"", "{machine}");
        }
        assert_eq!(after_open("pc-q35-7.2", false), b"");
        assert_eq!(after_open("pc-q35-7.2", true), ACK);
        let on_demand = |machine: &str| {
            heard_by(machine, true, |answers, stream| {
                answers.react(&OPEN, stream).unwrap();
            })
        };
        for machine in ["none", "pc-q35-noble", "pc-q35-7.2", "pc-q35-10.0"] {
            assert_eq!(on_demand(machine), ACK, "{machine}");
        }
        assert_eq!(on_demand("pc-q35-11.1"), b"");
    }

    #[test]
    fn the_last_word_is_said_once() {
        let well = heard("none", |answers, stream| {
            answers.react(&OPEN, stream).unwrap();
            answers.react(&PING, stream).unwrap();
            assert!(answers.settle().unwrap());
            answers.shut(true, stream).unwrap();
            assert!(answers.refuse(stream), "who has settled cannot fail");
        });
        assert_eq!(well, [0, 2, 0, 4, 0, 0, 0, 5, 0, 1, 0, 4, 0, 0, 0, 0]);
        let failed = heard("none", |answers, stream| {
            answers.react(&OPEN, stream).unwrap();
            assert!(!answers.refuse(stream));
            assert!(!answers.refuse(stream));
            assert_eq!(answers.settle(), Err(RoundFault::Stopped));
        });
        assert_eq!(failed, [0, 1, 0, 4, 0, 0, 0, 1]);
    }
}
