//! Measures every codec of this machine, and what stock QEMUs have, on pages of a real guest.
//!
//! One thread (unless streams are asked for), all contenders in turn in every round, medians. A contender keeps its
//! channel open from the first round to the last, as a migration does. What arrives is compared with what was sent.

mod blocks;
mod contender;
mod isal;
mod pages;
mod report;
mod stock;

#[path = "../../../../crates/multifd-codec/tests/deflate/zlib.rs"]
#[allow(dead_code, reason = "shared with the codec's tests")]
mod c_zlib;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use multifd_codec::Streams;

use contender::{Contender, Label};
use pages::Corpus;
use report::Row;

/// Errors are words for the person at the terminal.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Arguments {
    /// Pages of 4 KiB back to back, as they are or compressed with zstd; or `idle` or `redis`, to make some.
    /// Zero pages are passed over
    #[arg(long, value_name = "FILE")]
    pages: String,
    /// Where the figures go
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure these numbers of streams per channel, on all processors, instead of one thread
    #[arg(long, value_name = "K,K,...", value_delimiter = ',', value_parser = streams)]
    streams: Vec<Streams>,
    /// How often each contender's turn comes
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Measure only contenders whose name has this in it, and stock zlib
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let corpus = Corpus::read(&arguments.pages)?;
    println!("{}", report::machine());
    println!(
        "{}: {} pages ({} zero pages passed over)",
        arguments.pages,
        corpus.len(),
        corpus.zero_pages
    );
    let (mut contenders, mut absent) = contender::all(&arguments.streams);
    absent.retain(|(name, _)| name.contains(&arguments.only));
    contenders.retain(|contender| {
        contender.label.is_reference() || contender.label.name.contains(&arguments.only)
    });
    let mut runs = Vec::new();
    for contender in contenders {
        runs.push(Run::new(contender, &corpus)?);
    }
    for _ in 0..arguments.rounds.max(1) {
        for run in &mut runs {
            run.turn(&corpus)?;
        }
    }
    let rows = Row::all(runs.iter(), &corpus);
    report::print(&rows, &absent);
    if let Some(path) = &arguments.json {
        report::write_json(path, &arguments.pages, &rows)?;
    }
    Ok(())
}

/// A contender and its times.
struct Run {
    contender: Contender,
    payloads: Vec<Vec<u8>>,
    arrived: Vec<u8>,
    /// Of the first pass, in which nothing is known yet of the pages.
    payload_bytes: usize,
    stock_zlib_reads_it: bool,
    /// Times of one pass over all pages.
    compress: Vec<Duration>,
    decompress: Vec<Duration>,
}

impl Run {
    /// Carries all pages once, unmeasured, and looks at what comes out.
    fn new(contender: Contender, corpus: &Corpus) -> Result<Self> {
        let mut run = Self {
            contender,
            payloads: vec![Vec::new(); corpus.packets().count()],
            arrived: Vec::new(),
            payload_bytes: 0,
            stock_zlib_reads_it: false,
            compress: Vec::new(),
            decompress: Vec::new(),
        };
        run.compress(corpus)?;
        run.payload_bytes = run.payloads.iter().map(Vec::len).sum();
        run.stock_zlib_reads_it = stock::zlib_reads(&run.payloads, corpus);
        for (packet, payload) in corpus.packets().zip(&run.payloads) {
            run.arrived.resize(packet.len(), 0);
            run.contender.peer.decode(payload, &mut run.arrived)?;
            if run.arrived != packet {
                return Err(format!("{} gives other pages", run.contender.label.name).into());
            }
        }
        Ok(run)
    }

    /// Measures for a while.
    fn turn(&mut self, corpus: &Corpus) -> Result<()> {
        let started = Instant::now();
        let (mut compress, mut decompress, mut passes) = (Duration::ZERO, Duration::ZERO, 0);
        while passes == 0 || started.elapsed() < TURN {
            compress += self.compress(corpus)?;
            decompress += self.decompress(corpus)?;
            passes += 1;
        }
        self.compress.push(compress / passes);
        self.decompress.push(decompress / passes);
        Ok(())
    }

    fn compress(&mut self, corpus: &Corpus) -> Result<Duration> {
        let started = Instant::now();
        for (packet, payload) in corpus.packets().zip(&mut self.payloads) {
            self.contender.peer.encode(packet, payload)?;
        }
        Ok(started.elapsed())
    }

    fn decompress(&mut self, corpus: &Corpus) -> Result<Duration> {
        let started = Instant::now();
        for (packet, payload) in corpus.packets().zip(&self.payloads) {
            self.arrived.resize(packet.len(), 0);
            self.contender.peer.decode(payload, &mut self.arrived)?;
        }
        Ok(started.elapsed())
    }

    fn label(&self) -> &Label {
        &self.contender.label
    }
}

fn streams(text: &str) -> std::result::Result<Streams, String> {
    let number = text.parse().map_err(|_| "not a number".to_owned())?;
    Streams::new(number).map_err(|error| error.to_string())
}

/// How long a contender's turn is, or one pass over the pages, whichever is more.
const TURN: Duration = Duration::from_millis(60);
