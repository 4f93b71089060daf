//! A destination made here, which behaves as a QEMU does.
//!
//! It accepts main and all channels before it reads main. It stops reading a channel at a SYNC
//! until main has reached its mark. It freezes for good if main waits for the SYNC of a channel
//! that has ended.

use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use multifd_wire::return_path::Message;
use multifd_wire::{ChannelReceiver, Event, Hello, Limits, Method, Packet, PageSize};

use crate::codec::Decoder;
use crate::locked;
use crate::net::{Listener, Socket, Stop, Trigger};
use crate::plan::{Act, Memory, PAGE, Plan, Who};

/// A destination's behaviour besides reading.
#[derive(Debug, Clone)]
pub struct DestinationBehaviour {
    /// The number of channels that it waits for.
    pub channels: u8,
    /// The method of the payloads that it reads.
    pub method: Method,
    /// Small socket buffers.
    pub small: bool,
    /// It says SHUT(1) at the end.
    pub refuses: bool,
    /// It dies after this number of bytes and this time.
    pub kill: Option<(u64, Duration)>,
    /// It resets one connection at this place.
    pub resets: Option<(Who, u64)>,
    /// It stops reading all connections after this number of bytes, for this time.
    pub pause: Option<(u64, Duration)>,
    /// It reads slowly: it pauses after each such number of bytes.
    pub slow: Option<(usize, Duration)>,
    /// The time between the close of its channels and SHUT.
    pub gap: Duration,
    /// If loading fails, it says SHUT(1) before it closes main.
    pub says_failure: bool,
}

/// The end of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationEnd {
    /// It still waited for connections.
    Waiting,
    /// It has the guest, and these pages are wrong.
    Loaded(Vec<String>),
    /// It noticed that the migration failed.
    Failed(String),
    /// It freezes: main waits for the SYNC of a channel that has ended.
    Frozen(String),
    /// It received bytes that no source has sent.
    Corrupt(String),
    /// It refused the guest.
    Refused,
    /// It was killed. The flag tells whether it had the guest by then.
    Killed(bool),
    /// It was still loading when the run was given up.
    Stuck(String),
}

/// The begin of the message that main is not the one that the source has sent.
pub const ANOTHER_MAIN: &str = "main has another byte";

/// The result of a destination.
#[derive(Debug, Clone)]
pub struct DestinationReport {
    /// How it ended.
    pub end: DestinationEnd,
    /// The time at which it said that it has the guest, or would have with a return path.
    pub said: Option<Instant>,
    /// The time at which it ended.
    pub at: Instant,
}

/// Runs a destination to its end. `give_up` ends it only while it waits for connections, `stop` at
/// any time.
pub fn receive(
    plan: &Plan,
    behaviour: &DestinationBehaviour,
    listener: &Listener,
    stop: &Stop,
    give_up: &Stop,
    passed: &[Arc<Trigger>],
) -> DestinationReport {
    let own = Arc::new(Stop::default());
    let kill = behaviour
        .kill
        .map(|(at, delay)| (Arc::new(Trigger::new(at)), delay));
    let pause = behaviour.pause.map(|(at, _)| Arc::new(Trigger::new(at)));
    let mut passed = passed.to_vec();
    passed.extend(kill.iter().map(|(trigger, _)| Arc::clone(trigger)));
    passed.extend(pause.clone());
    let shared = Shared {
        plan,
        behaviour,
        stop,
        own: &own,
        passed: &passed,
        pause: pause.as_deref().zip(behaviour.pause.map(|(_, time)| time)),
        state: Mutex::new(State {
            memory: plan.memory.zeroed(),
            channels: vec![Progress::default(); usize::from(behaviour.channels)],
            released: 0,
            corrupt: None,
            killed: false,
            said: None,
        }),
        changed: Condvar::new(),
    };
    let end = thread::scope(|scope| {
        if let Some((trigger, delay)) = &kill {
            let shared = &shared;
            scope.spawn(move || {
                if trigger.wait(shared.own) {
                    shared.own.sleep(*delay);
                    shared.die();
                }
            });
        }
        let watch = scope.spawn(|| {
            // The run's end closes this destination's sockets too.
            while !shared.own.is_set() {
                if stop.is_set() {
                    shared.own.stop();
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let end = shared.run(scope, listener, give_up);
        own.stop();
        shared.changed.notify_all();
        let _ = watch.join();
        end
    });
    let state = locked(&shared.state);
    let end = match (end, &state.corrupt) {
        _ if state.killed => DestinationEnd::Killed(state.said.is_some()),
        (DestinationEnd::Waiting, _) => DestinationEnd::Waiting,
        (_, Some(corrupt)) => DestinationEnd::Corrupt(corrupt.clone()),
        (DestinationEnd::Loaded(_), None) => {
            DestinationEnd::Loaded(state.memory.differences(&plan.memory))
        }
        (end, None) => end,
    };
    DestinationReport {
        end,
        said: state.said,
        at: Instant::now(),
    }
}

#[derive(Debug, Clone, Default)]
struct Progress {
    /// The number of SYNCs that main has not waited for yet.
    syncs: u64,
    /// The reason of the channel's end.
    ended: Option<String>,
}

struct State {
    memory: Memory,
    channels: Vec<Progress>,
    /// The number of marks that main has passed.
    released: u64,
    corrupt: Option<String>,
    killed: bool,
    said: Option<Instant>,
}

struct Shared<'a> {
    plan: &'a Plan,
    behaviour: &'a DestinationBehaviour,
    stop: &'a Stop,
    /// Closes this destination's own sockets.
    own: &'a Arc<Stop>,
    passed: &'a [Arc<Trigger>],
    pause: Option<(&'a Trigger, Duration)>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared<'_> {
    fn run<'s>(
        &'s self,
        scope: &'s thread::Scope<'s, '_>,
        listener: &'s Listener,
        give_up: &Stop,
    ) -> DestinationEnd {
        let mut main = None;
        let mut channels = Vec::new();
        let wanted = usize::from(self.behaviour.channels);
        while main.is_none() || channels.len() < wanted {
            if self.own.is_set() || give_up.is_set() {
                return DestinationEnd::Waiting;
            }
            let socket = match listener.accept(Duration::from_millis(10)) {
                Ok(Some(socket)) => socket,
                Ok(None) => continue,
                Err(error) => return DestinationEnd::Failed(format!("accepting: {error}")),
            };
            if self.behaviour.small {
                socket.make_small();
            }
            let socket = self.own.keep(socket);
            // QEMU waits for the first four bytes of a connection, and does nothing else meanwhile.
            let mut magic = [0; 4];
            if let Err(error) = socket.read_exact(&mut magic) {
                if self.own.is_set() {
                    return DestinationEnd::Waiting;
                }
                return DestinationEnd::Failed(format!("a new connection: {error}"));
            }
            if magic == *b"QEVM" && main.is_none() {
                main = Some(socket);
            } else if channels.len() < wanted {
                let mut hello = [0; Hello::LEN];
                hello[..4].copy_from_slice(&magic);
                if let Err(error) = socket.read_exact(&mut hello[4..]) {
                    return DestinationEnd::Failed(format!("a hello: {error}"));
                }
                match self.check_hello(&hello, &channels) {
                    Ok(id) => {
                        let taken = Arc::clone(&socket);
                        scope.spawn(move || self.channel(id, &taken));
                        channels.push((id, socket));
                    }
                    Err(why) => return DestinationEnd::Failed(why),
                }
            }
        }
        let Some(main) = main else {
            return DestinationEnd::Waiting;
        };
        // A further connection is accepted and closed at any time.
        scope.spawn(|| {
            while !self.own.is_set() {
                if listener.accept(Duration::from_millis(20)).is_err() {
                    return;
                }
            }
        });
        let end = self.main(&main);
        match &end {
            DestinationEnd::Loaded(_) => {
                for (_, channel) in &channels {
                    channel.shutdown(Shutdown::Both);
                }
                self.own.sleep(self.behaviour.gap);
                self.finish(&main)
            }
            DestinationEnd::Failed(_) => {
                if self.plan.shape.return_path && self.behaviour.says_failure {
                    say(&main, &Message::Shut(1));
                }
                end
            }
            _ => end,
        }
    }

    fn check_hello(
        &self,
        hello: &[u8; Hello::LEN],
        channels: &[(u8, Arc<Socket>)],
    ) -> Result<u8, String> {
        let hello = Hello::parse(hello).map_err(|fault| format!("a hello: {fault}"))?;
        let id = hello.channel;
        if hello.uuid != self.plan.shape.uuid {
            return Err(format!("channel {id} of another VM"));
        }
        if id >= self.behaviour.channels {
            return Err(format!("channel {id} of {}", self.behaviour.channels));
        }
        if channels.iter().any(|(other, _)| *other == id) {
            return Err(format!("channel {id} comes twice"));
        }
        Ok(id)
    }

    /// Says SHUT, if there is a return path.
    fn finish(&self, main: &Socket) -> DestinationEnd {
        let refuses = self.behaviour.refuses;
        {
            let mut state = locked(&self.state);
            if state.killed {
                return DestinationEnd::Killed(false);
            }
            if !refuses {
                state.said = Some(Instant::now());
            }
        }
        if self.plan.shape.return_path {
            say(main, &Message::Shut(u32::from(refuses)));
        }
        main.shutdown(Shutdown::Both);
        if refuses {
            DestinationEnd::Refused
        } else {
            DestinationEnd::Loaded(Vec::new())
        }
    }

    /// Reads main to its end.
    fn main(&self, main: &Socket) -> DestinationEnd {
        let expected = self.plan.main();
        // The first four bytes were checked already.
        let mut at = 4;
        let mut acts = self.plan.acts.iter();
        let mut next = acts.next();
        let mut buffer = vec![0; 64 << 10];
        while at < expected.len() {
            while let Some((place, act)) = next
                && *place <= at
            {
                if let Err(end) = self.act(act, main) {
                    return end;
                }
                next = acts.next();
            }
            // It reads only as far as the next mark.
            let until = next.map_or(expected.len(), |(place, _)| *place);
            let most = (until - at).min(self.most(buffer.len()));
            match main.read(&mut buffer[..most]) {
                Ok(0) => {
                    let all = expected.len();
                    return self.broken(format!("main ends after {at} of {all} bytes"));
                }
                Ok(read) => {
                    if buffer[..read] != expected[at..at + read] {
                        let text = format!("{ANOTHER_MAIN} at {at} or soon after");
                        return DestinationEnd::Corrupt(text);
                    }
                    at += read;
                    if let Some(end) = self.taken(Who::Main, at as u64, read, main) {
                        return end;
                    }
                }
                Err(error) => return self.broken(format!("main: {error}")),
            }
        }
        if self.own.is_set() {
            return self.broken("the run".to_owned());
        }
        DestinationEnd::Loaded(Vec::new())
    }

    fn broken(&self, why: String) -> DestinationEnd {
        if self.stop.is_set() {
            DestinationEnd::Stuck(why)
        } else {
            DestinationEnd::Failed(why)
        }
    }

    fn act(&self, act: &Act, main: &Socket) -> Result<(), DestinationEnd> {
        match act {
            Act::Ping(value) => say(main, &Message::Pong(*value)),
            Act::Zero(block, offset) => {
                let mut state = locked(&self.state);
                let written = state.memory.write(block, *offset, &[0; PAGE]);
                written.map_err(DestinationEnd::Corrupt)?;
            }
            Act::Mark => self.mark()?,
        }
        Ok(())
    }

    /// Waits for a SYNC of every channel.
    fn mark(&self) -> Result<(), DestinationEnd> {
        let mut state = locked(&self.state);
        loop {
            if state.channels.iter().all(|channel| channel.syncs > 0) {
                for channel in &mut state.channels {
                    channel.syncs -= 1;
                }
                state.released += 1;
                self.changed.notify_all();
                return Ok(());
            }
            let late = state.channels.iter().enumerate();
            let mut late = late.filter(|(_, channel)| channel.syncs == 0);
            let dead = late.find_map(|(id, channel)| Some((id, channel.ended.clone()?)));
            if self.own.is_set() {
                drop(state);
                return Err(self.broken("main waits at a mark".to_owned()));
            }
            if let Some((id, why)) = dead {
                let text = format!("main waits for the SYNC of channel {id}: {why}");
                return Err(DestinationEnd::Frozen(text));
            }
            let wait = self.changed.wait_timeout(state, Duration::from_millis(10));
            state = wait.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
    }

    /// One channel's thread.
    fn channel(&self, id: u8, socket: &Socket) {
        let why = match self.channel_loop(id, socket) {
            Ok(why) => why,
            Err(corrupt) => {
                let text = format!("channel {id}: {corrupt}");
                locked(&self.state).corrupt.get_or_insert(text.clone());
                text
            }
        };
        if let Some(channel) = locked(&self.state).channels.get_mut(usize::from(id)) {
            channel.ended = Some(why);
        }
        self.changed.notify_all();
    }

    /// Reads a channel to its end. Returns the reason of the end, or an error if it read bytes that
    /// no source has sent.
    fn channel_loop(&self, id: u8, socket: &Socket) -> Result<String, String> {
        let limits = Limits::default().with_page_size(PageSize::K4);
        let mut receiver = ChannelReceiver::new(limits);
        let mut hello = &crate::plan::hello(self.plan.shape.uuid, id)[..];
        receiver
            .push(&mut hello)
            .map_err(|fault| fault.to_string())?;
        let mut decoder = Decoder::new(self.behaviour.method);
        let (mut at, mut syncs) = (Hello::LEN as u64, 0_u64);
        let mut packet = None;
        let mut payload = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let most = receiver.wanted().min(self.most(buffer.len()));
            let read = match socket.read(&mut buffer[..most]) {
                Ok(0) => {
                    let whole = match receiver.finish() {
                        Ok(()) => "behind a packet",
                        Err(_) => "inside a packet",
                    };
                    return Ok(format!("the end at {at}, {whole}"));
                }
                Ok(read) => read,
                Err(error) => return Ok(format!("{error} at {at}")),
            };
            at += read as u64;
            if self.taken(Who::Channel(id), at, read, socket).is_some() {
                return Ok("killed".to_owned());
            }
            let mut rest = &buffer[..read];
            while let Some(event) = receiver
                .push(&mut rest)
                .map_err(|fault| format!("{fault} at {at}"))?
            {
                match event {
                    Event::Packet(Packet::Ram(ram)) => packet = Some(ram),
                    Event::Packet(Packet::DeviceState(_)) => {
                        return Err("a packet of device state".to_owned());
                    }
                    Event::Payload(piece) => payload.extend_from_slice(piece),
                    Event::Hello(_) | Event::Padding { .. } => {}
                }
            }
            if receiver.payload_remaining() > 0 {
                continue;
            }
            let Some(ram) = packet.take() else {
                continue;
            };
            self.apply(&ram, &mut decoder, &payload)?;
            payload.clear();
            if ram.is_sync() {
                syncs += 1;
                if !self.wait_released(id, syncs) {
                    return Ok("the destination has ended".to_owned());
                }
            }
        }
    }

    fn apply(
        &self,
        ram: &multifd_wire::RamPacket,
        decoder: &mut Decoder,
        payload: &[u8],
    ) -> Result<(), String> {
        let name = String::from_utf8_lossy(ram.block().as_bytes()).into_owned();
        let normal = ram.normal();
        let mut pages = Vec::new();
        if !(normal.is_empty() && ram.zero().is_empty()) {
            match ram.method() {
                Ok(method) if method == self.behaviour.method => {}
                method => return Err(format!("a packet in {method:?}")),
            }
        }
        if !normal.is_empty() {
            pages = decoder.decode(payload, normal.len() * PAGE)?;
        }
        let mut state = locked(&self.state);
        for (&offset, page) in normal.iter().zip(pages.chunks(PAGE)) {
            state.memory.write(&name, offset, page)?;
        }
        for &offset in ram.zero() {
            state.memory.write(&name, offset, &[0; PAGE])?;
        }
        Ok(())
    }

    /// Waits at a SYNC until main has reached its mark. Returns false at the destination's end.
    fn wait_released(&self, id: u8, syncs: u64) -> bool {
        let mut state = locked(&self.state);
        if let Some(channel) = state.channels.get_mut(usize::from(id)) {
            channel.syncs += 1;
        }
        self.changed.notify_all();
        while state.released < syncs {
            if self.own.is_set() {
                return false;
            }
            let wait = self.changed.wait_timeout(state, Duration::from_millis(10));
            state = wait.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
        true
    }

    /// The number of bytes to read at a time.
    fn most(&self, room: usize) -> usize {
        self.behaviour
            .slow
            .map_or(room, |(bytes, _)| bytes.min(room))
    }

    /// Counts bytes that were read from a connection, and applies the faults that are due.
    fn taken(&self, who: Who, at: u64, read: usize, socket: &Socket) -> Option<DestinationEnd> {
        for trigger in self.passed {
            trigger.add(read);
        }
        if let Some((_, time)) = self.behaviour.slow {
            self.own.sleep(time);
        }
        if let Some((pause, time)) = self.pause
            && pause.is_fired()
        {
            self.own.sleep(time.saturating_sub(pause.fired_for()));
        }
        if let Some((of, place)) = self.behaviour.resets
            && of == who
            && at >= place
        {
            socket.reset();
        }
        locked(&self.state)
            .killed
            .then_some(DestinationEnd::Killed(false))
    }

    fn die(&self) {
        let mut state = locked(&self.state);
        state.killed = true;
        drop(state);
        self.own.stop();
        self.changed.notify_all();
    }
}

fn say(main: &Socket, message: &Message) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    // A source that has gone does not read it, as with a QEMU.
    let _ = main.write_all(&bytes);
}
