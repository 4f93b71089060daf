//! The outlet: packets and their pages become one multifd channel's bytes.

use std::io::Write;

use multifd_codec::{Encoder, Pages};
use multifd_wire::{ChannelSender, Hello, Method, Packet, PageSize, RamPacket};

use crate::Stream;
use crate::failure::{Cause, Leg};
use crate::inlet::Inlet;
use crate::verbatim::Conduit;

/// Writes one multifd channel with one method.
///
/// Every packet is written at once, header and payload together: a peer waits for a SYNC.
pub struct Outlet<'s> {
    stream: &'s Stream,
    sender: ChannelSender,
    encoder: Box<dyn Encoder>,
    conduit: Conduit,
    head: Vec<u8>,
    payload: Vec<u8>,
    bytes_out: u64,
}

impl<'s> Outlet<'s> {
    /// Opens the channel: says `hello`.
    pub fn open(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Box<dyn Encoder>,
    ) -> Result<Self, Cause> {
        let mut outlet = Outlet {
            stream,
            sender: ChannelSender::new(),
            encoder,
            conduit: Conduit::default(),
            head: Vec::new(),
            payload: Vec::new(),
            bytes_out: 0,
        };
        outlet.sender.hello(hello, &mut outlet.head)?;
        outlet.write_head()?;
        Ok(outlet)
    }

    /// The method which this outlet writes.
    pub fn method(&self) -> Method {
        self.encoder.method()
    }

    /// The encoder.
    pub fn encoder(&self) -> &dyn Encoder {
        &*self.encoder
    }

    /// Bytes written so far, the hello included.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// Writes a packet without a payload: a SYNC, or only zero pages.
    pub fn write_packet(&mut self, packet: &Packet) -> Result<(), Cause> {
        self.sender.packet(packet, &mut self.head)?;
        self.write_head()
    }

    /// Writes more of the offset table of the packet before: [`crate::inlet::Item::Padding`].
    pub fn write_padding(&mut self, entries: usize) -> Result<(), Cause> {
        self.sender.padding(entries, &mut self.head)?;
        self.write_head()
    }

    /// Encodes `pages`, the contents of the packet's normal pages in the order of their offsets, and writes the packet with them.
    pub fn write_pages(
        &mut self,
        mut packet: RamPacket,
        pages: &[u8],
        page_size: PageSize,
    ) -> Result<(), Cause> {
        let pages = Pages::private(pages, page_size)?;
        self.encoder.encode(&pages, &mut self.payload)?;
        // A packet's pages are 512 KiB and hardly grow; a length that did not fit would be refused as too long.
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        packet.set_payload(self.encoder.method(), len)?;
        self.sender.packet(&Packet::Ram(packet), &mut self.head)?;
        self.stream.write_all_of_two(&self.head, &self.payload)?;
        self.sender.payload_sent(self.payload.len())?;
        self.bytes_out += (self.head.len() + self.payload.len()) as u64;
        self.head.clear();
        Ok(())
    }

    /// Writes a packet whose payload comes from `inlet` as it is. An error says on which leg it happened.
    pub(crate) fn forward(
        &mut self,
        packet: &Packet,
        inlet: &mut Inlet<'_>,
    ) -> Result<(), (Leg, Cause)> {
        let here = |cause| (Leg::Destination, cause);
        self.write_packet(packet).map_err(here)?;
        let (from, len) = inlet.payload_source();
        let moved = self
            .conduit
            .transfer(from, self.stream, len)
            .map_err(|(leg, error)| (leg, error.into()))?;
        inlet
            .payload_moved(moved)
            .map_err(|cause| (Leg::Source, cause))?;
        if moved < len {
            inlet.ended().map_err(|cause| (Leg::Source, cause))?;
        }
        self.sender
            .payload_sent(moved)
            .map_err(|fault| here(fault.into()))?;
        self.bytes_out += moved as u64;
        Ok(())
    }

    fn write_head(&mut self) -> Result<(), Cause> {
        (&mut &*self.stream).write_all(&self.head)?;
        self.bytes_out += self.head.len() as u64;
        self.head.clear();
        Ok(())
    }
}
