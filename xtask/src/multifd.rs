//! Processes of the `multifd` command, built for release.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use qemu_lab::{LinkEnd, cpu_time};
use serde_json::Value;

use crate::{Result, cargo, output, run};

/// Builds the command and says where it is.
pub fn build() -> Result<PathBuf> {
    run(cargo().args(["build", "--quiet", "--release", "--package", "multifd-cli"]))?;
    release("multifd")
}

/// Where a program is that was built for release.
pub fn release(program: &str) -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let target = metadata["target_directory"].as_str();
    let target = target.ok_or("cargo does not say where it builds")?;
    Ok(Path::new(target).join("release").join(program))
}

/// A running `multifd`. Dropped, it is killed.
pub struct Multifd {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Multifd {
    /// Starts the command.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Multifd> {
        Multifd::start_at(None, program, arguments)
    }

    /// Starts a relay towards `connect`, at an end of a link or wherever this process is, and says where it listens.
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
        let mut relay = Multifd::start_at(at, program, &[&arguments, options].concat())?;
        let address = relay.address()?;
        Ok((relay, address))
    }

    fn start_at(at: Option<&LinkEnd>, program: &Path, arguments: &[&str]) -> Result<Multifd> {
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(end) = at {
            command = end.command(&command);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let stderr = child.stderr.take().ok_or("a pipe is missing")?;
        let stderr = BufReader::new(stderr);
        Ok(Multifd { child, stderr })
    }

    /// Waits until it listens, and says where.
    pub fn address(&mut self) -> Result<String> {
        let mut said = String::new();
        while self.stderr.read_line(&mut said)? > 0 {
            if let Some((_, address)) = said.trim_end().rsplit_once("listening on ") {
                return Ok(address.to_owned());
            }
        }
        Err(format!("a multifd does not listen: {}", said.trim_end()).into())
    }

    /// The most memory that it has had resident so far, in KiB.
    pub fn peak_resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = peak.and_then(|text| text.split_whitespace().next());
        Ok(number.ok_or("no VmHWM")?.parse()?)
    }

    /// Waits for its end; the JSON that it printed if it went well.
    pub fn end(self) -> Result<Value> {
        self.end_timed().map(|(printed, _)| printed)
    }

    /// As [`Multifd::end`], and the processor time that it has used.
    pub fn end_timed(mut self) -> Result<(Value, Duration)> {
        // Both pipes are read to their ends before waiting, so that neither can fill up.
        let mut stdout = self.child.stdout.take().ok_or("a pipe is missing")?;
        let printed = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        let mut complaints = String::new();
        self.stderr.read_to_string(&mut complaints)?;
        let printed = printed.join().map_err(|_| "a reader has ended early")??;
        // A process that has ended keeps its times until somebody has waited for it.
        let cpu_time = cpu_time(self.child.id())?;
        if self.child.wait()?.success() {
            let printed = serde_json::from_str(&printed).unwrap_or(Value::Null);
            Ok((printed, cpu_time))
        } else {
            Err(format!("a multifd failed: {}", complaints.trim_end()).into())
        }
    }
}

impl Drop for Multifd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two relays in a row.
pub struct RelayPair {
    /// The relay at the source, and the one at the destination.
    relays: [Multifd; 2],
    /// Where the source is to connect to.
    pub address: String,
}

impl RelayPair {
    /// Starts relays towards `destination` with `compression` between them and `options` besides, listening on sockets in
    /// `folder`.
    pub fn start(
        program: &Path,
        folder: &Path,
        destination: &str,
        compression: &str,
        options: &[&str],
    ) -> Result<RelayPair> {
        let socket = |name| format!("unix:{}", folder.join(name).display());
        let ends = [&socket("far"), destination];
        let (far, far_address) = Multifd::relay(None, program, ends, "none", options)?;
        let ends = [&socket("near"), far_address.as_str()];
        let (near, address) = Multifd::relay(None, program, ends, compression, options)?;
        let relays = [near, far];
        Ok(RelayPair { relays, address })
    }

    /// The most memory that either has had resident so far, in KiB.
    pub fn peak_resident_kib(&self) -> Result<u64> {
        let [near, far] = &self.relays;
        Ok(near.peak_resident_kib()?.max(far.peak_resident_kib()?))
    }

    /// Waits for both to have passed their migration on; what they report of it.
    pub fn end(self) -> Result<[Value; 2]> {
        let [near, far] = self.relays;
        Ok([near.end()?, far.end()?])
    }
}
