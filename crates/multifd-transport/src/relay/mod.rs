//! The relay: a transcoder between two standard multifd endpoints.
//!
//! It accepts a migration from a source, dials the destination with as many connections, and passes everything on: the main channel as it is,
//! both ways, and each multifd channel packet by packet, with the payloads in the method of its outgoing leg. Channels map one to one, the
//! order inside a channel is kept, and no channel ever waits for another: the destination alone pairs SYNC packets with the main channel.
//!
//! What arrives is recognised packet by packet. A payload that already has the outgoing method is passed on as it is.

mod main_channel;
mod session;

use std::io;
use std::time::Duration;

use multifd_codec::{Backend, PathCounts, Settings, Unsupported};
use multifd_wire::{Limits, Method};

use crate::Address;
use crate::failure::Failure;
use crate::incoming::Acceptor;

/// What a relay does.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Where it dials for every migration.
    pub connect: Address,
    /// The method which it writes towards `connect`.
    pub compression: Method,
    /// How that method is driven, and who computes on both legs.
    pub settings: Settings,
    /// What it accepts from a source.
    pub limits: Limits,
}

/// A relay, listening.
#[derive(Debug)]
pub struct Relay {
    acceptor: Acceptor,
    config: RelayConfig,
}

/// A migration that went through whole.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrationReport {
    /// Multifd channels; 0 for a migration without multifd.
    pub channels: usize,
    /// What went through.
    pub totals: Totals,
    /// How payloads from the source were decoded, if any were.
    pub decoded: Option<Work>,
    /// How payloads for the destination were encoded, if any were. One that has the outgoing method already is passed on.
    pub encoded: Option<Work>,
    /// From the first connection to the last close.
    pub duration: Duration,
}

/// What the codecs of one direction did, over all channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The method read or written.
    pub method: Method,
    /// What computed, at the end of the migration; and why nothing better did, where something better was asked for.
    pub backend: Backend,
    /// Which way the pages went.
    pub pages: PathCounts,
}

/// What has gone through a relay, over all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages with contents on multifd channels.
    pub pages: u64,
    /// Zero pages on multifd channels.
    pub zero_pages: u64,
    /// Bytes read from the source, main channel included.
    pub bytes_in: u64,
    /// Bytes written to the destination, main channel included.
    pub bytes_out: u64,
}

impl RelayConfig {
    /// What will compute what is written, as far as it can be known before the first migration.
    ///
    /// # Errors
    /// When nothing here can write the method, or not with the accelerator asked for.
    pub fn backend(&self) -> Result<Backend, Unsupported> {
        Ok(multifd_codec::encoder(self.compression, &self.settings)?.backend())
    }

    /// What will read pages that arrive each by itself, in methods `qpl` and `canned`: an accelerator reads no others.
    ///
    /// # Errors
    /// When the accelerator asked for cannot.
    pub fn reader(&self) -> Result<Backend, Unsupported> {
        Ok(multifd_codec::decoder(Method::Qpl, &self.settings)?.backend())
    }
}

impl Relay {
    /// Listens on `listen`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(listen: &Address, config: RelayConfig) -> io::Result<Relay> {
        Ok(Relay {
            acceptor: Acceptor::bind(listen)?,
            config,
        })
    }

    /// Where it listens: the port is real even if 0 was asked for.
    pub fn address(&self) -> &Address {
        self.acceptor.address()
    }

    /// Waits for the next migration and passes it through. `progress` is called about twice a second meanwhile.
    ///
    /// Further migrations wait to be accepted until the next call.
    ///
    /// # Errors
    /// The first failure of any channel ends the migration: both legs of all channels are closed, so that the source's guest goes on running.
    pub fn serve_one(
        &mut self,
        progress: &mut dyn FnMut(Totals),
    ) -> Result<MigrationReport, Failure> {
        let incoming = self.acceptor.accept()?;
        session::run(incoming, &self.config, progress)
    }
}
