//! Who takes part.

use multifd_benches::PAGE_SIZE;
use multifd_codec::{Accel, Decoder, Encoder, Huffman, Pages, Settings, Streams, decoder, encoder};
use multifd_wire::Method;

use crate::blocks::{LibDeflate, Lz4};
use crate::isal::IsaL;
use crate::{Result, stock};

/// Both ends of a channel.
pub trait Peer {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()>;
    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()>;
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

/// Everyone who can take part on this machine, the stock ones first; and who cannot, with the reason. With numbers of
/// streams only those whose channels can have several, once with each.
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
            let ends = encoder(own.method, &settings)
                .and_then(|encoder| Ok((encoder, decoder(own.method, &settings)?)));
            match ends {
                Ok((encoder, decoder)) => contenders.push(Contender {
                    label,
                    peer: Box::new(Channel { encoder, decoder }),
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
    method: Method,
    settings: Settings,
    huffman: Option<Huffman>,
}

impl Own {
    fn label(&self) -> Label {
        let Self {
            method, settings, ..
        } = self;
        let mut name = format!("{method}/{}", settings.accel);
        if let Some(huffman) = self.huffman {
            name.push_str(&format!("/{huffman}"));
        }
        Label {
            name,
            method: method.as_str(),
            accel: settings.accel.as_str(),
            huffman: self.huffman.map(Huffman::as_str),
            effort: None,
            window: None,
            streams: 1,
        }
    }
}

fn own() -> Vec<Own> {
    let own = |method, accel, huffman: Option<Huffman>| {
        let mut settings = Settings::default();
        settings.accel = accel;
        settings.huffman = huffman.unwrap_or_default();
        Own {
            method,
            settings,
            huffman,
        }
    };
    let mut all = vec![
        own(Method::None, Accel::None, None),
        own(Method::Zlib, Accel::None, None),
        own(Method::Zstd, Accel::None, None),
        own(Method::Zlib, Accel::Software, None),
    ];
    for method in [Method::Zlib, Method::Qpl] {
        for accel in [Accel::Software, Accel::QplSoftware, Accel::QplHardware] {
            if (method, accel) == (Method::Zlib, Accel::Software) {
                // Its codes are always those of its packets.
                continue;
            }
            for huffman in [Huffman::Fixed, Huffman::Dynamic] {
                all.push(own(method, accel, Some(huffman)));
            }
        }
    }
    for accel in [Accel::Software, Accel::QplSoftware, Accel::QplHardware] {
        all.push(own(Method::Canned, accel, None));
    }
    all
}

struct Channel {
    encoder: Box<dyn Encoder>,
    decoder: Box<dyn Decoder>,
}

impl Peer for Channel {
    fn encode(&mut self, pages: &[u8], payload: &mut Vec<u8>) -> Result<()> {
        let pages = Pages::private(pages, PAGE_SIZE)?;
        Ok(self.encoder.encode(&pages, payload)?)
    }

    fn decode(&mut self, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        Ok(self.decoder.decode(payload, PAGE_SIZE, pages)?)
    }
}

/// The one that the others are compared with.
const REFERENCE: &str = "stock-zlib-1";
