//! The campaign catches made relays that break one promise each, and passes relays that break none.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use campaign::campaign::Bench;
use campaign::destination::DestinationEnd;
use campaign::ends::{Ends, migrate};
use campaign::fault::Fault;
use campaign::link::{self, Happening, LinkBehaviour, LinkFault, Target};
use campaign::net::{Listener, Socket, Stop};
use campaign::plan::{Plan, Who};
use campaign::pool::{counts_after, settled};
use campaign::process::{Bounds, Multifd};
use campaign::random::Random;
use campaign::scenario::{Kind, Scenario};
use campaign::source::SourceEnd;
use campaign::verdict::{Class, Confirmed, Excuse, Part, Report, judge};
use multifd_wire::{ChannelReceiver, Event, Limits, Method, Packet, PageSize};

/// A migration without faults, through the parts that `between` puts between its ends.
struct Lab {
    scenario: Scenario,
    plan: Plan,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(return_path: bool) -> Self {
        let (mut scenario, _) = Scenario::new(7, &[Kind::Relay]);
        scenario.clear(2);
        scenario.shape.return_path = return_path;
        scenario.shape.method = Method::None;
        scenario.shape.rounds = 1;
        scenario.shape.devices = 200;
        scenario.destination.method = Method::None;
        let plan = Plan::new(scenario.shape.clone(), &mut Random::new(7));
        let folder = tempfile::tempdir().expect("a folder");
        Self {
            scenario,
            plan,
            folder,
        }
    }

    /// Runs it over a network with this behaviour.
    fn over(&self, behaviour: &LinkBehaviour) -> Ends {
        self.through(|scope, listener, target, stop| {
            let (behaviour, broken) = (behaviour.clone(), Stop::default());
            scope.spawn(move || {
                thread::scope(|scope| {
                    link::run(
                        scope,
                        &behaviour,
                        &listener,
                        Target::One(target),
                        stop,
                        &broken,
                    );
                });
            });
        })
    }

    fn through(
        &self,
        between: impl for<'s> FnOnce(
            &'s thread::Scope<'s, '_>,
            Listener,
            campaign::net::Address,
            &'s Stop,
        ),
    ) -> Ends {
        let here = Listener::unix(&self.folder.path().join("in")).expect("a socket");
        let there = Listener::unix(&self.folder.path().join("out")).expect("a socket");
        let address = here.address().expect("an address");
        let (stop, over) = (Stop::default(), Stop::default());
        thread::scope(|scope| {
            between(scope, here, there.address().expect("an address"), &stop);
            let behaviour = (&self.scenario.source, &self.scenario.destination);
            // A hang is ended, as in a run.
            scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_secs(5);
                while !over.is_set() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(5));
                }
                stop.stop();
            });
            let ends = migrate(&self.plan, behaviour, &address, &there, &stop, &[]);
            over.stop();
            stop.stop();
            ends.expect("both ends")
        })
    }

    fn judge(&self, ends: &Ends, report: Report, excuse: Excuse) -> Result<Class, Vec<String>> {
        let part = Part {
            name: "relay".to_owned(),
            reports: vec![report],
            killed: false,
            died: None,
            counts: None,
            near: true,
        };
        judge(&ends.evidence(self.plan.shape.return_path, excuse, vec![part], None))
    }

    /// The place and the length of a channel's first packet with normal pages.
    fn packet(&self) -> (Who, u64, u64) {
        for id in 0..self.plan.shape.channels {
            let steps = self.plan.steps.iter();
            let mut bytes = self.plan.hellos[usize::from(id)].to_vec();
            bytes.extend(steps.flat_map(|step| step.channels[usize::from(id)].clone()));
            let mut receiver = ChannelReceiver::new(Limits::default().with_page_size(PageSize::K4));
            let mut rest = bytes.as_slice();
            let mut before = rest.len();
            while let Ok(Some(event)) = receiver.push(&mut rest) {
                if let Event::Packet(Packet::Ram(packet)) = &event
                    && packet.payload_len() > 0
                {
                    let start = bytes.len() - before;
                    let header = before - rest.len();
                    let len = header as u64 + u64::from(packet.payload_len());
                    return (Who::Channel(id), start as u64, len);
                }
                before = rest.len();
            }
        }
        panic!("no packet has contents");
    }
}

fn confirmed() -> Report {
    Report::Success(Some(Confirmed::Yes))
}

#[track_caller]
fn assert_fault(outcome: Result<Class, Vec<String>>, word: &str) {
    let faults = outcome.expect_err("a promise is broken");
    assert!(
        faults.iter().any(|fault| fault.starts_with(word)),
        "{word}: {faults:?}"
    );
}

#[test]
fn a_sound_relay_is_sound() {
    for return_path in [true, false] {
        let lab = Lab::new(return_path);
        let ends = lab.over(&LinkBehaviour::default());
        let report = if return_path {
            confirmed()
        } else {
            Report::Success(Some(Confirmed::Unknown))
        };
        let outcome = lab.judge(&ends, report, Excuse::default());
        assert_eq!(outcome, Ok(Class::Delivered), "{ends:?}");
    }
}

#[test]
fn a_lost_packet_is_found() {
    let lab = Lab::new(true);
    let (who, after, len) = lab.packet();
    let what = Happening::Lose(len);
    let faults = vec![LinkFault {
        who,
        after,
        back: false,
        what,
    }];
    let ends = lab.over(&LinkBehaviour {
        faults,
        ..LinkBehaviour::default()
    });
    assert_fault(lab.judge(&ends, confirmed(), Excuse::default()), "wrong");
}

#[test]
fn a_changed_byte_is_found() {
    let lab = Lab::new(true);
    let (who, after, len) = lab.packet();
    let what = Happening::Flip(1);
    let faults = vec![LinkFault {
        back: false,
        who,
        after: after + len - 1,
        what,
    }];
    let ends = lab.over(&LinkBehaviour {
        faults,
        ..LinkBehaviour::default()
    });
    assert_fault(lab.judge(&ends, confirmed(), Excuse::default()), "wrong");
}

#[test]
fn a_channel_cut_before_its_sync_freezes_the_destination() {
    let lab = Lab::new(true);
    let (who, after, _) = lab.packet();
    let faults = vec![LinkFault {
        back: false,
        who,
        after,
        what: Happening::HalfClose,
    }];
    let ends = lab.over(&LinkBehaviour {
        faults,
        ..LinkBehaviour::default()
    });
    let failed = Report::Failure("it broke".to_owned());
    let excuse = Excuse {
        failure: true,
        ..Excuse::default()
    };
    assert_fault(lab.judge(&ends, failed, excuse), "frozen");
}

/// The lie of a made relay about main's answers.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    /// It keeps SHUT for itself.
    Swallows,
    /// It says SHUT(0) itself, and delivers nothing.
    Invents,
    /// It stops passing bytes on.
    Stops,
}

/// A relay that lies.
fn liar(lab: &Lab, lie: Lie) -> Ends {
    lab.through(|scope, listener, target, stop| {
        scope.spawn(move || {
            thread::scope(|scope| {
                while !stop.is_set() {
                    let Ok(Some(near)) = listener.accept(Duration::from_millis(10)) else {
                        continue;
                    };
                    let near = stop.keep(near);
                    let far = Socket::connect(&target, false).expect("the destination");
                    let far = stop.keep(far);
                    scope.spawn(move || lying(scope, lie, &near, &far));
                }
            });
        });
    })
}

fn lying<'s>(scope: &'s thread::Scope<'s, '_>, lie: Lie, near: &Arc<Socket>, far: &Arc<Socket>) {
    const SHUT: &[u8] = b"\0\x01\0\x04\0\0\0\0";
    let (back_near, back_far) = (Arc::clone(near), Arc::clone(far));
    scope.spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(read @ 1..) = back_far.read(&mut bytes) {
            if lie == Lie::Swallows && bytes[..read].windows(8).any(|piece| piece == SHUT) {
                return back_near.shutdown(Shutdown::Both);
            }
            let _ = back_near.write_all(&bytes[..read]);
        }
    });
    let mut bytes = vec![0; 4096];
    let mut passed = 0;
    while let Ok(read @ 1..) = near.read(&mut bytes) {
        if lie == Lie::Invents && passed == 0 && bytes.starts_with(b"QEVM") {
            let _ = near.write_all(SHUT);
        }
        passed += read;
        if lie == Lie::Stops && passed > 3000 {
            thread::sleep(Duration::from_millis(10));
            continue;
        }
        if lie != Lie::Invents || passed < 300 {
            let _ = far.write_all(&bytes[..read]);
        }
    }
    far.shutdown(Shutdown::Write);
}

#[test]
fn a_guest_at_both_ends_is_found() {
    let lab = Lab::new(true);
    let ends = liar(&lab, Lie::Swallows);
    assert_eq!(ends.source.end, SourceEnd::Kept, "{ends:?}");
    assert_eq!(
        ends.destination.end,
        DestinationEnd::Loaded(Vec::new()),
        "{ends:?}"
    );
    assert_fault(lab.judge(&ends, confirmed(), Excuse::default()), "both");
}

#[test]
fn a_guest_at_neither_end_is_found() {
    let lab = Lab::new(true);
    let ends = liar(&lab, Lie::Invents);
    assert_eq!(ends.source.end, SourceEnd::Gave, "{ends:?}");
    let outcome = lab.judge(&ends, confirmed(), Excuse::default());
    assert_fault(outcome.clone(), "neither");
    assert_fault(outcome, "words");
}

#[test]
fn a_relay_that_stops_is_found() {
    let lab = Lab::new(true);
    let ends = liar(&lab, Lie::Stops);
    assert!(ends.source.impatient, "{ends:?}");
    let failed = Report::Failure("it hangs".to_owned());
    assert_fault(lab.judge(&ends, failed, Excuse::default()), "hang");
}

#[test]
fn a_descriptor_and_a_thread_that_stay_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    // A shell stands for a relay: on SIGTERM it opens a file and goes on.
    let script = "trap 'exec 9</dev/null' TERM; echo listening on unix:/nowhere >&2; \
                  while :; do sleep 0.01; done";
    let arguments = ["-c".into(), script.into()];
    let shell = Path::new("/bin/sh");
    let process = Multifd::start(shell, &arguments, Bounds::default(), folder.path());
    let process = process.expect("a shell");
    process.address().expect("it listens");
    let before = settled(&process, Duration::from_millis(100));
    assert_eq!(
        counts_after(&process, before, Duration::from_millis(100)),
        before
    );
    process.terminate();
    let deadline = Instant::now() + Duration::from_secs(20);
    while settled(&process, Duration::from_millis(100)).files == before.files
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(5));
    }
    let after = counts_after(&process, before, Duration::from_millis(100));
    assert_eq!(after.files, before.files + 1);
    let lab = Lab::new(true);
    let ends = lab.over(&LinkBehaviour::default());
    let part = Part {
        name: "relay".to_owned(),
        reports: vec![confirmed()],
        killed: false,
        died: None,
        counts: Some([before, after]),
        near: true,
    };
    let evidence = ends.evidence(true, Excuse::default(), vec![part], None);
    assert_fault(judge(&evidence), "leak");
}

/// The made ends keep every promise with nothing between them, or with a network that breaks
/// nothing. So the campaign's own ends cause none of its findings.
#[test]
fn the_ends_alone_break_no_promise() {
    let here = [
        Fault::None,
        Fault::Late,
        Fault::Reordered,
        Fault::Stall,
        Fault::SlowLink,
        Fault::Cancel,
        Fault::KillSource,
    ];
    let there = [
        Fault::Refuses,
        Fault::DestinationPauses,
        Fault::SlowReader,
        Fault::KillDestination,
    ];
    let mut seen: BTreeMap<Fault, BTreeMap<Class, u32>> = BTreeMap::new();
    let folder = tempfile::tempdir().expect("a folder");
    let bench = Bench::new(
        [Path::new("none"); 2],
        folder.path(),
        Duration::from_secs(60),
    );
    for seed in 0..150 {
        let (mut scenario, _) = Scenario::new(seed, &[Kind::Relay]);
        if !here.contains(&scenario.fault) && !there.contains(&scenario.fault) {
            continue;
        }
        // Nothing between the ends changes the method.
        let (mut again, plan) = Scenario::new(seed, &[Kind::Relay]);
        again.destination.method = plan.shape.method;
        scenario = again;
        let folder = bench.folder().expect("a folder");
        let lab = Lab {
            scenario: scenario.clone(),
            plan,
            folder: tempfile::tempdir_in(folder).expect("a folder"),
        };
        let link = scenario.links[0].clone().unwrap_or_default();
        let ends = lab.over(&link);
        let report = if lab.plan.shape.return_path {
            confirmed()
        } else {
            Report::Success(Some(Confirmed::Unknown))
        };
        let parts = vec![Part {
            name: "network".to_owned(),
            reports: if ends.destination.said.is_some() {
                vec![report]
            } else {
                Vec::new()
            },
            killed: true,
            died: None,
            counts: None,
            near: true,
        }];
        let evidence = ends.evidence(lab.plan.shape.return_path, scenario.excuse, parts, None);
        let class = judge(&evidence);
        let class = class.unwrap_or_else(|faults| panic!("seed {seed}: {faults:?}: {ends:?}"));
        *seen
            .entry(scenario.fault)
            .or_default()
            .entry(class)
            .or_default() += 1;
    }
    for fault in here.iter().chain(&there) {
        assert!(seen.contains_key(fault), "no seed has {fault}: {seen:?}");
    }
    let cancelled = &seen[&Fault::Cancel];
    assert!(cancelled.contains_key(&Class::Kept), "{seen:?}");
}
