//! Takes a channel apart.

use alloc::vec::Vec;
use core::mem;

use crate::fault::{Fault, Misuse};
use crate::flags::Flags;
use crate::hello::{Hello, check_magic};
use crate::limits::Limits;
use crate::packet::{
    COMMON_LEN, DeviceStatePacket, FixedPart, MAX_TABLE_ENTRIES, MIN_TABLE_ENTRIES, Packet,
    RamPacket, TABLE_ENTRY_LEN, parse_common,
};
use crate::page_size::PageSize;

/// The receive machine of one channel. It does no IO: the caller gives it bytes in any cut and gets
/// events.
///
/// # How to drive it
///
/// *What it wants:* [`wanted`](Self::wanted) bytes complete the next step. Reading no more than
/// that leaves what follows the step in the socket, and a payload can go straight to where it
/// belongs.
///
/// *What it is given:* [`push`](Self::push) takes what it can use from the front of a slice. When
/// the caller reads a payload itself, [`payload_remaining`](Self::payload_remaining) says how much
/// there is and [`payload_taken`](Self::payload_taken) accounts for it.
///
/// *The end:* [`finish`](Self::finish) says whether the stream may end where it does.
///
/// After a [`Fault`] the machine stays at it: whatever is pushed, it answers the same.
///
/// # States
///
/// ```text
///           64 bytes               12 bytes: RAM            320 bytes
///   Hello ────────────> Boundary ───────────────> RamFixed ───────────> RamTable
///         Event::Hello   │ ^ ^ ^                                           │ 8 bytes per entry
///                        │ │ │ │    no payload, page size known            │ Event::Packet
///      12 bytes: device  │ │ │ └───────────────────────────────────────────┤
///                        v │ │                                             │
///                   Device │ │ last byte            payload                │
///                        │ │ └───────── Payload <──────────────────────────┤
///            276 bytes   │ │              ^ └─┘ Event::Payload             │
///        Event::Packet   └─┼──────────────┘                                │
///                          │ next magic         page size not yet known    │
///                          └─────────── Padding <──────────────────────────┘
///                                         └─┘ Event::Padding
/// ```
///
/// # How the page size is found
///
/// The length of a RAM header depends on the guest's page size, which no field states as such. A
/// packet with pages gives it away by the room it states for them. The first packet is a SYNC,
/// though, and those of QEMU 9.0 and later state nothing: then the packet is given out after the
/// shortest possible table, so that it can be passed on without delay, and what the table has
/// beyond that (always zero) is reported as [`Event::Padding`] until the next packet begins.
#[derive(Debug)]
pub struct ChannelReceiver {
    limits: Limits,
    page_size: Option<PageSize>,
    state: State,
    /// The bytes of the present step, fewer than it needs: never more than the longest table has.
    gathered: Vec<u8>,
    /// Memory for the tables of further packets.
    tables: Vec<Vec<u64>>,
}

/// What a channel consists of, in the order of the wire.
///
/// Hellos and packets come in one piece. A payload comes in as many pieces as the input is cut
/// into; joined together they are the same for every cut.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "an event lives on the stack, between the machine and its caller"
)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the format fixes what is on a channel"
)]
pub enum Event<'a> {
    /// The channel's first bytes.
    Hello(Hello),
    /// A packet's header. Its payload follows, if it has one.
    Packet(Packet),
    /// More entries of the table of the channel's first RAM packet, all zero. Only while the page
    /// size is not known.
    Padding {
        /// Entries of 8 bytes each.
        entries: usize,
    },
    /// A piece of the payload of the packet before; never empty.
    Payload(&'a [u8]),
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one state in a machine, and it is moved twice per packet"
)]
enum State {
    Hello,
    /// At the end of a packet, or in those first bytes of the next which say its kind.
    Boundary,
    Device(Flags),
    RamFixed(Flags),
    RamTable(FixedPart),
    /// Behind a packet which does not tell the page size, and whose table has at least `entries`
    /// entries.
    Padding {
        entries: usize,
    },
    /// In a payload; `remaining` is not 0.
    Payload {
        remaining: u32,
    },
    Failed(Fault),
}

impl ChannelReceiver {
    /// A machine at the beginning of a channel.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            page_size: limits.page_size,
            state: State::Hello,
            gathered: Vec::with_capacity(MAX_STEP_LEN),
            tables: Vec::new(),
        }
    }

    /// Bytes which complete the next step, all of which will come unless the stream ends: 0 only
    /// after a fault. In a payload, what remains of it.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.step_len().saturating_sub(self.gathered.len())
    }

    /// Takes what it can use from the front of `input`, up to the next event. `None`: all of
    /// `input` is used and more is needed.
    ///
    /// # Errors
    /// When the bytes break a rule of the format or a limit.
    pub fn push<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        let outcome = self.advance(input);
        if let Err(fault) = outcome {
            self.state = State::Failed(fault);
        }
        outcome
    }

    /// Bytes of the present payload which are still to come; 0 outside one.
    #[must_use]
    pub fn payload_remaining(&self) -> u32 {
        match self.state {
            State::Payload { remaining } => remaining,
            _ => 0,
        }
    }

    /// The caller has read `len` bytes of the present payload itself.
    ///
    /// # Errors
    /// [`Misuse::PayloadExceeded`] when there were not as many left; nothing is changed then.
    pub fn payload_taken(&mut self, len: usize) -> Result<(), Misuse> {
        let remaining = self.payload_remaining();
        let left = u32::try_from(len)
            .ok()
            .and_then(|len| remaining.checked_sub(len))
            .ok_or(Misuse::PayloadExceeded {
                found: len,
                remaining,
            })?;
        if remaining != 0 {
            self.state = payload_or_boundary(left);
        }
        Ok(())
    }

    /// Takes back a packet that is not needed any more: a further one gets its memory.
    pub fn recycle(&mut self, packet: RamPacket) {
        if self.tables.len() < MOST_TABLES {
            self.tables.push(packet.into_table());
        }
    }

    /// The guest's page size, as soon as it is known.
    #[must_use]
    pub fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Entries so far of a table whose end has not shown: that of a channel's first SYNC, whose
    /// length depends on the page size. It may end where this is a power of two.
    #[must_use]
    pub fn open_table(&self) -> Option<usize> {
        match self.state {
            State::Padding { entries } => Some(entries),
            _ => None,
        }
    }

    /// Says whether the stream may end here: after the hello, or after any whole packet.
    ///
    /// # Errors
    /// [`Fault::Truncated`] in the middle of something; the fault itself after one.
    pub fn finish(&self) -> Result<(), Fault> {
        match self.state {
            State::Failed(fault) => Err(fault),
            State::Boundary if self.gathered.is_empty() => Ok(()),
            State::Padding { entries } if self.gathered.is_empty() && entries.is_power_of_two() => {
                Ok(())
            }
            _ => Err(Fault::Truncated {
                missing: self.wanted(),
            }),
        }
    }

    fn advance<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        loop {
            match self.state {
                State::Failed(fault) => return Err(fault),
                State::Payload { remaining } => return Ok(self.take_payload(remaining, input)),
                _ => {}
            }
            if !self.gather(input) {
                return Ok(None);
            }
            if let Some(event) = self.step()? {
                return Ok(Some(event));
            }
        }
    }

    fn step_len(&self) -> usize {
        match &self.state {
            State::Hello => Hello::LEN,
            State::Boundary => COMMON_LEN,
            State::Device(_) => DeviceStatePacket::LEN,
            State::RamFixed(_) => FixedPart::LEN,
            State::RamTable(fixed) => fixed.table_len(),
            State::Padding { entries } => padding_step(*entries).saturating_mul(TABLE_ENTRY_LEN),
            State::Payload { remaining } => *remaining as usize,
            State::Failed(_) => 0,
        }
    }

    /// Moves bytes from `input` until the present step has all of its own; answers whether it has.
    fn gather(&mut self, input: &mut &[u8]) -> bool {
        let wanted = self.wanted();
        let (taken, rest) = input.split_at_checked(wanted).unwrap_or((input, &[]));
        self.gathered.extend_from_slice(taken);
        *input = rest;
        taken.len() == wanted
    }

    fn take_payload<'a>(&mut self, remaining: u32, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let (piece, rest) = input
            .split_at_checked(remaining as usize)
            .unwrap_or((input, &[]));
        *input = rest;
        // A piece is never longer than what remains, so it is never cut here.
        self.state = payload_or_boundary(remaining.saturating_sub(piece.len() as u32));
        (!piece.is_empty()).then_some(Event::Payload(piece))
    }

    /// Does the present step, for which all bytes are gathered.
    fn step<'a>(&mut self) -> Result<Option<Event<'a>>, Fault> {
        match mem::replace(&mut self.state, State::Boundary) {
            State::Hello => {
                let hello = Hello::parse(self.fixed()?)?;
                self.gathered.clear();
                Ok(Some(Event::Hello(hello)))
            }
            // The bytes stay: they belong to the header which is now known.
            State::Boundary => {
                let flags = parse_common(self.fixed()?)?;
                self.state = if flags.is_device_state() {
                    State::Device(flags)
                } else {
                    State::RamFixed(flags)
                };
                Ok(None)
            }
            State::Device(flags) => {
                let packet = DeviceStatePacket::parse(flags, self.fixed()?, &self.limits)?;
                self.gathered.clear();
                self.state = payload_or_boundary(packet.payload_len());
                Ok(Some(Event::Packet(packet.into())))
            }
            State::RamFixed(flags) => {
                let fixed = FixedPart::parse(flags, self.fixed()?, self.page_size, &self.limits)?;
                self.gathered.clear();
                self.state = State::RamTable(fixed);
                Ok(None)
            }
            State::RamTable(fixed) => {
                let table = self.tables.pop().unwrap_or_default();
                let packet = fixed.with_table(table, &self.gathered, &self.limits)?;
                self.gathered.clear();
                self.page_size = packet.page_size();
                self.state = match self.page_size {
                    Some(_) => payload_or_boundary(packet.payload_len()),
                    None => State::Padding {
                        entries: packet.table_entries(),
                    },
                };
                Ok(Some(Event::Packet(packet.into())))
            }
            State::Padding { entries } => self.pad(entries),
            state @ (State::Payload { .. } | State::Failed(_)) => {
                self.state = state;
                Ok(None)
            }
        }
    }

    /// Finds out whether the first table goes on behind its first `entries` entries, which are
    /// known.
    fn pad<'a>(&mut self, entries: usize) -> Result<Option<Event<'a>>, Fault> {
        let zeros = self.gathered.iter().take_while(|&&byte| byte == 0).count();
        if zeros == self.gathered.len() {
            let more = padding_step(entries);
            let entries = entries.saturating_add(more);
            self.gathered.clear();
            self.state = State::Padding { entries };
            if entries == MAX_TABLE_ENTRIES {
                self.table_ends(entries)?;
            }
            return Ok(Some(Event::Padding { entries: more }));
        }
        if !entries.is_power_of_two() {
            let found = entries.saturating_add(zeros.div_euclid(TABLE_ENTRY_LEN));
            return Err(Fault::PagesPerPacket { found });
        }
        // Not zero, so this is the next packet, of which these bytes are the first.
        let magic = self.gathered.first_chunk().copied().unwrap_or_default();
        check_magic(u32::from_be_bytes(magic))?;
        self.table_ends(entries)?;
        Ok(None)
    }

    fn table_ends(&mut self, entries: usize) -> Result<(), Fault> {
        let page_size = PageSize::from_pages_per_packet(entries)
            .ok_or(Fault::PagesPerPacket { found: entries })?;
        self.page_size = Some(page_size);
        self.state = State::Boundary;
        Ok(())
    }

    /// The gathered bytes as the array which the present step takes.
    fn fixed<const LEN: usize>(&self) -> Result<&[u8; LEN], Fault> {
        let missing = LEN.saturating_sub(self.gathered.len());
        self.gathered
            .first_chunk()
            .ok_or(Fault::Truncated { missing })
    }
}

fn payload_or_boundary(remaining: u32) -> State {
    match remaining {
        0 => State::Boundary,
        remaining => State::Payload { remaining },
    }
}

/// How many entries to look at behind `entries` known ones. The whole number of entries is a power
/// of two: at one, the table may end; between two, it goes on to the next.
fn padding_step(entries: usize) -> usize {
    match entries.next_power_of_two().saturating_sub(entries) {
        0 => 1,
        more => more,
    }
}

/// As many tables as a caller is likely to have in hand at once, of 4 KiB at most.
const MOST_TABLES: usize = 8;
/// Bytes of the longest step that is gathered: the longest table.
const MAX_STEP_LEN: usize = MAX_TABLE_ENTRIES * TABLE_ENTRY_LEN;
const _: () = assert!(MAX_STEP_LEN > FixedPart::LEN && MIN_TABLE_ENTRIES.is_power_of_two());
