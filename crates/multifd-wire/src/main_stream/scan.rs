//! Skips a body of unknown length: finds its footer, and checks the data after it.
//!
//! The footer alone is five bytes that a device's state can contain by chance, so the following
//! data must be plausible too. This relies on the bytes of honest devices. A guest that can write a
//! device's state at will can mislead this search: the reader then finds the end too early or not
//! at all.

use super::element::{
    COMMAND, EOF, FOOTER, LAST_COMMAND, SectionKind, VM_DESCRIPTION, command_has_len,
};
use crate::reader::{More, Reader};

/// The state of a search for a footer.
pub(super) enum Scan {
    /// The bytes taken belong to the body, which continues.
    Body,
    /// The body has ended, and its footer was taken.
    Footer,
}

/// Searches for the footer of section `id`; `live` are the sections that may continue after it.
pub(super) fn scan(reader: &mut Reader<'_>, id: u32, live: &[u32]) -> Result<Scan, More> {
    let before = reader
        .rest()
        .iter()
        .take_while(|&&byte| byte != FOOTER)
        .count();
    if before != 0 {
        reader.take(before)?;
        return Ok(Scan::Body);
    }
    if is_footer(&mut reader.ahead(), id, live)? {
        reader.take(FOOTER_LEN)?;
        return Ok(Scan::Footer);
    }
    reader.take(1)?;
    Ok(Scan::Body)
}

fn is_footer(ahead: &mut Reader<'_>, id: u32, live: &[u32]) -> Result<bool, More> {
    Ok(ahead.u8()? == FOOTER && ahead.be32()? == id && is_element(ahead, id, live)?)
}

fn is_element(ahead: &mut Reader<'_>, id: u32, live: &[u32]) -> Result<bool, More> {
    let element = ahead.u8()?;
    match SectionKind::of(element) {
        Some(SectionKind::Start | SectionKind::Full) => return is_heading(ahead, id),
        Some(SectionKind::Part | SectionKind::End) => return Ok(live.contains(&ahead.be32()?)),
        None => {}
    }
    match element {
        COMMAND => {
            let command = ahead.be16()?;
            Ok((1..=LAST_COMMAND).contains(&command) && command_has_len(command, ahead.be16()?))
        }
        EOF => Ok(ahead.u8()? == VM_DESCRIPTION && ahead.be32()? != 0 && ahead.u8()? == b'{'),
        _ => Ok(false),
    }
}

/// A heading like those of real devices: a new, small number, a printable name, a small version.
fn is_heading(ahead: &mut Reader<'_>, before: u32) -> Result<bool, More> {
    let id = ahead.be32()?;
    if id == before || id > MOST_SECTIONS {
        return Ok(false);
    }
    let len = ahead.u8()?;
    let name = ahead.take(usize::from(len))?;
    if name.is_empty() || !name.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(false);
    }
    let _instance = ahead.be32()?;
    Ok(ahead.be32()? <= MOST_VERSIONS)
}

/// Bytes of a footer: its mark and the section's number.
const FOOTER_LEN: usize = 5;
/// QEMU counts sections from 0 in the order of the devices' creation; a machine has some dozens, a
/// large one some thousands.
const MOST_SECTIONS: u32 = 0xffff;
/// Versions of device layouts increase by one every few years.
const MOST_VERSIONS: u32 = 0xffff;
