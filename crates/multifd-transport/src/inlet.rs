//! The inlet: one multifd channel's bytes become packets and their pages.

use std::io::{self, Read};

use multifd_codec::{Decoder, PageBuffer, Settings};
use multifd_wire::{ChannelReceiver, Event, Hello, Limits, Method, Packet, RamPacket};

use crate::Stream;
use crate::buffer::space;
use crate::failure::Cause;

/// Reads one multifd channel, packet by packet.
///
/// After a packet with a payload the caller takes the payload, decoded ([`Inlet::read_pages`]) or as it is ([`Inlet::read_payload`]), before it
/// asks for the next item. Memory: one packet's payload and, for [`Inlet::read_pages`], one packet's pages, reused.
pub struct Inlet<'s> {
    stream: &'s Stream,
    receiver: ChannelReceiver,
    settings: Settings,
    /// The method of the channel's first packet with a payload, and its decoder once one was needed.
    method: Option<Method>,
    decoder: Option<Box<dyn Decoder>>,
    head: Vec<u8>,
    payload: Vec<u8>,
    pages: PageBuffer,
    bytes_in: u64,
}

/// What comes next on a channel.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "an item lives on the stack, between the inlet and its caller"
)]
pub enum Item {
    /// A packet's header.
    Packet(Packet),
    /// More of the offset table of the packet before, all zero: given while the page size is not known yet, so that a SYNC need not wait.
    Padding {
        /// How many eight-byte entries.
        entries: usize,
    },
    /// The sender has closed the channel at the end of a packet.
    End,
}

impl<'s> Inlet<'s> {
    /// An inlet on a connection whose hello has been read. Its pages are decoded with `settings`.
    ///
    /// # Errors
    /// When the hello breaks the rules of the format.
    pub fn new(
        stream: &'s Stream,
        hello: &Hello,
        limits: Limits,
        settings: Settings,
    ) -> Result<Self, Cause> {
        let mut receiver = ChannelReceiver::new(limits);
        let bytes = hello.to_bytes();
        receiver.push(&mut bytes.as_slice())?;
        Ok(Inlet {
            stream,
            receiver,
            settings,
            method: None,
            decoder: None,
            head: Vec::new(),
            payload: Vec::new(),
            pages: PageBuffer::default(),
            bytes_in: bytes.len() as u64,
        })
    }

    /// Bytes read so far, the hello included.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// The decoder, if one was needed.
    pub fn decoder(&self) -> Option<&dyn Decoder> {
        self.decoder.as_deref()
    }

    /// Waits for the next item.
    ///
    /// # Errors
    /// When the stream breaks the rules or ends inside a packet, or the payload before was not taken.
    pub fn next_item(&mut self) -> Result<Item, Cause> {
        loop {
            // A header's piece; never more than the packet at hand, so nothing of the payload is read here.
            let wanted = self.receiver.wanted();
            let head = space(&mut self.head, wanted);
            let count = self.stream.read_some(head)?;
            if count == 0 {
                self.receiver.finish()?;
                return Ok(Item::End);
            }
            self.bytes_in += count as u64;
            let mut bytes = head.get(..count).unwrap_or_default();
            match self.receiver.push(&mut bytes)? {
                Some(Event::Packet(packet)) => return Ok(Item::Packet(packet)),
                Some(Event::Padding { entries }) => return Ok(Item::Padding { entries }),
                // The hello was pushed by `new`, and a payload is taken by the methods below.
                Some(Event::Hello(_) | Event::Payload(_)) | None => {}
            }
        }
    }

    /// Reads the payload which follows `packet`, as it is on the wire.
    pub fn read_payload(&mut self) -> Result<&[u8], Cause> {
        let payload = space(
            &mut self.payload,
            self.receiver.payload_remaining() as usize,
        );
        fill(self.stream, payload, &mut self.receiver)?;
        self.bytes_in += payload.len() as u64;
        Ok(payload)
    }

    /// [`ChannelReceiver::open_table`].
    pub(crate) fn open_table(&self) -> Option<usize> {
        self.receiver.open_table()
    }

    /// Whether there is something to read now, be it the end or an error.
    pub(crate) fn has_more(&self) -> bool {
        self.stream.is_readable()
    }

    /// Reads and decodes the payload which follows `packet`: its normal pages in the order of their offsets.
    ///
    /// # Errors
    /// When the payload does not give exactly these pages, or the channel's method is not one that can be read here.
    pub fn read_pages(&mut self, packet: &RamPacket) -> Result<&[u8], Cause> {
        let mut pages = std::mem::take(&mut self.pages);
        let outcome = self.read_pages_into(packet, &mut pages);
        self.pages = pages;
        outcome.map(|()| self.pages.as_ref())
    }

    /// The same, into `pages`.
    pub(crate) fn read_pages_into(
        &mut self,
        packet: &RamPacket,
        pages: &mut PageBuffer,
    ) -> Result<(), Cause> {
        let (Some(page_size), false) = (packet.page_size(), packet.normal().is_empty()) else {
            pages.space(0);
            return Ok(());
        };
        let method = self.method_of(packet)?;
        // A checked packet has at most as many pages as its size allows, 512 KiB in all.
        let len = packet.normal().len() * page_size.bytes();
        if method == Method::None {
            // A checked packet's payload has the length of its pages.
            let payload = pages.space(self.receiver.payload_remaining() as usize);
            fill(self.stream, payload, &mut self.receiver)?;
            self.bytes_in += payload.len() as u64;
            return Ok(());
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(multifd_codec::decoder(method, &self.settings)?),
        };
        let payload = space(
            &mut self.payload,
            self.receiver.payload_remaining() as usize,
        );
        fill(self.stream, payload, &mut self.receiver)?;
        self.bytes_in += payload.len() as u64;
        decoder.decode(payload, page_size, pages.space(len))?;
        Ok(())
    }

    /// The method of `packet`, which must be that of all packets with a payload before it.
    pub(crate) fn method_of(&mut self, packet: &RamPacket) -> Result<Method, Cause> {
        let method = packet.method()?;
        if packet.payload_len() == 0 {
            return Ok(method);
        }
        match *self.method.get_or_insert(method) {
            first if first == method => Ok(method),
            first => Err(Cause::MethodChanged {
                first,
                then: method,
            }),
        }
    }

    /// For whoever moves the payload past this inlet: the connection, and how much is to be moved.
    pub(crate) fn payload_source(&self) -> (&'s Stream, usize) {
        (self.stream, self.receiver.payload_remaining() as usize)
    }

    /// `count` bytes of the payload were moved.
    pub(crate) fn payload_moved(&mut self, count: usize) -> Result<(), Cause> {
        self.bytes_in += count as u64;
        Ok(self.receiver.payload_taken(count)?)
    }

    /// What is wrong with a stream that ends here.
    pub(crate) fn ended(&self) -> Result<(), Cause> {
        Ok(self.receiver.finish()?)
    }
}

/// Reads the rest of the payload in hand, `payload.len()` bytes.
fn fill(
    mut stream: &Stream,
    payload: &mut [u8],
    receiver: &mut ChannelReceiver,
) -> Result<(), Cause> {
    match stream.read_exact(payload) {
        Ok(()) => {
            receiver.payload_taken(payload.len())?;
            Ok(())
        }
        // The receiver knows how much is missing; it was not told of what came.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            receiver.finish()?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}
