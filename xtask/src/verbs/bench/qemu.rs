//! `cargo xtask bench qemu`: a busy guest moved by QEMU's own methods, and through relays.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fmt, thread};

use multifd_bench::links::{Link, LinkEnd};
use qemu_lab::{
    Chain, Content, Guest, Hop, Parameters, QemuBinary, SETUP_COMMAND, Version, guest_pages,
};
use serde_json::{Value, json};

use crate::Result;
use crate::multifd::{self, Between, Multifd};

#[derive(clap::Args)]
pub struct Arguments {
    /// The guest's memory: `redis`, `idle`, `noise`, or a file of pages of 4 KiB back to back, as
    /// they are or compressed with zstd
    #[arg(long, value_name = "FILE", default_value = "redis")]
    pages: String,
    /// The guest's memory in MiB, three quarters of it in use
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    #[arg(long, default_value_t = 2)]
    channels: u8,
    /// Pages that the guest writes each second
    #[arg(long, default_value_t = 4000)]
    dirty: u32,
    /// Number of migrations of each kind; kinds take turns
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A link of this rate between two network namespaces, such as 1gbit, instead of the loopback;
    /// or of rates that follow each other in each migration, each with the milliseconds for which
    /// it holds, such as 1gbit:1000,100mbit:2000,10gbit; takes root's rights
    #[arg(long, value_name = "RATES", value_delimiter = ',', value_parser = phase)]
    link: Vec<Phase>,
    /// Only ways whose name contains this, such as `relay zlib`; repeatable
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// File for the figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A rate of a link, and for how long it holds.
#[derive(Clone, Debug)]
struct Phase {
    rate: String,
    time: Duration,
}

fn phase(text: &str) -> std::result::Result<Phase, std::num::ParseIntError> {
    let (rate, time) = match text.split_once(':') {
        Some((rate, milliseconds)) => (rate, Duration::from_millis(milliseconds.parse()?)),
        None => (text, Duration::MAX),
    };
    let rate = rate.to_owned();
    Ok(Phase { rate, time })
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rate)?;
        match self.time {
            Duration::MAX => Ok(()),
            time => write!(f, " for {time:?}"),
        }
    }
}

/// Changes a link's rate from phase to phase, until it is dropped.
pub(super) struct Schedule<'a> {
    _end: mpsc::Sender<()>,
    thread: Option<thread::ScopedJoinHandle<'a, std::io::Result<()>>>,
}

impl<'a> Schedule<'a> {
    fn start(scope: &'a thread::Scope<'a, '_>, link: &'a Link, phases: &'a [Phase]) -> Self {
        let (end, ends) = mpsc::channel();
        let work = move || {
            for phase in phases {
                link.set_rate(&phase.rate)?;
                if ends.recv_timeout(phase.time) != Err(mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
            }
            Ok(())
        };
        Self {
            _end: end,
            thread: Some(scope.spawn(work)),
        }
    }

    fn end(mut self) -> Result<()> {
        let thread = self.thread.take();
        drop(self);
        let ended = thread.map_or(Ok(Ok(())), thread::ScopedJoinHandle::join);
        Ok(ended.map_err(|_| "the link's thread has panicked")??)
    }
}

/// A way to move a guest.
pub(super) struct Way {
    name: &'static str,
    /// The method written by the source, and the one read by the destination.
    qemu: [&'static str; 2],
    /// The methods written by the relays at the source and at the destination, if any, and options
    /// after them.
    relays: [Option<&'static str>; 2],
    between: Between,
    /// Without it, there is a single stream.
    multifd: bool,
    /// Pages that are sent again go over the trunk as differences.
    delta: bool,
}

static WAYS: [Way; 18] = [
    Way::plain("qemu none", "none"),
    Way::plain("qemu zlib", "zlib"),
    Way::plain("qemu zstd", "zstd"),
    Way {
        name: "relay zlib, stock zlib QEMU",
        qemu: ["none", "zlib"],
        relays: [Some("zlib"), None],
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, zlib",
        qemu: ["none", "none"],
        relays: [Some("zlib"), Some("none")],
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, zstd",
        qemu: ["none", "none"],
        relays: [Some("zstd"), Some("none")],
        ..Way::plain("", "")
    },
    Way {
        name: "relay zlib auto, stock zlib QEMU",
        qemu: ["none", "zlib"],
        relays: [Some("zlib --effort auto"), None],
        ..Way::plain("", "")
    },
    Way {
        name: "relay zstd auto, stock zstd QEMU",
        qemu: ["none", "zstd"],
        relays: [Some("zstd --effort auto"), None],
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, none, trunk",
        qemu: ["none", "none"],
        relays: [Some("none"), Some("none")],
        between: Between::Trunk,
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, zlib, trunk",
        qemu: ["none", "none"],
        relays: [Some("zlib"), Some("none")],
        between: Between::Trunk,
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, zstd 3, trunk",
        qemu: ["none", "none"],
        relays: [Some("zstd --zstd-level 3"), Some("none")],
        between: Between::Trunk,
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, auto, trunk",
        qemu: ["none", "none"],
        relays: [Some("auto"), Some("none")],
        between: Between::Trunk,
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, auto, trunk, delta",
        qemu: ["none", "none"],
        relays: [Some("auto"), Some("none")],
        between: Between::Trunk,
        delta: true,
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, zstd, trunk",
        qemu: ["none", "none"],
        relays: [Some("zstd"), Some("none")],
        between: Between::Trunk,
        ..Way::plain("", "")
    },
    Way {
        name: "two relays, zstd, trunk, delta",
        qemu: ["none", "none"],
        relays: [Some("zstd"), Some("none")],
        between: Between::Trunk,
        delta: true,
        ..Way::plain("", "")
    },
    Way {
        name: "one stream, qemu",
        multifd: false,
        ..Way::plain("", "none")
    },
    Way {
        name: "one stream, trunk",
        qemu: ["none", "none"],
        relays: [Some("none"), Some("none")],
        between: Between::Trunk,
        multifd: false,
        ..Way::plain("", "")
    },
    Way {
        name: "one stream, 4 channels of a trunk",
        qemu: ["none", "none"],
        relays: [Some("none --trunk-channels 4"), Some("none")],
        between: Between::Trunk,
        multifd: false,
        ..Way::plain("", "")
    },
];

impl Way {
    const fn plain(name: &'static str, method: &'static str) -> Self {
        Self {
            name,
            qemu: [method, method],
            relays: [None, None],
            between: Between::QemuTcp,
            multifd: true,
            delta: false,
        }
    }
}

/// Measurements of one migration.
#[derive(Clone, Copy)]
pub(super) struct Figures {
    pub(super) total_ms: f64,
    pub(super) downtime_ms: f64,
    /// Bytes on the wire between the hosts.
    pub(super) bytes: f64,
    /// CPU time of both QEMUs without the guest, and of the relays.
    qemu_cpu_s: f64,
    relay_cpu_s: f64,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let mut seen: Vec<(&Way, Vec<Figures>)> = WAYS
        .iter()
        .filter(|way| {
            let mut words = arguments.only.iter();
            arguments.only.is_empty() || words.any(|words| way.name.contains(words.as_str()))
        })
        .map(|way| (way, Vec::new()))
        .collect();
    if seen.is_empty() {
        let names: Vec<&str> = WAYS.iter().map(|way| way.name).collect();
        return Err(format!(
            "no way has that in its name; there are: {}",
            names.join("; ")
        )
        .into());
    }
    let binary = QemuBinary::find(Version::V10_0)
        .or_else(|| QemuBinary::all().into_iter().next())
        .ok_or_else(|| format!("no QEMU here; to have one: {SETUP_COMMAND}"))?;
    let program = multifd::build()?;
    let link = arguments.link.first();
    let link = link.map(|phase| Link::new(&phase.rate)).transpose()?;
    let rates: Vec<String> = arguments.link.iter().map(Phase::to_string).collect();
    let rates = rates.join(", ");
    let ends = link.as_ref().map(Link::ends);
    let written = arguments.dirty.min(arguments.memory * 192);
    let guest = Guest {
        ram_mib: arguments.memory,
        // Every written page is written again within a second, like hot pages.
        counters: written,
        blinkers: 0,
        still: arguments.memory * 192 - written,
        pages_per_tick: arguments.dirty.div_ceil(100),
        content: Content::Pages(guest_pages(&arguments.pages)?.into()),
        ..Guest::default()
    };
    println!(
        "{binary} under TCG, guest of {} MiB with three quarters in use, {} pages written a second, {} channels, {}",
        arguments.memory,
        guest.pages_per_tick * 100,
        arguments.channels,
        if rates.is_empty() { "loopback" } else { &rates },
    );
    let mut chain = match ends {
        Some([end, _]) => Chain::start_at(end, &binary, &guest, "q35")?,
        None => Chain::start(&binary, &guest, "q35")?,
    };
    let mut hops = 0;
    for run in 1..=arguments.runs.max(1) {
        for (way, figures) in &mut seen {
            // The guest moves back and forth.
            let way_there = ends.map(|[a, b]| if hops % 2 == 0 { [a, b] } else { [b, a] });
            hops += 1;
            let new = thread::scope(|scope| {
                let phases = arguments.link.get(..).filter(|phases| phases.len() > 1);
                let schedule = || {
                    let (link, phases) = link.as_ref().zip(phases)?;
                    Some(Schedule::start(scope, link, phases))
                };
                migrate(
                    &mut chain,
                    &binary,
                    &program,
                    arguments.channels,
                    way,
                    way_there,
                    schedule,
                )
            })?;
            println!(
                "run {run}: {:<33} {:>6.0} ms, {:>4.0} ms down, {:>5.0} MB",
                way.name,
                new.total_ms,
                new.downtime_ms,
                new.bytes / 1e6
            );
            figures.push(new);
        }
    }
    println!(
        "\n{:<33} {:>8} {:>15} {:>8} {:>8} {:>10} {:>11}",
        "medians", "total ms", "(least, most)", "down ms", "MB", "QEMUs' CPU", "relays' CPU"
    );
    for (way, figures) in &mut seen {
        println!("{}", line(way.name, figures));
    }
    if let Some(path) = &arguments.json {
        let rows: Vec<Value> = seen.iter().map(|(way, runs)| row(way.name, runs)).collect();
        let report = json!({
            "qemu": binary.to_string(),
            "memory_mib": arguments.memory,
            "channels": arguments.channels,
            "dirty_pages_per_s": guest.pages_per_tick * 100,
            "link": rates,
            "rows": rows,
        });
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

/// The way with this name.
pub(super) fn way(name: &str) -> Option<&'static Way> {
    WAYS.iter().find(|way| way.name == name)
}

/// Moves the guest once.
pub(super) fn migrate<'s>(
    chain: &mut Chain,
    binary: &QemuBinary,
    program: &Path,
    channels: u8,
    way: &Way,
    ends: Option<[&LinkEnd; 2]>,
    schedule: impl FnOnce() -> Option<Schedule<'s>>,
) -> Result<Figures> {
    let [source, destination] = way.qemu.map(|method| Parameters {
        return_path: true,
        ..match way.multifd {
            true => Parameters::multifd(channels, method),
            false => Parameters {
                channels: None,
                ..Parameters::default()
            },
        }
    });
    let hop = Hop {
        source_parameters: source,
        destination_parameters: destination,
        tcp: true,
        over: ends.map(|[_, to]| to),
        ..Hop::to(binary, &Parameters::default())
    };
    let folder = tempfile::tempdir()?;
    let mut relays = Vec::new();
    let mut changes = None;
    let report = chain.try_hop_via(&hop, |listening| {
        let address;
        (relays, address) = start_relays(program, folder.path(), way, ends, listening)?;
        changes = schedule();
        Ok::<_, crate::Error>(address)
    })?;
    changes.map_or(Ok(()), Schedule::end)?;
    let mut bytes = report.source.ram.transferred;
    let mut relay_cpu = Duration::ZERO;
    for (index, relay) in relays.into_iter().enumerate() {
        let (said, cpu) = relay.end_timed()?;
        relay_cpu += cpu;
        if index == 0 {
            bytes = said["bytes_out"]
                .as_u64()
                .ok_or("a relay has not reported")?;
        }
    }
    let [source, destination] = report.cpu;
    Ok(Figures {
        total_ms: report.source.total_time as f64,
        downtime_ms: report.source.downtime as f64,
        bytes: bytes as f64,
        qemu_cpu_s: (source + destination).as_secs_f64(),
        relay_cpu_s: relay_cpu.as_secs_f64(),
    })
}

/// Starts the relays of a way. Returns them, the source's relay first, and the address for the
/// source to connect to.
fn start_relays(
    program: &Path,
    folder: &Path,
    way: &Way,
    ends: Option<[&LinkEnd; 2]>,
    listening: &str,
) -> Result<(Vec<Multifd>, String)> {
    let mut relays = Vec::new();
    let mut address = listening.to_owned();
    let certificates = folder.join("tls").display().to_string();
    let [near, far] = way.relays;
    if let Some(compression) = far {
        let to = ends.map(|[_, to]| to);
        let host = to.map_or("127.0.0.1", LinkEnd::address);
        let mut options = vec!["--once"];
        let listen = match way.between {
            Between::Trunk => {
                multifd::make_certificates(program, &certificates, host)?;
                options.extend(["--tls-dir", &certificates]);
                format!("trunk:{host}:0")
            }
            Between::ClearTrunk => format!("trunk+tcp:{host}:0"),
            Between::Qemu | Between::QemuTcp => format!("tcp:{host}:0"),
        };
        let legs = [&listen, address.as_str()];
        let (relay, at) = Multifd::relay(to, program, legs, compression, &options)?;
        relays.push(relay);
        address = at;
    }
    if let Some(compression) = near {
        let socket = format!("unix:{}", folder.join("near").display());
        let mut options = vec!["--once"];
        if way.between == Between::Trunk {
            options.extend(["--tls-dir", &certificates]);
        }
        if way.between == Between::Trunk && !way.delta {
            options.extend(["--delta-memory", "0"]);
        }
        let mut words = compression.split(' ');
        let compression = words.next().unwrap_or_default();
        options.extend(words);
        if compression == "zlib" {
            options.extend(["--accel", "software"]);
        }
        let legs = [socket.as_str(), &address];
        let from = ends.map(|[from, _]| from);
        let (relay, at) = Multifd::relay(from, program, legs, compression, &options)?;
        relays.insert(0, relay);
        address = at;
    }
    Ok((relays, address))
}

fn line(name: &str, runs: &[Figures]) -> String {
    let total = sorted(runs, |figures| figures.total_ms);
    format!(
        "{name:<33} {:>8.0} {:>15} {:>8.0} {:>8.0} {:>8.2} s {:>9.2} s",
        median(&total),
        format!("({:.0}, {:.0})", total[0], total[total.len() - 1]),
        median(&sorted(runs, |figures| figures.downtime_ms)),
        median(&sorted(runs, |figures| figures.bytes)) / 1e6,
        median(&sorted(runs, |figures| figures.qemu_cpu_s)),
        median(&sorted(runs, |figures| figures.relay_cpu_s)),
    )
}

fn row(name: &str, runs: &[Figures]) -> Value {
    let total = sorted(runs, |figures| figures.total_ms);
    json!({
        "name": name,
        "runs": runs.len(),
        "total_ms": median(&total),
        "total_ms_least": total[0],
        "total_ms_most": total[total.len() - 1],
        "downtime_ms": median(&sorted(runs, |figures| figures.downtime_ms)),
        "bytes": median(&sorted(runs, |figures| figures.bytes)),
        "qemu_cpu_s": median(&sorted(runs, |figures| figures.qemu_cpu_s)),
        "relay_cpu_s": median(&sorted(runs, |figures| figures.relay_cpu_s)),
    })
}

/// One figure of all runs, sorted. There is at least one run.
fn sorted(runs: &[Figures], figure: impl Fn(&Figures) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
