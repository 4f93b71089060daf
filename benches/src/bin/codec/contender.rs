//! Who takes part.

use multifd_benches::PAGE_SIZE;
use multifd_codec::{
    Accel, Decoder, Effort, Encoder, Huffman, PageBuffer, Settings, Streams, WindowSize, decoder,
};
use multifd_wire::Method;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::blocks::{LibDeflate, Lz4};
use crate::isal::IsaL;
use crate::{Result, stock};

/// Both ends of a channel.
pub trait Peer {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()>;

    /// Packets one after the other, which are there again when it is over.
    fn encode_all(&mut self, packets: &mut [PageBuffer], payloads: &mut [Vec<u8>]) -> Result<()> {
        for (packet, payload) in packets.iter().zip(payloads) {
            self.encode(packet.as_ref(), payload)?;
        }
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()>;

    /// The same with buffers that are there again when it is over.
    fn decode_owned(&mut self, payload: &mut Vec<u8>, pages: &mut PageBuffer) -> Result<()> {
        let len_bytes = pages.as_ref().len();
        self.decode(payload, pages.space(len_bytes))
    }
}

/// What a contender is called and what it is.
#[derive(Clone)]
pub struct Label {
    pub name: String,
    pub method: &'static str,
    pub accel: &'static str,
    pub huffman: Option<&'static str>,
    pub effort: Option<String>,
    pub window: Option<&'static str>,
    pub streams: usize,
}

impl Label {
    /// Whether the others are compared with this one.
    pub fn is_reference(&self) -> bool {
        self.name == REFERENCE
    }
}

pub struct Contender {
    pub label: Label,
    pub peer: Box<dyn Peer>,
}

/// Everyone who can take part on this machine, the stock ones first; and who cannot, with the
/// reason. With numbers of streams only those whose channels can have several, once with each.
pub fn all(streams: &[Streams]) -> (Vec<Contender>, Vec<(String, String)>) {
    let mut absent = Vec::new();
    let mut contenders = stock(&mut absent);
    let counts = match streams {
        [] => &[Streams::default()],
        several => several,
    };
    for own in own() {
        for &count in counts {
            let mut settings = own.settings;
            settings.streams = count;
            let mut label = own.label();
            if !streams.is_empty() {
                if own.method == Method::None {
                    continue;
                }
                label.name.push_str(&format!("/{count}"));
                label.streams = count.value();
            }
            match Channel::new(own.method, &settings) {
                Ok(channel) => contenders.push(Contender {
                    label,
                    peer: Box::new(channel),
                }),
                Err(error) => {
                    absent.push((own.label().name, error.to_string()));
                    break;
                }
            }
        }
    }
    (contenders, absent)
}

/// Other people's codecs.
fn stock(absent: &mut Vec<(String, String)>) -> Vec<Contender> {
    let contender = |name: &str, method, effort: Option<i32>, peer| Contender {
        label: Label {
            name: name.to_owned(),
            method,
            accel: "none",
            huffman: None,
            effort: effort.map(|level| format!("level {level}")),
            window: None,
            streams: 1,
        },
        peer,
    };
    let zlib = |level| Box::new(stock::Zlib::new(level));
    let zstd = |level| Box::new(stock::Zstd::new(level));
    let mut all = vec![
        contender(REFERENCE, "zlib", Some(1), zlib(1)),
        contender("stock-zlib-6", "zlib", Some(6), zlib(6)),
        contender("stock-zstd-1", "zstd", Some(1), zstd(1)),
        contender("stock-zstd--1", "zstd", Some(-1), zstd(-1)),
        contender(
            "libdeflate-1",
            "deflate",
            Some(1),
            Box::new(LibDeflate::new()),
        ),
        contender("lz4", "lz4", None, Box::new(Lz4)),
    ];
    match IsaL::new() {
        Ok(isal) => all.push(contender("isa-l-1", "zlib", Some(1), Box::new(isal))),
        Err(error) => absent.push(("isa-l-1".to_owned(), error.to_string())),
    }
    match decoder(Method::Zlib, &Settings::default()) {
        Ok(decoder) => {
            let peer = stock::ZlibReadBy::new(decoder);
            all.push(contender(
                "stock-zlib-1, read by us",
                "zlib",
                Some(1),
                Box::new(peer),
            ));
        }
        Err(error) => absent.push(("stock-zlib-1, read by us".to_owned(), error.to_string())),
    }
    all
}

/// A codec of this project.
struct Own {
    name: String,
    method: Method,
    settings: Settings,
    /// Which of the settings matter to it.
    knobs: Knobs,
}

#[derive(Clone, Copy, PartialEq)]
enum Knobs {
    None,
    Huffman,
    EffortAndWindow,
    HuffmanAndEffort,
    Effort,
}

impl Own {
    fn new(method: Method, accel: Accel) -> Self {
        let mut settings = Settings::default();
        settings.accel = accel;
        Self {
            name: format!("{method}/{accel}"),
            method,
            settings,
            knobs: Knobs::None,
        }
    }

    fn label(&self) -> Label {
        let Self {
            name,
            method,
            settings,
            knobs,
        } = self;
        let huffman = matches!(knobs, Knobs::Huffman | Knobs::HuffmanAndEffort);
        let effort = matches!(
            knobs,
            Knobs::EffortAndWindow | Knobs::HuffmanAndEffort | Knobs::Effort
        );
        let window = *knobs == Knobs::EffortAndWindow;
        Label {
            name: name.clone(),
            method: method.as_str(),
            accel: settings.accel.as_str(),
            huffman: huffman.then(|| settings.huffman.as_str()),
            effort: effort.then(|| settings.effort.to_string()),
            window: window.then(|| settings.window.as_str()),
            streams: 1,
        }
    }
}

/// By method, and within it by who computes, and within that by how.
fn own() -> Vec<Own> {
    let mut all = vec![
        Own::new(Method::None, Accel::None),
        Own::new(Method::Zlib, Accel::None),
    ];
    for window in [WindowSize::ThirtyTwoKiB, WindowSize::FourKiB] {
        for effort in [Effort::Balanced, Effort::Fast, Effort::Dense] {
            let mut own = Own::new(Method::Zlib, Accel::Software);
            own.name.push_str(&format!("/{effort}"));
            if window != WindowSize::default() {
                own.name.push_str(&format!("/{window}"));
            }
            own.settings.effort = effort;
            own.settings.window = window;
            own.knobs = Knobs::EffortAndWindow;
            all.push(own);
        }
    }
    for accel in [Accel::QplSoftware, Accel::QplHardware] {
        all.extend(both_codes(Method::Zlib, accel));
    }
    all.push(Own::new(Method::Zstd, Accel::None));
    for accel in [Accel::Software, Accel::QplSoftware, Accel::QplHardware] {
        all.extend(both_codes(Method::Qpl, accel));
    }
    for accel in [Accel::Software, Accel::QplSoftware, Accel::QplHardware] {
        let mut own = Own::new(Method::Canned, accel);
        if accel == Accel::Software {
            own.knobs = Knobs::Effort;
        }
        all.push(own);
    }
    all
}

/// The fixed code, and a code for each piece.
fn both_codes(method: Method, accel: Accel) -> [Own; 2] {
    [Huffman::Fixed, Huffman::Dynamic].map(|huffman| {
        let mut own = Own::new(method, accel);
        own.settings.huffman = huffman;
        own.knobs = Knobs::Huffman;
        if accel == Accel::Software {
            own.knobs = Knobs::HuffmanAndEffort;
        }
        // This project's own `qpl` without a word more is that with the fixed code, which QEMU's
        // has.
        if (accel, huffman) != (Accel::Software, Huffman::Fixed) {
            own.name.push_str(&format!("/{huffman}"));
        }
        own
    })
}

struct Channel {
    encoder: Encoder<usize>,
    /// Memory for the next payload.
    payload: Vec<u8>,
    decoder: Box<dyn Decoder>,
}

impl Channel {
    fn new(method: Method, settings: &Settings) -> Result<Self> {
        let make = || -> Result<Self> {
            Ok(Self {
                encoder: Encoder::new(method, settings)?,
                payload: Vec::new(),
                decoder: decoder(method, settings)?,
            })
        };
        if settings.streams == Streams::default() {
            on_one_processor(make)
        } else {
            make()
        }
    }
}

/// What is made here keeps to one thread afterwards: codecs have help from as many processors as
/// who makes them may use.
fn on_one_processor<T>(make: impl FnOnce() -> Result<T>) -> Result<T> {
    let allowed = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    if let Some(first) = (0..CpuSet::MAX_CPU).find(|&processor| allowed.is_set(processor)) {
        one.set(first);
    }
    sched_setaffinity(None, &one)?;
    let made = make();
    sched_setaffinity(None, &allowed)?;
    made
}

impl Peer for Channel {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        self.encode_all(&mut [pages.to_vec().into()], std::slice::from_mut(payload))
    }

    fn encode_all(&mut self, packets: &mut [PageBuffer], payloads: &mut [Vec<u8>]) -> Result<()> {
        let mut next = 0;
        loop {
            while self.encoder.room() > 0
                && let Some(packet) = packets.get_mut(next)
            {
                self.encoder.push(std::mem::take(packet), PAGE_SIZE, next);
                next += 1;
            }
            let Some((packet, number)) = self.encoder.pop(&mut self.payload)? else {
                return Ok(());
            };
            packets[number] = packet;
            std::mem::swap(&mut payloads[number], &mut self.payload);
        }
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        Ok(self.decoder.decode(payload, PAGE_SIZE, pages)?)
    }

    fn decode_owned(&mut self, payload: &mut Vec<u8>, pages: &mut PageBuffer) -> Result<()> {
        Ok(self.decoder.decode_owned(payload, PAGE_SIZE, pages)?)
    }
}

/// The one that the others are compared with.
const REFERENCE: &str = "stock-zlib-1";
