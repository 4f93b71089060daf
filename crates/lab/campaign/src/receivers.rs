//! Runs with `multifd receive` or `multifd record` as the destination.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::around::Around;
use crate::campaign::Bench;
use crate::destination::{DestinationBehaviour, DestinationEnd, DestinationReport, receive};
use crate::ends::Ends;
use crate::locked;
use crate::net::{Address, Listener, Stop};
use crate::plan::{Memory, Plan};
use crate::pool::counts_after;
use crate::process::{Bounds, Counts, Multifd};
use crate::random::Random;
use crate::scenario::{Kind, Scenario};
use crate::source::{SourceEnd, SourceReport, send};
use crate::verdict::{Class, judge};

/// Runs a scenario and judges it.
pub fn run(bench: &Bench, scenario: &Scenario, plan: &Plan) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let folder = bench.folder().map_err(harness)?;
    let disk = Disk::new(scenario, &folder).map_err(harness)?;
    let outcome = received(bench, scenario, plan, &folder, &disk);
    drop(disk);
    // The rest is not needed.
    let _ = fs::remove_dir_all(&folder);
    outcome
}

/// The folder that a receiver writes to: for the fault "full disk" a small file system of its own.
struct Disk {
    folder: PathBuf,
    mounted: bool,
    bounds: Bounds,
}

impl Disk {
    fn new(scenario: &Scenario, folder: &Path) -> Result<Self, String> {
        let place = folder.join("disk");
        fs::create_dir_all(&place).map_err(|error| error.to_string())?;
        let mut disk = Self {
            folder: place,
            mounted: false,
            bounds: scenario.bounds,
        };
        if let Some(bytes) = scenario.disk {
            if rustix::process::geteuid().is_root() {
                let mut mount = Command::new("mount");
                mount
                    .args(["-t", "tmpfs", "-o"])
                    .arg(format!("size={bytes},mode=777"));
                mount.arg("campaign").arg(&disk.folder);
                disk.mounted = mount.status().is_ok_and(|status| status.success());
            }
            if !disk.mounted {
                disk.bounds.file_bytes = Some(bytes);
            }
        } else if disk.bounds.threads.is_some() {
            use std::os::unix::fs::PermissionsExt;
            // The receiver is another user then.
            let all = fs::Permissions::from_mode(0o777);
            fs::set_permissions(&disk.folder, all).map_err(|error| error.to_string())?;
        }
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // A receiver that hangs may keep it; it goes with the machine then.
            let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        }
    }
}

fn received(
    bench: &Bench,
    scenario: &Scenario,
    plan: &Plan,
    folder: &Path,
    disk: &Disk,
) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let records = scenario.kind == Kind::Record;
    let output = disk.folder.join(if records { "guest.mfd" } else { "ram" });
    let listen = if scenario.tcp[0] {
        "tcp:127.0.0.1:0".into()
    } else {
        format!("unix:{}", folder.join("in").display())
    };
    let mut arguments: Vec<OsString> = if records {
        vec!["record".into(), "--out".into(), output.clone().into()]
    } else {
        vec![
            "receive".into(),
            "--json".into(),
            "--dump".into(),
            output.clone().into(),
        ]
    };
    arguments.extend(["--listen".into(), listen.into()]);
    let process = Multifd::start(&bench.program, &arguments, disk.bounds, folder);
    let process = process.map_err(harness)?;
    let address = match process.address() {
        Ok(address) => address,
        // With such limits it may report a failure and end before the source dials.
        Err(_) if disk.bounds != Bounds::default() => return Ok(Class::Kept),
        Err(error) => return Err(harness(error)),
    };
    let idle = process.counts();

    let around = Around::default();
    let parts = [(&process, address.clone())];
    let beside = scenario.second.map(|second| {
        let mut other = scenario.clone();
        other.shape.blocks = vec![40];
        if !second.same {
            other.shape.uuid[15] ^= 0x77;
        }
        other.source.dials[0].1 = second.delay;
        let plan = Plan::new(
            other.shape.clone(),
            &mut Random::new(scenario.seed ^ 0x5ec0),
        );
        (plan, other.source)
    });
    let mut ended = None;
    let sources = thread::scope(|scope| -> Result<_, String> {
        let (address, passed) = around.start(scope, scenario, plan, folder, &parts, bench.limit)?;
        let other = beside.as_ref().map(|(plan, behaviour)| {
            let (address, stop) = (address.clone(), &around.stop);
            scope.spawn(move || send(plan, behaviour, &address, stop, &[]))
        });
        let mut sources = vec![send(
            plan,
            &scenario.source,
            &address,
            &around.stop,
            &passed,
        )];
        if let Some(other) = other {
            sources.push(other.join().map_err(|_| "a source panicked")?);
        }
        ended = end_of(&process, idle, &sources, bench.limit);
        around.end();
        Ok(sources)
    });
    let sources = sources.map_err(harness)?;
    let hang = locked(&around.hang).take();
    let (status, asked) = ended.unwrap_or((None, false));
    let judged = Receiver {
        bench,
        scenario,
        plan,
        beside: beside.as_ref().map(|(plan, _)| plan),
        folder,
        output: &output,
        process: &process,
        killed: scenario.kill.is_some(),
        status,
        asked,
    };
    let mut faults = Vec::new();
    let class = judged.judge(&sources, hang, &mut faults);
    if faults.is_empty() {
        return class.ok_or_else(|| vec!["campaign: no verdict".to_owned()]);
    }
    let (stdout, stderr) = process.printed();
    for source in &sources {
        faults.push(format!("    source: {:?}: {}", source.end, source.why));
    }
    let last = |lines: &[String]| lines[lines.len().saturating_sub(3)..].join(" / ");
    faults.push(format!(
        "    {status:?}: {} | {}",
        last(&stdout),
        last(&stderr)
    ));
    Err(faults)
}

/// The end of a receiver, and whether it needed SIGTERM.
type Ended = (Option<ExitStatus>, bool);

/// Waits for a receiver's end. A receiver that has taken no guest may go on waiting without any
/// connection.
fn end_of(
    process: &Multifd,
    idle: Counts,
    sources: &[SourceReport],
    limit: Duration,
) -> Option<Ended> {
    let gave = sources.iter().any(|source| source.end == SourceEnd::Gave);
    // Without a return path the source does not learn that its guest was not taken, and the
    // receiver waits for another source.
    let patience = if gave {
        limit / 2
    } else {
        Duration::from_secs(1)
    };
    if let Some(status) = process.wait(patience) {
        return Some((Some(status), false));
    }
    let left = counts_after(process, idle, Duration::from_secs(15));
    if left.files > idle.files || left.threads > idle.threads {
        return Some((process.wait(limit), false));
    }
    process.terminate();
    Some((process.wait(limit), true))
}

struct Receiver<'a> {
    bench: &'a Bench,
    scenario: &'a Scenario,
    plan: &'a Plan,
    beside: Option<&'a Plan>,
    folder: &'a Path,
    output: &'a Path,
    process: &'a Multifd,
    killed: bool,
    status: Option<ExitStatus>,
    asked: bool,
}

impl Receiver<'_> {
    fn judge(
        &self,
        sources: &[SourceReport],
        hang: Option<String>,
        faults: &mut Vec<String>,
    ) -> Option<Class> {
        let success = self.status.is_some_and(|status| status.success()) && !self.asked;
        let mut ends = vec![DestinationEnd::Failed("it ended with a failure".to_owned())];
        ends.extend(
            self.beside
                .map(|_| DestinationEnd::Failed("another came first".to_owned())),
        );
        if self.status.is_none() {
            faults.push("hang: it has not ended".to_owned());
        }
        if success {
            let plans = std::iter::once(self.plan).chain(self.beside);
            let found: Vec<_> = plans.map(|plan| self.found(plan)).collect();
            let best = found
                .iter()
                .enumerate()
                .min_by_key(|(_, found)| match found {
                    Ok(wrong) => wrong.len(),
                    Err(_) => usize::MAX,
                });
            if let Some((index, found)) = best {
                ends[index] = match found {
                    Ok(wrong) => DestinationEnd::Loaded(wrong.clone()),
                    Err(why) => DestinationEnd::Corrupt(why.clone()),
                };
            }
        }
        if hang.is_none() {
            self.judge_output(success, faults);
        }
        let mut class = None;
        let mut excuse = self.scenario.excuse;
        // The later one of two sources comes too late.
        excuse.failure |= self.beside.is_some();
        excuse.standstill |= self.beside.is_some();
        let plans = std::iter::once(self.plan).chain(self.beside);
        for ((end, source), plan) in ends.into_iter().zip(sources).zip(plans) {
            let loaded = matches!(end, DestinationEnd::Loaded(_) | DestinationEnd::Corrupt(_));
            // A killed receiver may have said SHUT, and the source knows whether it came.
            let end = match end {
                _ if self.killed && !success => {
                    DestinationEnd::Killed(self.has(plan) && source.end == SourceEnd::Gave)
                }
                end => end,
            };
            let ends = Ends {
                source: source.clone(),
                destination: DestinationReport {
                    said: loaded.then(Instant::now),
                    at: Instant::now(),
                    end,
                },
            };
            let evidence = ends.evidence(plan.shape.return_path, excuse, Vec::new(), hang.clone());
            match judge(&evidence) {
                Ok(of) => class = class.or(Some(of)),
                Err(more) => faults.extend(more),
            }
        }
        class
    }

    /// Whether the images are complete and right.
    fn has(&self, plan: &Plan) -> bool {
        self.found(plan).is_ok_and(|wrong| wrong.is_empty())
    }

    /// Compares the kept bytes with the sent ones.
    fn found(&self, plan: &Plan) -> Result<Vec<String>, String> {
        if self.scenario.kind == Kind::Record {
            return self.replayed(plan);
        }
        let read = |(name, _): &(String, Vec<u8>)| {
            let path = self.output.join(format!("{}.ram", name.replace('/', "_")));
            let bytes = fs::read(&path);
            bytes
                .map(|bytes| (name.clone(), bytes))
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        let blocks: Result<Vec<_>, _> = plan.memory.blocks.iter().map(read).collect();
        Ok(Memory { blocks: blocks? }.differences(&plan.memory))
    }

    /// The number of recorded channels in its report.
    fn recorded(&self) -> Option<u8> {
        let (stdout, _) = self.process.printed();
        let line = stdout.last()?;
        let (_, rest) = line.split_once("channels ")?;
        rest.split(',').next()?.parse().ok()
    }

    /// A destination's result from a recording.
    fn replayed(&self, plan: &Plan) -> Result<Vec<String>, String> {
        if !self.output.exists() {
            return Err("there is no recording".to_owned());
        }
        let path = self.folder.join("replay");
        // It may be asked twice.
        let _ = fs::remove_file(&path);
        let listener = Listener::unix(&path).map_err(|error| error.to_string())?;
        let behaviour = DestinationBehaviour {
            // A recording leaves out a channel that was cut off and had no pages, and reports it.
            channels: self
                .recorded()
                .ok_or("it does not say how many channels it has")?,
            method: plan.shape.method,
            refuses: false,
            kill: None,
            resets: None,
            pause: None,
            slow: None,
            ..self.scenario.destination.clone()
        };
        let arguments: Vec<OsString> = vec![
            "replay".into(),
            self.output.into(),
            "--connect".into(),
            Address::Unix(path).to_string().into(),
        ];
        let replay = Multifd::start(
            &self.bench.program,
            &arguments,
            Bounds::default(),
            self.folder,
        )?;
        let (stop, give_up) = (Arc::new(Stop::default()), Stop::default());
        let status = Mutex::new(None);
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                let ended = replay.wait(self.bench.limit);
                if ended.is_none() {
                    replay.kill();
                    stop.stop();
                }
                *locked(&status) = ended;
                give_up.stop();
            });
            receive(plan, &behaviour, &listener, &stop, &give_up, &[])
        });
        let status = locked(&status).take();
        match report.end {
            DestinationEnd::Loaded(wrong) if status.is_some_and(|status| status.success()) => {
                Ok(wrong)
            }
            end => {
                let words = replay.printed().1.join(" / ");
                Err(format!(
                    "a recording cannot be replayed: {end:?}, {status:?}: {words}"
                ))
            }
        }
    }

    /// Checks its messages and its files.
    fn judge_output(&self, success: bool, faults: &mut Vec<String>) {
        use std::os::unix::process::ExitStatusExt;
        let by_signal = self.status.is_some_and(|status| status.signal().is_some());
        let mut left = Vec::new();
        files(self.folder, &mut left);
        left.retain(|path| !path.ends_with("link") && !path.ends_with("replay"));
        // A killed process cannot remove its files.
        if !self.killed && (self.asked || !by_signal) {
            for path in left {
                let name = path.display().to_string();
                let whole = success && !name.ends_with(".partial") && path.starts_with(self.output);
                if !whole {
                    faults.push(format!("left over: {name} of {}", self.scenario.kind));
                }
            }
        }
        if by_signal && !self.killed && !self.asked && self.scenario.disk.is_none() {
            faults.push(format!("ended: by {:?}", self.status));
        }
        let (stdout, _) = self.process.printed();
        let said = stdout
            .iter()
            .any(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
        if self.scenario.kind == Kind::Receive && !said && !self.killed && !self.asked && !by_signal
        {
            faults.push("words: receive --json prints no JSON".to_owned());
        }
    }
}

/// A socket that a process has left, although it was not killed.
#[must_use]
pub fn left(folder: &Path, killed: bool) -> Option<String> {
    let socket = folder.join("in");
    (!killed && socket.exists()).then(|| "a socket".to_owned())
}

/// All files and sockets below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}
