//! What is between two parts: a network which delays, stalls, cuts and spoils.

use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::Duration;

use crate::locked;
use crate::net::{Address, Listener, Socket, Stop, Trigger};
use crate::plan::Who;

/// What happens to one connection, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFault {
    /// To which.
    pub who: Who,
    /// After how many bytes towards the destination.
    pub after: u64,
    /// What.
    pub what: Happening,
}

/// What can happen on a network.
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
    /// So many bytes vanish, and nobody sees it.
    Lose(u64),
}

/// A network between two parts.
#[derive(Debug, Clone, Default)]
pub struct LinkBehaviour {
    /// What happens to connections.
    pub faults: Vec<LinkFault>,
    /// How long after its first bytes a connection is dialled: connections come late, and overtake
    /// each other.
    pub late: Vec<(Who, Duration)>,
    /// Bytes that pass at once, and the pause behind them.
    pub slow: Option<(usize, Duration)>,
    /// Everything is cut so long after so many bytes.
    pub cut_all: Option<(u64, Duration)>,
    /// What passes counts for these too.
    pub passed: Vec<Arc<Trigger>>,
}

/// Where connections are passed on to.
#[derive(Debug, Clone)]
pub enum Target {
    /// All of them to one place.
    One(Address),
    /// By the UUID in a hello or in main's configuration; those with another to the first place.
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

    /// Bytes that tell.
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

/// As [`run`], with a listener that goes when the run ends.
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
    stop: &'a Stop,
    broken: &'a Stop,
}

impl Passing<'_> {
    fn pass(&self, near: &Socket, target: &Target) {
        let mut buffer = vec![0; 64 << 10];
        // The first bytes say whose connection it is.
        let mut first = 0;
        while first < target.wanted() {
            match near.read(&mut buffer[first..]) {
                Ok(0) => break,
                Ok(read) => first += read,
                Err(_) => return near.reset(),
            }
        }
        let who = match &buffer[..first] {
            // A QEMU's main connection, or an engine's.
            [b'Q' | b'M', ..] => Who::Main,
            bytes => Who::Channel(bytes.get(24).copied().unwrap_or(u8::MAX)),
        };
        if let Some((_, delay)) = self.behaviour.late.iter().find(|(of, _)| *of == who) {
            self.stop.sleep(*delay);
        }
        let target = target.of(&buffer[..first]);
        let Some(Ok(far)) = target.map(|target| Socket::connect(target, false)) else {
            return near.reset();
        };
        let far = self.broken.keep(far);
        let silent = Mutex::new(false);
        thread::scope(|scope| {
            scope.spawn(|| back(&far, near, &silent));
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
        faults.retain(|fault| fault.who == who);
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
}

/// The way back.
fn back(far: &Socket, near: &Socket, silent: &Mutex<bool>) {
    let mut buffer = [0; 4096];
    loop {
        match far.read(&mut buffer) {
            // The source learns of a half-closed connection when the other end closes it
            // altogether.
            Ok(0) if *locked(silent) => return near.shutdown(Shutdown::Both),
            Ok(0) => return near.shutdown(Shutdown::Write),
            Ok(read) => {
                if near.write_all(&buffer[..read]).is_err() {
                    return far.reset();
                }
            }
            Err(_) => return near.reset(),
        }
    }
}
