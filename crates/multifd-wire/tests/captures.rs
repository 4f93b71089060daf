//! Captured migrations of real QEMUs, taken apart and rebuilt to the byte.
//!
//! A capture is a folder with `main.fwd`, `mfdN.fwd` and, where there was a return path,
//! `main.back`: the bytes of each connection. A `summary.json`, made by an independent decoder,
//! says what must be found. Captures are looked for in `testdata/captures` of the workspace and in
//! the folder which the environment variable `MULTIFD_CAPTURES` names.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::{env, fs, io};

use multifd_wire::main_stream::MainEvent;
use multifd_wire::return_path::ReturnPathReceiver;
use multifd_wire::{ChannelReceiver, ChannelSender, Event, Hello, Limits, Packet, PageSize};
use serde_json::{Value, json};
use support::{CUTS, channel_events, main_events};

#[test]
fn channels_are_rebuilt_to_the_byte() {
    for capture in captures() {
        for (name, bytes) in capture.channels() {
            let (decoded, rebuilt) = decode(&bytes);
            assert!(
                rebuilt == bytes,
                "{}/{name}: rebuilt bytes differ",
                capture.name()
            );
            if let Some(summary) = &capture.summary {
                let expected = &summary["channels"][&name];
                assert_eq!(
                    decoded.comparable(),
                    comparable(expected),
                    "{}/{name}",
                    capture.name()
                );
                let page_size = decoded.page_size.map(PageSize::bytes);
                assert_eq!(
                    json!(page_size),
                    summary["vmdesc"]["page_size"],
                    "{}/{name}",
                    capture.name()
                );
            }
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
        if let Some(summary) = &capture.summary {
            assert_eq!(
                main_summary(&events),
                expected_main(summary),
                "{}",
                capture.name()
            );
        }
        for cut in CUTS {
            assert!(
                main_events(&bytes, cut) == (events.clone(), end),
                "{} cut {cut:?}",
                capture.name()
            );
        }
    }
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
            assert_eq!(decode(&bytes).0.syncs, marks, "{}/{name}", capture.name());
        }
    }
}

#[test]
fn return_paths_are_rebuilt_to_the_byte() {
    for capture in captures() {
        let Some(bytes) = capture.read("main.back") else {
            continue;
        };
        let mut receiver = ReturnPathReceiver::new();
        let mut rebuilt = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some(message) = receiver.push(&mut rest).expect("a sound return path") {
            message.encode(&mut rebuilt);
        }
        assert_eq!(receiver.finish(), Ok(()), "{}", capture.name());
        assert_eq!(rebuilt, bytes, "{}", capture.name());
    }
}

struct Capture {
    folder: PathBuf,
    summary: Option<Value>,
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

    fn channels(&self) -> Vec<(String, Vec<u8>)> {
        let files = (0..=255).map(|channel| format!("mfd{channel}.fwd"));
        files
            .filter_map(|file| Some((file.clone(), self.read(&file)?)))
            .collect()
    }
}

/// What was found in a channel.
struct Decoded {
    hello: Hello,
    page_size: Option<PageSize>,
    packets: usize,
    syncs: usize,
    normal: usize,
    zero: usize,
    payload: usize,
    flags: BTreeSet<u32>,
    numbers: Vec<u64>,
    /// Runs of packets of the same kind.
    runs: Vec<(&'static str, usize)>,
}

impl Decoded {
    fn comparable(&self) -> Value {
        json!({
            "uuid": self.hello.uuid.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "id": self.hello.channel,
            "n": self.packets,
            "seq": self.runs,
            "normal_total": self.normal,
            "zero_total": self.zero,
            "payload": self.payload,
            "flags": self.flags.iter().map(|flags| format!("{flags:#x}")).collect::<Vec<_>>(),
            // The independent decoder lists no more than the first twelve.
            "nums": self.numbers.iter().take(12).collect::<Vec<_>>(),
        })
    }
}

/// The same facts in an independent decoder's words.
fn comparable(summary: &Value) -> Value {
    let mut facts = json!({ "uuid": summary["init"]["uuid"], "id": summary["init"]["id"] });
    for key in [
        "n",
        "seq",
        "normal_total",
        "zero_total",
        "payload",
        "flags",
        "nums",
    ] {
        facts[key] = summary[key].clone();
    }
    facts
}

/// Takes a channel apart, and puts it together again from what was found.
fn decode(bytes: &[u8]) -> (Decoded, Vec<u8>) {
    let mut receiver = ChannelReceiver::new(Limits::default());
    let mut sender = ChannelSender::new();
    let mut rebuilt = Vec::new();
    let mut decoded = Decoded {
        hello: Hello {
            uuid: [0; 16],
            channel: 0,
            reserved: [0; 39],
        },
        page_size: None,
        packets: 0,
        syncs: 0,
        normal: 0,
        zero: 0,
        payload: 0,
        flags: BTreeSet::new(),
        numbers: Vec::new(),
        runs: Vec::new(),
    };
    let mut rest = bytes;
    while let Some(event) = receiver.push(&mut rest).expect("a sound channel") {
        match event {
            Event::Hello(hello) => {
                sender.hello(&hello, &mut rebuilt).expect("in turn");
                decoded.hello = hello;
            }
            Event::Packet(packet) => {
                sender.packet(&packet, &mut rebuilt).expect("in turn");
                decoded.count(&packet);
            }
            Event::Padding { entries } => sender.padding(entries, &mut rebuilt).expect("in turn"),
            Event::Payload(piece) => {
                rebuilt.extend_from_slice(piece);
                sender.payload_sent(piece.len()).expect("in turn");
                decoded.payload += piece.len();
            }
        }
    }
    receiver.finish().expect("a whole channel");
    assert!(sender.is_at_boundary());
    decoded.page_size = receiver.page_size();
    (decoded, rebuilt)
}

impl Decoded {
    fn count(&mut self, packet: &Packet) {
        let Packet::Ram(packet) = packet else {
            return;
        };
        self.packets += 1;
        self.syncs += usize::from(packet.is_sync());
        self.normal += packet.normal().len();
        self.zero += packet.zero().len();
        self.flags.insert(packet.flags().bits());
        self.numbers.push(packet.packet_num());
        let has_pages = !packet.normal().is_empty() || !packet.zero().is_empty();
        let kind = match (packet.is_sync(), has_pages) {
            (true, true) => "SYNC+DATA",
            (true, false) => "SYNC",
            (false, _) => "RAM",
        };
        match self.runs.last_mut() {
            Some((last, count)) if *last == kind => *count += 1,
            _ => self.runs.push((kind, 1)),
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct MainSummary {
    machine: String,
    blocks: Vec<(String, u64)>,
    flush: u64,
    eos: u64,
    zero: u64,
    pages: u64,
    parts: u64,
    commands: u64,
    devices: u64,
    description: u64,
}

fn main_summary(events: &[MainEvent]) -> MainSummary {
    let mut summary = MainSummary::default();
    for event in events {
        match event {
            MainEvent::Configuration(configuration) => {
                summary.machine = configuration.machine.to_string()
            }
            MainEvent::RamBlocks(blocks) => {
                let blocks = blocks.iter();
                summary.blocks = blocks
                    .map(|block| (block.name.to_string(), block.used_length))
                    .collect();
            }
            MainEvent::Flush => summary.flush += 1,
            MainEvent::RamEndOfSection => summary.eos += 1,
            MainEvent::ZeroPage { .. } => summary.zero += 1,
            MainEvent::Page { .. } => summary.pages += 1,
            MainEvent::SectionPart { .. } => summary.parts += 1,
            MainEvent::Command(_) => summary.commands += 1,
            MainEvent::Opaque(_) => summary.devices += 1,
            MainEvent::VmDescription { len } => summary.description = u64::from(*len),
            _ => {}
        }
    }
    summary
}

fn expected_main(summary: &Value) -> MainSummary {
    let mut expected = MainSummary {
        description: summary["vmdesc"]["len"].as_u64().expect("a length"),
        devices: summary["vmdesc"]["devices"].as_u64().expect("a number"),
        ..MainSummary::default()
    };
    for event in summary["main_events"].as_array().expect("events") {
        match event[0].as_str() {
            Some("configuration") => expected.machine = text(&event[1]),
            Some("COMMAND") => expected.commands += 1,
            Some("PART") => expected.parts += 1,
            _ => {}
        }
        let records = event
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_array);
        for record in records.flatten() {
            match (record.as_str(), record[0].as_str()) {
                (Some("FLUSH"), _) => expected.flush += 1,
                (Some("EOS"), _) => expected.eos += 1,
                (_, Some("Z")) => expected.zero += record[1].as_u64().expect("a count"),
                (_, Some("P")) => expected.pages += record[1].as_u64().expect("a count"),
                (_, Some("MEM_SIZE")) => {
                    let blocks = record[2].as_array().expect("blocks").iter();
                    let block =
                        |block: &Value| (text(&block[0]), block[1].as_u64().expect("a length"));
                    expected.blocks = blocks.map(block).collect();
                }
                _ => {}
            }
        }
    }
    expected
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// All captures at hand. Says so, past the test harness, when there are fewer than there could be.
fn captures() -> Vec<Capture> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/captures");
    let mut captures = folder(&own);
    match env::var_os("MULTIFD_CAPTURES") {
        Some(more) => {
            let more = folder(Path::new(&more));
            assert!(
                !more.is_empty(),
                "no captures where MULTIFD_CAPTURES points"
            );
            captures.extend(more);
        }
        None => NOTE.call_once(|| {
            let count = captures.len();
            let note = format!(
                "MULTIFD_CAPTURES is not set: only the {count} captures in testdata/captures are tried\n"
            );
            io::stderr().write_all(note.as_bytes()).expect("a place to say so");
        }),
    }
    captures
}

static NOTE: Once = Once::new();

fn folder(path: &Path) -> Vec<Capture> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut folders: Vec<_> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    folders.sort();
    let captures = folders
        .into_iter()
        .filter(|folder| folder.join("main.fwd").exists());
    captures
        .map(|folder| {
            let summary = fs::read(folder.join("summary.json")).ok();
            let summary =
                summary.map(|text| serde_json::from_slice(&text).expect("a JSON summary"));
            Capture { folder, summary }
        })
        .collect()
}
