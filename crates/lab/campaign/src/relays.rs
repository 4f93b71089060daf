//! Runs with made peers through one relay or two.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::around::Around;
use crate::campaign::Bench;
use crate::destination::{ANOTHER_MAIN, DestinationEnd};
use crate::ends::{Ends, migrate};
use crate::link::{self, LinkBehaviour, Target};
use crate::net::{Address, Listener, Stop, Trigger};
use crate::plan::Plan;
use crate::pool::{Pool, Relay, Relays};
use crate::process::Bounds;
use crate::random::Random;
use crate::scenario::{Between, Kind, Scenario, Second};
use crate::source::SourceEnd;
use crate::verdict::{Class, Confirmed, Report, judge};

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
    let mut relays = match pool.relays(bench, scenario) {
        Ok(relays) => relays,
        // With such limits it may report a failure and end before the source dials.
        Err(_) if scenario.bounds != Bounds::default() => return Ok(Class::Kept),
        Err(error) => return Err(vec![format!("campaign: {error}")]),
    };
    let outcome = carried(bench, scenario, plan, &mut relays);
    let mut faults = outcome.as_ref().err().cloned().unwrap_or_default();
    pool.put_back(relays, scenario, &mut faults);
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
    relays: &mut Relays,
) -> Result<Class, Vec<String>> {
    let harness = |error: String| vec![format!("campaign: {error}")];
    let run = Run::of(bench, scenario, plan, relays).map_err(harness)?;
    let (mut ends, beside, hang) = run;
    if let (Some(Second { same: true, .. }), DestinationEnd::Corrupt(why)) =
        (scenario.second, &ends.destination.end)
        && why.starts_with(ANOTHER_MAIN)
    {
        // If the two sources look alike, the second one succeeds once the first has failed. If
        // their channels were mixed up, the first one's main would succeed about as often.
        ends.destination.end = DestinationEnd::Failed("the second source came".to_owned());
    }
    let mut faults = Vec::new();
    let loads = std::iter::once(&ends).chain(beside.iter().map(|(_, ends)| ends));
    let loads = loads.filter(|ends| ends.destination.said.is_some()).count();
    let delivered = ends.source.end == SourceEnd::Gave && ends.destination.said.is_some();
    let mut parts = relays.judged(scenario, delivered, hang.is_some());
    let echoes = |link: &LinkBehaviour| link.echo.is_some();
    let echoes = scenario.links[1].as_ref().is_some_and(echoes);
    if scenario.second.is_some() || scenario.duplicate.is_some() || echoes {
        // With several migrations a report's migration is unknown.
        for part in &mut parts {
            let reports = std::mem::take(&mut part.reports);
            // An unconfirmed success claims nothing.
            let success =
                |report: &&Report| matches!(report, Report::Success(None | Some(Confirmed::Yes)));
            if reports.iter().filter(success).count() > loads {
                let name = &part.name;
                faults.push(format!(
                    "words: {name} reports more successes than guests have moved"
                ));
            }
            part.killed = true;
        }
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
        faults.extend(relays.words());
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
        relays: &mut Relays,
    ) -> Result<RunEnds, String> {
        let text = |error: std::io::Error| error.to_string();
        let folder = bench.folder()?;
        let around = Around::default();
        let broken = [Stop::default(), Stop::default()];
        let mut listeners = Vec::new();
        for relay in relays.iter() {
            listeners.push(relay.listen()?);
        }
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
        let (near, last) = (relays.near()?, relays.last()?);
        let destination_at = own.as_ref().or(last.port()).ok_or("no listener")?;
        let parts = relays.parts();
        let mut between = scenario.links[1].clone().unwrap_or_default();
        // Moments count the source's bytes, because a trunk carries fewer bytes.
        let mut cut = None;
        if scenario.between != Between::Qemu
            && let Some((at, delay)) = between.cut_all.take()
        {
            cut = Some((Arc::new(Trigger::new(at)), delay));
        }

        let ends = thread::scope(|scope| -> Result<_, String> {
            if let Some((outer, target)) = &sorting {
                let outer = outer.as_ref().or(last.port()).ok_or("no listener")?;
                let target = target.clone();
                link::run(scope, &sorted, outer, target, &around.stop, &broken[0]);
            }
            if parts.len() > 1 {
                let trunk = trunk.as_ref().and_then(Option::as_ref).or(near.port());
                let target = Target::One(last.address.clone());
                let trunk = trunk.ok_or("no trunk")?;
                link::run(scope, &between, trunk, target, &around.stop, &broken[1]);
            }
            let (address, mut passed) =
                around.start(scope, scenario, plan, &folder, &parts, bench.limit)?;
            let stop = &around.stop;
            if let Some((trigger, delay)) = &cut {
                passed.push(Arc::clone(trigger));
                let broken = &broken[1];
                scope.spawn(move || {
                    if trigger.wait(stop) {
                        stop.sleep(*delay);
                        broken.stop();
                    }
                });
            }
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
            if scenario.between != Between::Qemu {
                // A trunk announces its end, so a cut before it is a broken end. If the trunk is
                // broken anyway, relays may wait for this network.
                let most = if scenario.excuse.failure { 100 } else { 5000 };
                let deadline = Instant::now() + Duration::from_millis(most);
                while !relays.iter().all(Relay::is_idle) && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(2));
                }
            }
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

/// Checks that a relay that lacked descriptors or threads still serves a migration of one channel.
fn serves_on(bench: &Bench, relays: &mut Relays, bounds: Bounds) -> Vec<String> {
    // With lower limits not even one channel gets its threads and descriptors.
    if bounds.files.is_some_and(|files| files < 30) || bounds.threads.is_some_and(|most| most < 14)
    {
        return Vec::new();
    }
    let (mut scenario, _) = Scenario::new(1, &[Kind::Relay]);
    scenario.clear(1);
    match relays.method() {
        Ok(method) => scenario.destination.method = method,
        Err(error) => return vec![error],
    }
    let plan = Plan::new(scenario.shape.clone(), &mut Random::new(1));
    match Run::of(bench, &scenario, &plan, relays) {
        Ok((ends, _, None))
            if ends.source.end == SourceEnd::Gave
                && ends.destination.end == DestinationEnd::Loaded(Vec::new()) =>
        {
            Vec::new()
        }
        Ok((ends, _, hang)) => vec![format!(
            "stopped: it serves no migration after {bounds:?}: source {}, destination {:?}, {hang:?}",
            ends.source.why, ends.destination.end
        )],
        Err(error) => vec![format!("campaign: {error}")],
    }
}
