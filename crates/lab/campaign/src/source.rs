//! A source made here, which behaves as a QEMU does.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use multifd_wire::return_path::{Message, ReturnPathReceiver};

use crate::net::{Address, Socket, Stop, Trigger};
use crate::plan::{Plan, Who};

/// A source's behaviour besides its plan.
#[derive(Debug, Clone)]
pub struct SourceBehaviour {
    /// The order in which it dials, with the pause before each connection.
    pub dials: Vec<(Who, Duration)>,
    /// Main's first bytes leave as soon as it is dialled.
    pub early: bool,
    /// Small socket buffers.
    pub small: bool,
    /// It is cancelled after this number of bytes and this time.
    pub cancel: Option<(u64, Duration)>,
    /// It is killed after this number of bytes and this time.
    pub kill: Option<(u64, Duration)>,
    /// The time after which its user cancels it.
    pub patience: Duration,
    /// A byte is changed: the connection, the place, and the bits.
    pub flip: Option<(Who, u64, u8)>,
    /// It pauses: the connection, the place, and the time.
    pub pause: Option<(Who, u64, Duration)>,
}

/// The end of the source's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceEnd {
    /// The source gave it up.
    Gave,
    /// It runs on at the source.
    Kept,
    /// It ended with its process.
    Killed,
}

/// The end of a source.
#[derive(Debug, Clone)]
pub struct SourceReport {
    /// The end of its guest.
    pub end: SourceEnd,
    /// Its user cancelled it, because it stood still.
    pub impatient: bool,
    /// Whether every byte was written.
    pub wrote_all: bool,
    /// The time at which it ended.
    pub at: Instant,
    /// The reason.
    pub why: String,
}

enum Event {
    Done,
    Failed(String),
    Shut(u32),
    Cancel,
    Kill,
}

/// Runs a source to its end. The bytes that it writes count for the triggers of `passed`.
pub fn send(
    plan: &Plan,
    behaviour: &SourceBehaviour,
    address: &Address,
    stop: &Stop,
    passed: &[Arc<Trigger>],
) -> SourceReport {
    let (tell, events) = mpsc::channel();
    let over = Stop::default();
    let cancel = behaviour
        .cancel
        .map(|when| (when, (|| Event::Cancel) as fn() -> Event));
    let triggers = [
        cancel,
        behaviour
            .kill
            .map(|when| (when, (|| Event::Kill) as fn() -> Event)),
    ];
    let triggers = triggers.into_iter().flatten();
    let triggers: Vec<_> = triggers
        .map(|((at, delay), event)| (Arc::new(Trigger::new(at)), delay, event))
        .collect();
    let all = Arc::new(Trigger::new(plan.bytes()));
    let mut passed = passed.to_vec();
    passed.push(Arc::clone(&all));
    passed.extend(triggers.iter().map(|(trigger, ..)| Arc::clone(trigger)));
    thread::scope(|scope| {
        for (trigger, delay, event) in &triggers {
            let (tell, over) = (tell.clone(), &over);
            scope.spawn(move || {
                if trigger.wait(over) {
                    over.sleep(*delay);
                    // The source may have ended meanwhile.
                    let _ = tell.send(event());
                }
            });
        }
        let mut source = Source {
            plan,
            behaviour,
            events,
            tell,
            stop,
            passed: &passed,
            deadline: Instant::now() + behaviour.patience,
            shut: false,
            connections: (0..=plan.hellos.len()).map(|_| None).collect(),
        };
        let outcome = source.run(scope, address);
        let (at, end) = (Instant::now(), &outcome);
        match end {
            // A QEMU that has completed closes its channels before main.
            Ok(()) => source.close(false),
            Err(_) => source.close(true),
        }
        over.stop();
        let (end, impatient, why) = match outcome {
            Ok(()) => (SourceEnd::Gave, false, "it has completed".to_owned()),
            Err(Stopped::GaveUp(why)) => (SourceEnd::Kept, false, why),
            Err(Stopped::Impatient) => (
                SourceEnd::Kept,
                true,
                "its user has lost patience".to_owned(),
            ),
            Err(Stopped::Killed) => (SourceEnd::Killed, false, "it was killed".to_owned()),
        };
        SourceReport {
            end,
            impatient,
            wrote_all: all.is_fired(),
            at,
            why,
        }
    })
}

enum Stopped {
    GaveUp(String),
    Impatient,
    Killed,
}

struct Connection {
    socket: Arc<Socket>,
    jobs: Sender<Vec<u8>>,
}

struct Source<'a> {
    plan: &'a Plan,
    behaviour: &'a SourceBehaviour,
    events: mpsc::Receiver<Event>,
    tell: Sender<Event>,
    stop: &'a Stop,
    passed: &'a [Arc<Trigger>],
    deadline: Instant,
    shut: bool,
    /// Main, then each channel.
    connections: Vec<Option<Connection>>,
}

impl<'a> Source<'a> {
    fn run<'s>(&mut self, scope: &'s Scope<'s, '_>, address: &Address) -> Result<(), Stopped>
    where
        'a: 's,
    {
        let set_up = &self.plan.steps[0].main;
        // The header leaves at once, or after all dials.
        let early = if self.behaviour.early { 8 } else { 0 };
        for &(who, delay) in &self.behaviour.dials {
            self.pause(delay)?;
            self.dial(scope, who, address)?;
            match who {
                Who::Main if early > 0 => self.write(0, set_up[..early].to_vec()),
                Who::Main => {}
                Who::Channel(id) => {
                    self.write(place(who), self.plan.hellos[usize::from(id)].to_vec());
                }
            }
        }
        let mut under_way = self.plan.hellos.len() + usize::from(early > 0);
        for (index, step) in self.plan.steps.iter().enumerate() {
            for (id, bytes) in step.channels.iter().enumerate() {
                self.write(id + 1, bytes.clone());
                under_way += 1;
            }
            // The mark is written after every channel's SYNC.
            self.wait_written(under_way)?;
            let skip = if index == 0 { early } else { 0 };
            self.write(0, step.main[skip..].to_vec());
            self.wait_written(1)?;
            under_way = 0;
        }
        self.write(0, self.plan.tail.clone());
        self.wait_written(1)?;
        if !self.plan.shape.return_path {
            return Ok(());
        }
        while !self.shut {
            self.take()?;
        }
        Ok(())
    }

    fn dial<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        who: Who,
        address: &Address,
    ) -> Result<(), Stopped>
    where
        'a: 's,
    {
        let socket = Socket::connect(address, self.behaviour.small);
        let socket = socket.map_err(|error| gave_up(format!("cannot dial {who:?}: {error}")))?;
        let socket = self.stop.keep(socket);
        let (jobs, todo) = mpsc::channel::<Vec<u8>>();
        let place = place(who);
        let writer = Writer {
            socket: Arc::clone(&socket),
            who,
            at: 0,
            behaviour: self.behaviour,
            passed: self.passed,
            stop: self.stop,
        };
        let tell = self.tell.clone();
        scope.spawn(move || {
            let mut writer = writer;
            for bytes in todo {
                let event = match writer.write(bytes) {
                    Ok(()) => Event::Done,
                    Err(error) => Event::Failed(format!("writing {who:?}: {error}")),
                };
                // The source may have ended meanwhile.
                let _ = tell.send(event);
            }
        });
        if who == Who::Main && self.plan.shape.return_path {
            let (socket, tell) = (Arc::clone(&socket), self.tell.clone());
            scope.spawn(move || listen(&socket, &tell));
        }
        self.connections[place] = Some(Connection { socket, jobs });
        Ok(())
    }

    fn write(&mut self, place: usize, bytes: Vec<u8>) {
        if let Some(connection) = &self.connections[place] {
            // A writer ends with its source only.
            let _ = connection.jobs.send(bytes);
        }
    }

    fn wait_written(&mut self, count: usize) -> Result<(), Stopped> {
        let mut left = count;
        while left > 0 {
            left -= self.take()?;
        }
        Ok(())
    }

    /// Handles an event. Returns the number of writes that it reports as done.
    fn take(&mut self) -> Result<usize, Stopped> {
        match self.event()? {
            Event::Done => return Ok(1),
            // QEMU obeys it even if it comes early.
            Event::Shut(0) => self.shut = true,
            Event::Shut(code) => return Err(gave_up(format!("SHUT({code})"))),
            Event::Failed(_) | Event::Cancel | Event::Kill => {}
        }
        Ok(0)
    }

    /// The next event that does not end the source.
    fn event(&mut self) -> Result<Event, Stopped> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let event = self
                .events
                .recv_timeout(left.min(Duration::from_millis(50)));
            // A run that is given up closes the sockets, which is no failure of the connections.
            if self.stop.is_set() || left.is_zero() {
                return Err(Stopped::Impatient);
            }
            return match event {
                Ok(Event::Failed(why)) => Err(gave_up(why)),
                Ok(Event::Cancel) => Err(gave_up("it was cancelled".to_owned())),
                Ok(Event::Kill) => Err(Stopped::Killed),
                Ok(event) => Ok(event),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => Err(gave_up("no thread left".to_owned())),
            };
        }
    }

    /// Waits between two dials.
    fn pause(&mut self, delay: Duration) -> Result<(), Stopped> {
        let end = Instant::now() + delay;
        // Bytes written meanwhile are counted later.
        let mut done = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.events.recv_timeout(left) {
                Ok(Event::Failed(why)) => return Err(gave_up(why)),
                Ok(Event::Cancel) => return Err(gave_up("it was cancelled".to_owned())),
                Ok(Event::Kill) => return Err(Stopped::Killed),
                Ok(event) => done.push(event),
                Err(_) => break,
            }
        }
        for event in done {
            // The receiver is this source's own.
            let _ = self.tell.send(event);
        }
        Ok(())
    }

    /// Closes its connections: main first where it gives up, and last where it has completed.
    fn close(&mut self, main_first: bool) {
        let mut connections: Vec<_> = self.connections.drain(..).collect();
        if !main_first {
            connections.rotate_left(1);
        }
        for connection in connections.into_iter().flatten() {
            connection.socket.shutdown(Shutdown::Both);
        }
    }
}

fn place(who: Who) -> usize {
    match who {
        Who::Main => 0,
        Who::Channel(id) => usize::from(id) + 1,
    }
}

fn gave_up(why: String) -> Stopped {
    Stopped::GaveUp(why)
}

/// Reads the return path.
fn listen(socket: &Socket, tell: &Sender<Event>) {
    let mut receiver = ReturnPathReceiver::new();
    let mut buffer = [0; 512];
    loop {
        let failed = match socket.read(&mut buffer) {
            Ok(0) => "main was closed before SHUT".to_owned(),
            Ok(read) => {
                let mut rest = &buffer[..read];
                let mut fault = None;
                while fault.is_none() {
                    match receiver.push(&mut rest) {
                        Ok(Some(Message::Shut(code))) => {
                            // The source may have ended meanwhile.
                            let _ = tell.send(Event::Shut(code));
                            return;
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => fault = Some(format!("the return path: {error}")),
                    }
                }
                match fault {
                    None => continue,
                    Some(fault) => fault,
                }
            }
            Err(error) => format!("reading main: {error}"),
        };
        let _ = tell.send(Event::Failed(failed));
        return;
    }
}

struct Writer<'a> {
    socket: Arc<Socket>,
    who: Who,
    at: u64,
    behaviour: &'a SourceBehaviour,
    passed: &'a [Arc<Trigger>],
    stop: &'a Stop,
}

impl Writer<'_> {
    fn write(&mut self, mut bytes: Vec<u8>) -> io::Result<()> {
        let (start, end) = (self.at, self.at + bytes.len() as u64);
        self.at = end;
        if let Some((who, place, bits)) = self.behaviour.flip
            && who == self.who
            && (start..end).contains(&place)
        {
            bytes[(place - start) as usize] ^= bits;
        }
        let mut pieces = bytes.as_slice();
        if let Some((who, place, time)) = self.behaviour.pause
            && who == self.who
            && (start..end).contains(&place)
        {
            let (before, after) = bytes.split_at((place - start) as usize);
            self.pieces(before)?;
            self.stop.sleep(time);
            pieces = after;
        }
        self.pieces(pieces)
    }

    fn pieces(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(16 << 10) {
            self.socket.write_all(piece)?;
            for trigger in self.passed {
                trigger.add(piece.len());
            }
        }
        Ok(())
    }
}
