//! Method `zstd`: libzstd, driven page by page as by a stock receiver, against the decoder here.

use multifd_codec::{
    Accel, DecodeError, Decoder, Pages, Settings, Streams, ZstdLevel, decoder, encoder,
};
use multifd_wire::{Method, PageSize};
use zstd_safe::zstd_sys::ZSTD_EndDirective::{self, ZSTD_e_continue, ZSTD_e_end, ZSTD_e_flush};
use zstd_safe::{CCtx, CParameter, DCtx, InBuffer, OutBuffer};

use crate::STREAMS;
use testkit::pages::{Random, packet};

const PAGE: usize = PageSize::K4.bytes();

fn ours() -> Box<dyn Decoder> {
    decoder(Method::Zstd, &Settings::default()).unwrap()
}

/// One channel of a stock receiver: a page stops at a frame's end, and the rest after the last page
/// is ignored.
pub(crate) struct StockReceiver(DCtx<'static>);

impl StockReceiver {
    pub(crate) fn new() -> Self {
        Self(DCtx::create())
    }

    pub(crate) fn takes(&mut self, payload: &[u8], page_bytes: usize, pages: &mut [u8]) -> bool {
        let mut input = InBuffer::around(payload);
        let mut total = 0;
        for page in pages.chunks_mut(page_bytes) {
            let mut output = OutBuffer::around(page);
            loop {
                let Ok(hint) = self.0.decompress_stream(&mut output, &mut input) else {
                    return false;
                };
                if hint == 0 || input.pos() == payload.len() || output.pos() == page_bytes {
                    break;
                }
            }
            total += output.pos();
        }
        total == pages.len()
    }
}

/// libzstd as a sender uses it.
struct Sender(CCtx<'static>);

impl Sender {
    fn new(level: i32) -> Self {
        let mut stream = CCtx::create();
        stream
            .set_parameter(CParameter::CompressionLevel(level))
            .unwrap();
        Self(stream)
    }

    fn call(&mut self, input: &[u8], end: ZSTD_EndDirective, out: &mut Vec<u8>) {
        let mut input = InBuffer::around(input);
        loop {
            out.reserve(1 << 18);
            let filled = out.len();
            let mut output = OutBuffer::around_pos(out, filled);
            let left = self
                .0
                .compress_stream2(&mut output, &mut input, end)
                .unwrap();
            let done = end == ZSTD_e_continue || left == 0;
            if done && input.pos() == input.src.len() {
                return;
            }
        }
    }

    /// Writes pieces of `len` bytes, each followed by the same directive.
    fn pieces(&mut self, bytes: &[u8], len: usize, end: ZSTD_EndDirective, out: &mut Vec<u8>) {
        for piece in bytes.chunks(len) {
            self.call(piece, end, out);
        }
    }

    fn packet(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let (first_pages, last_page) = bytes.split_at(bytes.len() - PAGE);
        self.pieces(first_pages, PAGE, ZSTD_e_continue, out);
        self.call(last_page, ZSTD_e_flush, out);
    }
}

/// A complete frame, with its content size in the header.
fn frame(bytes: &[u8], checksum: bool) -> Vec<u8> {
    let mut stream = CCtx::create();
    stream
        .set_parameter(CParameter::ChecksumFlag(checksum))
        .unwrap();
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    stream.compress2(&mut out, bytes).unwrap();
    out
}

fn skippable_frame() -> Vec<u8> {
    [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat()
}

/// A raw block of no bytes that is not the frame's last.
const EMPTY_BLOCK: &[u8] = &[0, 0, 0];

#[test]
fn a_stock_receiver_reads_our_payloads() {
    let mut random = Random::new(1);
    for level in [0, 1, 3, 9, 19, 20] {
        let page_size = PageSize::new([4096, 16384][level % 2]).unwrap();
        let mut settings = Settings::default();
        settings.zstd_level = ZstdLevel::new(level as u8).unwrap();
        let mut encoder = encoder(Method::Zstd, &settings).unwrap();
        let mut receiver = StockReceiver::new();
        let mut payload = Vec::new();
        for round in 0..6 {
            let count = 1 + random.below(page_size.pages_per_packet());
            let bytes = packet(&mut random, count, page_size.bytes());
            encoder
                .encode(&Pages::private(&bytes, page_size).unwrap(), &mut payload)
                .unwrap();
            let mut arrived = vec![0; bytes.len()];
            assert!(receiver.takes(&payload, page_size.bytes(), &mut arrived));
            assert!(arrived == bytes, "level {level}, packet {round}");
            // Magic, and a descriptor without content size, checksum and dictionary.
            let opens = payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd, 0]);
            assert_eq!(opens, round == 0);
        }
    }
}

#[test]
fn a_stock_receiver_reads_all_streams_of_a_channel() {
    let mut random = Random::new(2);
    for streams in STREAMS {
        let mut settings = Settings::default();
        settings.streams = Streams::new(streams).unwrap();
        let mut encoder = encoder(Method::Zstd, &settings).unwrap();
        let mut receiver = StockReceiver::new();
        let mut payload = Vec::new();
        for (round, count) in [128, 3, 1, 128, 100].into_iter().enumerate() {
            let bytes = packet(&mut random, count, PAGE);
            let pages = Pages::private(&bytes, PageSize::K4).unwrap();
            encoder.encode(&pages, &mut payload).unwrap();
            let mut arrived = vec![0; bytes.len()];
            assert!(receiver.takes(&payload, PAGE, &mut arrived));
            assert!(arrived == bytes, "{streams} streams, packet {round}");
        }
    }
}

/// Frames read in parallel give the same pages as frames read in order. Anything valid may stand
/// between packets of frames, including a stock sender's stream.
#[test]
fn frames_and_streams_may_follow_each_other() {
    let mut settings = Settings::default();
    settings.accel = Accel::Software;
    let mut decoder = decoder(Method::Zstd, &settings).unwrap();
    let mut random = Random::new(3);
    let mut stock = Sender::new(1);
    for round in 0..8 {
        let bytes = packet(&mut random, 12, PAGE);
        let mut payload = Vec::new();
        if round < 5 {
            for (index, run) in bytes.chunks(3 * PAGE).enumerate() {
                payload.extend(frame(run, index % 2 == 0));
            }
        } else {
            stock.packet(&bytes, &mut payload);
        }
        let mut arrived = vec![0; bytes.len()];
        decoder
            .decode(&payload, PageSize::K4, &mut arrived)
            .unwrap();
        assert!(arrived == bytes, "packet {round}");
    }
}

/// Makes a payload with the pages of one packet.
type Maker = fn(&mut Sender, &[u8], &mut Vec<u8>);

/// Streams that a stock receiver accepts, as tried on QEMU 10.0, besides those of stock senders.
const TAKEN: &[(&str, i32, Maker)] = &[
    ("as a stock sender", 1, |stream, bytes, out| {
        stream.packet(bytes, out)
    }),
    ("level 19", 19, |stream, bytes, out| {
        stream.packet(bytes, out)
    }),
    ("flush after every page", 1, |stream, bytes, out| {
        stream.pieces(bytes, PAGE, ZSTD_e_flush, out);
    }),
    ("a frame per packet", 1, |stream, bytes, out| {
        stream.packet(bytes, out);
        stream.call(&[], ZSTD_e_end, out);
    }),
    (
        "a frame per packet, with content size",
        1,
        |_, bytes, out| {
            out.extend(frame(bytes, false));
        },
    ),
    ("a frame per packet, with checksum", 1, |_, bytes, out| {
        out.extend(frame(bytes, true))
    }),
    ("a frame per page", 1, |stream, bytes, out| {
        stream.pieces(bytes, PAGE, ZSTD_e_end, out)
    }),
    ("a frame per page, with checksum", 1, |_, bytes, out| {
        bytes
            .chunks(PAGE)
            .for_each(|page| out.extend(frame(page, true)));
    }),
    ("a frame per two pages", 1, |stream, bytes, out| {
        stream.pieces(bytes, 2 * PAGE, ZSTD_e_end, out);
    }),
    ("an empty block at the end", 1, |stream, bytes, out| {
        stream.packet(bytes, out);
        out.extend(EMPTY_BLOCK);
    }),
    ("an empty frame at the end", 1, |_, bytes, out| {
        out.extend(frame(bytes, false));
        out.extend(frame(&[], false));
    }),
    (
        "a skippable frame at the end, which is not looked at",
        1,
        |_, bytes, out| {
            out.extend(frame(bytes, false));
            out.extend(skippable_frame());
        },
    ),
];

#[test]
fn we_take_what_a_stock_receiver_takes() {
    for (name, level, make) in TAKEN {
        let mut random = Random::new(2);
        let mut sender = Sender::new(*level);
        let mut stock = StockReceiver::new();
        let mut ours = ours();
        for index in 0..8 {
            let count = 1 + random.below(40);
            let bytes = packet(&mut random, count, PAGE);
            let mut payload = Vec::new();
            make(&mut sender, &bytes, &mut payload);
            let mut arrived = vec![0; bytes.len()];
            assert!(stock.takes(&payload, PAGE, &mut arrived), "{name}");
            assert!(arrived == bytes, "{name}");
            arrived.fill(0);
            ours.decode(&payload, PageSize::K4, &mut arrived)
                .unwrap_or_else(|error| panic!("{name}, packet {index}: {error:?}"));
            assert!(arrived == bytes, "{name}, packet {index}");
        }
    }
}

/// The frame header of an endless stream with a window of `1 << bits`, and an empty block.
fn window(bits: u8) -> Vec<u8> {
    [
        &[0x28, 0xb5, 0x2f, 0xfd, 0, (bits - 10) << 3][..],
        EMPTY_BLOCK,
    ]
    .concat()
}

/// Returns whether an error is the expected one.
type IsIt = fn(&DecodeError) -> bool;

const FRAME_END: IsIt = |error| {
    error
        .to_string()
        .starts_with("a zstd frame without a page, or")
};
const TOO_SHORT: IsIt = |error| error.to_string().contains(" bytes of pages instead of ");
const TOO_LONG: IsIt = |error| {
    error
        .to_string()
        .starts_with("the payload holds more than ")
};
const LIBRARY: IsIt = |error| {
    error
        .to_string()
        .starts_with("zstd decompression failed after ")
};
const TRAILING: IsIt = |error| error.to_string().contains(" extra bytes are behind ");

/// Streams at which a stock receiver fails in the first packet, and our error.
const REFUSED: &[(&str, IsIt, Maker)] = &[
    (
        "a skippable frame in front",
        FRAME_END,
        |stream, bytes, out| {
            out.extend(skippable_frame());
            stream.packet(bytes, out);
        },
    ),
    (
        "a skippable frame between pages",
        FRAME_END,
        |stream, bytes, out| {
            stream.call(&bytes[..PAGE], ZSTD_e_end, out);
            out.extend(skippable_frame());
            stream.packet(&bytes[PAGE..], out);
        },
    ),
    (
        "an empty frame in front",
        FRAME_END,
        |stream, bytes, out| {
            out.extend(frame(&[], false));
            stream.packet(bytes, out);
        },
    ),
    (
        "a frame that ends inside a page",
        FRAME_END,
        |stream, bytes, out| {
            stream.call(&bytes[..PAGE + 100], ZSTD_e_end, out);
            stream.packet(&bytes[PAGE + 100..], out);
        },
    ),
    ("a page too few", TOO_SHORT, |stream, bytes, out| {
        stream.packet(&bytes[PAGE..], out)
    }),
    (
        "a window of 256 MiB",
        |error| {
            error
                .to_string()
                .contains("a window of 268435456 bytes, but at most ")
        },
        |_, _, out| out.extend(window(28)),
    ),
    ("no zstd frame", LIBRARY, |_, bytes, out| {
        out.extend([0x78, 0x01, bytes[0]])
    }),
    ("a dictionary", LIBRARY, |_, bytes, out| {
        out.extend(frame(bytes, false));
        // The descriptor's dictionary flag, and one byte of identifier after the descriptor and the
        // content size.
        out[4] |= 1;
        out.insert(5, 42);
    }),
];

#[test]
fn we_refuse_what_a_stock_receiver_refuses() {
    for (name, is_it, make) in REFUSED {
        let bytes = packet(&mut Random::new(3), 6, PAGE);
        let mut payload = Vec::new();
        make(&mut Sender::new(1), &bytes, &mut payload);
        let mut arrived = vec![0; bytes.len()];
        assert!(
            !StockReceiver::new().takes(&payload, PAGE, &mut arrived),
            "{name}"
        );
        let error = ours()
            .decode(&payload, PageSize::K4, &mut arrived)
            .expect_err(name);
        assert!(is_it(&error), "{name}: {error:?}");
    }
}

/// A stock receiver ignores these, and could lose its place in the next packet.
#[test]
fn we_refuse_what_a_stock_receiver_overlooks() {
    let bytes = packet(&mut Random::new(4), 6, PAGE);
    let makers: &[(&str, IsIt, Maker)] = &[
        ("a page too many", TOO_LONG, |stream, bytes, out| {
            stream.packet(bytes, out);
            stream.packet(&bytes[..PAGE], out);
        }),
        (
            "a page too many in the same block",
            TOO_LONG,
            |stream, bytes, out| {
                stream.packet(&[bytes, &bytes[..PAGE]].concat(), out);
            },
        ),
        ("a byte too many", TOO_LONG, |stream, bytes, out| {
            stream.call(&[bytes, &[1]].concat(), ZSTD_e_flush, out);
        }),
        ("a frame too many", TOO_LONG, |_, bytes, out| {
            out.extend(frame(bytes, false));
            out.extend(frame(&bytes[..PAGE], false));
        }),
        (
            "half a frame header",
            |error| error.to_string().starts_with("3 extra bytes after "),
            |_, bytes, out| {
                out.extend(frame(bytes, false));
                out.extend(&frame(bytes, false)[..3]);
            },
        ),
        ("junk behind a frame", LIBRARY, |_, bytes, out| {
            out.extend(frame(bytes, false));
            out.extend(b"junk junk junk");
        }),
    ];
    for (name, is_it, make) in makers {
        let mut payload = Vec::new();
        make(&mut Sender::new(1), &bytes, &mut payload);
        let error = ours()
            .decode(&payload, PageSize::K4, &mut vec![0; bytes.len()])
            .expect_err(name);
        assert!(is_it(&error), "{name}: {error:?}");
    }
}

/// A stock receiver accepts windows four times as large, which no QEMU sends; see `memory.rs`.
#[test]
fn the_largest_window_of_a_stock_sender_is_taken() {
    let bytes = [7; PAGE];
    // The page as a raw block: its length above three bits of type and end mark.
    let header = (PAGE as u32) << 3;
    let payload = [&window(25)[..], &header.to_le_bytes()[..3], &bytes].concat();
    let mut arrived = [0; PAGE];
    ours().decode(&payload, PageSize::K4, &mut arrived).unwrap();
    assert_eq!(arrived, bytes);
}

/// A stream that inflates to far more than its pages: excess output never gets any memory.
#[test]
fn a_bomb() {
    let mut payload = Vec::new();
    Sender::new(1).call(&vec![0; 64 << 20], ZSTD_e_flush, &mut payload);
    for pages in [1, 128] {
        let error = ours()
            .decode(&payload, PageSize::K4, &mut vec![0; pages * PAGE])
            .unwrap_err();
        assert!(TOO_LONG(&error), "{error:?}");
    }
}

/// Damaged streams: a stock receiver accepts everything that we accept, with the same pages. Only
/// data that it ignores is refused here and accepted there.
#[test]
fn damage_is_judged_as_a_stock_receiver_judges_it() {
    let mut random = Random::new(5);
    let mut taken = 0;
    for _ in 0..3000 {
        let mut sender = Sender::new(1);
        let mut stock = StockReceiver::new();
        let mut ours = ours();
        for _ in 0..3 {
            let bytes = packet(&mut random, 2, PAGE);
            let mut payload = Vec::new();
            sender.packet(&bytes, &mut payload);
            match random.below(4) {
                0 => payload.truncate(payload.len() - random.below(payload.len().min(12))),
                1 => {
                    let at = random.below(payload.len());
                    payload[at] ^= 1 << random.below(8);
                }
                2 => {
                    let at = random.below(payload.len());
                    payload.insert(at, random.byte());
                }
                _ => {}
            }
            let (mut theirs, mut mine) = (vec![0; bytes.len()], vec![0; bytes.len()]);
            let stock_takes = stock.takes(&payload, PAGE, &mut theirs);
            match (stock_takes, ours.decode(&payload, PageSize::K4, &mut mine)) {
                (true, Ok(())) => {
                    assert!(mine == theirs);
                    taken += 1;
                }
                (_, Err(error)) if TOO_LONG(&error) || TRAILING(&error) => break,
                (false, Err(_)) => break,
                (stock, verdict) => panic!("stock: {stock}, we: {verdict:?}"),
            }
        }
    }
    assert!(taken > 1000, "{taken}");
}
