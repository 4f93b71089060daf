//! The main channel, as far as a passive reader can know it.
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
//! Only the body of the RAM section tells its own length. The body of any other section is known to
//! its device alone: it is crossed by looking for its footer, see [`MainReceiver`].

mod element;
mod ram;
mod receiver;
mod scan;

use alloc::vec::Vec;

pub use self::receiver::MainReceiver;
use crate::idstr::{BlockName, IdStr};
use crate::page_size::PageSize;

/// What the main channel consists of, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MainEvent {
    /// The file header.
    Header {
        /// The stream's version: always 3.
        version: u32,
    },
    /// What the source says about itself.
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
    /// The last part of a live section has been read, its footer included.
    SectionEnd {
        /// The section's number.
        id: u32,
    },
    /// The state of a device begins. Its length is not known; it is crossed.
    Opaque(Section),
    /// The list of RAM blocks, in the sender's order.
    RamBlocks(Vec<Block>),
    /// A page is all zero. QEMU sends this only with `zero-page-detection=legacy` or without
    /// multifd.
    ZeroPage {
        /// The block's place in [`RamBlocks`](Self::RamBlocks), from 0.
        block: usize,
        /// The page's offset in the block, in bytes.
        offset: u64,
    },
    /// A page's contents. QEMU sends this only without multifd. The contents are crossed.
    Page {
        /// The block's place in [`RamBlocks`](Self::RamBlocks), from 0.
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

/// What the source says about itself before the first section.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Configuration {
    /// The machine type with its version, such as `pc-q35-10.0`.
    pub machine: IdStr,
    /// The guest's page size. Stated only where a machine's processors have several (Arm, for one).
    pub page_size: Option<PageSize>,
    /// Those capabilities which change the stream's layout and are on: `x-ignore-shared`.
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
    /// Its name. RAM is found by the name `ram`: numbers differ from one QEMU build to the next.
    pub name: IdStr,
    /// Which of the sections of that name.
    pub instance: u32,
    /// The version of its body's layout.
    pub version: u32,
}

/// A RAM block as the source lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the format fixes its fields")]
pub struct Block {
    /// Its name.
    pub name: BlockName,
    /// Its length in bytes.
    pub used_length: u64,
}

/// A command to the destination. What this crate has no use for is only counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The source listens on the return path from here on.
    OpenReturnPath,
    /// Asks for a [`Pong`](crate::return_path::Message::Pong) with the same value, when the return
    /// path is open.
    Ping(u32),
    /// Postcopy may follow.
    PostcopyAdvise,
    /// The destination serves page requests from here on.
    PostcopyListen,
    /// The guest runs at the destination from here on, and its missing pages follow.
    PostcopyRun,
    /// Elements within a command. QEMU sends the switch to postcopy this way, and nothing else.
    Packaged {
        /// Bytes of elements, which are crossed.
        len: u32,
    },
    /// COLO follows: two guests that run side by side. Its messages are none of a migration's.
    EnableColo,
    /// A broken postcopy migration goes on.
    PostcopyResume,
    /// The guest is stopped from here on. QEMU 10.0 and later with a machine type as new.
    SwitchoverStart,
    /// Any other command; its payload is crossed.
    Other {
        /// The command's number.
        id: u16,
        /// Bytes of payload.
        len: u32,
    },
}

/// `QEVM`: the first four bytes of a main channel, and of no multifd channel.
pub const MAGIC: u32 = 0x5145_564d;

/// The version of the main stream: 3 in all QEMUs that have multifd.
pub const VERSION: u32 = 3;
