//! Processes of the `multifd` under test.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::process::{Pipe, Process};

use crate::net::Address;

/// Users that processes with few threads have run as.
static USERS: AtomicU32 = AtomicU32::new(0);

/// The resource limits of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Descriptors.
    pub files: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Bytes in a file.
    pub file_bytes: Option<u64>,
}

impl Bounds {
    /// The command with these limits.
    fn command(self, program: &Path, folder: &Path) -> Result<Command, String> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(threads) = self.threads {
            // The kernel counts a user's threads, and does not count root's.
            let user = if rustix::process::geteuid().is_root() {
                // Each process has a user of its own, because several run at a time.
                let number = USERS.fetch_add(1, Ordering::Relaxed) % 50;
                let user = 61_000 + std::process::id() % 80 * 50 + number;
                let folder = folder.as_os_str().to_owned();
                let mut chown = Command::new("chown");
                chown.arg(user.to_string()).arg(&folder);
                let done = chown.status().map_err(|error| format!("chown: {error}"))?;
                if !done.success() {
                    return Err(format!("chown ended with {done}"));
                }
                words.extend(["setpriv", "--clear-groups", "--inh-caps=-all"].map(Into::into));
                words.extend([
                    "--bounding-set=-all".into(),
                    format!("--reuid={user}").into(),
                ]);
                user
            } else {
                rustix::process::geteuid().as_raw()
            };
            let most = threads_of(user) + threads;
            words.extend(["prlimit".into(), format!("--nproc={most}:{most}").into()]);
        }
        let mut limits = Vec::new();
        limits.extend(self.files.map(|files| format!("--nofile={files}:{files}")));
        limits.extend(
            self.file_bytes
                .map(|bytes| format!("--fsize={bytes}:{bytes}")),
        );
        if !limits.is_empty() {
            words.push("prlimit".into());
            words.extend(limits.into_iter().map(Into::into));
        }
        words.push(program.into());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        Ok(command)
    }
}

/// The number of a user's threads.
fn threads_of(user: u32) -> u64 {
    let mut threads = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if field("Uid:") == Some(u64::from(user)) {
            threads += field("Threads:").unwrap_or(0);
        }
    }
    threads
}

/// Open resources of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Descriptors.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

/// A running `multifd` or `multifd-bench`. Dropped, it is killed.
#[derive(Debug)]
pub struct Multifd {
    process: Process,
    /// The folder of its sockets and files.
    pub folder: PathBuf,
}

impl Multifd {
    /// Starts it.
    pub fn start(
        program: &Path,
        arguments: &[OsString],
        bounds: Bounds,
        folder: &Path,
    ) -> Result<Self, String> {
        let mut command = bounds.command(program, folder)?;
        let process = Process::start(command.args(arguments));
        Ok(Self {
            process: process
                .map_err(|error| format!("cannot start {}: {error}", program.display()))?,
            folder: folder.to_owned(),
        })
    }

    /// Waits until it listens. Returns the address.
    pub fn address(&self) -> Result<Address, String> {
        match self.process.address(LIMIT) {
            Ok(address) => Address::parse(address.split_whitespace().next().unwrap_or_default()),
            Err(fault) => Err(format!("it does not listen: {fault}")),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its output since the start: results, and messages.
    pub fn printed(&self) -> (Vec<String>, Vec<String>) {
        (
            self.process.lines(Pipe::Stdout),
            self.process.lines(Pipe::Stderr),
        )
    }

    /// The JSON lines that it has printed from line `from` on.
    pub fn reports(&self, from: usize) -> Vec<Value> {
        let lines = self.process.lines(Pipe::Stdout);
        let lines = lines.iter().skip(from);
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line.as_str())))
            .collect()
    }

    /// Its open resources now.
    pub fn counts(&self) -> Counts {
        let entries = |name: &str| {
            let folder = format!("/proc/{}/{name}", self.pid());
            fs::read_dir(folder).map_or(0, Iterator::count)
        };
        Counts {
            files: entries("fd"),
            threads: entries("task"),
        }
    }

    /// Kills it (SIGKILL).
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Whether it has ended, and how.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        if self.ended().is_none()
            && let Some(pid) = Pid::from_raw(self.pid() as i32)
        {
            // It may end at this moment.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Stops or continues it.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid() as i32) {
            // It may have ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end, and for all its output.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }
}

/// The time limit of a start, which takes milliseconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(30);
