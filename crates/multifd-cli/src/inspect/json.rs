//! For programs: an array with one object per file.
//!
//! Every object has every key; one that does not apply is null. `packet_list` is there when packets
//! were asked for.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use multifd_relay::inspect::{
    ChannelSummary, InspectError, Inspection, MainSummary, PacketMethod, Sighting, StreamReport,
};
use multifd_transport::failure::Channel;
use multifd_wire::Packet;
use multifd_wire::main_stream;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::{View, fault_of, in_file};
use crate::{json, say};

/// Prints all files; answers what is wrong with them.
pub(super) fn print(
    mut out: impl Write,
    files: &[PathBuf],
    packets: bool,
) -> io::Result<Vec<String>> {
    let document = Document {
        files,
        packets,
        faults: RefCell::default(),
    };
    json::to_writer(&mut out, &document)?;
    writeln!(out)?;
    out.flush()?;
    Ok(document.faults.into_inner())
}

/// The array. Files are read while it is written, so that no list of packets has to fit into
/// memory.
struct Document<'a> {
    files: &'a [PathBuf],
    packets: bool,
    faults: RefCell<Vec<String>>,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.files.iter().map(|path| File {
            path,
            document: self,
        }))
    }
}

struct File<'a> {
    path: &'a Path,
    document: &'a Document<'a>,
}

impl Serialize for File<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("file", &self.path.to_string_lossy())?;
        let list = PacketList(RefCell::new(Inspection::open(self.path)));
        if self.document.packets {
            map.serialize_entry("packet_list", &list)?;
        }
        let fault = match list.0.into_inner().map(Inspection::finish) {
            Ok(report) => {
                entries(&mut map, &View::of_file(&report))?;
                let streams = report
                    .recording
                    .then(|| report.streams.iter().map(Stream).collect::<Vec<_>>());
                map.serialize_entry("streams", &streams)?;
                fault_of(&report)
            }
            Err(error) => {
                let fault = say::chain(&error);
                entries(&mut map, &View::unreadable(fault.clone()))?;
                map.serialize_entry("streams", &())?;
                Some(fault)
            }
        };
        let faults = fault.map(|fault| in_file(self.path, &fault));
        self.document.faults.borrow_mut().extend(faults);
        map.end()
    }
}

/// One connection in a recording.
struct Stream<'a>(&'a StreamReport);

impl Serialize for Stream<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("bytes", &self.0.bytes)?;
        entries(&mut map, &View::of_stream(self.0))?;
        map.end()
    }
}

fn entries<M: SerializeMap>(map: &mut M, view: &View<'_>) -> Result<(), M::Error> {
    let channels = view.channels.as_ref();
    let methods = |channels: &ChannelSummary| {
        channels
            .methods
            .iter()
            .map(PacketMethod::to_string)
            .collect::<Vec<_>>()
    };
    map.serialize_entry("kind", &view.kind)?;
    map.serialize_entry("channel", &view.channel)?;
    map.serialize_entry("packets", &channels.map(|channels| channels.packets))?;
    map.serialize_entry("sync", &channels.map(|channels| channels.sync))?;
    map.serialize_entry(
        "device_state",
        &channels.map(|channels| channels.device_state),
    )?;
    map.serialize_entry("normal", &channels.map(|channels| channels.normal))?;
    map.serialize_entry("zero", &channels.map(|channels| channels.zero))?;
    map.serialize_entry(
        "payload_bytes",
        &channels.map(|channels| channels.payload_bytes),
    )?;
    map.serialize_entry("methods", &channels.map(methods))?;
    map.serialize_entry(
        "page_size",
        &view.page_size.map(|page_size| page_size.bytes()),
    )?;
    let main = view.main;
    let blocks = |main: &MainSummary| main.blocks.iter().map(Block::of).collect::<Vec<_>>();
    map.serialize_entry("machine", &main.and_then(|main| main.machine.as_ref()))?;
    map.serialize_entry("blocks", &main.map(blocks))?;
    map.serialize_entry("flush", &main.map(|main| main.flush))?;
    map.serialize_entry("eos", &main.map(|main| main.eos))?;
    map.serialize_entry("zero_records", &main.map(|main| main.zero_records))?;
    map.serialize_entry("page_records", &main.map(|main| main.page_records))?;
    map.serialize_entry("return_path", &main.map(|main| main.return_path))?;
    map.serialize_entry("fault", &view.fault)
}

#[derive(Serialize)]
struct Block {
    name: String,
    bytes: u64,
}

impl Block {
    fn of(block: &main_stream::Block) -> Self {
        Self {
            name: say::data(&block.name),
            bytes: block.used_length,
        }
    }
}

/// The packets of a file, read while they are written.
struct PacketList(RefCell<Result<Inspection, InspectError>>);

impl Serialize for PacketList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        if let Ok(inspection) = &mut *self.0.borrow_mut() {
            for sighting in inspection {
                list.serialize_element(&Entry::of(&sighting))?;
            }
        }
        list.end()
    }
}

/// One packet.
#[derive(Serialize)]
struct Entry {
    channel: Option<u8>,
    index: u64,
    offset: u64,
    kind: &'static str,
    flags: u32,
    sync: bool,
    method: Option<String>,
    packet_num: Option<u64>,
    block: Option<String>,
    normal: usize,
    zero: usize,
    payload_bytes: u32,
}

impl Entry {
    fn of(sighting: &Sighting) -> Self {
        let flags = sighting.packet.flags();
        let ram = match &sighting.packet {
            Packet::Ram(packet) => Some(packet),
            Packet::DeviceState(_) => None,
        };
        let normal = ram.map_or(0, |packet| packet.normal().len());
        let zero = ram.map_or(0, |packet| packet.zero().len());
        let with_pages = ram.filter(|_| normal > 0 || zero > 0);
        Self {
            channel: match sighting.channel {
                Channel::Multifd(id) => Some(id),
                Channel::Main | Channel::Unnamed => None,
            },
            index: sighting.index,
            offset: sighting.offset,
            kind: if ram.is_some() { "ram" } else { "device-state" },
            flags: flags.bits(),
            sync: flags.is_sync(),
            method: with_pages.map(|_| PacketMethod::of(flags).to_string()),
            packet_num: ram.map(|packet| packet.packet_num()),
            block: with_pages.map(|packet| say::data(packet.block())),
            normal,
            zero,
            payload_bytes: sighting.packet.payload_len(),
        }
    }
}
