//! Criterion benches, one file per stage of the data flow, over pages made here.
//!
//! The pages are the same on every machine and in every run. They stand for the extremes of what
//! guests hold; how fast real guests' memory goes is measured elsewhere, on memory of real guests.

use std::time::Duration;

use criterion::Criterion;
use multifd_wire::PageSize;

/// The page size of all benches.
pub const PAGE_SIZE: PageSize = PageSize::K4;

/// Pages of one kind, as many as a packet takes.
pub struct Corpus {
    /// What the pages are like; the benches' names end in it.
    pub name: &'static str,
    /// The pages, back to back.
    pub bytes: Vec<u8>,
}

/// One packet of each kind of page.
#[must_use]
pub fn corpora() -> [Corpus; 4] {
    let mut random = Random(SEED);
    [
        Corpus {
            name: "zero",
            bytes: vec![0; PACKET_BYTES],
        },
        Corpus {
            name: "text",
            bytes: fill(|| random.word().bytes().collect()),
        },
        Corpus {
            name: "pointers",
            bytes: fill(|| random.object().into()),
        },
        Corpus {
            name: "random",
            bytes: fill(|| random.next().to_le_bytes().into()),
        },
    ]
}

/// Short enough that all benches together end within a minute or two; the numbers still settle to a
/// few percent.
#[must_use]
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

fn fill(mut piece: impl FnMut() -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PACKET_BYTES + 64);
    while bytes.len() < PACKET_BYTES {
        bytes.extend(piece());
    }
    bytes.truncate(PACKET_BYTES);
    bytes
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A word of text, common ones more often than others, now and then a number.
    fn word(&mut self) -> String {
        let rank = (self.next() >> 32) % 64 * ((self.next() >> 32) % 64) / 64;
        match WORDS.get(rank as usize) {
            Some(word) => format!("{word} "),
            None => format!("{}\n", self.next() % 100_000),
        }
    }

    /// Four words as a heap holds them: two pointers into one region, a small number, and often
    /// nothing.
    fn object(&mut self) -> [u8; 32] {
        let heap = 0x7f3a_4000_0000;
        let words = [
            heap + self.next() % 0x1_0000 * 64,
            heap + self.next() % 0x100 * 64,
            self.next() % 200,
            [0, 0, 0, self.next()][(self.next() >> 40) as usize % 4],
        ];
        let mut object = [0; 32];
        for (bytes, word) in object.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        object
    }
}

const PACKET_BYTES: usize = PAGE_SIZE.bytes() * PAGE_SIZE.pages_per_packet();

const SEED: u64 = 0x006d_756c_7469_6664;

const WORDS: [&str; 32] = [
    "the",
    "page",
    "of",
    "a",
    "guest",
    "is",
    "and",
    "memory",
    "to",
    "in",
    "channel",
    "sent",
    "when",
    "that",
    "it",
    "was",
    "packet",
    "zero",
    "written",
    "block",
    "again",
    "machine",
    "moves",
    "from",
    "host",
    "before",
    "offset",
    "stream",
    "after",
    "round",
    "dirty",
    "migration",
];
