//! Parses a channel.

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
/// *Demand:* [`wanted`](Self::wanted) bytes complete the next step. Reading no more than that
/// leaves the bytes after the step in the socket, and a payload can go straight to its destination.
///
/// *Input:* [`push`](Self::push) takes the bytes it can use from the front of a slice. If the
/// caller reads a payload itself, [`payload_remaining`](Self::payload_remaining) returns its
/// remaining length and [`payload_taken`](Self::payload_taken) accounts for it.
///
/// *The end:* [`finish`](Self::finish) returns whether the stream may end at its current position.
///
/// After a [`Fault`] the machine stays there: every further push returns the same fault.
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
/// packet with pages reveals it by the room that it states for them. But the first packet is a
/// SYNC, and those of QEMU 9.0 and later state nothing. Then the packet is returned after the
/// shortest possible table, so that it can be forwarded without delay. Further entries of the table
/// (always zero) are reported as [`Event::Padding`] until the next packet begins.
#[derive(Debug)]
pub struct ChannelReceiver {
    limits: Limits,
    page_size: Option<PageSize>,
    state: State,
    /// The bytes of the current step, fewer than it needs: never more than the longest table.
    gathered: Vec<u8>,
    /// Memory for the tables of later packets.
    tables: Vec<Vec<u64>>,
}

/// The parts of a channel, in the order of the wire.
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
    /// The hello: the channel's first bytes.
    Hello(Hello),
    /// A packet's header. Its payload follows, if it has one.
    Packet(Packet),
    /// More entries of the table of the channel's first RAM packet, all zero. Only while the page
    /// size is unknown.
    Padding {
        /// Entries of 8 bytes each.
        entries: usize,
    },
    /// A piece of the preceding packet's payload; never empty.
    Payload(&'a [u8]),
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one state in a machine, and it is moved twice per packet"
)]
enum State {
    Hello,
    /// At the end of a packet, or in the first bytes of the next, which determine its kind.
    Boundary,
    Device(Flags),
    RamFixed(Flags),
    RamTable(FixedPart),
    /// After a packet that does not reveal the page size. Its table has at least `entries` entries.
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
    /// Makes a machine at the start of a channel.
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

    /// The number of bytes that complete the next step. All of them will come unless the stream
    /// ends. 0 only after a fault. In a payload, its remaining length.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.step_len().saturating_sub(self.gathered.len())
    }

    /// Takes the bytes it can use from the front of `input`, up to the next event. Returns `None`
    /// if all of `input` is used and more is needed.
    ///
    /// # Errors
    /// If the bytes break a rule of the format or a limit.
    pub fn push<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Fault> {
        let outcome = self.advance(input);
        if let Err(fault) = outcome {
            self.state = State::Failed(fault);
        }
        outcome
    }

    /// The remaining bytes of the current payload; 0 outside a payload.
    #[must_use]
    pub fn payload_remaining(&self) -> u32 {
        match self.state {
            State::Payload { remaining } => remaining,
            _ => 0,
        }
    }

    /// Records that the caller has read `len` bytes of the current payload itself.
    ///
    /// # Errors
    /// [`Misuse::PayloadExceeded`] if fewer bytes were left; the state is then unchanged.
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

    /// Takes back a packet that is no longer needed, and reuses its memory.
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

    /// The number of entries so far in a table with an unknown end: that of a channel's first SYNC,
    /// whose length depends on the page size. It may end if this is a power of two.
    #[must_use]
    pub fn open_table(&self) -> Option<usize> {
        match self.state {
            State::Padding { entries } => Some(entries),
            _ => None,
        }
    }

    /// Returns whether the stream may end here: after the hello, or after any complete packet.
    ///
    /// # Errors
    /// [`Fault::Truncated`] in the middle of an element; the fault itself after one.
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

    /// Moves bytes from `input` until the current step is complete. Returns whether it is.
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
        // A piece is never longer than the remaining payload, so this never truncates.
        self.state = payload_or_boundary(remaining.saturating_sub(piece.len() as u32));
        (!piece.is_empty()).then_some(Event::Payload(piece))
    }

    /// Performs the current step, which has all its bytes.
    fn step<'a>(&mut self) -> Result<Option<Event<'a>>, Fault> {
        match mem::replace(&mut self.state, State::Boundary) {
            State::Hello => {
                let hello = Hello::parse(self.fixed()?)?;
                self.gathered.clear();
                Ok(Some(Event::Hello(hello)))
            }
            // The bytes stay: they belong to the header, whose kind is now known.
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

    /// Determines whether the first table continues after its first `entries` entries, which are
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
        // Nonzero, so these are the first bytes of the next packet.
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

    /// The gathered bytes as the array for the current step.
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

/// The number of entries to examine after `entries` known ones. The total number of entries is a
/// power of two: the table may end at one; between two, it continues to the next.
fn padding_step(entries: usize) -> usize {
    match entries.next_power_of_two().saturating_sub(entries) {
        0 => 1,
        more => more,
    }
}

/// The number of tables that a caller is likely to hold at once, of 4 KiB at most.
const MOST_TABLES: usize = 8;
/// Bytes of the longest gathered step: the longest table.
const MAX_STEP_LEN: usize = MAX_TABLE_ENTRIES * TABLE_ENTRY_LEN;
const _: () = assert!(MAX_STEP_LEN > FixedPart::LEN && MIN_TABLE_ENTRIES.is_power_of_two());
