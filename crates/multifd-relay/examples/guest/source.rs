// The source of the documentation's examples, which include this file: it sends a guest of two
// pages over one multifd channel, as a QEMU without a return path would. It stands in for a QEMU.

use multifd_transport::{Address, Stream};

fn send_guest(address: &Address) -> std::io::Result<()> {
    use std::io::Write;
    use std::net::Shutdown;

    // The set-up with its list of one block, the end of RAM, and an empty description of devices.
    // A flush (0x200) ends a round.
    let main = [
        b"QEVM\0\0\0\x03\x07\0\0\0\x04none".as_slice(),
        b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\x20\x04",
        b"\x06pc.ram\0\0\0\0\0\0\x20\0",
        b"\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
        b"\x03\0\0\0\x02\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
        b"\0\x06\0\0\0\x02{}",
    ];
    let (main, channel) = (main.concat(), channel_bytes().map_err(std::io::Error::other)?);
    let streams = [main, channel].map(|bytes| Stream::connect(address).map(|to| (to, bytes)));
    for stream in streams {
        let (stream, bytes) = stream?;
        (&mut &stream).write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)?;
        // The other end closes when it has everything.
        std::thread::spawn(move || stream.drain());
    }
    Ok(())
}

fn channel_bytes() -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    use multifd_wire::{BlockName, ChannelSender, Hello, Method, PageSize, RamPacket};

    let (mut sender, mut bytes) = (ChannelSender::new(), Vec::new());
    sender.hello(&Hello::new([0; 16], 0), &mut bytes)?;
    sender.ram_packet(&RamPacket::sync(PageSize::K4, 0), &mut bytes)?;
    // One page of sevens, and one zero page.
    let block = BlockName::new(b"pc.ram")?;
    let mut packet = RamPacket::new(PageSize::K4, block, &[0], &[4096], 1)?;
    packet.set_payload(Method::None, 4096)?;
    sender.ram_packet(&packet, &mut bytes)?;
    bytes.extend([7; 4096]);
    sender.payload_sent(4096)?;
    sender.ram_packet(&RamPacket::sync(PageSize::K4, 2), &mut bytes)?;
    Ok(bytes)
}
