//! The outlet: packets and their pages become one multifd channel's bytes.

use std::collections::VecDeque;
use std::io::Write;

use multifd_codec::{EncodeError, Encoder, Flow, PageBuffer};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Misuse, Packet, PageSize, RamPacket};

use crate::Stream;
use crate::failure::{Cause, Leg};
use crate::inlet::Inlet;
use crate::verbatim::Conduit;

/// Writes one multifd channel with one method.
///
/// Every packet is written at once, header and payload together: a peer waits for a SYNC.
pub struct Outlet<'s> {
    encoder: Box<dyn Encoder>,
    wire: Wire<'s>,
    conduit: Conduit,
    /// What goes round in a flow: empty between flows.
    waiting: VecDeque<RamPacket>,
    /// Memory for the pages of further packets.
    spare: Vec<PageBuffer>,
}

/// The connection, and what has been said on it.
struct Wire<'s> {
    stream: &'s Stream,
    sender: ChannelSender,
    /// What is to be written next.
    head: Vec<u8>,
    /// Nothing is written until the first packet is whole.
    holds: bool,
    bytes_out: u64,
}

/// Where packets come from that are written one after the other.
pub trait Supply {
    /// Why there is no next packet.
    type Error;

    /// The next packet, if there is one now, its normal pages' contents in `pages` in the order of their offsets. It may
    /// be asked for when the packets before it are still being encoded.
    fn next(&mut self, pages: &mut PageBuffer) -> Result<Option<RamPacket>, Self::Error>;

    /// The packet that has waited longest was written, `bytes` in all.
    fn sent(&mut self, packet: &RamPacket, bytes: u64);
}

/// Why not all packets were written.
#[derive(Debug)]
pub enum FlowFailure<E> {
    /// There is no next packet. All before it were written.
    Supply(E),
    /// The packet that was due could not be encoded or written. It has pages of this block, if it has any.
    Outlet(Cause, Option<Box<BlockName>>),
}

impl<'s> Outlet<'s> {
    /// Opens the channel: says `hello`.
    pub fn open(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Box<dyn Encoder>,
    ) -> Result<Self, Cause> {
        let mut outlet = Self::open_later(stream, hello, encoder)?;
        outlet.release()?;
        Ok(outlet)
    }

    /// Opens the channel with its first packet: `hello`, and what is written without a payload, are kept until
    /// [`Outlet::release`]. A QEMU that has all hellos reads its main channel and waits for SYNCs, for ever if one does not
    /// come whole; so what breaks must find both with it, or neither.
    pub fn open_later(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Box<dyn Encoder>,
    ) -> Result<Self, Cause> {
        let mut outlet = Outlet {
            encoder,
            wire: Wire {
                stream,
                sender: ChannelSender::new(),
                head: Vec::new(),
                holds: true,
                bytes_out: 0,
            },
            conduit: Conduit::default(),
            waiting: VecDeque::new(),
            spare: Vec::new(),
        };
        outlet.wire.sender.hello(hello, &mut outlet.wire.head)?;
        Ok(outlet)
    }

    /// The same for a channel whose `hello` was said in another way.
    pub fn open_behind(
        stream: &'s Stream,
        hello: &Hello,
        encoder: Box<dyn Encoder>,
    ) -> Result<Self, Cause> {
        let mut outlet = Self::open_later(stream, hello, encoder)?;
        outlet.wire.head.clear();
        Ok(outlet)
    }

    /// Writes what was kept, in one call. From now on everything is written at once.
    pub fn release(&mut self) -> Result<(), Cause> {
        self.wire.release()
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
        self.wire.bytes_out
    }

    /// Writes a packet without a payload: a SYNC, or only zero pages.
    pub fn write_packet(&mut self, packet: &Packet) -> Result<(), Cause> {
        self.wire.write_packet(packet)
    }

    /// Writes more of the offset table of the packet before: [`crate::inlet::Item::Padding`].
    pub fn write_padding(&mut self, entries: usize) -> Result<(), Cause> {
        self.wire.sender.padding(entries, &mut self.wire.head)?;
        self.wire.write_head()
    }

    /// Encodes and writes packets for as long as `supply` has some.
    ///
    /// # Errors
    /// The first failure. Packets that were taken and not written then are lost.
    pub fn write_flow<S: Supply>(
        &mut self,
        supply: &mut S,
        page_size: PageSize,
    ) -> Result<(), FlowFailure<S::Error>> {
        self.waiting.clear();
        let mut through = Through {
            supply,
            method: self.encoder.method(),
            wire: &mut self.wire,
            waiting: &mut self.waiting,
            spare: &mut self.spare,
            failure: None,
        };
        let outcome = self.encoder.encode_flow(&mut through, page_size);
        match (outcome, through.failure) {
            // The encoder was told to stop.
            (Err(EncodeError::Stopped { .. }) | Ok(()), Some(failure)) => Err(failure),
            (Ok(()), None) => Ok(()),
            // A supply that has failed did so behind this packet.
            (Err(error), _) => {
                let block = self.waiting.front().and_then(block_of);
                Err(FlowFailure::Outlet(error.into(), block))
            }
        }
    }

    /// Writes a packet whose payload comes from `inlet` as it is. An error says on which leg it happened.
    pub fn forward(&mut self, packet: &Packet, inlet: &mut Inlet<'_>) -> Result<(), (Leg, Cause)> {
        let here = |cause| (Leg::Destination, cause);
        self.write_packet(packet).map_err(here)?;
        let wire = &mut self.wire;
        let (from, len) = inlet.payload_source();
        if len > 0 {
            wire.release().map_err(here)?;
        }
        let moved = self
            .conduit
            .transfer(from, wire.stream, len)
            .map_err(|(leg, error)| (leg, error.into()))?;
        inlet
            .payload_moved(moved)
            .map_err(|cause| (Leg::Source, cause))?;
        if moved < len {
            inlet.ended().map_err(|cause| (Leg::Source, cause))?;
        }
        wire.sender
            .payload_sent(moved)
            .map_err(|fault| here(fault.into()))?;
        wire.bytes_out += moved as u64;
        Ok(())
    }
}

impl Wire<'_> {
    fn write_packet(&mut self, packet: &Packet) -> Result<(), Cause> {
        self.sender.packet(packet, &mut self.head)?;
        self.write_head()
    }

    fn write_with(&mut self, packet: &Packet, payload: &[u8]) -> Result<(), Cause> {
        self.sender.packet(packet, &mut self.head)?;
        self.stream.write_all_of_two(&self.head, payload)?;
        self.sender.payload_sent(payload.len())?;
        self.bytes_out += (self.head.len() + payload.len()) as u64;
        self.head.clear();
        self.holds = false;
        Ok(())
    }

    fn release(&mut self) -> Result<(), Cause> {
        self.holds = false;
        self.write_head()
    }

    fn write_head(&mut self) -> Result<(), Cause> {
        if self.holds {
            return Ok(());
        }
        (&mut &*self.stream).write_all(&self.head)?;
        self.bytes_out += self.head.len() as u64;
        self.head.clear();
        Ok(())
    }
}

/// Packets on their way from a supply through the encoder to the wire.
struct Through<'f, 's, S: Supply> {
    supply: &'f mut S,
    method: Method,
    wire: &'f mut Wire<'s>,
    /// Those whose pages the encoder has.
    waiting: &'f mut VecDeque<RamPacket>,
    spare: &'f mut Vec<PageBuffer>,
    failure: Option<FlowFailure<S::Error>>,
}

impl<S: Supply> Flow for Through<'_, '_, S> {
    fn next(&mut self) -> Option<PageBuffer> {
        if self.failure.is_some() {
            return None;
        }
        let mut pages = self.spare.pop().unwrap_or_default();
        match self.supply.next(&mut pages) {
            Ok(Some(packet)) => {
                self.waiting.push_back(packet);
                return Some(pages);
            }
            Ok(None) => {}
            Err(error) => self.failure = Some(FlowFailure::Supply(error)),
        }
        self.spare.push(pages);
        None
    }

    fn done(&mut self, pages: PageBuffer, payload: &mut Vec<u8>) -> bool {
        self.spare.push(pages);
        let Some(mut packet) = self.waiting.pop_front() else {
            let found = payload.len();
            let cause = Misuse::PayloadExceeded {
                found,
                remaining: 0,
            }
            .into();
            self.failure = Some(FlowFailure::Outlet(cause, None));
            return false;
        };
        let before = self.wire.bytes_out;
        // A packet's pages are 512 KiB and hardly grow; a length that did not fit would be refused as too long.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let has_payload = packet.set_payload(self.method, len).map_err(Cause::from);
        let packet = Packet::Ram(packet);
        let written = has_payload.and_then(|()| self.wire.write_with(&packet, payload));
        let Packet::Ram(packet) = packet else {
            return false;
        };
        match written {
            Ok(()) => {
                self.supply.sent(&packet, self.wire.bytes_out - before);
                true
            }
            Err(cause) => {
                // A supply that has failed already has failed behind this packet.
                self.failure = Some(FlowFailure::Outlet(cause, block_of(&packet)));
                false
            }
        }
    }
}

/// The block of a packet's pages, if it has any.
pub fn block_of(packet: &RamPacket) -> Option<Box<BlockName>> {
    let has_pages = !packet.normal().is_empty() || !packet.zero().is_empty();
    has_pages.then(|| Box::new(packet.block().clone()))
}
