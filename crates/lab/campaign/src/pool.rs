//! Relays that serve many runs in a row.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use multifd_wire::Method;

use crate::campaign::Bench;
use crate::net::{Address, Listener};
use crate::process::{Bounds, Counts, Multifd};
use crate::scenario::{Between, Scenario, Victim};
use crate::verdict::{Part, Report};

/// The properties by which a run chooses a relay of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    near: bool,
    method: Method,
    /// It uses auto.
    auto: bool,
    tcp_in: bool,
    tcp_out: bool,
    /// The protocol between it and the other relay, if there is one.
    between: Between,
    /// Connections of a trunk for each channel.
    strands: u8,
}

impl Key {
    fn of_in(self) -> Between {
        if self.near {
            Between::Qemu
        } else {
            self.between
        }
    }

    fn of_out(self) -> Between {
        if self.near {
            self.between
        } else {
            Between::Qemu
        }
    }
}

/// A relay that serves many runs.
#[derive(Debug)]
pub struct Relay {
    /// Its name in faults.
    pub name: String,
    /// The process.
    pub process: Multifd,
    /// The address that it listens at.
    pub address: Address,
    out: Out,
    idle: Counts,
    /// Lines that it has printed in earlier runs.
    seen: usize,
}

/// The address that a relay dials.
#[derive(Debug)]
enum Out {
    /// A path, at which each run listens anew.
    Path(PathBuf),
    /// A port, which stays open between runs.
    Port(Listener),
}

/// The relays of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    relays: HashMap<Key, Relay>,
}

impl Pool {
    fn take(&mut self, bench: &Bench, key: Key, bounds: Bounds) -> Result<Relay, String> {
        if bounds == Bounds::default()
            && let Some(mut relay) = self.relays.remove(&key)
        {
            // Output of the last run may have come after its end.
            relay.seen = relay.process.reports(0).len();
            return Ok(relay);
        }
        let folder = bench.folder()?;
        let end = if key.near { "near" } else { "far" };
        let name = format!("{end} relay ({})", key.method);
        let listen = if key.tcp_in {
            "tcp:127.0.0.1:0".to_owned()
        } else {
            format!("unix:{}", folder.join("in").display())
        };
        let listen = key.of_in().leg(&listen);
        let out = if key.tcp_out {
            Out::Port(Listener::tcp().map_err(|error| error.to_string())?)
        } else {
            Out::Path(folder.join("out"))
        };
        let connect = match &out {
            Out::Path(path) => Address::Unix(path.clone()),
            Out::Port(listener) => listener.address().map_err(|error| error.to_string())?,
        };
        let arguments = [
            "relay",
            "--json",
            "--listen",
            &listen,
            "--connect",
            &key.of_out().leg(&connect.to_string()),
            "--compression",
            key.method.as_str(),
        ];
        let mut arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        if key.auto {
            arguments.extend(["--effort".into(), "auto".into()]);
        }
        if key.strands > 1 {
            arguments.extend(["--trunk-channels".into(), key.strands.to_string().into()]);
        }
        if key.between == Between::Encrypted {
            arguments.extend(["--tls-dir".into(), bench.certificates()?.into()]);
        }
        let process = Multifd::start(&bench.program, &arguments, bounds, &folder)?;
        let address = process
            .address()
            .map_err(|error| format!("{name}: {error}"))?;
        Ok(Relay {
            idle: settled(&process, Duration::from_millis(5)),
            name,
            process,
            address,
            out,
            seen: 0,
        })
    }

    /// The relays of a run, the source's first.
    pub fn relays(&mut self, bench: &Bench, scenario: &Scenario) -> Result<Relays, String> {
        let two = scenario.two;
        let [tcp_in, tcp_trunk, tcp_out] = scenario.tcp;
        // The method `none` has only one effort.
        let [near_auto, far_auto] = scenario.auto;
        let method = if two { scenario.trunk } else { scenario.out };
        let near = Key {
            near: true,
            method,
            auto: near_auto && method != Method::None,
            tcp_in,
            tcp_out: if two { tcp_trunk } else { tcp_out },
            between: scenario.between,
            strands: scenario.strands,
        };
        let bounds = |victim| match scenario.bounded == victim {
            true => scenario.bounds,
            false => Bounds::default(),
        };
        let mut all = vec![(near, self.take(bench, near, bounds(Victim::Near))?)];
        if two {
            let far = Key {
                near: false,
                method: scenario.out,
                auto: far_auto && scenario.out != Method::None,
                tcp_in: tcp_trunk,
                tcp_out,
                between: scenario.between,
                strands: 1,
            };
            all.push((far, self.take(bench, far, bounds(Victim::Far))?));
        }
        Ok(Relays { all })
    }

    /// Takes relays back after a run with these faults. It ends relays of a run with faults, so
    /// that they cannot spoil the next run.
    pub fn put_back(&mut self, relays: Relays, scenario: &Scenario, faults: &mut Vec<String>) {
        let keep = faults.is_empty() && scenario.bounds == Bounds::default();
        for (key, relay) in relays.all {
            if relay.process.ended().is_some() {
                let _ = fs::remove_dir_all(&relay.process.folder);
            } else if keep {
                self.relays.insert(key, relay);
            } else if faults.iter().any(|fault| fault.starts_with("hang")) {
                relay.process.kill();
                let _ = fs::remove_dir_all(&relay.process.folder);
            } else {
                // Leftovers of an ended relay are checked once, at the end.
                let left = relay.end();
                faults.extend(left.into_iter().filter(|fault| fault.starts_with("hang")));
            }
        }
    }

    /// Ends all relays. Returns the faults that this shows.
    pub fn end(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        for (_, relay) in self.relays.drain() {
            faults.extend(relay.end());
        }
        faults
    }
}

impl Relay {
    /// The port, if the relay dials one.
    #[must_use]
    pub fn port(&self) -> Option<&Listener> {
        match &self.out {
            Out::Port(listener) => Some(listener),
            Out::Path(_) => None,
        }
    }

    /// The path, if the relay dials one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.out {
            Out::Port(_) => None,
            Out::Path(path) => Some(path),
        }
    }

    /// Listens at the address that it dials. A port is open already.
    pub fn listen(&self) -> Result<Option<Listener>, String> {
        match &self.out {
            Out::Path(path) => {
                // A run that was given up may have left it.
                let _ = fs::remove_file(path);
                Listener::unix(path)
                    .map(Some)
                    .map_err(|error| error.to_string())
            }
            Out::Port(listener) => {
                listener.drain();
                Ok(None)
            }
        }
    }

    /// The number of migrations that have begun since its start.
    fn begun(&self) -> usize {
        let (_, words) = self.process.printed();
        let begins = |line: &&String| line.contains("a migration begins, from");
        words.iter().filter(begins).count()
    }

    /// Whether it has no more threads than when it is idle.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.process.counts().threads <= self.idle.threads
    }

    /// Asks the idle relay to end.
    fn end(self) -> Vec<String> {
        let Self {
            name,
            process,
            address,
            out,
            ..
        } = self;
        let mut faults = Vec::new();
        process.terminate();
        if process.wait(Duration::from_secs(60)).is_none() {
            faults.push(format!(
                "hang: {name} is idle and has not ended 60 s after SIGTERM"
            ));
            process.kill();
        }
        drop(out);
        if let Address::Unix(path) = &address
            && path.exists()
        {
            faults.push(format!("left over: the socket of {name}, after SIGTERM"));
        }
        // Nothing uses the folder's other files.
        let _ = fs::remove_dir_all(&process.folder);
        faults
    }
}

/// The relays of one run, the source's first.
#[derive(Debug)]
pub struct Relays {
    all: Vec<(Key, Relay)>,
}

impl Relays {
    /// In the order of the way to the destination.
    pub fn iter(&self) -> impl Iterator<Item = &Relay> {
        self.all.iter().map(|(_, relay)| relay)
    }

    /// The one that the source dials.
    pub fn near(&self) -> Result<&Relay, String> {
        self.iter().next().ok_or_else(|| "no relay".to_owned())
    }

    /// The one that dials the destination.
    pub fn last(&self) -> Result<&Relay, String> {
        self.iter().last().ok_or_else(|| "no relay".to_owned())
    }

    /// Their processes and listening addresses.
    #[must_use]
    pub fn parts(&self) -> Vec<(&Multifd, Address)> {
        self.iter()
            .map(|relay| (&relay.process, relay.address.clone()))
            .collect()
    }

    /// The method that the destination gets.
    pub fn method(&self) -> Result<Method, String> {
        self.all
            .last()
            .map(|(key, _)| key.method)
            .ok_or_else(|| "no relay".to_owned())
    }

    /// Their reports and resources after the run. Waits for reports if the guest was delivered.
    pub fn judged(&mut self, scenario: &Scenario, delivered: bool, hangs: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        for (index, (_, relay)) in self.all.iter_mut().enumerate() {
            let victim = if index == 0 {
                Victim::Near
            } else {
                Victim::Far
            };
            let killed = scenario.kill.is_some_and(|(of, ..)| of == victim);
            let limit = if hangs { Duration::ZERO } else { SETTLE };
            let deadline = Instant::now() + limit;
            let after = loop {
                // A port stays open, so connections that nobody accepts are closed here.
                if let Some(listener) = relay.port() {
                    listener.drain();
                }
                let moment = Duration::from_millis(20).min(limit);
                let after = counts_after(&relay.process, relay.idle, moment);
                let more = after.files > relay.idle.files || after.threads > relay.idle.threads;
                if !more || Instant::now() > deadline || relay.process.ended().is_some() {
                    break after;
                }
            };
            // Each migration that has begun gets a report after its end.
            let deadline = Instant::now() + limit.min(Duration::from_secs(2));
            while relay.process.reports(0).len() < relay.begun()
                && relay.process.ended().is_none()
                && Instant::now() < deadline
            {
                thread::sleep(Duration::from_millis(2));
            }
            let mut reports = relay.process.reports(relay.seen);
            let deadline = Instant::now() + Duration::from_secs(5);
            while delivered && reports.is_empty() && !killed && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
                reports = relay.process.reports(relay.seen);
            }
            relay.seen += reports.len();
            // A part that was killed because of a hang has not ended by itself.
            let ended = relay.process.ended().is_some();
            let words = || relay.process.printed().1.join(" / ");
            parts.push(Part {
                name: relay.name.clone(),
                reports: reports.iter().map(Report::of).collect(),
                killed,
                died: (ended && !killed && !hangs).then(words),
                counts: (!ended).then_some([relay.idle, after]),
                near: index == 0,
            });
        }
        parts
    }

    /// The last messages of each, to explain a fault.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let words = |relay: &Relay| {
            let (stdout, stderr) = relay.process.printed();
            let last = |lines: &[String]| lines[lines.len().saturating_sub(3)..].join(" / ");
            format!("    {}: {} | {}", relay.name, last(&stdout), last(&stderr))
        };
        self.iter().map(words).collect()
    }
}

/// Descriptors and threads of a process, once they are stable.
#[must_use]
pub fn settled(process: &Multifd, moment: Duration) -> Counts {
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut last = process.counts();
    loop {
        thread::sleep(moment);
        let now = process.counts();
        if now == last || Instant::now() > deadline {
            return now;
        }
        last = now;
    }
}

/// Waits until a process has no more open resources than before. Returns its open resources.
pub fn counts_after(process: &Multifd, before: Counts, limit: Duration) -> Counts {
    let deadline = Instant::now() + limit;
    loop {
        let now = process.counts();
        let more = now.files > before.files || now.threads > before.threads;
        if !more || Instant::now() > deadline || process.ended().is_some() {
            return now;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The time limit for the end of closed connections.
const SETTLE: Duration = Duration::from_secs(20);
