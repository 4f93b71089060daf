//! Relays for real QEMUs, and what they say.

use std::path::Path;

use serde_json::Value;

use crate::support::{Ended, Multifd};

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
        Relay::listening(&[&arguments, more].concat())
    }

    /// Any command that listens.
    pub fn listening(arguments: &[&str]) -> Relay {
        let mut process = Multifd::start(arguments);
        let address = process.address().to_string();
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

    /// What it says of the next migration that fails.
    pub fn next_complaint(&mut self) -> String {
        self.process.complaint()
    }
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
