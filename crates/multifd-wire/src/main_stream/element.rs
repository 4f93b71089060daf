//! The elements of the main stream that state their own length.

use super::{Command, Section};
use crate::fault::Fault;
use crate::idstr::IdStr;
use crate::reader::{Reader, Stop};

/// The four kinds of sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    /// The first part of a live section.
    Start,
    /// A further part.
    Part,
    /// The last part.
    End,
    /// A section in one piece.
    Full,
}

impl SectionKind {
    /// Returns the kind of section that begins with `element`, if any.
    pub(super) fn of(element: u8) -> Option<Self> {
        match element {
            0x01 => Some(Self::Start),
            0x02 => Some(Self::Part),
            0x03 => Some(Self::End),
            0x04 => Some(Self::Full),
            _ => None,
        }
    }
}

/// Reads the heading of a START or FULL section, after its first byte.
pub(super) fn heading(reader: &mut Reader<'_>) -> Result<Section, Stop> {
    Ok(Section {
        id: reader.be32()?,
        name: IdStr::take_counted(reader)?,
        instance: reader.be32()?,
        version: reader.be32()?,
    })
}

/// A command in the form for the receiver.
pub(super) struct CommandHead {
    pub(super) command: Command,
    /// Bytes to skip after it.
    pub(super) skip: u32,
    /// The page sizes of the blocks according to a postcopy advice, one bit each.
    pub(super) page_sizes: Option<u64>,
}

/// Reads a command, after its first byte.
pub(super) fn command(reader: &mut Reader<'_>) -> Result<CommandHead, Stop> {
    let id = reader.be16()?;
    let len = reader.be16()?;
    if !command_has_len(id, len) {
        return Err(Fault::CommandLength {
            command: id,
            found: len,
        }
        .into());
    }
    let (mut skip, mut page_sizes) = (0, None);
    let command = match id {
        OPEN_RETURN_PATH => Command::OpenReturnPath,
        PING => Command::Ping(reader.be32()?),
        POSTCOPY_ADVISE => {
            if len != 0 {
                page_sizes = Some(reader.be64()?);
                let _page_size = reader.be64()?;
            }
            Command::PostcopyAdvise
        }
        SWITCHOVER_START => Command::SwitchoverStart,
        POSTCOPY_LISTEN => Command::PostcopyListen,
        POSTCOPY_RUN => Command::PostcopyRun,
        ENABLE_COLO => Command::EnableColo,
        POSTCOPY_RESUME => Command::PostcopyResume,
        PACKAGED => {
            // The command's payload states the length of the elements.
            skip = reader.be32()?;
            Command::Packaged { len: skip }
        }
        _ => {
            skip = u32::from(len);
            Command::Other { id, len: skip }
        }
    };
    Ok(CommandHead {
        command,
        skip,
        page_sizes,
    })
}

/// Returns whether command `id` can have `len` bytes of payload. An unknown command can have any
/// length.
pub(super) fn command_has_len(id: u16, len: u16) -> bool {
    match id {
        PING | PACKAGED => len == 4,
        POSTCOPY_ADVISE => len == 0 || len == 16,
        OPEN_RETURN_PATH | POSTCOPY_LISTEN | POSTCOPY_RUN | ENABLE_COLO | POSTCOPY_RESUME
        | SWITCHOVER_START => len == 0,
        _ => true,
    }
}

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const POSTCOPY_ADVISE: u16 = 3;
const POSTCOPY_LISTEN: u16 = 4;
const POSTCOPY_RUN: u16 = 5;
const PACKAGED: u16 = 7;
const ENABLE_COLO: u16 = 8;
const POSTCOPY_RESUME: u16 = 9;
/// QEMU 10.0 and later with a machine type as new.
const SWITCHOVER_START: u16 = 11;
/// The highest number of a command in all QEMUs up to 11.
pub(super) const LAST_COMMAND: u16 = SWITCHOVER_START;

// The first bytes of elements other than sections.
pub(super) const EOF: u8 = 0x00;
pub(super) const SUBSECTION: u8 = 0x05;
pub(super) const VM_DESCRIPTION: u8 = 0x06;
pub(super) const CONFIGURATION: u8 = 0x07;
pub(super) const COMMAND: u8 = 0x08;
pub(super) const FOOTER: u8 = 0x7e;
