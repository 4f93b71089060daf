//! Kinds of runs: the parts between the ends, and the protocol between two relays.

use std::fmt;

/// A kind of runs: the parts between the ends, or in the place of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One relay.
    Relay,
    /// Two relays.
    Relays,
    /// `multifd receive` is the destination.
    Receive,
    /// `multifd record` is the destination, and its recording is replayed.
    Record,
    /// `multifd-bench send` to `multifd receive`.
    Engines,
    /// Real QEMUs are the ends, with one or two relays between them.
    Qemu,
    /// Two relays with a trunk in clear between them.
    Trunks,
    /// Two relays with an encrypted trunk between them.
    Tls,
}

/// The protocol between two relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Between {
    /// QEMU's own protocol.
    Qemu,
    /// A trunk in clear.
    Clear,
    /// A trunk over TLS.
    Encrypted,
}

impl Between {
    /// A leg of this protocol at an address that is written as for QEMU.
    #[must_use]
    pub fn leg(self, address: &str) -> String {
        match self {
            Self::Qemu => address.to_owned(),
            Self::Clear => format!("trunk+{address}"),
            Self::Encrypted => address.replacen("tcp:", "trunk:", 1),
        }
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Relay,
        Self::Relays,
        Self::Receive,
        Self::Record,
        Self::Engines,
        Self::Qemu,
        Self::Trunks,
        Self::Tls,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Relays => "relays",
            Self::Receive => "receive",
            Self::Record => "record",
            Self::Engines => "engines",
            Self::Qemu => "qemu",
            Self::Trunks => "trunks",
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
