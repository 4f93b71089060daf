//! The network between two parts: it delays, stalls, cuts and corrupts.

use std::net::Shutdown;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::Duration;

use crate::locked;
use crate::net::{Address, Listener, Socket, Stop, Trigger};
use crate::plan::Who;
use crate::preface;

/// A fault of one connection, which happens once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFault {
    /// The connection.
    pub who: Who,
    /// The number of bytes before it, in its direction.
    pub after: u64,
    /// It happens to bytes from the destination.
    pub back: bool,
    /// The kind of the fault.
    pub what: Happening,
}

/// The kind of a fault on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Both ends see a reset.
    Reset,
    /// Both ends see a clean end.
    Cut,
    /// The destination's side sees a clean end; the source's side sees nothing until the
    /// destination's side closes, and its bytes vanish.
    HalfClose,
    /// Nothing passes for a while.
    Stall(Duration),
    /// A byte is changed.
    Flip(u8),
    /// This number of bytes vanishes, and neither end notices.
    Lose(u64),
    /// This number of bytes comes twice, or as many of them as arrive at once.
    Repeat(u64),
}

/// A preface of the trunk comes once more, on a connection of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The connection whose preface it is.
    pub who: Who,
    /// The time after the real preface. `None`: it comes before the real one.
    pub behind: Option<Duration>,
    /// The time for which the connection stays.
    pub stays: Duration,
}

/// A network between two parts.
#[derive(Debug, Clone, Default)]
pub struct LinkBehaviour {
    /// The faults of connections.
    pub faults: Vec<LinkFault>,
    /// The time between a connection's first bytes and its dial: connections come late, and
    /// overtake each other.
    pub late: Vec<(Who, Duration)>,
    /// The number of bytes that pass at a time, and the pause after them.
    pub slow: Option<(usize, Duration)>,
    /// All connections are cut after this number of bytes and this time.
    pub cut_all: Option<(u64, Duration)>,
    /// A preface that comes twice.
    pub echo: Option<Echo>,
    /// Triggers that the passing bytes fire.
    pub passed: Vec<Arc<Trigger>>,
}

/// The address that connections are passed on to.
#[derive(Debug, Clone)]
pub enum Target {
    /// All of them to one place.
    One(Address),
    /// By the UUID in a hello or in main's configuration. Other connections go to the first
    /// address.
    ByVm(Vec<([u8; 16], Address)>),
}

impl Target {
    fn of(&self, first: &[u8]) -> Option<&Address> {
        match self {
            Self::One(address) => Some(address),
            Self::ByVm(all) => {
                let mut all = all.iter();
                let default = all.as_slice().first();
                let found = all.find(|(uuid, _)| first.windows(16).any(|bytes| bytes == uuid));
                found.or(default).map(|(_, address)| address)
            }
        }
    }

    /// The first bytes, which identify the connection.
    fn wanted(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::ByVm(_) => 64,
        }
    }
}

/// Passes connections on from `listener` to `target` until the run ends.
pub fn run<'s>(
    scope: &'s Scope<'s, '_>,
    behaviour: &'s LinkBehaviour,
    listener: &'s Listener,
    target: Target,
    stop: &'s Stop,
    broken: &'s Stop,
) {
    let link = Link::new(scope, behaviour, target, stop, broken);
    scope.spawn(move || link.accept(scope, listener));
}

/// As [`run`], but the listener is removed when the run ends.
pub fn run_owned<'s>(
    scope: &'s Scope<'s, '_>,
    behaviour: &'s LinkBehaviour,
    listener: Listener,
    target: Target,
    stop: &'s Stop,
    broken: &'s Stop,
) {
    let link = Link::new(scope, behaviour, target, stop, broken);
    scope.spawn(move || link.accept(scope, &listener));
}

struct Link<'s> {
    behaviour: &'s LinkBehaviour,
    target: Target,
    trigger: Option<Arc<Trigger>>,
    /// The number of encrypted connections, which cannot be identified by their bytes.
    encrypted: Arc<AtomicU8>,
    stop: &'s Stop,
    broken: &'s Stop,
}

impl<'s> Link<'s> {
    fn new(
        scope: &'s Scope<'s, '_>,
        behaviour: &'s LinkBehaviour,
        target: Target,
        stop: &'s Stop,
        broken: &'s Stop,
    ) -> Self {
        let trigger = behaviour.cut_all.map(|(at, _)| Arc::new(Trigger::new(at)));
        if let Some((trigger, (_, delay))) = trigger.clone().zip(behaviour.cut_all) {
            scope.spawn(move || {
                if trigger.wait(stop) {
                    stop.sleep(delay);
                    broken.stop();
                }
            });
        }
        Self {
            behaviour,
            target,
            trigger,
            encrypted: Arc::default(),
            stop,
            broken,
        }
    }

    fn accept(&self, scope: &'s Scope<'s, '_>, listener: &Listener) {
        while !self.stop.is_set() {
            let Ok(accepted) = listener.accept(Duration::from_millis(10)) else {
                break;
            };
            let Some(socket) = accepted else {
                continue;
            };
            let socket = self.broken.keep(socket);
            let target = self.target.clone();
            let passing = Passing {
                behaviour: self.behaviour,
                trigger: self.trigger.clone(),
                encrypted: Arc::clone(&self.encrypted),
                stop: self.stop,
                broken: self.broken,
            };
            scope.spawn(move || passing.pass(&socket, &target));
        }
        self.broken.stop();
    }
}

struct Passing<'a> {
    behaviour: &'a LinkBehaviour,
    trigger: Option<Arc<Trigger>>,
    encrypted: Arc<AtomicU8>,
    stop: &'a Stop,
    broken: &'a Stop,
}

impl Passing<'_> {
    fn pass(&self, near: &Socket, target: &Target) {
        let mut buffer = vec![0; 64 << 10];
        // The first bytes identify the connection.
        let mut first = 0;
        while first < target.wanted() || preface::is_part(&buffer[..first]) {
            match near.read(&mut buffer[first..]) {
                Ok(0) => break,
                Ok(read) => first += read,
                Err(_) => return near.reset(),
            }
        }
        let who = match &buffer[..first] {
            bytes if bytes.starts_with(preface::MAGIC) => {
                preface::who(bytes).unwrap_or(Who::Channel(u8::MAX))
            }
            // TLS: its main connection is the first.
            [0x16, ..] => match self.encrypted.fetch_add(1, Ordering::SeqCst) {
                0 => Who::Main,
                number => Who::Channel(number - 1),
            },
            // A QEMU's main connection, or an engine's.
            [b'Q' | b'M', ..] => Who::Main,
            bytes => Who::Channel(bytes.get(24).copied().unwrap_or(u8::MAX)),
        };
        if let Some((_, delay)) = self.behaviour.late.iter().find(|(of, _)| *of == who) {
            self.stop.sleep(*delay);
        }
        let target = target.of(&buffer[..first]);
        let echo = self.behaviour.echo.filter(|echo| echo.who == who);
        let (early, late) = match echo {
            Some(echo) if echo.behind.is_none() => (Some(echo), None),
            echo => (None, echo),
        };
        if let Some((echo, address)) = early.zip(target) {
            self.say_again(echo, address, &buffer[..first]);
        }
        let Some(Ok(far)) = target.map(|target| Socket::connect(target, false)) else {
            return near.reset();
        };
        let far = self.broken.keep(far);
        let silent = Mutex::new(false);
        thread::scope(|scope| {
            if let Some((echo, address)) = late.zip(target) {
                let said = buffer[..first].to_vec();
                scope.spawn(move || {
                    self.stop.sleep(echo.behind.unwrap_or_default());
                    self.say_again(echo, address, &said);
                });
            }
            scope.spawn(|| self.back(who, &far, near, &silent));
            self.forward(who, near, &far, &mut buffer, first, &silent);
        });
    }

    fn forward(
        &self,
        who: Who,
        near: &Socket,
        far: &Socket,
        buffer: &mut [u8],
        first: usize,
        silent: &Mutex<bool>,
    ) {
        let mut faults: Vec<_> = self.behaviour.faults.iter().collect();
        faults.retain(|fault| fault.who == who && !fault.back);
        faults.sort_by_key(|fault| fault.after);
        let mut faults = faults.into_iter().peekable();
        let mut at = 0_u64;
        let mut held = first;
        let mut lost = 0;
        loop {
            let mut start = 0;
            while start < held {
                let mut end = held;
                if let Some((bytes, pause)) = self.behaviour.slow {
                    self.stop.sleep(pause);
                    end = end.min(start + bytes);
                }
                if let Some(fault) = faults.peek() {
                    let left = fault.after.saturating_sub(at);
                    if left == 0 {
                        match fault.what {
                            Happening::Reset => {
                                near.reset();
                                return far.reset();
                            }
                            Happening::Cut => {
                                near.shutdown(Shutdown::Both);
                                return far.shutdown(Shutdown::Both);
                            }
                            Happening::HalfClose => {
                                *locked(silent) = true;
                                far.shutdown(Shutdown::Write);
                                while matches!(near.read(buffer), Ok(1..)) {}
                                return near.shutdown(Shutdown::Both);
                            }
                            Happening::Stall(time) => self.stop.sleep(time),
                            Happening::Flip(bits) => buffer[start] ^= bits,
                            Happening::Lose(bytes) => lost = bytes,
                            Happening::Repeat(bytes) => {
                                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                                let twice = &buffer[start..held.min(start.saturating_add(bytes))];
                                // If the peer has gone, the next write fails.
                                let _ = far.write_all(twice);
                            }
                        }
                        faults.next();
                        continue;
                    }
                    end = end.min(start + usize::try_from(left).unwrap_or(usize::MAX));
                }
                let gone = usize::try_from(lost).unwrap_or(usize::MAX).min(end - start);
                lost -= gone as u64;
                if far.write_all(&buffer[start + gone..end]).is_err() {
                    // As where a network passes a reset on.
                    return near.reset();
                }
                for trigger in self.trigger.iter().chain(&self.behaviour.passed) {
                    trigger.add(end - start);
                }
                at += (end - start) as u64;
                start = end;
            }
            held = match near.read(buffer) {
                Ok(0) => return far.shutdown(Shutdown::Write),
                Ok(read) => read,
                Err(_) => return far.reset(),
            };
        }
    }

    /// The way back.
    fn back(&self, who: Who, far: &Socket, near: &Socket, silent: &Mutex<bool>) {
        let mut buffer = [0; 4096];
        let faults = self.behaviour.faults.iter();
        let mut fault = { faults }.find(|fault| fault.who == who && fault.back);
        let mut at = 0;
        loop {
            let read = match far.read(&mut buffer) {
                // The source learns of a half-closed connection only when the other end closes it.
                Ok(0) if *locked(silent) => return near.shutdown(Shutdown::Both),
                Ok(0) => return near.shutdown(Shutdown::Write),
                Ok(read) => read,
                Err(_) => return near.reset(),
            };
            let piece = &mut buffer[..read];
            let end = at + read as u64;
            let due = fault.filter(|fault| fault.after < end);
            if let Some(due) = due {
                fault = None;
                let place = usize::try_from(due.after.saturating_sub(at)).unwrap_or(0);
                match due.what {
                    Happening::Flip(bits) => piece[place] ^= bits,
                    Happening::Stall(time) => self.stop.sleep(time),
                    Happening::Reset => {
                        near.reset();
                        return far.reset();
                    }
                    _ => {
                        near.shutdown(Shutdown::Both);
                        return far.shutdown(Shutdown::Both);
                    }
                }
            }
            at = end;
            if near.write_all(piece).is_err() {
                return far.reset();
            }
        }
    }

    /// Sends a connection's first bytes once more, on another connection.
    fn say_again(&self, echo: Echo, address: &Address, said: &[u8]) {
        let Ok(socket) = Socket::connect(address, false) else {
            return;
        };
        let socket = self.broken.keep(socket);
        // It may be refused already.
        let _ = socket.write_all(said);
        self.stop.sleep(echo.stays);
        socket.shutdown(Shutdown::Both);
    }
}
