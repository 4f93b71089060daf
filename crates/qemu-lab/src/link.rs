//! A link of a chosen rate between two network namespaces of this machine: what two hosts have between them.

use std::io;
use std::path::Path;
use std::process::Command;

/// How the namespaces' names begin; the owner's process id follows.
const PREFIX: &str = "qemu-lab-";

/// Both addresses are of a block that is set aside for documentation and occurs in no real network (RFC 5737).
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEnd {
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
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", &self.namespace])
            .arg(command.get_program())
            .args(command.get_args());
        inside.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        inside
    }
}

/// Two namespaces, a veth pair between them, and a token bucket at each end. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Link {
    ends: [LinkEnd; 2],
}

impl Link {
    /// Makes a link. `rate` is as `tc` reads it: `1gbit`, `250mbit`.
    ///
    /// # Errors
    /// When `ip` or `tc` (Debian's iproute2) is missing or refuses, with what it said: namespaces take root's rights.
    pub fn new(rate: &str) -> io::Result<Link> {
        sweep();
        let id = std::process::id();
        let end = |side: char, address| LinkEnd {
            namespace: format!("{PREFIX}{id}{side}"),
            address,
        };
        let [left, right] = ADDRESSES;
        let link = Link {
            ends: [end('a', left), end('b', right)],
        };
        let [a, b] = &link.ends;
        for end in &link.ends {
            ip(&["netns", "add", &end.namespace])?;
        }
        let (na, nb) = (&a.namespace, &b.namespace);
        ip(&[
            "link", "add", DEVICE, "netns", na, "type", "veth", "peer", "name", DEVICE, "netns", nb,
        ])?;
        for end in &link.ends {
            let within = ["-n", &end.namespace];
            let address = format!("{}/24", end.address);
            ip(&[&within[..], &["addr", "add", &address, "dev", DEVICE]].concat())?;
            ip(&[&within[..], &["link", "set", DEVICE, "up"]].concat())?;
            ip(&[&within[..], &["link", "set", "lo", "up"]].concat())?;
            let shape = ["qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", rate];
            tc(&[&within[..], &shape, &BUCKET].concat())?;
        }
        Ok(link)
    }

    /// The two ends.
    #[must_use]
    pub fn ends(&self) -> &[LinkEnd; 2] {
        &self.ends
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for end in &self.ends {
            remove(&end.namespace);
        }
    }
}

/// Removes namespaces of processes that were killed before they could.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let owner = name
            .strip_prefix(PREFIX)
            .map(|rest| rest.trim_end_matches(char::is_alphabetic));
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            remove(name);
        }
    }
}

fn remove(namespace: &str) {
    // It may not have been made, or be gone already; nobody can do more about it here.
    let _ = ip(&["netns", "del", namespace]);
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    run("ip", arguments)
}

fn tc(arguments: &[&str]) -> io::Result<()> {
    run("tc", arguments)
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let command = arguments.join(" ");
    Err(io::Error::other(format!(
        "{program} {command}: {}",
        said.trim()
    )))
}

/// The name of either end's device.
const DEVICE: &str = "veth";

/// A bucket that takes a few of the 64 KiB pieces that TCP hands down, and a queue of some milliseconds, as a switch has.
const BUCKET: [&str; 4] = ["burst", "512kb", "latency", "20ms"];
