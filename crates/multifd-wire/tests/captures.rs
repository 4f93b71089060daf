//! Captured migrations of real QEMUs, parsed and rebuilt identically.
//!
//! A capture is a folder of `testdata/captures`: the bytes of each connection, the QEMUs' own
//! counts (`meta.json`), and the hash of the guest's memory. The parsed content is compared with
//! these, and with a second decoder (`testkit::plain`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use multifd_wire::main_stream::MainEvent;
use multifd_wire::return_path::ReturnPathReceiver;
use multifd_wire::{ChannelReceiver, ChannelSender, Event, Hello, Limits, Packet, PageSize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use testkit::plain::{PlainChannel, PlainPacket, description};
use testkit::wire::{CUTS, Joined, channel_events, main_events};

#[test]
fn channels_are_rebuilt_to_the_byte_and_read_as_a_second_decoder_reads_them() {
    for capture in captures() {
        let description = capture.description();
        let page_bytes = description["page_size"].as_u64().expect("a page size");
        for (name, bytes) in capture.channels() {
            let place = format!("{}/{name}", capture.name());
            let (decoded, rebuilt) = decode(&bytes);
            assert!(rebuilt == bytes, "{place}: rebuilt bytes differ");
            let plain = PlainChannel::read(&bytes, page_bytes as usize);
            assert_eq!(decoded.channel, plain, "{place}");
            let found = decoded.page_size.map(PageSize::bytes);
            assert_eq!(found, Some(page_bytes as usize), "{place}");
        }
    }
}

#[test]
fn channels_give_the_same_events_in_every_cut() {
    for capture in captures() {
        for (name, bytes) in capture.channels() {
            let whole = channel_events(&bytes, &[usize::MAX]);
            whole
                .1
                .unwrap_or_else(|fault| panic!("{}/{name}: {fault}", capture.name()));
            for cut in CUTS {
                assert!(
                    channel_events(&bytes, cut) == whole,
                    "{}/{name} cut {cut:?}",
                    capture.name()
                );
            }
        }
    }
}

#[test]
fn main_streams_are_read_to_their_end() {
    for capture in captures() {
        let bytes = capture.read("main.fwd").expect("a main stream");
        let (events, end) = main_events(&bytes, &[usize::MAX]);
        end.unwrap_or_else(|fault| panic!("{}: {fault}", capture.name()));
        assert_eq!(events.last(), Some(&MainEvent::End), "{}", capture.name());
        for cut in CUTS {
            assert!(
                main_events(&bytes, cut) == (events.clone(), end),
                "{} cut {cut:?}",
                capture.name()
            );
        }
    }
}

/// The machine, its memory and its devices match QEMU's command line and description.
#[test]
fn main_streams_say_what_the_machine_is() {
    for capture in captures() {
        let name = capture.name();
        let bytes = capture.read("main.fwd").expect("a main stream");
        let events = main_events(&bytes, &[usize::MAX]).0;
        let description = capture.description();
        let command = capture.meta["source_command"].as_str().expect("a command");
        let mut devices = 0;
        let mut memory = 0;
        let mut machine = None;
        for event in &events {
            match event {
                MainEvent::Configuration(configuration) => machine = Some(&configuration.machine),
                MainEvent::RamBlocks(blocks) => {
                    memory = blocks.iter().map(|block| block.used_length).sum();
                }
                MainEvent::Opaque(_) => devices += 1,
                MainEvent::VmDescription { len } => {
                    let is = testkit::plain::description(&bytes).len();
                    assert_eq!(*len as usize, is, "{name}");
                }
                _ => {}
            }
        }
        let machine = machine.expect("a configuration").to_string();
        assert!(
            command.contains(&format!(" -machine {machine},")),
            "{name}: {machine}"
        );
        assert_eq!(memory, capture.counted("total"), "{name}");
        let described = description["devices"].as_array().expect("devices").len();
        assert_eq!(devices, described, "{name}");
    }
}

/// QEMU's own counts of a migration: all pages have arrived, on any channel.
#[test]
fn as_many_pages_are_found_as_qemu_has_counted() {
    for capture in captures() {
        let name = capture.name();
        let (mut normal, mut zero, mut bytes) = (0, 0, 0);
        for (_, channel) in capture.channels() {
            bytes += channel.len() as u64;
            let channel = decode(&channel).0.channel;
            normal += channel.normal() as u64;
            zero += channel.zero() as u64;
        }
        // If zero pages go by main.
        let main = capture.read("main.fwd").expect("a main stream");
        for event in main_events(&main, &[usize::MAX]).0 {
            match event {
                MainEvent::ZeroPage { .. } => zero += 1,
                MainEvent::Page { .. } => normal += 1,
                _ => {}
            }
        }
        assert_eq!(normal, capture.counted("normal"), "{name}");
        assert_eq!(zero, capture.counted("duplicate"), "{name}");
        // QEMU 7.2 counts pages before their compression, and no hellos.
        if !name.ends_with("-7.2") {
            assert_eq!(bytes, capture.counted("multifd-bytes"), "{name}");
        }
    }
}

/// Without compression, pages can be put in place and equal the source's memory.
#[test]
fn plain_pages_are_the_memory_of_the_source() {
    let mut tried = 0;
    for capture in captures() {
        let parameters = &capture.meta["migrate_set_parameters"];
        if parameters["multifd-compression"] != "none" {
            continue;
        }
        tried += 1;
        let name = capture.name();
        let main = capture.read("main.fwd").expect("a main stream");
        let mut memory: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let main_events = main_events(&main, &[usize::MAX]).0;
        for event in &main_events {
            if let MainEvent::RamBlocks(blocks) = event {
                for block in blocks {
                    let block_memory = vec![0xee; block.used_length as usize];
                    memory.insert(block.name.to_string(), block_memory);
                }
            }
        }
        // A stopped guest sends each page once, so the order of channels does not matter.
        let mut put = |block: &str, offset: u64, page: &[u8]| {
            let block = memory.get_mut(block).expect("a listed block");
            block[offset as usize..][..page.len()].copy_from_slice(page);
        };
        for (_, channel) in capture.channels() {
            let mut packet = None;
            for event in channel_events(&channel, &[usize::MAX]).0 {
                match event {
                    Joined::Packet(next) => {
                        let Packet::Ram(ram) = *next else {
                            panic!("{name}: a device's state")
                        };
                        let page_bytes = ram.page_size().map_or(0, PageSize::bytes);
                        for &offset in ram.zero() {
                            put(&ram.block().to_string(), offset, &vec![0; page_bytes]);
                        }
                        packet = Some((ram, page_bytes));
                    }
                    Joined::Payload(payload) => {
                        let (ram, page_bytes) = packet.take().expect("a packet before it");
                        let pages = payload.chunks(page_bytes);
                        assert_eq!(pages.len(), ram.normal().len(), "{name}");
                        for (&offset, page) in ram.normal().iter().zip(pages) {
                            put(&ram.block().to_string(), offset, page);
                        }
                    }
                    _ => {}
                }
            }
        }
        let blocks: Vec<String> = main_events
            .iter()
            .filter_map(|event| match event {
                MainEvent::RamBlocks(blocks) => Some(blocks),
                _ => None,
            })
            .flatten()
            .map(|block| block.name.to_string())
            .collect();
        for event in &main_events {
            if let MainEvent::ZeroPage { block, offset } = event {
                put(&blocks[*block], *offset, &[0; 4096]);
            }
        }
        let hashes = capture.read("ram.sha256").expect("hashes");
        let hashes = String::from_utf8(hashes).expect("text");
        for line in hashes.lines() {
            let (hash, image) = line.split_once("  ").expect("a hash and a name");
            let block = image.strip_suffix(".ram").expect("the name of an image");
            let found = Sha256::digest(&memory[block]);
            let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, hash, "{name}: {block}");
        }
        assert!(!hashes.is_empty(), "{name}");
    }
    assert!(tried >= 10, "{tried} captures");
}

/// QEMU marks on the main channel that all channels have synchronised: by a FLUSH each time or,
/// with machine types before 8.1, by the end of each RAM section.
#[test]
fn channels_synchronise_as_often_as_the_main_stream_says() {
    for capture in captures() {
        let bytes = capture.read("main.fwd").expect("a main stream");
        let (events, _) = main_events(&bytes, &[usize::MAX]);
        let count = |wanted| events.iter().filter(|&event| *event == wanted).count();
        let marks = match count(MainEvent::Flush) {
            0 => count(MainEvent::RamEndOfSection),
            flushes => flushes,
        };
        for (name, bytes) in capture.channels() {
            let channel = decode(&bytes).0.channel;
            let syncs = channel.packets.iter().filter(|packet| packet.is_sync());
            assert_eq!(syncs.count(), marks, "{}/{name}", capture.name());
        }
    }
}

#[test]
fn return_paths_are_rebuilt_to_the_byte() {
    let mut tried = 0;
    for capture in captures() {
        let Some(bytes) = capture.read("main.back") else {
            continue;
        };
        tried += 1;
        let mut receiver = ReturnPathReceiver::new();
        let mut rebuilt = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some(message) = receiver.push(&mut rest).expect("a sound return path") {
            message.encode(&mut rebuilt);
        }
        assert_eq!(receiver.finish(), Ok(()), "{}", capture.name());
        assert_eq!(rebuilt, bytes, "{}", capture.name());
    }
    assert!(tried >= 3, "{tried} return paths");
}

struct Capture {
    folder: PathBuf,
    meta: Value,
}

impl Capture {
    fn name(&self) -> String {
        self.folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    fn read(&self, file: &str) -> Option<Vec<u8>> {
        let path = self.folder.join(file);
        path.exists()
            .then(|| fs::read(path).expect("a readable file"))
    }

    /// The configured number of channels.
    fn channels(&self) -> Vec<(String, Vec<u8>)> {
        let count = &self.meta["migrate_set_parameters"]["multifd-channels"];
        let files = (0..count.as_u64().expect("a number")).map(|id| format!("mfd{id}.fwd"));
        files
            .map(|file| {
                let bytes = self.read(&file).expect("a channel");
                (file, bytes)
            })
            .collect()
    }

    /// A count of the source.
    fn counted(&self, what: &str) -> u64 {
        let count = &self.meta["query_migrate_source"]["ram"][what];
        count.as_u64().expect("a count")
    }

    fn description(&self) -> Value {
        let main = self.read("main.fwd").expect("a main stream");
        serde_json::from_slice(description(&main)).expect("JSON")
    }
}

/// The content of a channel.
struct Decoded {
    channel: PlainChannel,
    page_size: Option<PageSize>,
}

/// Parses a channel, and rebuilds it from the result.
fn decode(bytes: &[u8]) -> (Decoded, Vec<u8>) {
    let mut receiver = ChannelReceiver::new(Limits::default());
    let mut sender = ChannelSender::new();
    let mut rebuilt = Vec::new();
    let mut channel = PlainChannel {
        uuid: [0; 16],
        id: 0,
        packets: Vec::new(),
    };
    let mut rest = bytes;
    loop {
        let at = rebuilt.len();
        let Some(event) = receiver.push(&mut rest).expect("a sound channel") else {
            break;
        };
        match event {
            Event::Hello(hello) => {
                sender.hello(&hello, &mut rebuilt).expect("in turn");
                let Hello {
                    uuid, channel: id, ..
                } = hello;
                (channel.uuid, channel.id) = (uuid, id);
            }
            Event::Packet(packet) => {
                sender.packet(&packet, &mut rebuilt).expect("in turn");
                let Packet::Ram(packet) = packet else {
                    panic!("a device's state, which no capture has")
                };
                channel.packets.push(PlainPacket {
                    flags: packet.flags().bits(),
                    number: packet.packet_num(),
                    block: packet.block().to_string(),
                    normal: packet.normal().to_vec(),
                    zero: packet.zero().to_vec(),
                    payload: 0,
                    at,
                });
            }
            Event::Padding { entries } => sender.padding(entries, &mut rebuilt).expect("in turn"),
            Event::Payload(piece) => {
                rebuilt.extend_from_slice(piece);
                sender.payload_sent(piece.len()).expect("in turn");
                channel.packets.last_mut().expect("a packet").payload += piece.len();
            }
        }
    }
    receiver.finish().expect("a whole channel");
    assert!(sender.is_at_boundary());
    let page_size = receiver.page_size();
    (Decoded { channel, page_size }, rebuilt)
}

/// All captures, in the repository, which this crate's tests require.
fn captures() -> Vec<Capture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/captures");
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("no captures: {}: {error}", folder.display()));
    let mut folders: Vec<_> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    folders.sort();
    assert!(folders.len() >= 23, "only {} captures", folders.len());
    folders
        .into_iter()
        .map(|folder| {
            let meta = fs::read(folder.join("meta.json")).expect("what the QEMUs said");
            let meta = serde_json::from_slice(&meta).expect("JSON");
            Capture { folder, meta }
        })
        .collect()
}
