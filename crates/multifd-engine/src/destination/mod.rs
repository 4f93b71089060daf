//! The destination engine: takes a guest that a [`source`](crate::source) sends.
//!
//! The guest is started when everything has arrived and the source has given it away; until then,
//! any failure leaves it with the source. Everything is every page of every block, as contents or
//! as zero, and the devices' state. Memory beside the guest's own: a packet's pages for each
//! channel, the devices' state up to a limit, and two bits for each page.

mod placing;
mod session;

use std::time::Duration;

use multifd_codec::Settings;
use multifd_transport::Cancel;
use multifd_transport::incoming::Acceptor;
use multifd_wire::{Method, PageSize};

use crate::Failure;
pub use crate::control::Block;
use crate::memory::GuestMemory;
use crate::statistics::Arrived;
use crate::vm::{VmError, VmHandle};

/// The limits and settings of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationSettings {
    /// The settings of the decoder.
    pub codec: Settings,
    /// The most channels it serves, of 1 to 256, by default all of them. If a source asks for more,
    /// it gets this many.
    pub channels: u16,
    /// The most device state it keeps, in bytes, by default 64 MiB.
    pub device_state_bytes: usize,
    /// Time limit for a source that sends nothing while it is its turn, by default 120 s; then the
    /// guest stays with it. A source is silent while it saves its devices' state, and while it
    /// computes a digest of all memory.
    pub idle_timeout: Duration,
}

impl Default for DestinationSettings {
    fn default() -> Self {
        Self {
            codec: Settings::default(),
            channels: crate::control::MAX_CHANNELS,
            device_state_bytes: 64 << 20,
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// A guest as its source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offer {
    /// The VM's uuid.
    pub vm: [u8; 16],
    /// The size of its pages.
    pub page_size: PageSize,
    /// The method in which its pages come.
    pub method: Method,
    /// Its RAM blocks. No two have the same name; their lengths are whole numbers of pages.
    pub blocks: Vec<Block>,
}

/// A guest that runs here now.
#[derive(Debug)]
#[non_exhaustive]
pub struct Received<M> {
    /// Its memory.
    pub memory: M,
    /// How its source described it.
    pub offer: Offer,
    /// The number of channels.
    pub channels: usize,
    /// The pages and bytes that came.
    pub arrived: Arrived,
    /// Bytes of device state.
    pub device_state_bytes: usize,
    /// From the source's hello until the guest was started.
    pub duration: Duration,
    /// The digest of all memory at the switch-over, if the source wanted one. It was that of the
    /// source.
    pub digest: Option<[u8; 32]>,
}

/// Waits at `acceptor` for a source, and takes its guest.
///
/// `memory` is called once, with what the source offers, to have the memory made or found; it must
/// be all zero where a block is fresh, and may hold anything elsewhere. Nobody else may write it
/// before the devices' state is loaded: pages may come as differences to it. `observe` is called
/// about twice a second. When this returns, no thread and no connection is left, and the acceptor
/// can be used again.
///
/// # Errors
///
/// The first failure of any connection or of the VM. The guest is not started then, and the source
/// gets the failure.
pub fn receive<M: GuestMemory>(
    acceptor: &mut Acceptor,
    memory: impl FnOnce(&Offer) -> Result<M, VmError>,
    vm: &mut dyn VmHandle,
    settings: &DestinationSettings,
    cancel: &Cancel,
    observe: &mut dyn FnMut(Arrived),
) -> Result<Received<M>, Failure> {
    session::run(acceptor, memory, vm, settings, cancel, observe)
}
