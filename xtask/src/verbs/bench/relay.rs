//! `cargo xtask bench relay`: the cost of two relays between two QEMUs on the loopback.

use std::path::{Path, PathBuf};

use qemu_lab::{Chain, Guest, Hop, HopReport, Parameters, QemuBinary, SETUP_COMMAND, Version};

use crate::Result;
use crate::multifd::{self, Between, RelayPair};

#[derive(clap::Args)]
pub struct Arguments {
    /// Number of migrations of each kind; kinds take turns
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The guest's memory in MiB; three quarters of it are nonzero
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    #[arg(long, default_value_t = 8)]
    channels: u8,
    /// The method between the relays; the aim holds for none
    #[arg(long, default_value = "none", value_parser = ["none", "zlib", "zstd"])]
    compression: String,
    /// Protocols between the relays; they take turns
    #[arg(long, value_enum, value_delimiter = ',', default_value = "qemu")]
    between: Vec<Between>,
    /// Connect QEMUs by tcp on the loopback instead of unix sockets
    #[arg(long)]
    tcp: bool,
    /// Another multifd, such as an older one, which takes turns with this tree's
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

/// A relay pair must reach at least this part of the QEMUs' own speed.
const LEAST_PART: f64 = 0.6;

/// The limit of a relay's resident memory, with 8 channels.
const MOST_RESIDENT_KIB: u64 = 64 << 10;

pub fn run(arguments: &Arguments) -> Result<()> {
    let binary = QemuBinary::find(Version::V10_0)
        .or_else(|| QemuBinary::all().into_iter().next())
        .ok_or_else(|| format!("no QEMU here; to have one: {SETUP_COMMAND}"))?;
    let program = multifd::build()?;
    let guest = Guest {
        ram_mib: arguments.memory,
        counters: 256,
        blinkers: 0,
        still: arguments.memory * 192,
        ..Guest::default()
    };
    let parameters = Parameters {
        return_path: true,
        ..Parameters::multifd(arguments.channels, "none")
    };
    let mut chain = Chain::start(&binary, &guest, "q35")?;
    // The guest fills its memory before its first pass; the measurement is of sending it.
    chain
        .current()
        .wait_for_pass(2, std::time::Duration::from_secs(300))?;
    let hop = Hop {
        tcp: arguments.tcp,
        ..Hop::to(&binary, &parameters)
    };

    let mut kinds: Vec<Kind> = arguments
        .between
        .iter()
        .map(|&between| Kind::new(format!("through two, {between:?}"), &program, between))
        .collect();
    if let Some(other) = &arguments.against {
        let between = arguments.between.first().copied();
        let between = between.unwrap_or(Between::Qemu);
        kinds.push(Kind::new("of the other".to_owned(), other, between));
    }
    let (mut plain, mut resident) = (vec![], 0);
    for run in 1..=arguments.runs {
        plain.push(megabytes_per_second(&chain.hop(&hop)?));
        for kind in &mut kinds {
            let (report, peak_kib) =
                hop_through_relays(&mut chain, &hop, kind, &arguments.compression)?;
            kind.rates.push(megabytes_per_second(&report));
            resident = resident.max(peak_kib);
        }
        let rates = kinds.iter().filter_map(|kind| kind.rates.last());
        let rates: Vec<String> = rates.map(|rate| format!("{rate:.0}")).collect();
        println!(
            "run {run}: {:.0} MB/s without relays, {} MB/s through two",
            plain.last().unwrap_or(&f64::NAN),
            rates.join(", ")
        );
    }
    println!();
    println!(
        "{binary}, guest of {} MiB, {} channels, {}:",
        arguments.memory,
        arguments.channels,
        if arguments.tcp { "tcp" } else { "unix" }
    );
    let direct = median(&mut plain);
    println!("    without relays: {}", spread(&mut plain));
    let mut least = f64::INFINITY;
    for kind in &mut kinds {
        let part = median(&mut kind.rates) / direct;
        least = least.min(part);
        let percent = part * 100.0;
        println!(
            "    {}: {}, {percent:.0} %",
            kind.name,
            spread(&mut kind.rates)
        );
    }
    println!("    at least {:.0} % is the aim", LEAST_PART * 100.0);
    println!(
        "    peak resident memory of a relay: {resident} KiB (at most {MOST_RESIDENT_KIB} is the aim)"
    );
    let too_slow = arguments.compression == "none" && least < LEAST_PART;
    if too_slow || resident > MOST_RESIDENT_KIB {
        return Err("the aim was missed".into());
    }
    Ok(())
}

/// Relays of one kind, and their results.
struct Kind {
    name: String,
    program: PathBuf,
    between: Between,
    rates: Vec<f64>,
}

impl Kind {
    fn new(name: String, program: &Path, between: Between) -> Self {
        Self {
            name,
            program: program.to_owned(),
            between,
            rates: Vec::new(),
        }
    }
}

fn hop_through_relays(
    chain: &mut Chain,
    hop: &Hop<'_>,
    kind: &Kind,
    compression: &str,
) -> Result<(HopReport, u64)> {
    let (between, program) = (kind.between, &kind.program);
    let folder = tempfile::tempdir()?;
    let mut started = None;
    let report = chain.try_hop_via(hop, |destination| {
        let pair = RelayPair::with(
            between,
            program,
            folder.path(),
            destination,
            compression,
            &[],
        )?;
        Ok::<_, crate::Error>(started.insert(pair).address.clone())
    })?;
    let pair = started.ok_or("the migration did not begin")?;
    Ok((report, pair.peak_resident_kib()?))
}

/// The source's bytes sent per time, without setup.
fn megabytes_per_second(report: &HopReport) -> f64 {
    let source = &report.source;
    let milliseconds = source.total_time.saturating_sub(source.setup_time).max(1);
    source.ram.transferred as f64 / 1e3 / milliseconds as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &mut [f64]) -> String {
    let median = median(values);
    let (least, most) = (
        values.first().unwrap_or(&median),
        values.last().unwrap_or(&median),
    );
    format!("{median:.0} MB/s (median; {least:.0} to {most:.0})")
}
