//! Runs through one relay or two, which serve many runs in a row.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use multifd_wire::Method;

use crate::around::Around;
use crate::campaign::Bench;
use crate::destination::DestinationEnd;
use crate::ends::{Ends, migrate};
use crate::link::{self, LinkBehaviour, Target};
use crate::net::{Address, Listener, Stop};
use crate::plan::Plan;
use crate::process::{Bounds, Counts, Multifd};
use crate::random::Random;
use crate::scenario::{Kind, Scenario, Victim};
use crate::source::SourceEnd;
use crate::verdict::{Class, Part, Report, judge};

/// What tells one relay of a pool from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    near: bool,
    method: Method,
    tcp_in: bool,
    tcp_out: bool,
}

/// A relay that is there for many runs.
#[derive(Debug)]
struct Relay {
    name: String,
    process: Multifd,
    address: Address,
    out: Out,
    idle: Counts,
    /// Lines that it has printed in earlier runs.
    seen: usize,
}

/// Where a relay dials.
#[derive(Debug)]
enum Out {
    /// Each run listens at this path by itself.
    Path(PathBuf),
    /// A port has to stay.
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
            && let Some(relay) = self.relays.remove(&key)
        {
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
            &connect.to_string(),
            "--compression",
            key.method.as_str(),
        ];
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
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

    /// Ends all relays, and says what they leave.
    pub fn end(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        for (_, relay) in self.relays.drain() {
            faults.extend(relay.end());
        }
        faults
    }
}

impl Relay {
    fn listen(&self) -> Result<Option<Listener>, String> {
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

    /// Asks it to end, idle as it is.
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
        // What is still there belongs to nobody.
        let _ = fs::remove_dir_all(&process.folder);
        faults
    }
}

/// What a process has open when that does not change for a moment.
fn settled(process: &Multifd, moment: Duration) -> Counts {
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

/// Waits until a process has no more open than before, and answers what it has.
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

/// A second migration beside the first.
struct Beside {
    plan: Plan,
    scenario: Scenario,
    listener: Listener,
}

/// Runs a scenario and judges it.
pub fn run(
    bench: &Bench,
    pool: &mut Pool,
    scenario: &Scenario,
    plan: &Plan,
) -> Result<Class, Vec<String>> {
    let two = scenario.kind == Kind::Relays;
    let [tcp_source, tcp_trunk, tcp_destination] = scenario.tcp;
    let near_key = Key {
        near: true,
        method: if two { scenario.trunk } else { scenario.out },
        tcp_in: tcp_source,
        tcp_out: if two { tcp_trunk } else { tcp_destination },
    };
    let far_key = Key {
        near: false,
        method: scenario.out,
        tcp_in: tcp_trunk,
        tcp_out: tcp_destination,
    };
    let harness = |error: String| vec![format!("campaign: {error}")];
    let near = pool
        .take(bench, near_key, scenario.bounds)
        .map_err(harness)?;
    let far = if two {
        Some(
            pool.take(bench, far_key, Bounds::default())
                .map_err(harness)?,
        )
    } else {
        None
    };
    let mut relays = vec![(near_key, near)];
    relays.extend(far.map(|far| (far_key, far)));
    let outcome = carried(bench, scenario, plan, &mut relays);
    // What has failed is not used again: the next run shall fail by itself.
    let mut faults = outcome.as_ref().err().cloned().unwrap_or_default();
    let keep = faults.is_empty() && scenario.bounds == Bounds::default();
    for (key, relay) in relays {
        if relay.process.ended().is_some() {
            let _ = fs::remove_dir_all(&relay.process.folder);
        } else if keep {
            pool.relays.insert(key, relay);
        } else if faults.iter().any(|fault| fault.starts_with("hang")) {
            relay.process.kill();
            let _ = fs::remove_dir_all(&relay.process.folder);
        } else {
            faults.extend(relay.end());
        }
    }
    if faults.is_empty() {
        outcome
    } else {
        Err(faults)
    }
}

fn carried(
    bench: &Bench,
    scenario: &Scenario,
    plan: &Plan,
    relays: &mut [(Key, Relay)],
) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let run = Run::of(bench, scenario, plan, relays).map_err(harness)?;
    let (ends, beside, hang) = run;
    let mut faults = Vec::new();
    let mut parts = Vec::new();
    let several = scenario.second.is_some() || scenario.duplicate.is_some();
    let loads = std::iter::once(&ends).chain(beside.iter().map(|(_, ends)| ends));
    let loads = loads.filter(|ends| ends.destination.said.is_some()).count();
    let delivered = ends.source.end == SourceEnd::Gave && ends.destination.said.is_some();
    for (index, (_, relay)) in relays.iter_mut().enumerate() {
        let victim = if index == 0 {
            Victim::Near
        } else {
            Victim::Far
        };
        let killed = scenario.kill.is_some_and(|(of, ..)| of == victim);
        let limit = if hang.is_some() {
            Duration::ZERO
        } else {
            SETTLE
        };
        let after = counts_after(&relay.process, relay.idle, limit);
        let mut reports = relay.process.reports(relay.seen);
        let deadline = Instant::now() + Duration::from_secs(5);
        while delivered && reports.is_empty() && !killed && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
            reports = relay.process.reports(relay.seen);
        }
        relay.seen += reports.len();
        let ended = relay.process.ended().is_some();
        let words = || relay.process.printed().1.join(" / ");
        let reports: Vec<_> = reports.iter().map(Report::of).collect();
        let successes = reports
            .iter()
            .filter(|report| matches!(report, Report::Success(_)));
        if several && successes.count() > loads {
            faults.push(format!(
                "words: {} says success more often than guests moved",
                relay.name
            ));
        }
        parts.push(Part {
            name: relay.name.clone(),
            // Whose line it is cannot be told where there are several migrations.
            reports: if several { Vec::new() } else { reports },
            killed: killed || several,
            died: (ended && !killed).then(words),
            counts: (!ended).then_some([relay.idle, after]),
            near: index == 0,
        });
    }
    if let Some(bounds) = Some(scenario.bounds).filter(|bounds| *bounds != Bounds::default())
        && hang.is_none()
    {
        faults.extend(serves_on(bench, relays, bounds));
    }
    let verdict = judge(&ends.evidence(plan.shape.return_path, scenario.excuse, parts, hang));
    let mut class = Class::Delivered;
    match verdict {
        Ok(of) => class = of,
        Err(more) => faults.extend(more),
    }
    for (plan, ends) in &beside {
        if let Err(more) =
            judge(&ends.evidence(plan.shape.return_path, scenario.excuse, Vec::new(), None))
        {
            faults.extend(
                more.into_iter()
                    .map(|fault| format!("{fault} (second migration)")),
            );
        }
    }
    if !faults.is_empty() {
        faults.push(format!(
            "    source: {:?}: {}",
            ends.source.end, ends.source.why
        ));
        faults.push(format!("    destination: {:?}", ends.destination.end));
        for (_, relay) in relays.iter() {
            let (stdout, stderr) = relay.process.printed();
            let last = |lines: &[String]| lines[lines.len().saturating_sub(3)..].join(" / ");
            faults.push(format!(
                "    {}: {} | {}",
                relay.name,
                last(&stdout),
                last(&stderr)
            ));
        }
        return Err(faults);
    }
    Ok(class)
}

/// The ends of a run, those of the migration beside it, and what hung.
type RunEnds = (Ends, Vec<(Plan, Ends)>, Option<String>);

struct Run;

impl Run {
    fn of(
        bench: &Bench,
        scenario: &Scenario,
        plan: &Plan,
        relays: &mut [(Key, Relay)],
    ) -> Result<RunEnds, String> {
        let text = |error: std::io::Error| error.to_string();
        let folder = bench.folder()?;
        let around = Around::default();
        let broken = [Stop::default(), Stop::default()];
        let mut listeners = Vec::new();
        for (_, relay) in relays.iter() {
            listeners.push(relay.listen()?);
        }
        let last = relays.len() - 1;
        let mut own = listeners.pop().flatten();
        let trunk = listeners.pop();
        // A second guest has a destination of its own, behind the same address.
        let mut beside = None;
        let sorted = LinkBehaviour::default();
        let mut sorting = None;
        if let Some(second) = scenario.second {
            let mut random = Random::new(scenario.seed ^ 0x5ec0);
            let mut other = scenario.clone();
            other.shape.blocks = vec![40];
            if !second.same {
                other.shape.uuid[15] ^= 0x77;
            }
            other.source.dials[0].1 = second.delay;
            let plan_beside = Plan::new(other.shape.clone(), &mut random);
            let inner = [folder.join("first"), folder.join("second")];
            let [first, listener] = [Listener::unix(&inner[0]), Listener::unix(&inner[1])];
            let target = Target::ByVm(vec![
                (plan.shape.uuid, Address::Unix(inner[0].clone())),
                (other.shape.uuid, Address::Unix(inner[1].clone())),
            ]);
            sorting = Some((own.replace(first.map_err(text)?), target));
            beside = Some(Beside {
                plan: plan_beside,
                scenario: other,
                listener: listener.map_err(text)?,
            });
        }
        let port = |index: usize| match relays.get(index).map(|(_, relay)| &relay.out) {
            Some(Out::Port(listener)) => Some(listener),
            _ => None,
        };
        let destination_at = own.as_ref().or(port(last)).ok_or("no listener")?;
        let parts: Vec<_> = relays
            .iter()
            .map(|(_, r)| (&r.process, r.address.clone()))
            .collect();
        let default_link = LinkBehaviour::default();

        let ends = thread::scope(|scope| -> Result<_, String> {
            if let Some((outer, target)) = &sorting {
                let outer = outer.as_ref().or(port(last)).ok_or("no listener")?;
                let target = target.clone();
                link::run(scope, &sorted, outer, target, &around.stop, &broken[0]);
            }
            if last > 0 {
                let trunk = trunk.as_ref().and_then(Option::as_ref).or(port(0));
                let target = Target::One(relays[last].1.address.clone());
                let behaviour = scenario.links[1].as_ref().unwrap_or(&default_link);
                let trunk = trunk.ok_or("no trunk")?;
                link::run(scope, behaviour, trunk, target, &around.stop, &broken[1]);
            }
            let (address, passed) =
                around.start(scope, scenario, plan, &folder, &parts, bench.limit)?;
            let stop = &around.stop;
            let other = beside.as_ref().map(|beside| {
                let Beside {
                    plan,
                    scenario,
                    listener,
                } = beside;
                let behaviour = (&scenario.source, &scenario.destination);
                let address = address.clone();
                scope.spawn(move || migrate(plan, behaviour, &address, listener, stop, &[]))
            });
            let behaviour = (&scenario.source, &scenario.destination);
            let first = migrate(plan, behaviour, &address, destination_at, stop, &passed);
            let second = other.map(|other| other.join().map_err(|_| "a thread panicked"));
            around.end();
            let second = match second {
                Some(second) => Some(second??),
                None => None,
            };
            Ok((first?, second))
        });
        let (first, second) = ends?;
        let second = beside
            .map(|beside| beside.plan)
            .zip(second)
            .into_iter()
            .collect();
        drop(own);
        // The links' sockets go with it.
        let _ = fs::remove_dir_all(&folder);
        Ok((first, second, crate::locked(&around.hang).take()))
    }
}

/// A relay without descriptors or threads goes on serving: a migration of one channel goes through.
fn serves_on(bench: &Bench, relays: &mut [(Key, Relay)], bounds: Bounds) -> Vec<String> {
    // With less than this not even one channel has its threads and descriptors.
    if bounds.files.is_some_and(|files| files < 22) || bounds.threads.is_some_and(|most| most < 8) {
        return Vec::new();
    }
    let (mut scenario, _) = Scenario::new(1, &[Kind::Relay]);
    scenario.clear(1);
    scenario.kind = if relays.len() > 1 {
        Kind::Relays
    } else {
        Kind::Relay
    };
    scenario.destination.method = relays[relays.len() - 1].0.method;
    let plan = Plan::new(scenario.shape.clone(), &mut Random::new(1));
    match Run::of(bench, &scenario, &plan, relays) {
        Ok((ends, _, None))
            if ends.source.end == SourceEnd::Gave
                && ends.destination.end == DestinationEnd::Loaded(Vec::new()) =>
        {
            Vec::new()
        }
        Ok((ends, _, hang)) => vec![format!(
            "stopped: it serves nobody after {bounds:?}: source {}, destination {:?}, {hang:?}",
            ends.source.why, ends.destination.end
        )],
        Err(error) => vec![format!("campaign: {error}")],
    }
}

/// How long closed connections may take to be gone.
const SETTLE: Duration = Duration::from_secs(20);
