//! A link of a chosen rate between two network namespaces of this machine: a simulated network
//! between two hosts.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Stdio};

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEnd {
    /// The path of its namespace.
    namespace: String,
    address: &'static str,
}

impl LinkEnd {
    /// The address at which the other end reaches this one.
    #[must_use]
    pub fn address(&self) -> &str {
        self.address
    }

    /// Runs the command in this end's namespace.
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

    /// Makes the token bucket of this end, or changes its rate.
    fn shape(&self, verb: &str, rate: &str) -> io::Result<()> {
        let shape = ["qdisc", verb, "dev", DEVICE, "root", "tbf", "rate", rate];
        run(self.enter("tc").args(shape).args(BUCKET))
    }

    fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.namespace)).arg(program);
        inside
    }
}

/// Two namespaces, a veth pair between them, and a token bucket at each end.
///
/// The namespaces have no names and are held by two processes, which end together with this one.
/// The link disappears once nothing runs in the namespaces.
#[derive(Debug)]
pub struct Link {
    ends: [LinkEnd; 2],
    _holders: [Holder; 2],
}

impl Link {
    /// Makes a link. `rate` is in the syntax of `tc`: `1gbit`, `250mbit`.
    ///
    /// # Errors
    /// If one of the required programs (Debian's util-linux and iproute2) is missing or fails, with
    /// its message: namespaces require root's rights.
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
            end.shape("add", rate)?;
        }
        Ok(Link {
            ends,
            _holders: holders,
        })
    }

    /// Gives the link another rate. Connections stay.
    ///
    /// # Errors
    /// If tc fails, with its message.
    pub fn set_rate(&self, rate: &str) -> io::Result<()> {
        self.ends
            .iter()
            .try_for_each(|end| end.shape("change", rate))
    }

    /// The two ends.
    #[must_use]
    pub fn ends(&self) -> &[LinkEnd; 2] {
        &self.ends
    }
}

/// A process in a network namespace of its own. It ends when its standard input closes, which
/// happens when this process ends.
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
        // The echo proves that it runs inside the namespace.
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
    // A message that cannot be read is left out.
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

/// Both addresses are from a block reserved for documentation, which no real network uses (RFC
/// 5737).
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// The name of either end's device.
const DEVICE: &str = "veth";

/// A bucket that holds a few of TCP's 64 KiB segments, and a queue of a few milliseconds, as in a
/// switch.
const BUCKET: [&str; 4] = ["burst", "512kb", "latency", "20ms"];
