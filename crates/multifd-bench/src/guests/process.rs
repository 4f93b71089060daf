//! A guest, as seen by the process that started it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader};
use std::ops::Range;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::guests::Spec;
use crate::guests::protocol::{Answer, Order, hear, tell};

/// A guest in a process of its own. Dropping it kills the process.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    memory: File,
    addresses: Range<u64>,
}

/// Why a guest failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// Its process could not be started.
    #[error("cannot start the guest's process")]
    Process(#[source] io::Error),
    /// Its process has ended, or violates the protocol.
    #[error("the guest's process does not answer")]
    Silent(#[source] io::Error),
    /// Its memory is not accessible.
    #[error("cannot open the guest's memory")]
    Memory(#[source] io::Error),
    /// It reported a failure.
    #[error("the guest failed: {0}")]
    Failed(String),
}

impl Guest {
    /// Starts `command`, whose program calls [`serve`](crate::guests::serve) with its standard
    /// input and output, and waits until the guest runs.
    ///
    /// # Errors
    ///
    /// If the process cannot be started or cannot be such a guest.
    pub fn start(command: &mut Command, spec: &Spec) -> Result<Self, GuestError> {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = Starting(Some(pipes.spawn().map_err(GuestError::Process)?));
        child.started(spec)
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its memory, to be mapped.
    #[must_use]
    pub const fn memory(&self) -> &File {
        &self.memory
    }

    /// The addresses of its memory in its process.
    #[must_use]
    pub fn addresses(&self) -> Range<u64> {
        self.addresses.clone()
    }

    /// Stops the guest: after the return it writes nothing. Returns the number of its actions so
    /// far.
    ///
    /// # Errors
    ///
    /// If its process has ended, or one of its threads has failed.
    pub fn pause(&mut self) -> Result<u64, GuestError> {
        self.order(&Order::Pause)
    }

    /// Resumes the guest. Returns the number of its actions so far.
    ///
    /// # Errors
    ///
    /// The same as for [`pause`](Self::pause).
    pub fn resume(&mut self) -> Result<u64, GuestError> {
        self.order(&Order::Resume)
    }

    /// Returns the SHA-256 of its memory, in hexadecimal digits. The guest should be paused.
    ///
    /// # Errors
    ///
    /// If its process has ended.
    pub fn digest(&mut self) -> Result<String, GuestError> {
        match self.ask(&Order::Digest)? {
            Answer::Digest(digest) => Ok(digest),
            other => Err(unexpected(other)),
        }
    }

    /// Ends the guest. Returns the total number of its actions.
    ///
    /// # Errors
    ///
    /// If its process has already ended.
    pub fn stop(mut self) -> Result<u64, GuestError> {
        let acts = self.order(&Order::Stop)?;
        self.child.wait().map_err(GuestError::Process)?;
        Ok(acts)
    }

    fn order(&mut self, order: &Order) -> Result<u64, GuestError> {
        match self.ask(order)? {
            Answer::Done { acts } => Ok(acts),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&mut self, order: &Order) -> Result<Answer, GuestError> {
        ask(&mut self.orders, &mut self.answers, order)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A process that may become a guest. It is killed otherwise.
struct Starting(Option<Child>);

impl Starting {
    fn started(mut self, spec: &Spec) -> Result<Guest, GuestError> {
        let lost = || GuestError::Process(io::ErrorKind::BrokenPipe.into());
        let child = self.0.as_mut().ok_or_else(lost)?;
        let mut orders = child.stdin.take().ok_or_else(lost)?;
        let mut answers = BufReader::new(child.stdout.take().ok_or_else(lost)?);
        let answer = ask(&mut orders, &mut answers, &Order::Start(spec.clone()))?;
        let Answer::Started {
            descriptor,
            address,
        } = answer
        else {
            return Err(unexpected(answer));
        };
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/fd/{descriptor}", child.id()))
            .map_err(GuestError::Memory)?;
        Ok(Guest {
            child: self.0.take().ok_or_else(lost)?,
            orders,
            answers,
            memory,
            addresses: address..address.saturating_add(spec.bytes),
        })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn ask(
    orders: &mut ChildStdin,
    answers: &mut BufReader<ChildStdout>,
    order: &Order,
) -> Result<Answer, GuestError> {
    tell(orders, order).map_err(GuestError::Silent)?;
    match hear(answers).map_err(GuestError::Silent)? {
        Some(Answer::Failed(why)) => Err(GuestError::Failed(why)),
        Some(answer) => Ok(answer),
        None => Err(GuestError::Silent(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn unexpected(answer: Answer) -> GuestError {
    GuestError::Silent(io::Error::other(format!("unexpected answer {answer:?}")))
}
