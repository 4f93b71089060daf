//! Relays for real QEMUs, and what they say.

use std::path::Path;
use std::process::Command;

use multifd_relay::leg::LegAddress;
use qemu_lab::{Chain, Hop, HopReport};
use serde_json::Value;

use crate::support::{Ended, Multifd, program};

/// A relay in front of `connect`, listening beside it on a socket of the same kind.
pub struct Relay {
    process: Multifd,
    /// Where it listens, for a QEMU to connect to.
    pub address: String,
}

impl Relay {
    pub fn start(
        folder: &Path,
        name: &str,
        connect: &str,
        compression: &str,
        more: &[&str],
    ) -> Relay {
        let command = Command::new(program());
        Relay::of(command, folder, name, connect, compression, more)
    }

    /// A relay that is started by a command of its own.
    pub fn of(
        mut command: Command,
        folder: &Path,
        name: &str,
        connect: &str,
        compression: &str,
        more: &[&str],
    ) -> Relay {
        let listen = if connect.starts_with("tcp:") {
            "tcp:127.0.0.1:0".to_owned()
        } else {
            unix(folder, name)
        };
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
        Relay::once_it_listens(Multifd::spawn(command.args(arguments).args(more)))
    }

    /// Any command that listens.
    pub fn listening(arguments: &[&str]) -> Relay {
        Relay::once_it_listens(Multifd::start(arguments))
    }

    fn once_it_listens(mut process: Multifd) -> Relay {
        let leg: LegAddress = (*process).address();
        let address = leg.to_string();
        Relay { process, address }
    }

    /// Waits until it ends by itself.
    pub fn end(self) -> Ended {
        self.process.end()
    }

    /// Ends it at once, as SIGKILL does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// The JSON that it prints of the next migration.
    pub fn next_report(&mut self) -> Value {
        let text = self.process.result();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Why the next migration fails, which it reports in JSON.
    pub fn next_complaint(&mut self) -> String {
        let report = self.next_report();
        assert_eq!(report["confirmed"], false, "{report}");
        let error = report["error"].as_str();
        error
            .unwrap_or_else(|| panic!("this is no failure: {report}"))
            .to_owned()
    }
}

/// Moves the guest through relays for this one migration. `start` is given a folder for sockets and
/// the destination's address, and starts the relay at the destination first; what they report comes
/// in this order too.
pub fn hop_through<const RELAYS: usize>(
    chain: &mut Chain,
    hop: &Hop<'_>,
    start: impl FnOnce(&Path, &str) -> [Relay; RELAYS],
) -> (HopReport, [Value; RELAYS]) {
    let folder = folder();
    let mut relays = None;
    let hopped = chain
        .hop_via(hop, |destination| {
            let started = relays.insert(start(folder.path(), destination));
            started.last().expect("a relay").address.clone()
        })
        .unwrap_or_else(|error| panic!("{hop:?}: {error}"));
    let relays = relays.expect("the destination's address was asked for");
    (hopped, relays.map(|relay| report(relay.end())))
}

/// The JSON that a command printed which went well.
pub fn report(ended: Ended) -> Value {
    let text = ended.well();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A unix address in `folder`.
pub fn unix(folder: &Path, name: &str) -> String {
    format!("unix:{}", folder.join(name).display())
}

/// A folder for sockets, whose paths must be short.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}
