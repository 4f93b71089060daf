//! Migrations made here, byte by byte: small, of every kind, and with lies in them where a test wants some.

use std::path::Path;

use multifd_codec::{Encoder, Pages, Settings};
use multifd_wire::{BlockName, ChannelSender, Hello, Method, Packet, PageSize, RamPacket};

use super::Migration;

pub const PAGE: PageSize = PageSize::K4;
pub const PAGE_BYTES: usize = 4096;
pub const BLOCK: &str = "pc.ram";
pub const BLOCK_BYTES: u64 = 1 << 20;

/// A record which says that all channels have synchronised.
pub const FLUSH: [u8; 8] = 0x200_u64.to_be_bytes();

/// The main channel of a migration of one block.
pub struct Main<'a> {
    pub machine: &'a str,
    pub return_path: bool,
    /// The records of each body of the RAM section, the first behind the list of blocks.
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
    encoder: Box<dyn Encoder>,
    number: u64,
    bytes: Vec<u8>,
}

impl Channel {
    pub fn new(id: u8, method: Method) -> Self {
        let hello = Hello {
            uuid: [0; 16],
            channel: id,
            reserved: [0; 39],
        };
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
        self.number += 1;
        let packet = Packet::Ram(RamPacket::sync(PAGE, self.number));
        self.sender
            .packet(&packet, &mut self.bytes)
            .expect("in turn");
        self
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
        self.number += 1;
        let block = BlockName::try_from(block).expect("a name");
        let mut packet = RamPacket::new(PAGE, block, normal, zero, self.number).expect("a packet");
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

    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A sound migration on two channels: two rounds, in which a page goes from content to zero and another from zero to
/// content.
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
                .pages(&[(16384, 4)], &[0, 12288])
                .sync()
                .bytes(),
        ],
        return_path,
        closed: None,
    }
}

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
