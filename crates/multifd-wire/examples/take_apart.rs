//! Takes the file of one captured multifd channel apart and prints what is in it.
//!
//!     cargo run -p multifd-wire --example take_apart -- CAPTURE

use std::process::ExitCode;
use std::{env, fs};

use multifd_wire::{ChannelReceiver, Event, Limits, Packet, RamPacket};

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("usage: take_apart CAPTURE");
        return ExitCode::FAILURE;
    };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    };
    let mut rest = bytes.as_slice();
    let mut receiver = ChannelReceiver::new(Limits::default());
    loop {
        let at = bytes.len() - rest.len();
        match receiver.push(&mut rest) {
            Ok(Some(event)) => print(&event),
            Ok(None) => break,
            Err(fault) => {
                eprintln!("after byte {at}: {fault}");
                return ExitCode::FAILURE;
            }
        }
    }
    if let Err(fault) = receiver.finish() {
        eprintln!("at the end: {fault}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn print(event: &Event<'_>) {
    match event {
        Event::Hello(hello) => println!("channel {}", hello.channel),
        Event::Packet(Packet::Ram(packet)) => print_ram(packet),
        Event::Packet(Packet::DeviceState(packet)) => println!(
            "state of device {} {}: {} bytes",
            packet.idstr(),
            packet.instance_id(),
            packet.payload_len()
        ),
        Event::Padding { .. } | Event::Payload(_) => {}
    }
}

fn print_ram(packet: &RamPacket) {
    let sync = if packet.is_sync() { " SYNC" } else { "" };
    print!("packet {}{sync}", packet.packet_num());
    if packet.normal().len() + packet.zero().len() != 0 {
        let method = packet
            .method()
            .map_or("unknown method", |method| method.as_str());
        print!(
            " {}: {} normal pages in {} bytes ({method}), {} zero pages",
            packet.block(),
            packet.normal().len(),
            packet.payload_len(),
            packet.zero().len()
        );
    }
    println!();
}
