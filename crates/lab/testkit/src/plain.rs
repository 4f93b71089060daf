//! A second decoder of channels for comparison with the first: it shares no code with it, knows
//! only the fields that it needs, and reads a whole file by their offsets.
//!
//! Its rules: a hello has 64 bytes. A RAM packet's header has 320 bytes plus eight for each page of
//! a full packet, and a payload follows if it has normal pages.

/// The content of a channel.
#[derive(Debug, PartialEq)]
pub struct PlainChannel {
    /// The UUID of the hello.
    pub uuid: [u8; 16],
    /// The number of the channel.
    pub id: u8,
    /// All packets, in order.
    pub packets: Vec<PlainPacket>,
}

/// A RAM packet.
#[derive(Debug, PartialEq)]
pub struct PlainPacket {
    /// The flags of its header.
    pub flags: u32,
    /// Its number.
    pub number: u64,
    /// The name of its block.
    pub block: String,
    /// Offsets of pages with contents.
    pub normal: Vec<u64>,
    /// Offsets of zero pages.
    pub zero: Vec<u64>,
    /// The length of its payload in bytes.
    pub payload: usize,
    /// The position of the header.
    pub at: usize,
}

impl PlainPacket {
    /// Returns whether it is a SYNC.
    pub fn is_sync(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Returns whether it has pages.
    pub fn has_pages(&self) -> bool {
        !self.normal.is_empty() || !self.zero.is_empty()
    }
}

impl PlainChannel {
    /// Reads a whole channel of a machine with pages of `page_bytes`.
    pub fn read(bytes: &[u8], page_bytes: usize) -> Self {
        let entries = 512 * 1024 / page_bytes;
        let be32 = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let be64 = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((be32(0), be32(4)), (0x1122_3344, 1));
        let mut packets = Vec::new();
        let mut at = 64;
        while at < bytes.len() {
            assert_eq!((be32(at), be32(at + 4)), (0x1122_3344, 1));
            let flags = be32(at + 8);
            assert_eq!(flags & 0x40, 0, "a device's state, which no capture has");
            let (normal, zero) = (be32(at + 16) as usize, be32(at + 32) as usize);
            let name = &bytes[at + 64..at + 320];
            let name = &name[..name.iter().position(|&byte| byte == 0).unwrap()];
            let offsets: Vec<u64> = (0..normal + zero)
                .map(|entry| be64(at + 320 + 8 * entry))
                .collect();
            // Without normal pages the field may have an old value.
            let payload = if normal == 0 {
                0
            } else {
                be32(at + 20) as usize
            };
            packets.push(PlainPacket {
                flags,
                number: be64(at + 24),
                block: String::from_utf8(name.to_vec()).unwrap(),
                normal: offsets[..normal].to_vec(),
                zero: offsets[normal..].to_vec(),
                payload,
                at,
            });
            at += 320 + 8 * entries + payload;
        }
        assert_eq!(at, bytes.len(), "the last packet is whole");
        Self {
            uuid: bytes[8..24].try_into().unwrap(),
            id: bytes[24],
            packets,
        }
    }

    /// Pages with contents in all packets.
    pub fn normal(&self) -> usize {
        self.packets.iter().map(|packet| packet.normal.len()).sum()
    }

    /// Zero pages in all packets.
    pub fn zero(&self) -> usize {
        self.packets.iter().map(|packet| packet.zero.len()).sum()
    }

    /// The bytes of all payloads.
    pub fn payload(&self) -> usize {
        self.packets.iter().map(|packet| packet.payload).sum()
    }
}

/// The JSON description of all devices at the end of a main stream.
pub fn description(main: &[u8]) -> &[u8] {
    let is_it = |&at: &usize| {
        let rest = &main[at..];
        let len = rest.get(1..5).map(|len| len.try_into().unwrap());
        rest[0] == 6
            && rest.get(5) == Some(&b'{')
            && len.map(u32::from_be_bytes) == Some(rest.len() as u32 - 5)
    };
    let at = (0..main.len()).find(is_it).expect("a description");
    &main[at + 5..]
}
