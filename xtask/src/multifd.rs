//! Processes of the `multifd` command, built for release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use multifd_bench::links::LinkEnd;
use qemu_lab::cpu_time;
use serde_json::Value;
use testkit::process::{Pipe, Process};

use crate::{Result, cargo, output, run};

/// Builds the command `multifd` and returns its path.
pub fn build() -> Result<PathBuf> {
    build_program("multifd-cli", "multifd")
}

/// Builds the command `multifd-bench` and returns its path.
pub fn build_bench() -> Result<PathBuf> {
    build_program("multifd-bench", "multifd-bench")
}

fn build_program(package: &str, program: &str) -> Result<PathBuf> {
    let build = ["build", "--quiet", "--release", "--package", package];
    run(cargo().args(build))?;
    release(program)
}

/// The path of a program built for release.
pub fn release(program: &str) -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    let target = target.ok_or("cargo does not say where it builds")?;
    Ok(Path::new(target).join("release").join(program))
}

/// A running `multifd` or `multifd-bench`. Dropping it kills the process.
pub struct Multifd(Process);

impl Multifd {
    /// Starts the command.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Multifd> {
        Multifd::start_at(None, program, arguments)
    }

    /// Starts a relay towards `connect`, at an end of a link or in this process's namespace, and
    /// returns its address.
    pub fn relay(
        at: Option<&LinkEnd>,
        program: &Path,
        [listen, connect]: [&str; 2],
        compression: &str,
        options: &[&str],
    ) -> Result<(Multifd, String)> {
        let arguments = [
            "relay",
            "--json",
            "--listen",
            listen,
            "--connect",
            connect,
            "--compression",
            compression,
        ];
        let relay = Multifd::start_at(at, program, &[&arguments, options].concat())?;
        let address = relay.address()?;
        Ok((relay, address))
    }

    fn start_at(at: Option<&LinkEnd>, program: &Path, arguments: &[&str]) -> Result<Multifd> {
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(end) = at {
            command = end.command(&command);
        }
        let process = Process::start(&mut command)
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        Ok(Multifd(process))
    }

    /// Waits until it listens and returns the address.
    pub fn address(&self) -> Result<String> {
        Ok(self.0.address(PATIENCE)?)
    }

    /// Its peak of resident memory so far, in KiB.
    pub fn peak_resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.pid()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = peak.and_then(|text| text.split_whitespace().next());
        Ok(number.ok_or("no VmHWM")?.parse()?)
    }

    /// Waits for its end and returns its JSON output, if it succeeded.
    pub fn end(self) -> Result<Value> {
        self.end_timed().map(|(printed, _)| printed)
    }

    /// The same as [`Multifd::end`], with the processor time that it has used.
    pub fn end_timed(self) -> Result<(Value, Duration)> {
        self.0.wait_for_output(Duration::MAX);
        // An ended process keeps its times until it is waited for.
        let cpu_time = cpu_time(self.0.pid())?;
        let status = self.0.wait(PATIENCE);
        if status.is_some_and(|status| status.success()) {
            let printed = self.0.lines(Pipe::Stdout).join("\n");
            let printed = serde_json::from_str(&printed).unwrap_or(Value::Null);
            Ok((printed, cpu_time))
        } else {
            let complaints = self.0.lines(Pipe::Stderr).join("\n");
            Err(format!("a multifd failed: {complaints}").into())
        }
    }
}

/// The time limit for a process to start, or to end after its last output.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes certificates for a server at `host` and its clients, in a new folder.
pub fn make_certificates(program: &Path, folder: &str, host: &str) -> Result<()> {
    let init = ["tls", "init", folder, "--host", host];
    output(Command::new(program).args(init)).map(drop)
}

/// The connection between two relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Between {
    /// A QEMU's own protocol, over a unix socket.
    Qemu,
    /// The same over TCP.
    QemuTcp,
    /// A trunk in clear, over TCP.
    ClearTrunk,
    /// A trunk over TLS.
    Trunk,
}

/// Two relays in a row.
pub struct RelayPair {
    /// The relays at the source and at the destination.
    relays: [Multifd; 2],
    /// The address for the source to connect to.
    pub address: String,
}

impl RelayPair {
    /// Starts relays towards `destination` with `compression` between them and additional
    /// `options`. They listen on sockets in `folder`.
    pub fn start(
        program: &Path,
        folder: &Path,
        destination: &str,
        compression: &str,
        options: &[&str],
    ) -> Result<RelayPair> {
        let between = Between::Qemu;
        Self::with(between, program, folder, destination, compression, options)
    }

    /// The same, with another connection between the relays.
    pub fn with(
        between: Between,
        program: &Path,
        folder: &Path,
        destination: &str,
        compression: &str,
        options: &[&str],
    ) -> Result<RelayPair> {
        let socket = |name| format!("unix:{}", folder.join(name).display());
        let certificates = folder.join("tls").display().to_string();
        let mut options = options.to_vec();
        let listen = match between {
            Between::Qemu => socket("far"),
            Between::QemuTcp => "tcp:127.0.0.1:0".to_owned(),
            Between::ClearTrunk => "trunk+tcp:127.0.0.1:0".to_owned(),
            Between::Trunk => {
                make_certificates(program, &certificates, "127.0.0.1")?;
                options.extend(["--tls-dir", &certificates]);
                "trunk:127.0.0.1:0".to_owned()
            }
        };
        let options = options.as_slice();
        let ends = [&listen, destination];
        let (far, far_address) = Multifd::relay(None, program, ends, "none", options)?;
        let ends = [&socket("near"), far_address.as_str()];
        let (near, address) = Multifd::relay(None, program, ends, compression, options)?;
        let relays = [near, far];
        Ok(RelayPair { relays, address })
    }

    /// The higher of the relays' peaks of resident memory so far, in KiB.
    pub fn peak_resident_kib(&self) -> Result<u64> {
        let [near, far] = &self.relays;
        Ok(near.peak_resident_kib()?.max(far.peak_resident_kib()?))
    }

    /// Waits for both to end their migration and returns their reports.
    pub fn end(self) -> Result<[Value; 2]> {
        let [near, far] = self.relays;
        Ok([near.end()?, far.end()?])
    }
}
