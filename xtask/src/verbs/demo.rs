//! `cargo xtask demo`: a running guest moves through two relays. Without a QEMU, a guest without a
//! hypervisor moves between two processes of ours.

use std::fs;
use std::path::Path;
use std::time::Instant;

use qemu_lab::{Chain, Guest, Hop, HopReport, Parameters, QemuBinary, SETUP_COMMAND};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Result;
use crate::multifd::{self, Between, Multifd, RelayPair};
use crate::verbs::recording;

#[derive(clap::Args)]
pub struct Arguments {
    /// Replay a recorded migration through two relays instead
    #[arg(long, conflicts_with = "no_qemu")]
    replay: bool,
    /// Do what is done where there is no QEMU
    #[arg(long)]
    no_qemu: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    println!("Building the multifd command ...");
    let program = multifd::build()?;
    if arguments.replay {
        return replay(&program);
    }
    match newest_qemu() {
        Some(binary) if !arguments.no_qemu => live(&program, &binary),
        Some(_) => guests(&program, &multifd::build_bench()?),
        None => {
            println!("No QEMU here (to have some: {SETUP_COMMAND}), so it is done without.");
            guests(&program, &multifd::build_bench()?)
        }
    }
}

fn newest_qemu() -> Option<QemuBinary> {
    QemuBinary::all()
        .into_iter()
        .max_by_key(QemuBinary::version)
}

fn live(program: &Path, binary: &QemuBinary) -> Result<()> {
    // Half of the memory is in use, and some thousand pages change every second, so the migration
    // takes several rounds.
    let guest = Guest {
        ram_mib: 512,
        counters: 3000,
        blinkers: 500,
        still: 60_000,
        pages_per_tick: 100,
        ..Guest::default()
    };
    let parameters = Parameters {
        return_path: true,
        ..Parameters::multifd(4, "none")
    };
    println!(
        "{binary}: booting a guest of {} MiB under TCG that writes up to {} pages a second ...",
        guest.ram_mib,
        guest.pages_per_tick * 100
    );
    let mut chain = Chain::start(binary, &guest, "q35")?;
    let hop = Hop::to(binary, &parameters);

    println!("Migrating it to a second QEMU, without relays ...");
    let plain = chain.hop(&hop)?;

    println!(
        "Migrating it on to a third one, through two relays with zstd over TLS between them ..."
    );
    let folder = tempfile::tempdir()?;
    let mut relays = None;
    let through = chain.try_hop_via(&hop, |destination| {
        let folder = folder.path();
        let trunk = Between::Trunk;
        let pair = RelayPair::with(trunk, program, folder, destination, "zstd", &["--once"])?;
        Ok::<_, crate::Error>(relays.insert(pair).address.clone())
    })?;
    let relays = relays.ok_or("the migration did not begin")?;
    let [near, _] = relays.end()?;
    if near["confirmed"] != true {
        return Err(format!("the relays do not say that the guest has arrived: {near}").into());
    }
    chain
        .current()
        .wait_for_pass(through.pass + 2, std::time::Duration::from_secs(60))?;

    println!();
    println!(
        "                        total ms  downtime ms  pages sent  MB between hosts  ms these take at 1 Gbit/s"
    );
    line("without relays", &plain, plain.source.ram.transferred);
    line("two relays, zstd", &through, number(&near, "bytes_out"));
    println!();
    println!(
        "There is no link on this one machine: plain pages pass at the speed of its memory, and the relays share its"
    );
    println!(
        "processors with both QEMUs. So the first row has the shorter time here. Between hosts the bytes count: the last"
    );
    println!(
        "column is the least time that they need on a link of 1 Gbit/s. To measure that: cargo xtask bench qemu --help"
    );
    let differences = &near["differences"];
    if let Some(pages) = differences["pages"].as_u64() {
        println!(
            "{pages} pages were sent again, and went as differences: {} bytes for {}.",
            number(differences, "difference_bytes"),
            number(differences, "page_bytes")
        );
    }
    println!(
        "After each migration every byte of memory was the same at both ends and as the guest had left it,"
    );
    println!(
        "and the guest runs on: it has used all its pages {} times.",
        chain.current().pass()?
    );
    Ok(())
}

fn line(name: &str, report: &HopReport, link_bytes: u64) {
    let source = &report.source;
    println!(
        "{name:<22}  {:>8}  {:>11}  {:>10}  {:>16.1}  {:>26.0}",
        source.total_time,
        source.downtime,
        source.ram.normal,
        link_bytes as f64 / 1e6,
        link_bytes as f64 * 8.0 / GBIT_PER_MS
    );
}

/// Bits that a link of 1 Gbit/s carries in a millisecond.
const GBIT_PER_MS: f64 = 1e6;

/// Moves a busy guest from one process to another, with zlib by two backends.
fn guests(program: &Path, bench: &Path) -> Result<()> {
    println!(
        "A guest of 512 MiB in a process of its own, in which a Redis serves 50000 operations a second, is moved to another \
         process: twice, over two channels with zlib."
    );
    println!();
    println!("                        total ms  downtime ms  pages sent  MB sent  ratio  CPU s");
    for (name, accel) in [("by zlib-rs", "none"), ("accelerated", "software")] {
        let receiver = Multifd::start(
            program,
            &["receive", "--json", "--listen", "tcp:127.0.0.1:0"],
        )?;
        let address = receiver.address()?;
        let arguments = ["send", "--json", "--digest", "--connect", &address];
        let guest = ["--guest", "redis", "--memory", "512M"];
        let codec = ["--compression", "zlib", "--accel", accel];
        let (sent, _) =
            Multifd::start(bench, &[&arguments[..], &guest, &codec].concat())?.end_timed()?;
        let (received, _) = receiver.end_timed()?;
        let figure = |name: &str| sent[name].as_f64().unwrap_or(f64::NAN);
        println!(
            "{name:<22}  {:>8.0}  {:>11.0}  {:>10.0}  {:>7.1}  {:>5.2}  {:>5.2}",
            figure("total_time_ms"),
            figure("downtime_ms"),
            figure("normal"),
            figure("transferred") / 1e6,
            figure("ratio"),
            figure("cpu_seconds")
        );
        let digest = received["digest"]
            .as_str()
            .ok_or("no digest was compared")?;
        println!(
            "    by {}; both ends hold {digest}",
            sent["backend"].as_str().unwrap_or_default()
        );
    }
    println!();
    println!(
        "That both ends hold the same was found out while the guest was stopped, which the downtime includes."
    );
    println!("To measure it, also over a link of some rate: cargo xtask bench migrate --help");
    Ok(())
}

fn replay(program: &Path) -> Result<()> {
    let recording = recording::path();
    let expected = fs::read_to_string(recording.with_extension("sha256"))?;
    let (expected, image) = expected
        .trim_end()
        .split_once("  ")
        .ok_or("no hash is recorded")?;
    let folder = tempfile::tempdir()?;
    let dump = folder.path().join("ram");

    println!(
        "Replaying a recorded migration through two relays with zlib between them into `multifd receive` ..."
    );
    let begun = Instant::now();
    let listen = format!("unix:{}", folder.path().join("receive").display());
    let dump_argument = dump
        .to_str()
        .ok_or("the temporary folder's name is no text")?;
    let arguments = [
        "receive",
        "--json",
        "--listen",
        &listen,
        "--dump",
        dump_argument,
    ];
    let receiver = Multifd::start(program, &arguments)?;
    let relays = RelayPair::start(
        program,
        folder.path(),
        &receiver.address()?,
        "zlib",
        &["--once"],
    )?;
    let recording = recording
        .to_str()
        .ok_or("the workspace's path is no text")?;
    Multifd::start(
        program,
        &["replay", recording, "--connect", &relays.address],
    )?
    .end()?;
    let [near, _] = relays.end()?;
    let received = receiver.end()?;

    let found = format!("{:x}", Sha256::digest(fs::read(dump.join(image))?));
    if found != expected {
        return Err(format!("the memory has the hash {found}, and {expected} was recorded").into());
    }
    println!(
        "{} channels, {} pages and {} zero pages in {:.2} s; {} bytes became {} on the link.",
        received["channels"],
        received["pages"],
        received["zero_pages"],
        begun.elapsed().as_secs_f64(),
        number(&near, "bytes_in"),
        number(&near, "bytes_out")
    );
    println!("The memory that arrived has the recorded hash {expected}.");
    Ok(())
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or(0)
}
