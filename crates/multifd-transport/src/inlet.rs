//! The inlet: one multifd channel's bytes become packets and their pages.

use std::io;
use std::sync::Arc;

use multifd_codec::delta::{self, Kept};
use multifd_codec::{Decoder, MAX_PAYLOAD_BYTES, PageBuffer, Settings};
use multifd_wire::{ChannelReceiver, Event, Fault, Hello, Limits, Method, Packet, RamPacket};

use crate::Stream;
use crate::clock::{self, Clock, Doing};
use crate::failure::{Cause, CodecFault};

/// Reads one multifd channel, packet by packet.
///
/// After a packet with a payload the caller takes the payload, decoded ([`Inlet::read_pages`]) or
/// as it is ([`Inlet::read_payload`]); what it does not take is passed over with the next item.
///
/// Memory: one packet's payload and, for [`Inlet::read_pages`], one packet's pages, reused. No
/// payload is longer than [`MAX_PAYLOAD_BYTES`] or what [`Limits`] set instead, and a device's
/// state is passed over in pieces.
pub struct Inlet<'s> {
    stream: &'s Stream,
    receiver: ChannelReceiver,
    /// The longest payload that is read at once.
    most_payload: u32,
    settings: Settings,
    /// The method of the channel's first packet with a payload, and its decoder once one was
    /// needed.
    method: Option<Method>,
    decoder: Option<delta::Decoder>,
    /// Packets may have the method `none` among those of another method.
    has_plain_packets: bool,
    /// The pages that differences on this channel are made from.
    bases: Option<Bases<'s>>,
    clock: Option<&'s Clock>,
    head: Vec<u8>,
    payload: Vec<u8>,
    pages: PageBuffer,
    bytes_in: u64,
}

/// The pages that differences are made from.
enum Bases<'s> {
    /// Copies, and how a wait for them ends.
    Kept(Arc<Kept>, GivenUp<'s>),
    /// The caller's. The pages come in this method.
    InPlace(Method),
}

/// Says whether a migration is over.
type GivenUp<'s> = Box<dyn Fn() -> bool + Send + 's>;

/// The next item of a channel.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "an item lives on the stack, between the inlet and its caller"
)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the format fixes what is on a channel"
)]
pub enum Item {
    /// A packet's header.
    Packet(Packet),
    /// More of the offset table of the packet before, all zero: given while the page size is not
    /// known yet, so that a SYNC need not wait.
    Padding {
        /// The number of eight-byte entries.
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
            most_payload: limits
                .compressed_payload_bytes
                .max(MAX_PAYLOAD_BYTES as u32),
            settings,
            method: None,
            decoder: None,
            has_plain_packets: false,
            bases: None,
            clock: None,
            head: Vec::new(),
            payload: Vec::new(),
            pages: PageBuffer::default(),
            bytes_in: bytes.len() as u64,
        })
    }

    /// Reads pages that are differences to those in `kept`. All channels of a migration share it.
    ///
    /// A page that another channel brings is waited for. `given_up` says whether the migration is
    /// over, which ends the wait.
    #[must_use]
    pub fn with_differences(
        self,
        kept: Arc<Kept>,
        given_up: impl Fn() -> bool + Send + 's,
    ) -> Self {
        let bases = Some(Bases::Kept(kept, Box::new(given_up)));
        Self { bases, ..self }
    }

    /// Reads pages that are differences to the caller's own: see [`Inlet::read_pages_over`]. They
    /// come in `method`, which the headers of packets do not state then.
    #[must_use]
    pub fn with_differences_in_place(self, method: Method) -> Self {
        let bases = Some(Bases::InPlace(method));
        Self { bases, ..self }
    }

    /// Takes packets of the method `none` among those of another method. Their pages are no
    /// differences.
    #[must_use]
    pub fn with_plain_packets(self) -> Self {
        Self {
            has_plain_packets: true,
            ..self
        }
    }

    /// Counts the time that it reads, and waits for something to read, on `clock`.
    #[must_use]
    pub fn with_clock(self, clock: &'s Clock) -> Self {
        Self {
            clock: Some(clock),
            ..self
        }
    }

    /// Whether pages may come as differences. A packet is decoded then, whatever its method, but
    /// for `none` where there are [plain packets](Self::with_plain_packets).
    pub fn has_differences(&self) -> bool {
        self.bases.is_some()
    }

    /// Bytes read so far, the hello included.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// The decoder, if one was needed.
    pub fn decoder(&self) -> Option<&dyn Decoder> {
        self.decoder.as_ref().map(delta::Decoder::inner)
    }

    /// Waits for the next item. What was not taken of the payload before is read and forgotten.
    ///
    /// # Errors
    /// When the stream breaks the rules or ends inside a packet.
    pub fn next_item(&mut self) -> Result<Item, Cause> {
        loop {
            // A header's piece, so that nothing of a payload is read here but what nobody has
            // taken.
            let wanted = self.receiver.wanted().min(PIECE_BYTES);
            let head = space(&mut self.head, wanted);
            let read = || self.stream.read_some(head);
            let count = clock::on(self.clock, Doing::Reads, read)?;
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

    /// Takes back a packet that is not needed any more: a further one gets its memory.
    pub fn recycle(&mut self, packet: RamPacket) {
        self.receiver.recycle(packet);
    }

    /// Reads the rest of the payload of the packet that came last, as it is on the wire.
    ///
    /// # Errors
    /// When the channel ends in it, or when it is a device's state that is longer than any payload
    /// of pages: such a one is left to [`Inlet::next_item`], which passes over it.
    pub fn read_payload(&mut self) -> Result<&[u8], Cause> {
        let len = self.receiver.payload_remaining();
        if len > self.most_payload {
            let (least, most) = (0, self.most_payload);
            let found = len;
            return Err(Fault::PayloadLength { found, least, most }.into());
        }
        let payload = space(&mut self.payload, len as usize);
        let fill = || fill(self.stream, payload, &mut self.receiver, &mut self.bytes_in);
        clock::on(self.clock, Doing::Reads, fill)?;
        Ok(payload)
    }

    /// [`ChannelReceiver::open_table`].
    pub fn open_table(&self) -> Option<usize> {
        self.receiver.open_table()
    }

    /// Whether there is something to read now, be it the end or an error.
    pub fn has_more(&self) -> bool {
        self.stream.is_readable()
    }

    /// Reads and decodes the payload which follows `packet`: its normal pages in the order of their
    /// offsets.
    ///
    /// # Errors
    /// When the payload does not give exactly these pages, or the channel's method is not one that
    /// can be read here.
    pub fn read_pages(&mut self, packet: &RamPacket) -> Result<&[u8], Cause> {
        let mut pages = std::mem::take(&mut self.pages);
        let outcome = self.read_pages_into(packet, &mut pages);
        self.pages = pages;
        outcome.map(|()| self.pages.as_ref())
    }

    /// The same [in place](Self::with_differences_in_place). `base` reads a page of the packet's
    /// block by its offset: see [`delta::Decoder::decode_in_place`].
    ///
    /// # Errors
    /// As [`Inlet::read_pages`], and when a page is a difference to one that `base` does not have.
    pub fn read_pages_over(
        &mut self,
        packet: &RamPacket,
        base: &dyn Fn(u64, &mut [u8]) -> bool,
    ) -> Result<&[u8], Cause> {
        let mut pages = std::mem::take(&mut self.pages);
        let outcome = self.read_over(packet, &mut pages, base);
        self.pages = pages;
        outcome.map(|()| self.pages.as_ref())
    }

    /// The same, into `pages`.
    pub fn read_pages_into(
        &mut self,
        packet: &RamPacket,
        pages: &mut PageBuffer,
    ) -> Result<(), Cause> {
        self.read_over(packet, pages, &|_, _| false)
    }

    fn read_over(
        &mut self,
        packet: &RamPacket,
        pages: &mut PageBuffer,
        base: &dyn Fn(u64, &mut [u8]) -> bool,
    ) -> Result<(), Cause> {
        let (Some(page_size), false) = (packet.page_size(), packet.normal().is_empty()) else {
            pages.space(0);
            return Ok(());
        };
        let method = self.method_of(packet)?;
        // A checked packet has at most as many pages as its size allows, 512 KiB in all.
        let len = packet.normal().len() * page_size.bytes();
        let is_plain = self.has_plain_packets || self.bases.is_none();
        if method == Method::None && is_plain {
            // A checked packet's payload has the length of its pages.
            let payload = pages.space(self.receiver.payload_remaining() as usize);
            let fill = || fill(self.stream, payload, &mut self.receiver, &mut self.bytes_in);
            return clock::on(self.clock, Doing::Reads, fill);
        }
        let payload_len = self.receiver.payload_remaining() as usize;
        let payload = space(&mut self.payload, payload_len);
        let fill = || fill(self.stream, payload, &mut self.receiver, &mut self.bytes_in);
        clock::on(self.clock, Doing::Reads, fill)?;
        self.payload.truncate(payload_len);
        pages.space(len);
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => {
                let method = match &self.bases {
                    Some(Bases::Kept(..)) => delta::payload_method(&self.payload)?,
                    Some(Bases::InPlace(method)) => *method,
                    None => method,
                };
                let inner = multifd_codec::decoder(method, &self.settings)?;
                none.insert(match &self.bases {
                    Some(Bases::Kept(kept, _)) => delta::Decoder::new(inner, Some(kept.clone())),
                    Some(Bases::InPlace(_)) => delta::Decoder::in_place(inner),
                    None => delta::Decoder::new(inner, None),
                })
            }
        };
        let payload = &mut self.payload;
        match &self.bases {
            Some(Bases::Kept(_, given_up)) => decoder.decode(payload, packet, pages, given_up)?,
            Some(Bases::InPlace(_)) => decoder.decode_in_place(payload, packet, pages, base)?,
            None => decoder.decode(payload, packet, pages, &|| false)?,
        }
        Ok(())
    }

    /// The method of `packet`, which must be that of all packets with a payload before it, but for
    /// [plain ones](Self::with_plain_packets).
    pub fn method_of(&mut self, packet: &RamPacket) -> Result<Method, Cause> {
        let method = packet.method()?;
        let is_plain = method == Method::None && self.has_plain_packets;
        if packet.payload_len() == 0 || is_plain {
            return Ok(method);
        }
        match *self.method.get_or_insert(method) {
            first if first == method => Ok(method),
            first => Err(CodecFault::MethodChanged {
                first,
                then: method,
            }
            .into()),
        }
    }

    /// The connection and the remaining payload length, for a caller that moves the payload itself.
    pub(crate) fn payload_source(&self) -> (&'s Stream, usize) {
        (self.stream, self.receiver.payload_remaining() as usize)
    }

    /// Reads past the payload of the packet in hand, which may be long.
    ///
    /// # Errors
    /// When the channel ends in it.
    pub fn skip_payload(&mut self) -> Result<(), Cause> {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let (stream, left) = self.payload_source();
            if left == 0 {
                return Ok(());
            }
            let piece = buffer.len().min(left);
            let count = stream.read_some(buffer.get_mut(..piece).unwrap_or_default())?;
            if count == 0 {
                self.ended()?;
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.payload_moved(count)?;
        }
    }

    /// `count` bytes of the payload were moved.
    pub(crate) fn payload_moved(&mut self, count: usize) -> Result<(), Cause> {
        self.bytes_in += count as u64;
        Ok(self.receiver.payload_taken(count)?)
    }

    /// The fault of a stream that ends here.
    pub(crate) fn ended(&self) -> Result<(), Cause> {
        Ok(self.receiver.finish()?)
    }
}

/// Reads the rest of the payload in hand, `payload.len()` bytes.
fn fill(
    stream: &Stream,
    payload: &mut [u8],
    receiver: &mut ChannelReceiver,
    bytes_in: &mut u64,
) -> Result<(), Cause> {
    let mut rest = payload;
    while !rest.is_empty() {
        let count = stream.read_some(rest)?;
        if count == 0 {
            // It knows how much is missing.
            receiver.finish()?;
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        receiver.payload_taken(count)?;
        *bytes_in += count as u64;
        rest = rest.get_mut(count..).unwrap_or_default();
    }
    Ok(())
}

/// Bytes to read at once when they are skipped. Every piece of a header is shorter.
const PIECE_BYTES: usize = 64 << 10;

/// The first `len_bytes` bytes of `buffer`, which grows when it is too small and is never cleared
/// again: the caller overwrites them.
pub(crate) fn space(buffer: &mut Vec<u8>, len_bytes: usize) -> &mut [u8] {
    if buffer.len() < len_bytes {
        buffer.resize(len_bytes, 0);
    }
    buffer.get_mut(..len_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use multifd_wire::{BlockName, DeviceStatePacket, PageSize};

    use super::*;

    const HELLO: Hello = Hello::new([0; 16], 0);

    fn encoded(packet: impl Into<Packet>) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.into().encode(&mut bytes);
        bytes
    }

    fn one_page(number: u64) -> Vec<u8> {
        let block = BlockName::new(b"pc.ram").unwrap();
        let packet = RamPacket::new(PageSize::K4, block, &[4096], &[], number).unwrap();
        [encoded(packet), vec![number as u8; 4096]].concat()
    }

    fn device_state(len: u32) -> Vec<u8> {
        let idstr = BlockName::new(b"vfio").unwrap();
        encoded(DeviceStatePacket::new(idstr, 0, len).unwrap())
    }

    /// An inlet at whose other end `write` writes.
    fn with_inlet(write: impl FnOnce(UnixStream) + Send, read: impl FnOnce(&mut Inlet<'_>)) {
        let (near, far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| write(far));
            let near = Stream::from(near);
            let settings = Settings::default();
            let mut inlet = Inlet::new(&near, &HELLO, Limits::default(), settings).unwrap();
            read(&mut inlet);
        });
    }

    fn number_of(item: &Item) -> Option<u64> {
        match item {
            Item::Packet(Packet::Ram(packet)) => Some(packet.packet_num()),
            _ => None,
        }
    }

    #[test]
    fn a_payload_that_nobody_takes_is_passed_over_in_pieces() {
        const STATE_BYTES: u32 = 40 << 20;
        let write = |mut far: UnixStream| {
            far.write_all(&one_page(0)).unwrap();
            far.write_all(&device_state(STATE_BYTES)).unwrap();
            let piece = vec![0x11; 1 << 20];
            for _ in 0..STATE_BYTES >> 20 {
                far.write_all(&piece).unwrap();
            }
            far.write_all(&one_page(2)).unwrap();
        };
        with_inlet(write, |inlet| {
            assert_eq!(number_of(&inlet.next_item().unwrap()), Some(0));
            // The page of that packet is not taken either.
            let item = inlet.next_item().unwrap();
            assert!(
                matches!(item, Item::Packet(Packet::DeviceState(_))),
                "{item:?}"
            );
            // It is not taken whole, which would be up to 4 GiB.
            let error = inlet.read_payload().unwrap_err();
            let found = STATE_BYTES;
            assert!(
                matches!(error, Cause::Wire(Fault::PayloadLength { found: is, .. }) if is == found),
                "{error:?}"
            );
            assert_eq!(number_of(&inlet.next_item().unwrap()), Some(2));
            assert!(inlet.head.capacity() <= 2 * PIECE_BYTES);
            assert!(inlet.payload.capacity() <= MAX_PAYLOAD_BYTES);
            assert_eq!(inlet.read_payload().unwrap(), [2; 4096]);
            assert!(matches!(inlet.next_item().unwrap(), Item::End));
        });
    }

    #[test]
    fn what_is_missing_of_a_payload_is_counted() {
        let write = |mut far: UnixStream| {
            let packet = one_page(0);
            far.write_all(&packet[..packet.len() - 96]).unwrap();
        };
        with_inlet(write, |inlet| {
            assert!(matches!(inlet.next_item().unwrap(), Item::Packet(_)));
            let error = inlet.read_payload().unwrap_err();
            assert!(
                matches!(error, Cause::Wire(Fault::Truncated { missing: 96 })),
                "{error:?}"
            );
        });
    }

    #[test]
    fn a_channel_that_ends_in_what_nobody_takes_ends_early() {
        let write = |mut far: UnixStream| {
            far.write_all(&device_state(1 << 30)).unwrap();
            far.write_all(&[1; 100_000]).unwrap();
        };
        with_inlet(write, |inlet| {
            assert!(matches!(inlet.next_item().unwrap(), Item::Packet(_)));
            let error = inlet.next_item().unwrap_err();
            let missing = (1 << 30) - 100_000;
            assert!(
                matches!(error, Cause::Wire(Fault::Truncated { missing: is }) if is == missing),
                "{error:?}"
            );
        });
    }
}
