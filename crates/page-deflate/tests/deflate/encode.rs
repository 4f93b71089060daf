//! Our streams against the C zlib page by page, our own decoder, and the judge.

use page_deflate::{Deflater, Effort, StreamInflater, WindowSize};
use testkit::iterations;
use testkit::oracle::{Ending, Oracle, Tokens};
use testkit::pages::{Random, packet, push_page};
use testkit::zlib::Inflate;

fn each(mut check: impl FnMut(WindowSize, Effort)) {
    for window in WindowSize::ALL {
        for effort in Effort::ALL {
            check(window, effort);
        }
    }
}

/// One channel: each packet goes to all its readers.
struct Channel {
    window: WindowSize,
    deflater: Deflater,
    zlib: Inflate,
    own: StreamInflater,
    /// All packets so far, without the header.
    blocks: Vec<u8>,
    pages: Vec<u8>,
}

impl Channel {
    fn new(window: WindowSize, effort: Effort) -> Self {
        Self {
            window,
            deflater: Deflater::new(window, effort),
            zlib: Inflate::new(15),
            own: StreamInflater::new(),
            blocks: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// Sends a packet through all readers and returns its length.
    fn packet(&mut self, pages: &[u8], page_bytes: usize) -> usize {
        let mut payload = Vec::new();
        if self.blocks.is_empty() {
            payload.extend(self.window.zlib_header());
        }
        let header = payload.len();
        self.deflater.compress(pages, &mut payload);
        let mut decoded = vec![0xaa; pages.len()];
        assert!(self.zlib.packet(&payload, page_bytes, &mut decoded));
        assert!(decoded == pages);
        decoded.fill(0xaa);
        assert_eq!(self.own.inflate(&payload, &mut decoded), Ok(()));
        assert!(decoded == pages);
        self.blocks.extend(&payload[header..]);
        self.pages.extend(pages);
        payload.len()
    }

    /// Lets the judge read the whole stream.
    fn end(self) -> Tokens {
        let oracle = Oracle::new(self.window.bytes(), Ending::SyncFlush);
        let decoded = oracle.decode(&self.blocks, self.pages.len()).unwrap();
        assert!(decoded.output == self.pages);
        decoded.tokens
    }
}

#[test]
fn everyone_reads_our_streams() {
    let mut random = Random::new(30);
    each(|window, effort| {
        for page_bytes in [1024, 4096, 16384, 65536] {
            let mut channel = Channel::new(window, effort);
            for count in [1, 2, 512 * 1024 / page_bytes, 1, 3] {
                let pages = packet(&mut random, count, page_bytes);
                channel.packet(&pages, page_bytes);
            }
            channel.end();
        }
    });
}

#[test]
fn matches_reach_as_far_as_the_window() {
    let mut random = Random::new(31);
    let noise: Vec<u8> = (0..8192).map(|_| random.byte()).collect();
    each(|window, effort| {
        // Noise repeats once at the farthest distance within reach, and once beyond it.
        for (gap, is_seen) in [(window.bytes() - 32, true), (window.bytes() + 1, false)] {
            let copied = &noise[..4096.min(gap)];
            let mut data = copied.to_vec();
            data.resize(gap, 0);
            data.extend(copied);
            let mut channel = Channel::new(window, effort);
            channel.packet(&data, data.len());
            let tokens = channel.end();
            let is_far = tokens.farthest_bytes == gap;
            assert!(is_far == is_seen, "{window} {effort} {tokens:?}");
        }
    });
}

#[test]
fn any_number_of_bytes_is_a_run() {
    let mut random = Random::new(32);
    each(|window, effort| {
        let mut channel = Channel::new(window, effort);
        for round in 0..iterations(60) {
            let len = match round {
                0..20 => 1 + round,
                _ => 1 + random.below(70_000),
            };
            let mut data = Vec::new();
            push_page(&mut random, 70_000, &mut data);
            data.truncate(len);
            channel.packet(&data, data.len());
        }
        channel.end();
    });
}

#[test]
fn pages_of_noise_and_pages_of_one_byte() {
    let mut random = Random::new(33);
    let noise: Vec<u8> = (0..128 * 4096).map(|_| random.byte()).collect();
    each(|window, effort| {
        let mut channel = Channel::new(window, effort);
        // Noise is stored; only the block headers are added.
        assert!(channel.packet(&noise, 4096) < noise.len() + 256);
        assert!(channel.packet(&vec![7; 128 * 4096], 4096) < 3000);
        let mixed: Vec<u8> = noise
            .chunks(4096)
            .enumerate()
            .flat_map(|(page, noise)| {
                if page % 3 == 0 {
                    noise.to_vec()
                } else {
                    vec![page as u8; 4096]
                }
            })
            .collect();
        assert!(channel.packet(&mixed, 4096) < mixed.len() * 2 / 5);
        assert!(channel.end().stored_blocks > 3);
    });
}

#[test]
fn streams_get_smaller_with_effort_and_window() {
    let mut random = Random::new(34);
    let pages = packet(&mut random, 512, 4096);
    let len = |window, effort| {
        let mut out = Vec::new();
        let mut deflater = Deflater::new(window, effort);
        for packet in pages.chunks(128 * 4096) {
            deflater.compress(packet, &mut out);
        }
        out.len()
    };
    for window in WindowSize::ALL {
        let [fast, balanced, dense] = Effort::ALL.map(|effort| len(window, effort));
        assert!(
            dense < balanced && balanced < fast,
            "{fast} {balanced} {dense}"
        );
    }
    for effort in Effort::ALL {
        let [small, large] = WindowSize::ALL.map(|window| len(window, effort));
        assert!(large < small);
    }
}
