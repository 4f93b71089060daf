//! The plan of a made source: every byte of every connection, and the memory that has to arrive.
//!
//! A plan is made before the run. So the destination can compare main byte for byte, and knows the
//! marks without the reader that is under test.

use std::fmt;

use multifd_wire::{BlockName, Hello, Method, Packet, PageSize, RamPacket};

use crate::codec::Encoder;
use crate::random::Random;

/// The page size of all plans.
pub const PAGE: usize = 4096;

/// How marks and SYNCs are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// QEMU 9.0 and later: one flush mark in each round, and SYNC packets without pages.
    PerRound,
    /// Machine types before 8.1 on a new QEMU: the end of each section's body is the mark.
    PerSection,
    /// QEMU 7.2: marks as in `PerSection`, SYNC on packets with pages, and empty packets after
    /// them.
    Old,
}

/// The parameters of a plan.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Pages of each RAM block.
    pub blocks: Vec<usize>,
    /// Multifd channels.
    pub channels: u8,
    /// The method of the payloads.
    pub method: Method,
    /// The kind of the marks.
    pub mode: Mode,
    /// Whether there is a return path.
    pub return_path: bool,
    /// Whether the description of devices follows the last section.
    pub description: bool,
    /// Whether zero pages are records of main.
    pub legacy_zero: bool,
    /// The number of rounds. The last one is in the END section.
    pub rounds: usize,
    /// The VM's UUID.
    pub uuid: [u8; 16],
    /// Whether main states the UUID, as with `validate-uuid`.
    pub states_uuid: bool,
    /// Bytes of device state.
    pub devices: usize,
}

/// Guest memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory {
    /// Each block's name and contents.
    pub blocks: Vec<(String, Vec<u8>)>,
}

impl Memory {
    /// Memory of zeros with the same blocks.
    #[must_use]
    pub fn zeroed(&self) -> Self {
        let blocks = self.blocks.iter();
        let blocks = blocks.map(|(name, bytes)| (name.clone(), vec![0; bytes.len()]));
        Self {
            blocks: blocks.collect(),
        }
    }

    /// Writes a page to its place.
    pub fn write(&mut self, block: &str, offset: u64, page: &[u8]) -> Result<(), String> {
        let (_, bytes) = self
            .blocks
            .iter_mut()
            .find(|(name, _)| name == block)
            .ok_or_else(|| format!("there is no block {block:?}"))?;
        let place = usize::try_from(offset).ok();
        place
            .and_then(|start| bytes.get_mut(start..start.checked_add(page.len())?))
            .ok_or_else(|| format!("block {block} has no page at {offset:#x}"))?
            .copy_from_slice(page);
        Ok(())
    }

    /// The pages that differ from the expected memory.
    #[must_use]
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for ((name, bytes), (_, wanted)) in self.blocks.iter().zip(&expected.blocks) {
            if bytes.len() != wanted.len() {
                found.push(format!(
                    "{name} has {} bytes of {}",
                    bytes.len(),
                    wanted.len()
                ));
            }
            let pages = bytes.chunks(PAGE).zip(wanted.chunks(PAGE));
            for (index, _) in pages.enumerate().filter(|(_, (a, b))| a != b) {
                found.push(format!("{name} page {index}"));
            }
        }
        found
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self
            .blocks
            .iter()
            .map(|(name, bytes)| (name, bytes.len() / PAGE));
        f.debug_map().entries(pages).finish()
    }
}

/// The bytes that the source writes between two waits: first the channels' bytes, then main's.
#[derive(Debug, Clone)]
pub struct Step {
    /// The bytes of each channel.
    pub channels: Vec<Vec<u8>>,
    /// The bytes of main.
    pub main: Vec<u8>,
}

/// An element of main that the destination acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It answers a ping with this value.
    Ping(u32),
    /// It zeroes a page.
    Zero(String, u64),
    /// It waits for a SYNC of every channel.
    Mark,
}

/// A migration.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its parameters.
    pub shape: Shape,
    /// The first 64 bytes of each channel.
    pub hellos: Vec<[u8; Hello::LEN]>,
    /// All steps. The first one is the set-up.
    pub steps: Vec<Step>,
    /// The bytes of main after the last mark.
    pub tail: Vec<u8>,
    /// The elements of main that the destination acts on, with the ends of their bytes, in order.
    pub acts: Vec<(usize, Act)>,
    /// The source's memory at its end.
    pub memory: Memory,
}

impl Plan {
    /// Makes a plan.
    #[must_use]
    pub fn new(shape: Shape, random: &mut Random) -> Self {
        let names = ["pc.ram", "/rom@etc/acpi/tables", "vga.vram", "pc.bios"];
        let blocks = shape.blocks.iter().zip(names);
        let blocks = blocks.map(|(&pages, name)| (name.to_owned(), vec![0; pages * PAGE]));
        let memory = Memory {
            blocks: blocks.collect(),
        };
        let encoders = (0..shape.channels).map(|_| Encoder::new(shape.method));
        Maker {
            plan: Self {
                hellos: (0..shape.channels)
                    .map(|id| hello(shape.uuid, id))
                    .collect(),
                steps: Vec::new(),
                tail: Vec::new(),
                acts: Vec::new(),
                memory,
                shape: shape.clone(),
            },
            encoders: encoders.collect(),
            random,
            main_len: 0,
            last_block: None,
            number: 0,
        }
        .make()
    }

    /// All of main's bytes.
    #[must_use]
    pub fn main(&self) -> Vec<u8> {
        let mut main: Vec<u8> = self
            .steps
            .iter()
            .flat_map(|step| step.main.clone())
            .collect();
        main.extend_from_slice(&self.tail);
        main
    }

    /// Bytes of all connections together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let channel = |step: &Step| step.channels.iter().map(Vec::len).sum::<usize>();
        let steps: usize = self
            .steps
            .iter()
            .map(|step| step.main.len() + channel(step))
            .sum();
        (steps + self.tail.len() + self.hellos.len() * Hello::LEN) as u64
    }

    /// Bytes of one connection: main, or a channel.
    #[must_use]
    pub fn bytes_of(&self, who: Who) -> u64 {
        match who {
            Who::Main => self.main().len() as u64,
            Who::Channel(id) => {
                let of = |step: &Step| step.channels.get(usize::from(id)).map_or(0, Vec::len);
                (self.steps.iter().map(of).sum::<usize>() + Hello::LEN) as u64
            }
        }
    }
}

/// A connection of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The main connection.
    Main,
    /// A multifd channel.
    Channel(u8),
}

/// A channel's first bytes.
#[must_use]
pub fn hello(uuid: [u8; 16], channel: u8) -> [u8; Hello::LEN] {
    let hello = Hello::new(uuid, channel);
    hello.to_bytes()
}

struct Maker<'a> {
    plan: Plan,
    encoders: Vec<Encoder>,
    random: &'a mut Random,
    main_len: usize,
    /// The block of main's last record: a record of the same block has no name.
    last_block: Option<usize>,
    number: u64,
}

impl Maker<'_> {
    fn make(mut self) -> Plan {
        let rounds = self.plan.shape.rounds;
        self.set_up();
        for round in 0..rounds {
            let mut pages = self.dirty(round);
            self.random.shuffle(&mut pages);
            let last = round + 1 == rounds;
            // A real source's rate limit cuts sections short. Such a section has a mark only in the
            // old modes.
            if !last && pages.len() > 1 && self.random.percent(40) {
                let rest = pages.split_off(pages.len() / 2);
                let marked = self.plan.shape.mode != Mode::PerRound;
                self.section(0x02, &pages, marked);
                pages = rest;
            }
            self.section(if last { 0x03 } else { 0x02 }, &pages, true);
        }
        self.finish();
        self.plan
    }

    /// Header, commands, the list of blocks, and the first mark.
    fn set_up(&mut self) {
        let mut main = b"QEVM\0\0\0\x03\x07".to_vec();
        let machine = match self.plan.shape.mode {
            Mode::PerRound => &b"pc-q35-10.0"[..],
            Mode::PerSection | Mode::Old => &b"pc-q35-7.2"[..],
        };
        main.extend_from_slice(&(machine.len() as u32).to_be_bytes());
        main.extend_from_slice(machine);
        if self.plan.shape.states_uuid {
            main.extend_from_slice(b"\x05\x12configuration/uuid\0\0\0\x01");
            main.extend_from_slice(&self.plan.shape.uuid);
        }
        if self.plan.shape.return_path {
            main.extend_from_slice(b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01");
            self.plan.acts.push((main.len(), Act::Ping(1)));
        }
        main.extend_from_slice(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        let blocks = &self.plan.memory.blocks;
        let total: usize = blocks.iter().map(|(_, bytes)| bytes.len()).sum();
        main.extend_from_slice(&(total as u64 | 0x04).to_be_bytes());
        for (name, bytes) in blocks {
            main.push(name.len() as u8);
            main.extend_from_slice(name.as_bytes());
            main.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        }
        let mut channels = vec![Vec::new(); self.encoders.len()];
        for bytes in &mut channels {
            let number = self.next_number();
            sync(self.plan.shape.mode, number, bytes);
        }
        self.end_of_body(&mut main, true);
        self.push(channels, main);
    }

    /// Changes the guest's memory. Returns the pages that have to be sent.
    fn dirty(&mut self, round: usize) -> Vec<(usize, u64)> {
        let mut pages = Vec::new();
        let share = self.random.between(0, 40);
        for block in 0..self.plan.memory.blocks.len() {
            for page in 0..self.plan.memory.blocks[block].1.len() / PAGE {
                if round > 0 && !self.random.percent(share) {
                    continue;
                }
                let place = page * PAGE;
                let bytes = &mut self.plan.memory.blocks[block].1[place..place + PAGE];
                contents(self.random, bytes);
                pages.push((block, place as u64));
            }
        }
        pages
    }

    /// One body of the RAM section, with its pages on the channels.
    fn section(&mut self, kind: u8, pages: &[(usize, u64)], marked: bool) {
        let mut main = Vec::new();
        if kind == 0x03 && self.plan.shape.mode == Mode::PerRound {
            main.extend_from_slice(b"\x08\0\x0b\0\0");
        }
        main.push(kind);
        main.extend_from_slice(b"\0\0\0\x02");
        let mut channels = vec![Vec::new(); self.encoders.len()];
        let mut last_data = vec![None; self.encoders.len()];
        for block in 0..self.plan.memory.blocks.len() {
            let mut all: Vec<u64> = Vec::new();
            for &(_, offset) in pages.iter().filter(|(of, _)| *of == block) {
                if self.is_zero(block, offset) && self.legacy() {
                    self.zero_record(block, offset, &mut main);
                } else {
                    all.push(offset);
                }
            }
            let mut rest = all.as_slice();
            while !rest.is_empty() {
                let most = self.random.pick(&[3, 20, 128]);
                let (now, later) = rest.split_at(rest.len().min(most));
                rest = later;
                let channel = self.random.index(channels.len());
                last_data[channel] = Some(channels[channel].len());
                self.packet(channel, block, now, &mut channels[channel]);
            }
        }
        if marked {
            for (bytes, last) in channels.iter_mut().zip(last_data) {
                let number = self.next_number();
                match last {
                    // QEMU 7.2 sets SYNC on its current packet, and may send an empty one next.
                    Some(start) if self.plan.shape.mode == Mode::Old => {
                        bytes[start + 11] |= 1;
                        if self.random.percent(50) {
                            empty(number, false, bytes);
                        }
                    }
                    _ => sync(self.plan.shape.mode, number, bytes),
                }
            }
        }
        self.end_of_body(&mut main, marked);
        self.push(channels, main);
    }

    fn legacy(&self) -> bool {
        self.plan.shape.legacy_zero || self.plan.shape.mode == Mode::Old
    }

    fn is_zero(&self, block: usize, offset: u64) -> bool {
        self.page(block, offset).iter().all(|&byte| byte == 0)
    }

    fn page(&self, block: usize, offset: u64) -> &[u8] {
        let start = offset as usize;
        &self.plan.memory.blocks[block].1[start..start + PAGE]
    }

    fn zero_record(&mut self, block: usize, offset: u64, main: &mut Vec<u8>) {
        let name = self.plan.memory.blocks[block].0.clone();
        let same = if self.last_block == Some(block) {
            0x20
        } else {
            0
        };
        main.extend_from_slice(&(offset | 0x02 | same).to_be_bytes());
        if same == 0 {
            main.push(name.len() as u8);
            main.extend_from_slice(name.as_bytes());
        }
        main.push(0);
        self.last_block = Some(block);
        let at = self.main_len + main.len();
        self.plan.acts.push((at, Act::Zero(name, offset)));
    }

    /// The next packet's number: sources count over all channels, from 0.
    fn next_number(&mut self) -> u64 {
        let number = self.number;
        self.number += 1;
        number
    }

    fn packet(&mut self, channel: usize, block: usize, pages: &[u64], out: &mut Vec<u8>) {
        let (mut normal, mut zero) = (Vec::new(), Vec::new());
        for &offset in pages {
            let list = if self.is_zero(block, offset) {
                &mut zero
            } else {
                &mut normal
            };
            list.push(offset);
        }
        let name = BlockName::new(self.plan.memory.blocks[block].0.as_bytes());
        let number = self.next_number();
        let packet = name
            .ok()
            .and_then(|name| RamPacket::new(PageSize::K4, name, &normal, &zero, number).ok());
        let mut packet = packet.expect("offsets of pages are sound");
        let mut payload = Vec::new();
        if !normal.is_empty() {
            let parts: Vec<&[u8]> = normal
                .iter()
                .map(|&offset| self.page(block, offset))
                .collect();
            let contents = parts.concat();
            self.encoders[channel].encode(&contents, &mut payload);
        }
        packet
            .set_payload(self.plan.shape.method, payload.len() as u32)
            .expect("payloads of so few pages are short");
        Packet::from(packet).encode(out);
        out.extend_from_slice(&payload);
    }

    /// Writes the mark, if one is due, and the end of a section's body with its footer.
    fn end_of_body(&mut self, main: &mut Vec<u8>, marked: bool) {
        let per_round = self.plan.shape.mode == Mode::PerRound;
        if marked && per_round {
            main.extend_from_slice(&0x200_u64.to_be_bytes());
            self.plan.acts.push((self.main_len + main.len(), Act::Mark));
        }
        main.extend_from_slice(&0x10_u64.to_be_bytes());
        if !per_round {
            self.plan.acts.push((self.main_len + main.len(), Act::Mark));
        }
        main.extend_from_slice(b"\x7e\0\0\0\x02");
    }

    fn push(&mut self, channels: Vec<Vec<u8>>, main: Vec<u8>) {
        self.main_len += main.len();
        self.plan.steps.push(Step { channels, main });
    }

    /// Makes device state, the end of main, and the description.
    fn finish(&mut self) {
        let mut tail = Vec::new();
        let mut left = self.plan.shape.devices;
        for (index, name) in ["timer", "cpu_common", "cpu", "globalstate"]
            .iter()
            .enumerate()
        {
            let id = 10 + index as u32;
            let len = if index == 3 {
                left
            } else {
                self.random.index(left + 1)
            };
            left -= len;
            tail.push(0x04);
            tail.extend_from_slice(&id.to_be_bytes());
            tail.push(name.len() as u8);
            tail.extend_from_slice(name.as_bytes());
            tail.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
            let mut state = vec![0; len];
            self.random.fill(&mut state);
            // Device state may look like the end of a section.
            if len > 64 && self.random.percent(20) {
                state[20] = 0x7e;
                state[21..25].copy_from_slice(&id.to_be_bytes());
            }
            tail.extend_from_slice(&state);
            tail.push(0x7e);
            tail.extend_from_slice(&id.to_be_bytes());
        }
        tail.push(0);
        if self.plan.shape.description {
            let padding = "x".repeat(self.random.pick(&[0, 100, 40_000]));
            let json = format!(r#"{{"page_size":4096,"devices":[],"configuration":"{padding}"}}"#);
            tail.push(0x06);
            tail.extend_from_slice(&(json.len() as u32).to_be_bytes());
            tail.extend_from_slice(json.as_bytes());
        }
        self.plan.tail = tail;
    }
}

/// Fills a page with one of the kinds of content that guests have.
fn contents(random: &mut Random, page: &mut [u8]) {
    match random.below(10) {
        0..3 => page.fill(0),
        3..5 => random.fill(page),
        5..8 => {
            let mut word = [0; 16];
            random.fill(&mut word);
            for piece in page.chunks_mut(16) {
                piece.copy_from_slice(&word[..piece.len()]);
                if random.percent(20) {
                    random.fill(&mut word);
                }
            }
        }
        _ => {
            page.fill(0);
            let at = random.index(page.len() - 8);
            random.fill(&mut page[at..at + 8]);
            // It must not be a zero page by chance.
            page[at] |= 1;
        }
    }
}

fn sync(mode: Mode, number: u64, out: &mut Vec<u8>) {
    if mode == Mode::Old {
        empty(number, true, out);
    } else {
        Packet::from(RamPacket::sync(PageSize::K4, number)).encode(out);
    }
}

/// Writes a packet without pages as QEMU 7.2 does: it states the length of an earlier payload, and
/// has no payload.
fn empty(number: u64, sync: bool, out: &mut Vec<u8>) {
    let start = out.len();
    let packet = RamPacket::new(PageSize::K4, BlockName::EMPTY, &[], &[], number);
    Packet::from(packet.expect("no pages are sound")).encode(out);
    out[start + 20..start + 24].copy_from_slice(&(3 * PAGE as u32).to_be_bytes());
    if sync {
        out[start + 11] |= 1;
    }
}
