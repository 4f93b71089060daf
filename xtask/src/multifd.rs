//! Processes of the `multifd` command, built for release.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::{fs, thread};

use serde_json::Value;

use crate::{Result, cargo, run, workspace};

/// Builds the command and says where it is.
pub fn build() -> Result<PathBuf> {
    run(cargo().args(["build", "--quiet", "--release", "--package", "multifd-cli"]))?;
    Ok(workspace().join("target/release/multifd"))
}

/// A running `multifd`. Dropped, it is killed.
pub struct Multifd {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Multifd {
    /// Starts the command.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Multifd> {
        let mut child = Command::new(program)
            .args(arguments)
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
    pub fn end(mut self) -> Result<Value> {
        // Both pipes are read to their ends before waiting, so that neither can fill up.
        let mut stdout = self.child.stdout.take().ok_or("a pipe is missing")?;
        let printed = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        });
        let mut complaints = String::new();
        self.stderr.read_to_string(&mut complaints)?;
        let printed = printed.join().map_err(|_| "a reader has ended early")??;
        if self.child.wait()?.success() {
            Ok(serde_json::from_str(&printed).unwrap_or(Value::Null))
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
        let (far, far_address) = relay(program, folder, "far", destination, "none", options)?;
        let (near, address) = relay(program, folder, "near", &far_address, compression, options)?;
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

fn relay(
    program: &Path,
    folder: &Path,
    name: &str,
    connect: &str,
    compression: &str,
    options: &[&str],
) -> Result<(Multifd, String)> {
    let listen = format!("unix:{}", folder.join(name).display());
    let arguments = [
        "relay",
        "--json",
        "--listen",
        &listen,
        "--connect",
        connect,
        "--compression",
        compression,
    ];
    let mut relay = Multifd::start(program, &[&arguments, options].concat())?;
    let address = relay.address()?;
    Ok((relay, address))
}
