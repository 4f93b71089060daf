//! Puts a channel together.

use alloc::vec::Vec;

use crate::fault::Misuse;
use crate::hello::Hello;
use crate::packet::{MAX_TABLE_ENTRIES, Packet, RamPacket, TABLE_ENTRY_LEN};

/// The sending twin of [`ChannelReceiver`](crate::ChannelReceiver): writes headers to a buffer of
/// the caller's and keeps the order of the wire, which is a hello, then packets, each followed by
/// exactly its payload.
///
/// The payload does not pass through it: the caller sends it from where it is, and says so with
/// [`payload_sent`](Self::payload_sent).
#[derive(Debug)]
pub struct ChannelSender {
    state: State,
    /// Entries of the table of the first RAM packet, padding included. All others have as many.
    table: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Hello,
    /// All that was begun is complete.
    Boundary,
    /// Behind a first packet which does not tell the page size: its table may go on.
    Padding,
    /// `remaining` bytes of a payload are to be sent; not 0.
    Payload {
        remaining: u32,
    },
}

impl ChannelSender {
    /// A machine at the beginning of a channel.
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
    /// [`Misuse::Hello`] when it was sent before.
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
    /// When it is out of turn, or has another page size than the packets before; nothing is written
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

    /// As [`packet`](Self::packet), for a packet of guest memory.
    ///
    /// # Errors
    /// As [`packet`](Self::packet).
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

    /// Whether a packet may begin here.
    fn check_turn(&self) -> Result<(), Misuse> {
        match self.state {
            State::Hello => Err(Misuse::Hello),
            State::Payload { remaining } => Err(Misuse::PayloadOwed { remaining }),
            State::Boundary | State::Padding => self.check_table(),
        }
    }

    /// Appends `entries` more entries to the table of the first RAM packet, as
    /// [`Event::Padding`](crate::Event::Padding) reports them.
    ///
    /// # Errors
    /// [`Misuse::TableLength`] when there is no such packet right before, or no table is as long.
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

    /// The caller has sent `len` bytes of the payload of the packet before.
    ///
    /// # Errors
    /// [`Misuse::PayloadExceeded`] when there were not as many left; nothing is changed then.
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

    /// Whether the channel may end here: after the hello, or after any whole packet.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        match self.state {
            State::Boundary => true,
            State::Padding => self.check_table().is_ok(),
            State::Hello | State::Payload { .. } => false,
        }
    }

    /// A table may end at any length that a page size explains.
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
