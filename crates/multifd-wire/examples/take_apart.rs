//! Parses the file of one captured multifd channel and prints its content.
//!
//!     cargo run -p multifd-wire --example take_apart -- CAPTURE

use std::process::ExitCode;
use std::{env, fs};

use multifd_wire::{ChannelReceiver, Event, Fault, Limits, Packet, RamPacket};

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
    match take_apart(&bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err((at, fault)) => {
            eprintln!("at byte {at}: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the content of a channel. Returns the position and the fault of an invalid one.
fn take_apart(bytes: &[u8]) -> Result<(), (usize, Fault)> {
    let mut rest = bytes;
    let mut receiver = ChannelReceiver::new(Limits::default());
    loop {
        let at = bytes.len() - rest.len();
        match receiver.push(&mut rest).map_err(|fault| (at, fault))? {
            Some(event) => print(&event),
            None => break,
        }
    }
    receiver.finish().map_err(|fault| (bytes.len(), fault))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::take_apart;

    #[test]
    fn a_capture_is_taken_apart() {
        let capture = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../testdata/captures/none2-10.0/mfd1.fwd"
        );
        let bytes = fs::read(capture).unwrap();
        assert_eq!(take_apart(&bytes), Ok(()));
        let (at, _) = take_apart(&bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(at, bytes.len() - 1);
    }
}
