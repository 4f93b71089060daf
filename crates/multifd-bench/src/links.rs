//! A link of a chosen rate between two network namespaces of this machine: what two hosts have
//! between them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Stdio};

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEnd {
    /// The path by which its namespace is found.
    namespace: String,
    address: &'static str,
}

impl LinkEnd {
    /// The address that the other end reaches this one at.
    #[must_use]
    pub fn address(&self) -> &str {
        self.address
    }

    /// The command, run in this end's namespace.
    #[must_use]
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = self.enter(command.get_program());
        inside.args(command.get_args());
        inside.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        inside
    }

    fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.namespace)).arg(program);
        inside
    }
}

/// Two namespaces, a veth pair between them, and a token bucket at each end.
///
/// The namespaces have no names and are held by two processes, which end with this one, however it
/// ends. Then all of it is gone, as soon as nothing runs there any more.
#[derive(Debug)]
pub struct Link {
    ends: [LinkEnd; 2],
    _holders: [Holder; 2],
}

impl Link {
    /// Makes a link. `rate` is as `tc` reads it: `1gbit`, `250mbit`.
    ///
    /// # Errors
    /// When one of the programs for it (Debian's util-linux and iproute2) is missing or refuses,
    /// with what it said: namespaces take root's rights.
    pub fn new(rate: &str) -> io::Result<Link> {
        let holders = [Holder::start()?, Holder::start()?];
        let [left, right] = holders.each_ref().map(|holder| holder.child.id());
        run(Command::new("ip").args([
            "link",
            "add",
            DEVICE,
            "netns",
            &left.to_string(),
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "netns",
            &right.to_string(),
        ]))?;
        let end = |pid, address| LinkEnd {
            namespace: format!("/proc/{pid}/ns/net"),
            address,
        };
        let ends = [end(left, ADDRESSES[0]), end(right, ADDRESSES[1])];
        for end in &ends {
            let address = format!("{}/24", end.address);
            run(end
                .enter("ip")
                .args(["addr", "add", &address, "dev", DEVICE]))?;
            run(end.enter("ip").args(["link", "set", DEVICE, "up"]))?;
            run(end.enter("ip").args(["link", "set", "lo", "up"]))?;
            let shape = ["qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", rate];
            run(end.enter("tc").args(shape).args(BUCKET))?;
        }
        Ok(Link {
            ends,
            _holders: holders,
        })
    }

    /// The two ends.
    #[must_use]
    pub fn ends(&self) -> &[LinkEnd; 2] {
        &self.ends
    }
}

/// A process in a network namespace of its own. It ends when its standard input does, which is this
/// process's end.
#[derive(Debug)]
struct Holder {
    child: Child,
}

impl Holder {
    fn start() -> io::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| cannot_start("unshare", &error))?;
        let mut holder = Self { child };
        // What it repeats has been said from within the namespace.
        if holder.repeats(b"\n").is_err() {
            let said = holder.child.stderr.take().map_or_else(String::new, all_of);
            return Err(io::Error::other(format!(
                "no network namespace: {}",
                said.trim()
            )));
        }
        Ok(holder)
    }

    fn repeats(&mut self, line: &[u8]) -> io::Result<()> {
        let lost = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.child
            .stdin
            .as_mut()
            .ok_or_else(lost)?
            .write_all(line)?;
        let output = self.child.stdout.as_mut().ok_or_else(lost)?;
        let mut repeated = Vec::new();
        BufReader::new(output).read_until(b'\n', &mut repeated)?;
        if repeated == line {
            Ok(())
        } else {
            Err(lost())
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may have ended already.
        let _ = self.child.wait();
    }
}

fn all_of(mut stderr: ChildStderr) -> String {
    let mut said = String::new();
    // What cannot be read is not told.
    let _ = stderr.read_to_string(&mut said);
    said
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command
        .output()
        .map_err(|error| cannot_start(&command.get_program().to_string_lossy(), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}", said.trim())))
}

fn cannot_start(program: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
}

/// Both addresses are of a block that is set aside for documentation and occurs in no real network
/// (RFC 5737).
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// The name of either end's device.
const DEVICE: &str = "veth";

/// A bucket that takes a few of the 64 KiB pieces that TCP hands down, and a queue of some
/// milliseconds, as a switch has.
const BUCKET: [&str; 4] = ["burst", "512kb", "latency", "20ms"];
