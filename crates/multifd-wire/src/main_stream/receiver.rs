//! Reads the main channel along with its destination.

use alloc::vec::Vec;

use super::element::{
    COMMAND, CONFIGURATION, EOF, FOOTER, SUBSECTION, SectionKind, VM_DESCRIPTION, command, heading,
};
use super::ram::{EntryLayout, Ram, Record};
use super::scan::{Scan, scan};
use super::{Block, Configuration, MAGIC, MainEvent, VERSION};
use crate::fault::Fault;
use crate::idstr::IdStr;
use crate::limits::Limits;
use crate::page_size::PageSize;
use crate::reader::{Carry, Reader, Stop};

/// A passive reader of the main channel. Like [`ChannelReceiver`](crate::ChannelReceiver) it does
/// no IO and takes bytes in any cut; it holds a few hundred bytes at most, and the list of RAM
/// blocks.
///
/// # Assumptions
///
/// Up to the end of RAM all elements state their own length, on a machine whose only live section
/// is RAM. A device's state does not: it is skipped by searching for its footer, followed by data
/// that may follow a footer. This finds the end of a stream reliably but is no proof: a guest in
/// control of a device's state could write a false footer.
///
/// Without multifd the pages themselves are in the RAM section, with the length of a page. If
/// neither the stream nor [`Limits::page_size`] states the page size, it is assumed to be 4 KiB.
/// With multifd nothing depends on that.
///
/// A stream without the description of devices (`suppress-vmdesc`) ends at its EOF byte, which only
/// the end of the connection shows: [`finish`](Self::finish) accepts it, and no event reports it.
///
/// Not supported: `mapped-ram` files, and postcopy of blocks with huge pages together with
/// `x-ignore-shared`.
#[derive(Debug)]
pub struct MainReceiver {
    carry: Carry,
    machine: Machine,
}

impl MainReceiver {
    /// Makes a reader at the start of a main channel.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            carry: Carry::default(),
            machine: Machine {
                limits,
                state: State::Header,
                configuration: None,
                page_sizes: None,
                live: Vec::new(),
                ram_id: None,
                ram: Ram::default(),
            },
        }
    }

    /// Takes the bytes it can use from the front of `input`, up to the next event. Returns `None`
    /// if all of `input` is used and more is needed.
    ///
    /// # Errors
    /// If the bytes break a rule of the format or a limit. The reader stays at that fault.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<MainEvent>, Fault> {
        let outcome = self.carry.drive(input, |reader| self.machine.step(reader));
        if let Err(fault) = outcome {
            self.machine.state = State::Failed(fault);
        }
        outcome
    }

    /// The RAM blocks listed so far; complete after [`MainEvent::RamBlocks`].
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        self.machine.ram.blocks()
    }

    /// Returns whether the stream may end here: after [`MainEvent::End`], or after the EOF byte of
    /// a stream without a description.
    ///
    /// # Errors
    /// [`Fault::Truncated`] anywhere else; the fault itself after one.
    pub fn finish(&self) -> Result<(), Fault> {
        match self.machine.state {
            State::Failed(fault) => Err(fault),
            State::End => Ok(()),
            State::AfterEof if self.carry.bytes().is_empty() => Ok(()),
            // A footer and the EOF byte, without confirming bytes after them.
            State::Opaque { id, .. } if ends_with_eof(self.carry.bytes(), id) => Ok(()),
            _ => Err(Fault::Truncated {
                missing: self.carry.missing(),
            }),
        }
    }

    /// Whether it is in a device's state, whose end it has to find, or in what it takes for the
    /// payload of a command behind that. All that follows, the end of the stream too, may be taken
    /// for a part of it.
    #[must_use]
    pub fn is_in_device_state(&self) -> bool {
        matches!(
            self.machine.state,
            State::Opaque { .. } | State::Payload { .. }
        )
    }
}

#[derive(Debug)]
struct Machine {
    limits: Limits,
    state: State,
    configuration: Option<Configuration>,
    /// The page sizes of the blocks according to a postcopy advice, one bit each.
    page_sizes: Option<u64>,
    /// The live sections that have begun and not ended.
    live: Vec<u32>,
    ram_id: Option<u32>,
    ram: Ram,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// At the first element, which may be the configuration.
    FirstElement,
    /// At the end of the configuration, or one more of its subsections.
    Subsections,
    /// In the subsection of capabilities.
    Capabilities {
        remaining: u32,
    },
    Element,
    /// In a body of the RAM section.
    Records {
        id: u32,
        kind: SectionKind,
    },
    /// In the list of blocks, in the first body of the RAM section.
    Blocks {
        id: u32,
        remaining: u64,
    },
    /// In the content of a page, in a body of the RAM section.
    Page {
        id: u32,
        kind: SectionKind,
        remaining: u64,
    },
    /// At the end of a body of the RAM section.
    Footer {
        id: u32,
        kind: SectionKind,
    },
    /// In a body of any other section.
    Opaque {
        id: u32,
        kind: SectionKind,
    },
    /// In the payload of a command.
    Payload {
        remaining: u64,
    },
    AfterEof,
    Description {
        remaining: u64,
    },
    End,
    Failed(Fault),
}

impl Machine {
    fn step(&mut self, reader: &mut Reader<'_>) -> Result<Option<MainEvent>, Stop> {
        match self.state {
            State::Header => self.header(reader),
            State::FirstElement => self.first_element(reader),
            State::Subsections => self.subsection(reader),
            State::Capabilities { remaining: 0 } => Ok(self.go_on(State::Subsections)),
            State::Capabilities { remaining } => self.capability(reader, remaining),
            State::Element => self.element(reader),
            State::Records { id, kind } => self.record(reader, id, kind),
            State::Blocks { id, remaining: 0 } => {
                self.state = State::Records {
                    id,
                    kind: SectionKind::Start,
                };
                Ok(Some(MainEvent::RamBlocks(self.ram.blocks().to_vec())))
            }
            State::Blocks { id, remaining } => self.block(reader, id, remaining),
            State::Page {
                id,
                kind,
                remaining: 0,
            } => Ok(self.go_on(State::Records { id, kind })),
            State::Page {
                id,
                kind,
                remaining,
            } => {
                let remaining = cross(reader, remaining)?;
                Ok(self.go_on(State::Page {
                    id,
                    kind,
                    remaining,
                }))
            }
            State::Footer { id, kind } => self.footer(reader, id, kind),
            State::Opaque { id, kind } => match scan(reader, id, &self.live)? {
                Scan::Body => Ok(None),
                Scan::Footer => Ok(self.section_ends(id, kind)),
            },
            State::Payload { remaining: 0 } => Ok(self.go_on(State::Element)),
            State::Payload { remaining } => {
                let remaining = cross(reader, remaining)?;
                Ok(self.go_on(State::Payload { remaining }))
            }
            State::AfterEof => self.description(reader),
            State::Description { remaining: 0 } => {
                self.state = State::End;
                Ok(Some(MainEvent::End))
            }
            State::Description { remaining } => {
                let remaining = cross(reader, remaining)?;
                Ok(self.go_on(State::Description { remaining }))
            }
            State::End => {
                reader.take(1)?;
                Err(Fault::AfterEnd.into())
            }
            State::Failed(fault) => Err(fault.into()),
        }
    }

    fn go_on(&mut self, state: State) -> Option<MainEvent> {
        self.state = state;
        None
    }

    fn header(&mut self, reader: &mut Reader<'_>) -> Result<Option<MainEvent>, Stop> {
        let found = reader.be32()?;
        if found != MAGIC {
            return Err(Fault::Magic {
                found,
                allowed: MAGIC,
            }
            .into());
        }
        let version = reader.be32()?;
        check_version(version, VERSION)?;
        self.state = State::FirstElement;
        Ok(Some(MainEvent::Header { version }))
    }

    fn first_element(&mut self, reader: &mut Reader<'_>) -> Result<Option<MainEvent>, Stop> {
        if reader.ahead().u8()? != CONFIGURATION {
            return Ok(self.go_on(State::Element));
        }
        reader.take(1)?;
        let (found, allowed) = (reader.be32()? as usize, IdStr::MAX_LEN);
        if found > allowed {
            return Err(Fault::NameLength { found, allowed }.into());
        }
        self.configuration = Some(Configuration {
            machine: IdStr::take(reader, found)?,
            page_size: None,
            capabilities: Vec::new(),
            uuid: None,
        });
        Ok(self.go_on(State::Subsections))
    }

    fn subsection(&mut self, reader: &mut Reader<'_>) -> Result<Option<MainEvent>, Stop> {
        if reader.ahead().u8()? != SUBSECTION {
            self.state = State::Element;
            return Ok(self.configuration.clone().map(MainEvent::Configuration));
        }
        reader.take(1)?;
        let name = IdStr::take_counted(reader)?;
        check_version(reader.be32()?, SUBSECTION_VERSION)?;
        let Some(configuration) = &mut self.configuration else {
            return Ok(None);
        };
        match name.as_bytes() {
            b"configuration/target-page-bits" => {
                configuration.page_size = Some(page_size_of_bits(reader.be32()?)?);
            }
            b"configuration/capabilities" => {
                let remaining = reader.be32()?;
                if remaining > MOST_CAPABILITIES {
                    let (found, allowed) = (remaining, MOST_CAPABILITIES);
                    return Err(Fault::Capabilities { found, allowed }.into());
                }
                self.state = State::Capabilities { remaining };
            }
            b"configuration/uuid" => configuration.uuid = Some(reader.chunk()?),
            _ => return Err(Fault::UnknownSubsection.into()),
        }
        Ok(None)
    }

    fn capability(
        &mut self,
        reader: &mut Reader<'_>,
        remaining: u32,
    ) -> Result<Option<MainEvent>, Stop> {
        let capability = IdStr::take_counted(reader)?;
        if capability.as_bytes() == b"mapped-ram" {
            return Err(Fault::MappedRam.into());
        }
        if let Some(configuration) = &mut self.configuration {
            configuration.capabilities.push(capability);
        }
        let remaining = remaining.saturating_sub(1);
        Ok(self.go_on(State::Capabilities { remaining }))
    }

    fn element(&mut self, reader: &mut Reader<'_>) -> Result<Option<MainEvent>, Stop> {
        let element = reader.u8()?;
        if let Some(kind) = SectionKind::of(element) {
            return self.section(reader, kind);
        }
        match element {
            COMMAND => {
                let head = command(reader)?;
                self.page_sizes = head.page_sizes.or(self.page_sizes);
                self.state = State::Payload {
                    remaining: u64::from(head.skip),
                };
                Ok(Some(MainEvent::Command(head.command)))
            }
            EOF => {
                self.state = State::AfterEof;
                Ok(Some(MainEvent::Eof))
            }
            found => Err(Fault::Element { found }.into()),
        }
    }

    fn section(
        &mut self,
        reader: &mut Reader<'_>,
        kind: SectionKind,
    ) -> Result<Option<MainEvent>, Stop> {
        match kind {
            SectionKind::Start | SectionKind::Full => {
                let section = heading(reader)?;
                let id = section.id;
                if self.live.contains(&id) {
                    return Err(Fault::SectionId { found: id }.into());
                }
                if kind == SectionKind::Full {
                    self.state = State::Opaque { id, kind };
                    return Ok(Some(MainEvent::Opaque(section)));
                }
                if self.live.len() >= MOST_LIVE_SECTIONS {
                    let allowed = MOST_LIVE_SECTIONS;
                    return Err(Fault::LiveSections { allowed }.into());
                }
                if section.name.as_bytes() == b"ram" {
                    if self.ram_id.is_some() {
                        return Err(Fault::SectionId { found: id }.into());
                    }
                    check_version(section.version, RAM_VERSION)?;
                    self.ram_id = Some(id);
                }
                self.live.push(id);
                self.body_begins(id, kind);
                Ok(Some(MainEvent::SectionStart(section)))
            }
            SectionKind::Part | SectionKind::End => {
                let id = reader.be32()?;
                if !self.live.contains(&id) {
                    return Err(Fault::SectionId { found: id }.into());
                }
                self.body_begins(id, kind);
                Ok((kind == SectionKind::Part).then_some(MainEvent::SectionPart { id }))
            }
        }
    }

    fn body_begins(&mut self, id: u32, kind: SectionKind) {
        self.state = if self.ram_id == Some(id) {
            State::Records { id, kind }
        } else {
            State::Opaque { id, kind }
        };
    }

    fn record(
        &mut self,
        reader: &mut Reader<'_>,
        id: u32,
        kind: SectionKind,
    ) -> Result<Option<MainEvent>, Stop> {
        let stated = self.stated_page_size();
        let first = kind == SectionKind::Start;
        let event = match self
            .ram
            .record(reader, first, stated.unwrap_or(PageSize::MIN))?
        {
            Record::Blocks { total } => {
                self.check_page_sizes()?;
                return Ok(self.go_on(State::Blocks {
                    id,
                    remaining: total,
                }));
            }
            Record::Zero { block, offset } => MainEvent::ZeroPage { block, offset },
            Record::Page { block, offset } => {
                let remaining = stated.unwrap_or(PageSize::K4).bytes() as u64;
                self.state = State::Page {
                    id,
                    kind,
                    remaining,
                };
                MainEvent::Page { block, offset }
            }
            Record::Flush => MainEvent::Flush,
            Record::EndOfSection => {
                self.state = State::Footer { id, kind };
                MainEvent::RamEndOfSection
            }
        };
        Ok(Some(event))
    }

    fn block(
        &mut self,
        reader: &mut Reader<'_>,
        id: u32,
        remaining: u64,
    ) -> Result<Option<MainEvent>, Stop> {
        let layout = EntryLayout {
            has_address: self.ignores_shared(),
            page_sizes: self.page_sizes.filter(|sizes| !are_ordinary(*sizes)),
        };
        let remaining = self
            .ram
            .list_block(reader, remaining, layout, &self.limits)?;
        Ok(self.go_on(State::Blocks { id, remaining }))
    }

    fn footer(
        &mut self,
        reader: &mut Reader<'_>,
        id: u32,
        kind: SectionKind,
    ) -> Result<Option<MainEvent>, Stop> {
        let found = reader.u8()?;
        if found != FOOTER {
            return Err(Fault::Element { found }.into());
        }
        let found = reader.be32()?;
        if found != id {
            return Err(Fault::Footer { found, allowed: id }.into());
        }
        Ok(self.section_ends(id, kind))
    }

    fn section_ends(&mut self, id: u32, kind: SectionKind) -> Option<MainEvent> {
        self.state = State::Element;
        if kind != SectionKind::End {
            return None;
        }
        self.live.retain(|&live| live != id);
        Some(MainEvent::SectionEnd { id })
    }

    fn description(&mut self, reader: &mut Reader<'_>) -> Result<Option<MainEvent>, Stop> {
        let found = reader.u8()?;
        if found != VM_DESCRIPTION {
            return Err(Fault::Element { found }.into());
        }
        let len = reader.be32()?;
        self.state = State::Description {
            remaining: u64::from(len),
        };
        Ok(Some(MainEvent::VmDescription { len }))
    }

    fn stated_page_size(&self) -> Option<PageSize> {
        let configured = self
            .configuration
            .as_ref()
            .and_then(|configuration| configuration.page_size);
        self.limits.page_size.or(configured)
    }

    /// With postcopy, a block with larger pages than the host's has its page size in the list.
    /// Nothing states which blocks these are. A page size begins with a zero byte, unlike a name;
    /// but the address of `x-ignore-shared` also does.
    fn check_page_sizes(&self) -> Result<(), Fault> {
        match self.page_sizes {
            Some(found) if !are_ordinary(found) && self.ignores_shared() => {
                Err(Fault::PostcopyPageSizes { found })
            }
            _ => Ok(()),
        }
    }

    fn ignores_shared(&self) -> bool {
        self.configuration.as_ref().is_some_and(|configuration| {
            let mut capabilities = configuration.capabilities.iter();
            capabilities.any(|capability| capability.as_bytes() == b"x-ignore-shared")
        })
    }
}

/// Returns whether every block of a list with these page sizes, one bit each, omits its own.
fn are_ordinary(page_sizes: u64) -> bool {
    page_sizes.is_power_of_two() && page_sizes <= PageSize::MAX.bytes() as u64
}

/// Returns whether `bytes` are the footer of section `id` and the EOF byte.
fn ends_with_eof(bytes: &[u8], id: u32) -> bool {
    let id = id.to_be_bytes();
    matches!(bytes, [FOOTER, footer @ .., EOF] if *footer == id)
}

fn check_version(found: u32, allowed: u32) -> Result<(), Fault> {
    if found == allowed {
        return Ok(());
    }
    Err(Fault::Version { found, allowed })
}

fn page_size_of_bits(found: u32) -> Result<PageSize, Fault> {
    let (least, most) = (PageSize::MIN.bytes().ilog2(), PageSize::MAX.bytes().ilog2());
    1_u32
        .checked_shl(found)
        .and_then(|bytes| PageSize::new(bytes).ok())
        .ok_or(Fault::PageBits { found, least, most })
}

/// Skips some of the next `remaining` bytes and returns the number left.
fn cross(reader: &mut Reader<'_>, remaining: u64) -> Result<u64, Stop> {
    let crossed = reader.take_some(remaining)?.len() as u64;
    Ok(remaining.saturating_sub(crossed))
}

/// The version of the subsections of the configuration in all QEMUs up to 11.
const SUBSECTION_VERSION: u32 = 1;
/// The version of the RAM section in all QEMUs that have multifd.
const RAM_VERSION: u32 = 4;
/// QEMU 10.0 lists at most two: those that change the layout.
const MOST_CAPABILITIES: u32 = 64;
/// RAM, one for each device with live state (VFIO, dirty bitmaps), a few more.
const MOST_LIVE_SECTIONS: usize = 1024;
