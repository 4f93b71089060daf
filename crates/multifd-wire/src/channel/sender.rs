//! Writes a channel.

use alloc::vec::Vec;

use crate::fault::Misuse;
use crate::hello::Hello;
use crate::packet::{MAX_TABLE_ENTRIES, Packet, RamPacket, TABLE_ENTRY_LEN};

/// The counterpart of [`ChannelReceiver`](crate::ChannelReceiver). It writes headers to the
/// caller's buffer and enforces the order of the wire: a hello, then packets, each followed by
/// exactly its payload.
///
/// The payload does not pass through it: the caller sends it from its own memory, and reports that
/// to [`payload_sent`](Self::payload_sent).
#[derive(Debug)]
pub struct ChannelSender {
    state: State,
    /// Entries of the first RAM packet's table, including padding. All others have as many.
    table: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Hello,
    /// Everything begun is complete.
    Boundary,
    /// After a first packet that does not reveal the page size: its table may continue.
    Padding,
    /// `remaining` bytes of a payload are left to send; not 0.
    Payload {
        remaining: u32,
    },
}

impl ChannelSender {
    /// Makes a machine at the start of a channel.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Hello,
            table: None,
        }
    }

    /// Appends the hello to `out`.
    ///
    /// # Errors
    /// [`Misuse::Hello`] if it was sent before.
    pub fn hello(&mut self, hello: &Hello, out: &mut Vec<u8>) -> Result<(), Misuse> {
        if self.state != State::Hello {
            return Err(Misuse::Hello);
        }
        out.extend_from_slice(&hello.to_bytes());
        self.state = State::Boundary;
        Ok(())
    }

    /// Appends a packet's header to `out`. If it has a payload, that is next.
    ///
    /// # Errors
    /// If it is out of turn, or has another page size than the packets before. Nothing is written
    /// then.
    pub fn packet(&mut self, packet: &Packet, out: &mut Vec<u8>) -> Result<(), Misuse> {
        match packet {
            Packet::Ram(packet) => self.ram_packet(packet, out),
            Packet::DeviceState(state) => {
                self.check_turn()?;
                packet.encode(out);
                self.state = payload_or_boundary(state.payload_len());
                Ok(())
            }
        }
    }

    /// The same as [`packet`](Self::packet), for a packet of guest memory.
    ///
    /// # Errors
    /// The same as for [`packet`](Self::packet).
    pub fn ram_packet(&mut self, packet: &RamPacket, out: &mut Vec<u8>) -> Result<(), Misuse> {
        self.check_turn()?;
        let entries = packet.table_entries();
        let first = self.table.is_none();
        let fits = match packet.page_size() {
            Some(_) => first || self.table == Some(entries),
            None => first,
        };
        if !fits {
            return Err(Misuse::TableLength { found: entries });
        }
        self.table = Some(entries);
        packet.encode(out);
        self.state = match packet.page_size() {
            Some(_) => payload_or_boundary(packet.payload_len()),
            None => State::Padding,
        };
        Ok(())
    }

    /// Checks whether a packet may begin here.
    fn check_turn(&self) -> Result<(), Misuse> {
        match self.state {
            State::Hello => Err(Misuse::Hello),
            State::Payload { remaining } => Err(Misuse::PayloadOwed { remaining }),
            State::Boundary | State::Padding => self.check_table(),
        }
    }

    /// Appends `entries` more entries to the table of the first RAM packet, as reported by
    /// [`Event::Padding`](crate::Event::Padding).
    ///
    /// # Errors
    /// [`Misuse::TableLength`] if no such packet directly precedes, or no table is this long.
    pub fn padding(&mut self, entries: usize, out: &mut Vec<u8>) -> Result<(), Misuse> {
        let found = self.table.unwrap_or_default().saturating_add(entries);
        if self.state != State::Padding || found > MAX_TABLE_ENTRIES {
            return Err(Misuse::TableLength { found });
        }
        self.table = Some(found);
        let len = out
            .len()
            .saturating_add(entries.saturating_mul(TABLE_ENTRY_LEN));
        out.resize(len, 0);
        Ok(())
    }

    /// Records that the caller has sent `len` bytes of the preceding packet's payload.
    ///
    /// # Errors
    /// [`Misuse::PayloadExceeded`] if fewer bytes were left; the state is then unchanged.
    pub fn payload_sent(&mut self, len: usize) -> Result<(), Misuse> {
        let remaining = match self.state {
            State::Payload { remaining } => remaining,
            _ => 0,
        };
        let left = u32::try_from(len)
            .ok()
            .and_then(|len| remaining.checked_sub(len));
        match left {
            None => Err(Misuse::PayloadExceeded {
                found: len,
                remaining,
            }),
            Some(0) if remaining != 0 => {
                self.state = State::Boundary;
                Ok(())
            }
            Some(0) => Ok(()),
            Some(remaining) => {
                self.state = State::Payload { remaining };
                Ok(())
            }
        }
    }

    /// Returns whether the channel may end here: after the hello, or after any complete packet.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        match self.state {
            State::Boundary => true,
            State::Padding => self.check_table().is_ok(),
            State::Hello | State::Payload { .. } => false,
        }
    }

    /// Checks the table, which may end at any length that matches a page size.
    fn check_table(&self) -> Result<(), Misuse> {
        match self.table {
            Some(found) if !found.is_power_of_two() => Err(Misuse::TableLength { found }),
            _ => Ok(()),
        }
    }
}

const fn payload_or_boundary(len: u32) -> State {
    match len {
        0 => State::Boundary,
        remaining => State::Payload { remaining },
    }
}

impl Default for ChannelSender {
    fn default() -> Self {
        Self::new()
    }
}
