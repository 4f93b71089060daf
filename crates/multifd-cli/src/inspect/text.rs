//! For people: lines.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;

use multifd_relay::inspect::{ChannelSummary, Inspection, MainSummary, PacketMethod, Sighting};
use multifd_wire::Packet;

use super::{View, fault_of, in_file};
use crate::say;

/// Prints all files; answers what is wrong with them.
pub(super) fn print(
    mut out: impl Write,
    files: &[PathBuf],
    packets: bool,
) -> io::Result<Vec<String>> {
    let mut faults = Vec::new();
    for path in files {
        let mut inspection = match Inspection::open(path) {
            Ok(inspection) => inspection,
            Err(error) => {
                faults.push(in_file(path, &say::chain(&error)));
                continue;
            }
        };
        if packets {
            for sighting in &mut inspection {
                print_packet(&mut out, &sighting)?;
            }
        }
        let report = inspection.finish();
        let view = View::of_file(&report);
        let heading = match report.streams.first().filter(|_| !report.recording) {
            Some(stream) => stream.summary.channel().to_string(),
            None => "recording".to_owned(),
        };
        print_view(
            &mut out,
            format_args!("{}: {heading}", say::printable_path(path)),
            &view,
        )?;
        print_blocks(&mut out, &view)?;
        for stream in report.streams.iter().filter(|_| report.recording) {
            let channel = stream.summary.channel();
            let heading = format_args!("  {channel}, {} bytes", stream.bytes);
            print_view(&mut out, heading, &View::of_stream(stream))?;
        }
        faults.extend(fault_of(&report).map(|fault| in_file(path, &fault)));
    }
    out.flush()?;
    Ok(faults)
}

fn print_packet(out: &mut impl Write, sighting: &Sighting) -> io::Result<()> {
    let Sighting {
        channel,
        index,
        offset,
        packet,
        ..
    } = sighting;
    write!(out, "{channel}, packet {index} at {offset}: ")?;
    match packet {
        Packet::DeviceState(packet) => {
            writeln!(out, "device state, payload {} bytes", packet.payload_len())
        }
        Packet::Ram(packet) => {
            let sync = if packet.is_sync() { "SYNC, " } else { "" };
            write!(out, "{sync}number {}", packet.packet_num())?;
            let (normal, zero) = (packet.normal().len(), packet.zero().len());
            if normal > 0 || zero > 0 {
                write!(
                    out,
                    ", {}, block {}, normal {normal}, zero {zero}, payload {} bytes",
                    PacketMethod::of(packet.flags()),
                    packet.block(),
                    packet.payload_len()
                )?;
            }
            writeln!(out)
        }
    }
}

fn print_view(out: &mut impl Write, heading: impl Display, view: &View<'_>) -> io::Result<()> {
    write!(out, "{heading}")?;
    if let Some(channels) = &view.channels {
        print_channels(out, channels)?;
    }
    if let Some(main) = view.main {
        print_main(out, main)?;
    }
    if let Some(page_size) = view.page_size {
        write!(out, ", page size {}", page_size.bytes())?;
    }
    writeln!(out)
}

fn print_blocks(out: &mut impl Write, view: &View<'_>) -> io::Result<()> {
    for block in view
        .main
        .map(|main| main.blocks.as_slice())
        .unwrap_or_default()
    {
        writeln!(out, "  block {}, {} bytes", block.name, block.used_length)?;
    }
    Ok(())
}

fn print_channels(out: &mut impl Write, channels: &ChannelSummary) -> io::Result<()> {
    write!(
        out,
        ", packets {}, sync {}, normal {}, zero {}, payload {} bytes",
        channels.packets, channels.sync, channels.normal, channels.zero, channels.payload_bytes
    )?;
    if channels.device_state > 0 {
        write!(out, ", device state {}", channels.device_state)?;
    }
    for (index, method) in channels.methods.iter().enumerate() {
        write!(
            out,
            "{} {method}",
            if index == 0 { ", method" } else { " and" }
        )?;
    }
    Ok(())
}

fn print_main(out: &mut impl Write, main: &MainSummary) -> io::Result<()> {
    if let Some(machine) = &main.machine {
        write!(out, ", machine {}", say::printable(machine))?;
    }
    write!(
        out,
        ", flush {}, eos {}, zero records {}, page records {}",
        main.flush, main.eos, main.zero_records, main.page_records
    )?;
    if main.return_path {
        write!(out, ", return path")?;
    }
    Ok(())
}
