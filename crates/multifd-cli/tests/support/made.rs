//! Migrations made here, byte by byte: small, of every kind, and with lies in them where a test
//! wants some.

use std::path::Path;

use multifd_codec::{Encoder, Pages, Settings};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, PageSize, RamPacket};

use super::Migration;

pub const PAGE: PageSize = PageSize::K4;
pub const PAGE_BYTES: usize = 4096;
pub const BLOCK: &str = "pc.ram";
/// As many pages as [`sound`] sends: a receiver wants every page of a block.
pub const BLOCK_BYTES: u64 = 6 << 12;

/// A record which says that all channels have synchronised.
pub const FLUSH: [u8; 8] = 0x200_u64.to_be_bytes();

/// The main channel of a migration of one block.
pub struct Main<'a> {
    pub machine: &'a str,
    pub return_path: bool,
    /// The records of each body of the RAM section, the first after the list of blocks.
    pub bodies: &'a [&'a [u8]],
}

impl Main<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"QEVM\0\0\0\x03\x07".to_vec();
        bytes.extend_from_slice(&(self.machine.len() as u32).to_be_bytes());
        bytes.extend_from_slice(self.machine.as_bytes());
        if self.return_path {
            bytes.extend_from_slice(b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01");
        }
        for (index, body) in self.bodies.iter().enumerate() {
            match index {
                0 => {
                    bytes.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
                    bytes.extend_from_slice(&(BLOCK_BYTES | 0x04).to_be_bytes());
                    bytes.extend_from_slice(b"\x06pc.ram");
                    bytes.extend_from_slice(&BLOCK_BYTES.to_be_bytes());
                }
                _ if index + 1 == self.bodies.len() => bytes.extend_from_slice(b"\x03\0\0\0\x02"),
                _ => bytes.extend_from_slice(b"\x02\0\0\0\x02"),
            }
            bytes.extend_from_slice(body);
            bytes.extend_from_slice(&0x10_u64.to_be_bytes());
            bytes.extend_from_slice(b"\x7e\0\0\0\x02");
        }
        bytes.extend_from_slice(b"\0\x06\0\0\0\x02{}");
        bytes
    }
}

/// The main channel of a migration that is out of the ordinary.
pub struct Shape<'a> {
    /// What the configuration lists.
    pub capabilities: &'a [&'a str],
    /// With `validate-uuid`.
    pub uuid: Option<[u8; 16]>,
    pub return_path: bool,
    /// POSTCOPY_ADVISE, with the sizes of the host's pages, one bit each.
    pub advise: Option<u64>,
    /// Each with its length, and the size of its pages where that is told.
    pub blocks: &'a [(&'a str, u64, Option<u64>)],
    /// Stands after the first body of the RAM section.
    pub behind_setup: &'a [u8],
    /// Stands after the last one.
    pub end: &'a [u8],
}

/// As a QEMU ends a stream.
pub const END: &[u8] = b"\0\x06\0\0\0\x02{}";

impl Default for Shape<'_> {
    fn default() -> Self {
        Self {
            capabilities: &[],
            uuid: None,
            return_path: false,
            advise: None,
            blocks: &[(BLOCK, BLOCK_BYTES, None)],
            behind_setup: &[],
            end: END,
        }
    }
}

impl Shape<'_> {
    /// With a flush mark in its set-up and this many after it.
    pub fn bytes(&self, marks: usize) -> Vec<u8> {
        let mut bytes = self.set_up();
        bytes.extend_from_slice(self.behind_setup);
        for left in (0..marks).rev() {
            bytes.push(if left == 0 { 3 } else { 2 });
            bytes.extend_from_slice(&[0, 0, 0, 2]);
            bytes.extend_from_slice(&FLUSH);
            bytes.extend_from_slice(BODY_END);
        }
        bytes.extend_from_slice(self.end);
        bytes
    }

    /// Up to the end of the first body of the RAM section.
    pub fn set_up(&self) -> Vec<u8> {
        let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x04none".to_vec();
        let mut subsection = |name: &str, data: &[u8]| {
            bytes.extend_from_slice(&[5, name.len() as u8]);
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&1_u32.to_be_bytes());
            bytes.extend_from_slice(data);
        };
        if !self.capabilities.is_empty() {
            let mut list = (self.capabilities.len() as u32).to_be_bytes().to_vec();
            for name in self.capabilities {
                list.push(name.len() as u8);
                list.extend_from_slice(name.as_bytes());
            }
            subsection("configuration/capabilities", &list);
        }
        if let Some(uuid) = self.uuid {
            subsection("configuration/uuid", &uuid);
        }
        if self.return_path {
            bytes.extend_from_slice(b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01");
        }
        if let Some(page_sizes) = self.advise {
            bytes.extend_from_slice(b"\x08\0\x03\0\x10");
            bytes.extend_from_slice(&page_sizes.to_be_bytes());
            bytes.extend_from_slice(&4096_u64.to_be_bytes());
        }
        let total: u64 = self.blocks.iter().map(|(_, length, _)| length).sum();
        bytes.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        bytes.extend_from_slice(&(total | 0x04).to_be_bytes());
        for (index, (name, length, page_size)) in self.blocks.iter().enumerate() {
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&length.to_be_bytes());
            if let Some(page_size) = page_size {
                bytes.extend_from_slice(&page_size.to_be_bytes());
            }
            if self.capabilities.contains(&"x-ignore-shared") {
                bytes.extend_from_slice(&(index as u64 * (1 << 30)).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&FLUSH);
        bytes.extend_from_slice(BODY_END);
        bytes
    }
}

/// The end of a body of the RAM section.
const BODY_END: &[u8] = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

/// A record of a zero page.
pub fn zero_record(offset: u64) -> Vec<u8> {
    let mut record = (offset | 0x02).to_be_bytes().to_vec();
    record.extend_from_slice(b"\x06pc.ram\0");
    record
}

/// A record of a page of `fill`.
pub fn page_record(offset: u64, fill: u8) -> Vec<u8> {
    let mut record = (offset | 0x08).to_be_bytes().to_vec();
    record.extend_from_slice(b"\x06pc.ram");
    record.extend_from_slice(&[fill; PAGE_BYTES]);
    record
}

/// A multifd channel under construction.
pub struct Channel {
    sender: ChannelSender,
    encoder: Encoder,
    number: u64,
    bytes: Vec<u8>,
}

impl Channel {
    pub fn new(id: u8, method: Method) -> Self {
        Self::of_vm([0; 16], id, method)
    }

    /// A channel of the VM with this UUID.
    pub fn of_vm(uuid: [u8; 16], id: u8, method: Method) -> Self {
        let hello = Hello::new(uuid, id);
        let mut channel = Self {
            sender: ChannelSender::new(),
            encoder: multifd_codec::encoder(method, &Settings::default()).expect("a method"),
            number: 0,
            bytes: Vec::new(),
        };
        channel
            .sender
            .hello(&hello, &mut channel.bytes)
            .expect("in turn");
        channel
    }

    pub fn sync(mut self) -> Self {
        let packet = Packet::Ram(RamPacket::sync(PAGE, self.next_number()));
        self.sender
            .packet(&packet, &mut self.bytes)
            .expect("in turn");
        self
    }

    /// A SYNC as sources before QEMU 9.0 send it: with room for pages.
    pub fn early_sync(self) -> Self {
        let at = self.bytes.len();
        let mut channel = self.packet(BLOCK, &[], &[], &[]);
        // The lowest bit of the packet's flags.
        *channel.bytes.get_mut(at + 11).expect("a packet") |= 1;
        channel
    }

    /// Pages filled with one byte each, and zero pages.
    pub fn pages(self, normal: &[(u64, u8)], zero: &[u64]) -> Self {
        let contents: Vec<u8> = normal
            .iter()
            .flat_map(|&(_, fill)| [fill; PAGE_BYTES])
            .collect();
        let offsets: Vec<u64> = normal.iter().map(|&(offset, _)| offset).collect();
        self.packet(BLOCK, &offsets, zero, &contents)
    }

    pub fn packet(mut self, block: &str, normal: &[u64], zero: &[u64], contents: &[u8]) -> Self {
        let block = BlockName::try_from(block).expect("a name");
        let number = self.next_number();
        let mut packet = RamPacket::new(PAGE, block, normal, zero, number).expect("a packet");
        let mut payload = Vec::new();
        if !normal.is_empty() {
            let pages = Pages::private(contents, PAGE).expect("pages");
            self.encoder
                .encode(&pages, &mut payload)
                .expect("a payload");
        }
        packet
            .set_payload(self.encoder.method(), payload.len() as u32)
            .expect("a length");
        self.sender
            .packet(&Packet::Ram(packet), &mut self.bytes)
            .expect("in turn");
        self.bytes.extend_from_slice(&payload);
        self.sender.payload_sent(payload.len()).expect("in turn");
        self
    }

    /// Leaves numbers out, which are those of another channel's packets.
    pub fn skip(mut self, packets: u64) -> Self {
        self.number += packets;
        self
    }

    fn next_number(&mut self) -> u64 {
        let number = self.number;
        self.number += 1;
        number
    }

    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A sound migration on two channels: two rounds, in which a page goes from content to zero and
/// another from zero to content.
pub fn sound(method: Method, return_path: bool) -> Migration {
    let main = Main {
        machine: "none-10.0",
        return_path,
        bodies: &[&FLUSH, &FLUSH, &FLUSH],
    };
    Migration {
        main: main.bytes(),
        channels: vec![
            Channel::new(0, method)
                .sync()
                .pages(&[(0, 1), (4096, 2)], &[8192])
                .sync()
                .pages(&[(8192, 7)], &[])
                .sync()
                .bytes(),
            Channel::new(1, method)
                .sync()
                .pages(&[(12288, 3)], &[])
                .sync()
                .pages(&[(16384, 4)], &[0, 12288, 20480])
                .sync()
                .bytes(),
        ],
        return_path,
        closed: None,
    }
}

/// A migration on two channels that are too long for the buffers of sockets, with a mark after the
/// set-up and one at the end.
pub fn long(shape: &Shape<'_>) -> Migration {
    let channel = |id| {
        let pages =
            |number: u64| -> Vec<_> { (0..6).map(|page| (page << 12, number as u8)).collect() };
        let mut channel = Channel::new(id, Method::None).sync();
        for number in 0..60 {
            channel = channel.pages(&pages(number), &[]);
        }
        channel.sync().bytes()
    };
    Migration {
        main: shape.bytes(1),
        channels: vec![channel(0), channel(1)],
        return_path: shape.return_path,
        closed: None,
    }
}

/// A migration of six pages on two channels, with one mark after the set-up.
pub fn short(shape: &Shape<'_>) -> Migration {
    let uuid = shape.uuid.unwrap_or_default();
    let channel = |id| Channel::of_vm(uuid, id, Method::None).sync();
    Migration {
        main: shape.bytes(1),
        channels: vec![
            channel(0)
                .pages(&[(0, 1), (4096, 2)], &[8192])
                .sync()
                .bytes(),
            channel(1)
                .pages(&[(12288, 3)], &[16384, 20480])
                .sync()
                .bytes(),
        ],
        return_path: shape.return_path,
        closed: None,
    }
}

/// The pages of the block after [`short`].
pub const SHORT_PAGES: [u8; 6] = [1, 2, 0, 3, 0, 0];

/// One byte of each of the first `count` pages of an image.
pub fn pages(image: &Path, count: usize) -> Vec<u8> {
    let image = std::fs::read(image).expect("an image");
    assert_eq!(image.len() as u64, BLOCK_BYTES);
    image
        .chunks(PAGE_BYTES)
        .take(count)
        .map(|page| page[77])
        .collect()
}

/// The first pages of the block after [`sound`].
pub const SOUND_PAGES: [u8; 6] = [0, 2, 7, 0, 4, 0];
