//! The main channel, as far as a passive reader can parse it.
//!
//! ```text
//! header        QEVM, version 3
//! configuration machine type, subsections                      unless the machine has none
//! elements      command
//!               START section: number, name, instance, version, body, footer
//!               PART and END section: number, body, footer
//!               FULL section: as START                           a device
//! EOF
//! description   JSON
//! ```
//!
//! Only the body of the RAM section states its own length. Only its device knows the body of
//! another section: it is skipped by searching for its footer, see [`MainReceiver`].

mod element;
mod ram;
mod receiver;
mod scan;

use alloc::vec::Vec;

pub use self::receiver::MainReceiver;
use crate::idstr::{BlockName, IdStr};
use crate::page_size::PageSize;

/// The parts of the main channel, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MainEvent {
    /// The file header.
    Header {
        /// The stream's version: always 3.
        version: u32,
    },
    /// The source's configuration.
    Configuration(Configuration),
    /// A command to the destination.
    Command(Command),
    /// A live section begins: its state comes in parts while the guest runs.
    SectionStart(Section),
    /// The next part of a live section begins.
    SectionPart {
        /// The section's number.
        id: u32,
    },
    /// The last part of a live section has been read, including its footer.
    SectionEnd {
        /// The section's number.
        id: u32,
    },
    /// The state of a device begins. Its length is unknown; it is skipped.
    Opaque(Section),
    /// The list of RAM blocks, in the sender's order.
    RamBlocks(Vec<Block>),
    /// A page is all zero. QEMU sends this only with `zero-page-detection=legacy` or without
    /// multifd.
    ZeroPage {
        /// The block's index in [`RamBlocks`](Self::RamBlocks), from 0.
        block: usize,
        /// The page's offset in the block, in bytes.
        offset: u64,
    },
    /// A page's content. QEMU sends this only without multifd. The content is skipped.
    Page {
        /// The block's index in [`RamBlocks`](Self::RamBlocks), from 0.
        block: usize,
        /// The page's offset in the block, in bytes.
        offset: u64,
    },
    /// All channels have synchronised (`MULTIFD_FLUSH`). QEMU 8.1 and later with a machine type as
    /// new.
    Flush,
    /// One body of the RAM section is complete. With machine types before 8.1 all channels have
    /// synchronised.
    RamEndOfSection,
    /// The last section is complete.
    Eof,
    /// The description of the devices' state begins.
    VmDescription {
        /// Its length in bytes.
        len: u32,
    },
    /// The last byte of the main channel has been read.
    End,
}

/// The source's configuration, before the first section.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Configuration {
    /// The machine type with its version, such as `pc-q35-10.0`.
    pub machine: IdStr,
    /// The guest's page size. Only stated by machines whose processors have several (Arm, for
    /// example).
    pub page_size: Option<PageSize>,
    /// The enabled capabilities that change the stream's layout: `x-ignore-shared`.
    pub capabilities: Vec<IdStr>,
    /// The VM's UUID, with capability `validate-uuid`.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// The configuration of a machine of this type, which states nothing else.
    #[must_use]
    pub fn new(machine: IdStr) -> Self {
        Self {
            machine,
            page_size: None,
            capabilities: Vec::new(),
            uuid: None,
        }
    }
}

/// A section's heading.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the format fixes its fields")]
pub struct Section {
    /// Its number in this stream. Parts, ends and footers have the number only.
    pub id: u32,
    /// Its name. RAM is identified by the name `ram`: numbers differ between QEMU builds.
    pub name: IdStr,
    /// The number among sections of that name.
    pub instance: u32,
    /// The version of its body's layout.
    pub version: u32,
}

/// A RAM block in the source's list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the format fixes its fields")]
pub struct Block {
    /// Its name.
    pub name: BlockName,
    /// Its length in bytes.
    pub used_length: u64,
}

/// A command to the destination. Commands without a use in this crate are only skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The source listens on the return path from here on.
    OpenReturnPath,
    /// Requests a [`Pong`](crate::return_path::Message::Pong) with the same value, if the return
    /// path is open.
    Ping(u32),
    /// Postcopy may follow.
    PostcopyAdvise,
    /// The destination serves page requests from here on.
    PostcopyListen,
    /// The guest runs at the destination from here on, and its missing pages follow.
    PostcopyRun,
    /// Elements within a command. QEMU uses this only for the switch to postcopy.
    Packaged {
        /// Bytes of elements, which are skipped.
        len: u32,
    },
    /// COLO follows: two guests that run side by side. Its messages are not those of a migration.
    EnableColo,
    /// A broken postcopy migration continues.
    PostcopyResume,
    /// The guest is stopped from here on. QEMU 10.0 and later with a machine type as new.
    SwitchoverStart,
    /// Any other command; its payload is skipped.
    Other {
        /// The command's number.
        id: u16,
        /// Bytes of payload.
        len: u32,
    },
}

/// `QEVM`: the first four bytes of a main channel. No multifd channel begins with them.
pub const MAGIC: u32 = 0x5145_564d;

/// The version of the main stream: 3 in all QEMUs that have multifd.
pub const VERSION: u32 = 3;
