//! Runs between real QEMUs. QMP tells which QEMU has the guest. The memories of both, and the
//! guest's own checks, tell whether it is whole.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_wire::Method;
use qemu_lab::{Config, Guest, LabError, Parameters, Qemu, QemuBinary, QmpError, compare_ram};
use rustix::process::{Pid, Signal, kill_process};

use crate::around::Around;
use crate::campaign::Bench;
use crate::destination::{DestinationEnd, DestinationReport};
use crate::ends::Ends;
use crate::link::{self, LinkBehaviour, Target};
use crate::locked;
use crate::net::{Stop, Trigger};
use crate::plan::Plan;
use crate::pool::{Pool, Relays};
use crate::random::Random;
use crate::scenario::{Scenario, Victim};
use crate::source::{SourceEnd, SourceReport};
use crate::stranger::{Says, Stranger};
use crate::verdict::{Class, judge};

/// Runs a scenario and judges it.
pub fn run(
    bench: &Bench,
    pool: &mut Pool,
    scenario: &Scenario,
    plan: &Plan,
) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let mut random = Random::new(scenario.seed ^ 0x9e3d);
    let binary = binary(&mut random).map_err(harness)?;
    let mut scenario = scenario.clone();
    // A QEMU makes its own socket where the last relay dials.
    scenario.tcp[2] = false;
    // A QEMU's main channel does not state its VM.
    // The guest may write faster than a slow link, until the user gives up.
    let is_slow =
        |link: &Option<LinkBehaviour>| link.as_ref().is_some_and(|link| link.slow.is_some());
    if scenario.links.iter().any(is_slow) {
        scenario.excuse.failure = true;
        scenario.excuse.standstill = true;
    }
    let is_another = |(_, stranger): &(_, Stranger)| stranger.says == Says::OtherHello;
    scenario.excuse.failure |= scenario.strangers.iter().any(is_another);
    let mut relays = pool.relays(bench, &scenario).map_err(harness)?;
    let outcome = moved(bench, &scenario, plan, &binary, &mut random, &mut relays);
    let mut faults = match &outcome {
        Ok(_) => Vec::new(),
        Err(error) => error.clone(),
    };
    pool.put_back(relays, &scenario, &mut faults);
    if faults.is_empty() {
        outcome
    } else {
        faults.push(format!("    {binary}"));
        Err(faults)
    }
}

/// Chooses a QEMU: mostly 10.0, sometimes another one that is installed.
fn binary(random: &mut Random) -> Result<QemuBinary, String> {
    let all = QemuBinary::all();
    let usual = all.iter().find(|binary| binary.release() == (10, 0));
    match usual {
        Some(usual) if random.percent(60) => Ok(usual.clone()),
        _ if all.is_empty() => Err("no QEMU here; cargo xtask setup brings some".to_owned()),
        _ => Ok(random.pick(&all)),
    }
}

/// An action against one part at some time.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Cancel,
    KillSource,
    KillDestination,
    Pause(Duration),
    KillRelay(Victim),
}

/// The actions of a run, with their times.
fn deeds(scenario: &Scenario) -> Vec<(Arc<Trigger>, Duration, Deed)> {
    let at = |when: Option<(u64, Duration)>, deed: Deed| {
        when.map(|(at, delay)| (Arc::new(Trigger::new(at)), delay, deed))
    };
    let pause = scenario.destination.pause;
    let kill = scenario.kill;
    let all = [
        at(scenario.source.cancel, Deed::Cancel),
        at(scenario.source.kill, Deed::KillSource),
        at(scenario.destination.kill, Deed::KillDestination),
        pause.and_then(|(at_byte, time)| at(Some((at_byte, Duration::ZERO)), Deed::Pause(time))),
        kill.and_then(|(victim, at_byte, delay)| {
            at(Some((at_byte, delay)), Deed::KillRelay(victim))
        }),
    ];
    all.into_iter().flatten().collect()
}

struct Machines {
    source: Qemu,
    destination: Qemu,
}

fn start(binary: &QemuBinary, random: &mut Random) -> Result<Machines, LabError> {
    let guest = Guest::default();
    let mut config = Config::new(binary, &guest).machine("q35");
    if random.percent(60) {
        let (a, b) = (random.word() as u32, random.word() & 0xffff_ffff_ffff);
        config = config.uuid(&format!("{a:08x}-1111-4222-8333-{b:012x}"));
    }
    let incoming = config.clone().incoming().paused();
    thread::scope(|scope| {
        let destination = scope.spawn(|| incoming.start());
        let source = config.start();
        let gone = |_| LabError::Guest("a thread has panicked".to_owned());
        Ok(Machines {
            source: source?,
            destination: destination.join().map_err(gone)??,
        })
    })
}

fn moved(
    bench: &Bench,
    scenario: &Scenario,
    plan: &Plan,
    binary: &QemuBinary,
    random: &mut Random,
    relays: &mut Relays,
) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let lab = |error: LabError| vec![format!("campaign: {error:?}")];
    let folder = bench.folder().map_err(harness)?;
    let mut machines = start(binary, random).map_err(lab)?;
    let parameters = |channels: u8, method: Method| Parameters {
        return_path: scenario.shape.return_path,
        ..Parameters::multifd(channels, method.as_str())
    };
    let destination = &mut machines.destination;
    let there = parameters(
        scenario.destination.channels,
        relays.method().map_err(harness)?,
    );
    destination.set_migration(&there).map_err(lab)?;
    let path = relays
        .last()
        .map_err(harness)?
        .path()
        .map(ToOwned::to_owned);
    let path = path.ok_or_else(|| harness("no path".to_owned()))?;
    // The last run's QEMU may have left its socket.
    let _ = fs::remove_file(&path);
    destination
        .listen(&format!("unix:{}", path.display()))
        .map_err(lab)?;
    let here = Parameters {
        max_bandwidth: Some(random.pick(&[2, 8, 32, 400]) << 20),
        ..parameters(scenario.shape.channels, scenario.shape.method)
    };
    machines.source.set_migration(&here).map_err(lab)?;

    let deeds = deeds(scenario);
    let mut own = Scenario {
        kill: None,
        ..scenario.clone()
    };
    let passed = deeds.iter().map(|(trigger, ..)| Arc::clone(trigger));
    own.links[0].get_or_insert_default().passed.extend(passed);
    let around = Around::default();
    let broken = Stop::default();
    let default_link = LinkBehaviour::default();
    // The destination listens at the address that the only relay dials.
    let trunk = match scenario.two {
        true => relays
            .near()
            .and_then(|near| near.listen())
            .map_err(harness)?,
        false => None,
    };
    let parts = relays.parts();
    let seen = thread::scope(|scope| -> Result<Seen, String> {
        let (near, last) = (relays.near()?, relays.last()?);
        if scenario.two {
            let listener = trunk.as_ref().or(near.port()).ok_or("no trunk")?;
            let target = Target::One(last.address.clone());
            let behaviour = scenario.links[1].as_ref().unwrap_or(&default_link);
            link::run(scope, behaviour, listener, target, &around.stop, &broken);
        }
        let limit = 3 * bench.limit;
        let (address, _) = around.start(scope, &own, plan, &folder, &parts, limit)?;
        let pids = [machines.source.id(), machines.destination.id()];
        let (tell, told) = mpsc::channel();
        for (trigger, delay, deed) in deeds {
            let (tell, done) = (tell.clone(), &around.done);
            let victim = match deed {
                Deed::KillRelay(Victim::Near) => Some(&near.process),
                Deed::KillRelay(Victim::Far) => Some(&last.process),
                _ => None,
            };
            scope.spawn(move || {
                if !trigger.wait(done) {
                    return;
                }
                done.sleep(delay);
                match deed {
                    Deed::KillSource => signal(pids[0], Signal::KILL),
                    Deed::KillDestination => signal(pids[1], Signal::KILL),
                    Deed::Pause(time) => {
                        signal(pids[1], Signal::STOP);
                        thread::sleep(time);
                        signal(pids[1], Signal::CONT);
                    }
                    Deed::KillRelay(_) => {
                        if let Some(process) = victim {
                            process.kill();
                        }
                    }
                    Deed::Cancel => {}
                }
                // The run may be over.
                let _ = tell.send(deed);
            });
        }
        let may_freeze = may_freeze(binary, scenario);
        let seen = machines.watch(scenario, &address.to_string(), &told, may_freeze);
        around.end();
        Ok(seen)
    });
    // A relay waits for a connected destination as long as it has bytes for it.
    if matches!(&seen, Ok((ends, _)) if ends.destination.end == DestinationEnd::Waiting) {
        signal(machines.destination.id(), Signal::KILL);
    }
    drop((parts, trunk));
    // The links' sockets go with it.
    let _ = fs::remove_dir_all(&folder);
    let (ends, mut faults) = seen.map_err(harness)?;
    let hang = locked(&around.hang).take();
    let said = ends.destination.said.is_some();
    let delivered = ends.source.end == SourceEnd::Gave && said;
    let parts = relays.judged(scenario, delivered, hang.is_some());
    let verdict = judge(&ends.evidence(scenario.shape.return_path, scenario.excuse, parts, hang));
    match verdict {
        Ok(class) if faults.is_empty() => return Ok(class),
        Ok(_) => {}
        Err(more) => faults.extend(more),
    }
    faults.push(format!(
        "    source: {:?}: {}",
        ends.source.end, ends.source.why
    ));
    faults.push(format!("    destination: {:?}", ends.destination.end));
    let words = |text: String| text.trim_end().replace('\n', " / ");
    faults.push(format!(
        "    source QEMU: {}",
        words(machines.source.stderr())
    ));
    faults.push(format!(
        "    destination QEMU: {}",
        words(machines.destination.stderr())
    ));
    faults.extend(relays.words());
    Err(faults)
}

/// Whether the source may stand still for good by itself. A QEMU before 11.1 sometimes does so in
/// its last round, even without a relay, if the destination is killed.
fn may_freeze(binary: &QemuBinary, scenario: &Scenario) -> bool {
    let own = scenario.links[0].as_ref();
    let is_broken = own.is_some_and(|link| !link.faults.is_empty() || link.cut_all.is_some());
    let is_killed = matches!(scenario.kill, Some((Victim::Near, ..)));
    binary.release() < (11, 1) && (is_broken || is_killed)
}

fn signal(process: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(process as i32) {
        // It may have ended.
        let _ = kill_process(pid, signal);
    }
}

/// The begin of the fault of a source that stands still.
const FROZEN_SOURCE: &str = "frozen: the source";

/// The outcomes of the ends, and their faults.
type Seen = (Ends, Vec<String>);

impl Machines {
    fn watch(
        &mut self,
        scenario: &Scenario,
        address: &str,
        told: &mpsc::Receiver<Deed>,
        may_freeze: bool,
    ) -> Seen {
        let mut faults = Vec::new();
        let mut source = self.watch_source(scenario, address, told, &mut faults);
        if may_freeze && faults.iter().any(|fault| fault.starts_with(FROZEN_SOURCE)) {
            faults.retain(|fault| !fault.starts_with(FROZEN_SOURCE));
            source.end = SourceEnd::Killed;
        }
        // A pause ends soon, and the migration goes on.
        if let Some((_, time)) = scenario.destination.pause {
            thread::sleep(time);
        }
        signal(self.destination.id(), Signal::CONT);
        let destination = self.watch_destination(scenario, &source, &mut faults);
        let ends = Ends {
            source,
            destination,
        };
        (ends, faults)
    }

    fn watch_source(
        &mut self,
        scenario: &Scenario,
        address: &str,
        told: &mpsc::Receiver<Deed>,
        faults: &mut Vec<String>,
    ) -> SourceReport {
        let source = &mut self.source;
        let mut report = SourceReport {
            end: SourceEnd::Kept,
            impatient: false,
            wrote_all: true,
            at: Instant::now(),
            why: String::new(),
        };
        let killed = scenario.source.kill.is_some();
        let ended = |error: &LabError| matches!(error, LabError::Ended { .. });
        let outcome = (|| -> Result<String, LabError> {
            source.migrate(address)?;
            let deadline = Instant::now() + scenario.source.patience;
            let mut last = deadline + Duration::from_secs(30);
            loop {
                let status = source.migration()?;
                if status.is_final() || Instant::now() > last {
                    let why = status.error_desc.unwrap_or_default();
                    return Ok(format!("{} {why}", status.status));
                }
                let cancel = told.try_iter().any(|deed| matches!(deed, Deed::Cancel));
                let late = Instant::now() > deadline && !report.impatient;
                report.impatient |= late;
                if cancel || late {
                    last = last.min(Instant::now() + Duration::from_secs(30));
                    match source.cancel_migration() {
                        // It may have ended meanwhile.
                        Ok(())
                        | Err(LabError::Qmp {
                            source: QmpError::Refused { .. },
                            ..
                        }) => {}
                        Err(error) => return Err(error),
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        })();
        report.at = Instant::now();
        match outcome {
            Ok(why) => {
                if why.starts_with("completed") {
                    report.end = SourceEnd::Gave;
                } else if let Err(error) = source.check_goes_on(Duration::from_secs(30)) {
                    match error {
                        error if killed && ended(&error) => report.end = SourceEnd::Killed,
                        error => faults.push(format!("stopped: the source after {why}: {error:?}")),
                    }
                }
                report.why = why;
            }
            Err(error) => {
                report.why = format!("{error:?}");
                let hangs = matches!(
                    error,
                    LabError::Qmp {
                        source: QmpError::Hangs { .. },
                        ..
                    }
                );
                if killed {
                    report.end = SourceEnd::Killed;
                } else if hangs {
                    faults.push(format!("{FROZEN_SOURCE}: {error}"));
                } else {
                    faults.push(format!("ended: the source: {error:?}"));
                }
            }
        }
        report
    }

    fn watch_destination(
        &mut self,
        scenario: &Scenario,
        source: &SourceReport,
        faults: &mut Vec<String>,
    ) -> DestinationReport {
        let gave = source.end == SourceEnd::Gave;
        let killed = scenario.destination.kill.is_some();
        let begun = Instant::now();
        let mut first = true;
        let end = loop {
            let status = match self.destination.migration() {
                Ok(status) => status.status,
                Err(LabError::Ended { .. }) if killed => {
                    // The source knows whether the destination had the guest by then.
                    break DestinationEnd::Killed(gave && scenario.shape.return_path);
                }
                Err(LabError::Ended { said, .. }) => break DestinationEnd::Failed(said),
                Err(LabError::Qmp {
                    source: QmpError::Hangs { limit, .. },
                    ..
                }) => {
                    break DestinationEnd::Frozen(format!("QMP has not answered for {limit:?}"));
                }
                Err(error) => break DestinationEnd::Failed(format!("{error:?}")),
            };
            let limit = match status.as_str() {
                "completed" => break self.loaded(source, faults),
                "failed" => break DestinationEnd::Failed("it says failed".to_owned()),
                "active" | "device" => Duration::from_secs(40),
                _ if gave => Duration::from_secs(20),
                _ => Duration::from_millis(400),
            };
            if begun.elapsed() > limit {
                break match status.as_str() {
                    "active" | "device" => DestinationEnd::Stuck(format!("it says {status}")),
                    _ => DestinationEnd::Waiting,
                };
            }
            first = false;
            thread::sleep(Duration::from_millis(5));
        };
        let had = matches!(
            end,
            DestinationEnd::Loaded(_) | DestinationEnd::Killed(true)
        );
        // A destination that has the guest at the first query may have had it for longer.
        let said = had.then(|| if first { source.at } else { Instant::now() });
        DestinationReport {
            end,
            said,
            at: Instant::now(),
        }
    }

    /// Checks the guest at the destination: compares its memory with the source's, and runs the
    /// guest's own checks.
    fn loaded(&mut self, source: &SourceReport, faults: &mut Vec<String>) -> DestinationEnd {
        let mut wrong = Vec::new();
        // A source with its guest goes on writing, so its memory cannot be compared.
        if source.end != SourceEnd::Kept {
            match compare_ram(self.source.ram(), self.destination.ram()) {
                Ok(pages) => wrong.extend(pages.into_iter().map(|page| format!("page {page}"))),
                Err(error) => faults.push(format!("campaign: {error}")),
            }
        }
        match self.destination.check_guest() {
            Ok(_) => {}
            Err(LabError::Memory(fault)) => wrong.push(fault.to_string()),
            Err(error) => faults.push(format!("frozen: {error:?}")),
        }
        DestinationEnd::Loaded(wrong)
    }
}
