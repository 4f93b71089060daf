//! Runs between `multifd-bench send` and `multifd receive`.

use std::ffi::OsString;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::around::Around;
use crate::campaign::Bench;
use crate::destination::{DestinationEnd, DestinationReport};
use crate::ends::Ends;
use crate::fault::Fault;
use crate::link::{Happening, LinkFault};
use crate::locked;
use crate::net::{Stop, Trigger};
use crate::plan::{PAGE, Plan, Who};
use crate::process::{Bounds, Multifd};
use crate::scenario::Scenario;
use crate::source::{SourceEnd, SourceReport};
use crate::verdict::{Class, judge};

/// Runs a scenario and judges it.
pub fn run(bench: &Bench, scenario: &Scenario, plan: &Plan) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let folder = bench.folder().map_err(harness)?;
    let outcome = moved(bench, &adapted(scenario), plan, &folder);
    // The rest is not needed.
    let _ = fs::remove_dir_all(&folder);
    outcome
}

/// The network applies to an engine's connections the faults that a made source applies itself.
fn adapted(scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    let mut link = scenario.links[0].take().unwrap_or_default();
    if let Some((who, after, time)) = scenario.source.pause {
        let what = Happening::Stall(time);
        link.faults.push(LinkFault {
            who,
            after,
            back: false,
            what,
        });
    }
    if let Some((who, after, bits)) = scenario.source.flip {
        let what = Happening::Flip(bits);
        link.faults.push(LinkFault {
            who,
            after,
            back: false,
            what,
        });
    }
    if matches!(scenario.fault, Fault::Late | Fault::Reordered) {
        let dials = scenario.source.dials.iter().enumerate();
        let late = dials.map(|(place, (who, delay))| {
            let main = *who == Who::Main;
            let turn = Duration::from_millis(if main { 0 } else { place as u64 });
            (*who, *delay + turn)
        });
        link.late.extend(late);
    }
    let when = scenario.source.cancel.or(scenario.source.kill);
    link.passed
        .extend(when.map(|(at, _)| Arc::new(Trigger::new(at))));
    link.passed
        .extend(scenario.kill.map(|(_, at, _)| Arc::new(Trigger::new(at))));
    scenario.links[0] = Some(link);
    scenario
}

fn moved(
    bench: &Bench,
    scenario: &Scenario,
    plan: &Plan,
    folder: &std::path::Path,
) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let listen = if scenario.tcp[1] {
        "tcp:127.0.0.1:0".to_owned()
    } else {
        format!("unix:{}", folder.join("in").display())
    };
    let arguments: Vec<OsString> = ["receive", "--json", "--listen", &listen]
        .into_iter()
        .map(Into::into)
        .collect();
    let receiver = Multifd::start(&bench.program, &arguments, scenario.bounds, folder);
    let receiver = receiver.map_err(harness)?;
    let address = match receiver.address() {
        Ok(address) => address,
        // With such limits it may report a failure and end before the source dials.
        Err(_) if scenario.bounds != Bounds::default() => return Ok(Class::Kept),
        Err(error) => return Err(harness(error)),
    };

    let around = Around::default();
    let own_kill = Scenario {
        kill: None,
        duplicate: None,
        second: None,
        ..scenario.clone()
    };
    let parts = [(&receiver, address)];
    let pages: usize = plan.shape.blocks.iter().sum();
    let memory = (pages * PAGE).max(1 << 20);
    let link = scenario.links[0].as_ref();
    let triggers = link.map(|link| link.passed.clone()).unwrap_or_default();
    let whens = [
        scenario
            .source
            .cancel
            .or(scenario.source.kill)
            .map(|(_, delay)| (true, delay)),
        scenario.kill.map(|(_, _, delay)| (false, delay)),
    ];
    let cancelled = scenario.source.cancel.is_some();
    // A guest that writes faster than a slow link rightly never moves.
    let slow = link.is_some_and(|link| link.slow.is_some());
    let rate = if slow { "10" } else { "2000" };
    let ended = thread::scope(|scope| -> Result<_, String> {
        let (address, _) = around.start(scope, &own_kill, plan, folder, &parts, bench.limit)?;
        let arguments = [
            "send",
            "--json",
            "--digest",
            "--guest",
            "idle",
            "--guest-rate",
            rate,
            "--timeout",
            "25",
            "--memory",
            &memory.to_string(),
            "--multifd-channels",
            &plan.shape.channels.to_string(),
            "--compression",
            scenario.out.as_str(),
            "--connect",
            &address.to_string(),
        ];
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let sender = Multifd::start(&bench.sender, &arguments, Bounds::default(), folder)?;
        let sender = Arc::new(sender);
        for ((of_sender, delay), trigger) in whens.into_iter().flatten().zip(triggers) {
            let (sender, done) = (Arc::clone(&sender), &around.done);
            let receiver = &receiver;
            scope.spawn(move || {
                if trigger.wait(done) {
                    done.sleep(delay);
                    match (of_sender, cancelled) {
                        (true, true) => sender.terminate(),
                        (true, false) => sender.kill(),
                        (false, _) => receiver.kill(),
                    }
                }
            });
        }
        let sent = waited(&sender, &around.stop, bench.limit);
        let sent_at = Instant::now();
        // A receiver without any connection goes on waiting.
        let patience = match &sent {
            Some(status) if status.success() => bench.limit,
            _ => Duration::from_secs(13),
        };
        let mut received = receiver.wait(patience);
        let asked = received.is_none();
        if asked {
            receiver.terminate();
            received = receiver.wait(Duration::from_secs(60));
        }
        around.end();
        Ok((sender, sent, sent_at, received, asked))
    });
    let (sender, sent, sent_at, received, asked) = ended.map_err(harness)?;
    let hang = locked(&around.hang).take();
    let mut faults = Vec::new();
    if received.is_none() {
        receiver.kill();
        faults.push("hang: the receiver has not ended 60 s after SIGTERM".to_owned());
    }
    let (sent, received) = (
        sent.is_some_and(|status| status.success()),
        received.is_some_and(|status| status.success()) && !asked,
    );
    let digest = |process: &Multifd| {
        let reports = process.reports(0);
        reports
            .last()
            .and_then(|report| report["digest"].as_str().map(str::to_owned))
    };
    // The source compares the digest before it gives its guest up, and does not print it.
    if received && digest(&receiver).is_none() {
        faults.push("wrong: no digest was compared".to_owned());
    }
    let killed = scenario.source.cancel.or(scenario.source.kill).is_some();
    let words = sender.printed().1.join(" / ");
    let unknown = words.contains("has not said whether it runs there");
    let source = match (sent, killed) {
        (true, _) => SourceEnd::Gave,
        (false, true) => SourceEnd::Killed,
        (false, false) => SourceEnd::Kept,
    };
    let mut excuse = scenario.excuse;
    // A flipped magic makes a channel look like a stranger, and engines have a time limit for such
    // connections.
    excuse.standstill = true;
    let receiver_killed = scenario.kill.is_some();
    let end = match received {
        true => DestinationEnd::Loaded(Vec::new()),
        false if receiver_killed => DestinationEnd::Killed(sent),
        false => DestinationEnd::Failed("it ended with a failure".to_owned()),
    };
    let ends = Ends {
        source: SourceReport {
            end: source,
            impatient: false,
            wrote_all: unknown,
            at: sent_at,
            why: words,
        },
        destination: DestinationReport {
            said: (received || (sent && receiver_killed)).then_some(sent_at),
            at: Instant::now(),
            end,
        },
    };
    let mut evidence = ends.evidence(true, excuse, Vec::new(), hang);
    if let Some(bytes) = crate::receivers::left(folder, receiver_killed) {
        evidence.leftovers.push(bytes);
    }
    let class = match judge(&evidence) {
        Ok(class) => Some(class),
        Err(more) => {
            faults.extend(more);
            None
        }
    };
    if let Some(class) = class.filter(|_| faults.is_empty()) {
        return Ok(class);
    }
    for (name, process) in [("send", &*sender), ("receive", &receiver)] {
        let (stdout, stderr) = process.printed();
        let last = |lines: &[String]| lines[lines.len().saturating_sub(3)..].join(" / ");
        let status = process.ended();
        faults.push(format!(
            "    {name}: {status:?} {} | {}",
            last(&stdout),
            last(&stderr)
        ));
    }
    Err(faults)
}

fn waited(process: &Multifd, stop: &Stop, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    while !stop.is_set() && Instant::now() < deadline {
        if let Some(status) = process.wait(Duration::from_millis(20)) {
            return Some(status);
        }
    }
    process.kill();
    None
}
