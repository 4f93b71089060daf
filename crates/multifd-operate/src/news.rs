//! The events of a driven migration, for the caller to report.

use std::time::Duration;

use multifd_relay::relay::{ChannelWaits, Traffic};

use crate::qemu::MigrationStatus;

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum News {
    /// The destination waits for a guest at this address.
    Listening(String),
    /// A migration has come to the relay, from this peer.
    Begun(String),
    /// QEMU's status has changed.
    Status(String),
    /// The progress, about twice a second.
    Progress(Box<Progress>),
    /// Something that an operator may want to know.
    Note(String),
}

/// The progress of a migration.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Since its start.
    pub elapsed: Duration,
    /// QEMU's figures.
    pub qemu: MigrationStatus,
    /// The relay's figures.
    pub traffic: Traffic,
    /// The waits of each of the relay's channels.
    pub waits: Vec<ChannelWaits>,
}
