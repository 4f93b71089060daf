//! Measures every codec of this machine, and what stock QEMUs have, on pages of a real guest.
//!
//! One thread (unless streams are asked for), all contenders in turn on every few packets, medians.
//! A machine's speed changes with its other guests, within seconds: so contenders are compared by
//! their times of the same round. A contender keeps its channel open from the first round to the
//! last, as a migration does. What arrives is compared with what was sent.

mod blocks;
mod contender;
mod isal;
mod pages;
mod report;
mod stock;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use multifd_codec::{PageBuffer, Streams};

use contender::{Contender, Label};
use pages::{Corpus, packets};
use report::Row;

/// Errors are words for the person at the terminal.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Arguments {
    /// Pages of 4 KiB back to back, as they are or compressed with zstd; or `idle` or `redis`, to
    /// make some. Zero pages are passed over
    #[arg(long, value_name = "FILE")]
    pages: String,
    /// Where the figures go
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure these numbers of streams per channel, on all processors where it is not 1
    #[arg(long, value_name = "K,K,...", value_delimiter = ',', value_parser = streams)]
    streams: Vec<Streams>,
    /// How often each contender carries all pages
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Measure only contenders whose name has this in it, and stock zlib
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
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
    let packets_at_once = if arguments.streams.is_empty() {
        pages::PACKETS_AT_ONCE
    } else {
        pages::PACKETS_AT_ONCE_WITH_HELP
    };
    for round in 0..arguments.rounds.max(1) {
        runs.iter_mut().for_each(Run::begin_round);
        // Not always after the same neighbour.
        let first = round % runs.len().max(1);
        let (others, first) = runs.split_at_mut(first);
        for stretch in corpus.stretches(packets_at_once) {
            for run in first.iter_mut().chain(&mut *others) {
                run.turn(stretch)?;
            }
        }
    }
    let rows = Row::all(&runs, &corpus);
    report::print(&rows, &absent);
    if let Some(path) = &arguments.json {
        report::write_json(path, &arguments.pages, &rows)?;
    }
    Ok(())
}

/// A contender and its times.
struct Run {
    contender: Contender,
    /// Copies of a turn's packets, which contenders take and give back.
    packets: Vec<PageBuffer>,
    payloads: Vec<Vec<u8>>,
    arrived: PageBuffer,
    /// Of the first pass, in which nothing is known yet of the pages.
    payload_bytes: usize,
    stock_zlib_reads_it: bool,
    /// Times for all pages, by round.
    compress: Vec<Duration>,
    decompress: Vec<Duration>,
}

impl Run {
    /// Carries all pages once, unmeasured, and looks at what comes out.
    fn new(contender: Contender, corpus: &Corpus) -> Result<Self> {
        let mut run = Self {
            contender,
            packets: Vec::new(),
            payloads: Vec::new(),
            arrived: PageBuffer::default(),
            payload_bytes: 0,
            stock_zlib_reads_it: false,
            compress: Vec::new(),
            decompress: Vec::new(),
        };
        run.compress(corpus.all())?;
        run.payload_bytes = run.payloads.iter().map(Vec::len).sum();
        run.stock_zlib_reads_it = stock::zlib_reads(&run.payloads, corpus);
        for (packet, payload) in packets(corpus.all()).zip(&mut run.payloads) {
            run.arrived.space(packet.len());
            let peer = &mut run.contender.peer;
            peer.decode_owned(payload, &mut run.arrived)?;
            if run.arrived.as_ref() != packet {
                return Err(format!("{} gives other pages", run.contender.label.name).into());
            }
        }
        Ok(run)
    }

    fn begin_round(&mut self) {
        self.compress.push(Duration::ZERO);
        self.decompress.push(Duration::ZERO);
    }

    /// Measures a part of a round.
    fn turn(&mut self, pages: &[u8]) -> Result<()> {
        let times = (self.compress(pages)?, self.decompress(pages)?);
        for (sums, time) in [
            (&mut self.compress, times.0),
            (&mut self.decompress, times.1),
        ] {
            *sums.last_mut().ok_or("no round has begun")? += time;
        }
        Ok(())
    }

    fn compress(&mut self, pages: &[u8]) -> Result<Duration> {
        let count = packets(pages).count();
        if self.payloads.len() < count {
            self.payloads.resize(count, Vec::new());
        }
        let payloads = &mut self.payloads[..count];
        self.packets.resize_with(count, PageBuffer::default);
        for (packet, own) in packets(pages).zip(&mut self.packets) {
            own.space(packet.len()).copy_from_slice(packet);
        }
        let peer = &mut self.contender.peer;
        let started = Instant::now();
        peer.encode_all(&mut self.packets, payloads)?;
        Ok(started.elapsed())
    }

    fn decompress(&mut self, pages: &[u8]) -> Result<Duration> {
        let started = Instant::now();
        for (packet, payload) in packets(pages).zip(&mut self.payloads) {
            self.arrived.space(packet.len());
            let peer = &mut self.contender.peer;
            peer.decode_owned(payload, &mut self.arrived)?;
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
