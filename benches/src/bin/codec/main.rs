//! Measures every codec of this machine, and those of stock QEMUs, on pages of a real guest.
//!
//! It uses one thread (unless streams are requested), runs all contenders in turn on every few
//! packets, and reports medians. A machine's speed changes with its other guests, within seconds,
//! so contenders are compared by their times of the same round. A contender keeps its channel open
//! from the first round to the last, like a migration. The decoded pages are compared with the
//! originals.

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

/// Errors are messages for the person at the terminal.
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
    /// Add up the least time of each part of the pages, instead of reporting the median round: a
    /// busy machine disturbs these figures less
    #[arg(long)]
    least: bool,
    /// Measure only contenders whose name has one of these in it, and stock zlib
    #[arg(long, value_name = "WORD,...", value_delimiter = ',')]
    only: Vec<String>,
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
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|word| name.contains(word))
    };
    absent.retain(|(name, _)| wanted(name));
    contenders.retain(|contender| contender.label.is_reference() || wanted(&contender.label.name));
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
        // The preceding contender varies between rounds.
        let first = round % runs.len().max(1);
        let (others, first) = runs.split_at_mut(first);
        for (part, stretch) in corpus.stretches(packets_at_once).enumerate() {
            for run in first.iter_mut().chain(&mut *others) {
                run.turn(part, stretch)?;
            }
        }
    }
    if arguments.least {
        runs.iter_mut().for_each(Run::keep_least);
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
    /// Copies of a turn's packets, which contenders take and return.
    packets: Vec<PageBuffer>,
    payloads: Vec<Vec<u8>>,
    arrived: PageBuffer,
    /// From the first pass, which has no prior knowledge of the pages.
    payload_bytes: usize,
    stock_zlib_reads_it: bool,
    /// Times for all pages, by round.
    compress: Vec<Duration>,
    decompress: Vec<Duration>,
    /// The least times of each part of the pages, both ways.
    least: Vec<[Duration; 2]>,
}

impl Run {
    /// Carries all pages once, unmeasured, and checks the result.
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
            least: Vec::new(),
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
    fn turn(&mut self, part: usize, pages: &[u8]) -> Result<()> {
        let times = (self.compress(pages)?, self.decompress(pages)?);
        match self.least.get_mut(part) {
            None => self.least.push([times.0, times.1]),
            Some(least) => *least = [least[0].min(times.0), least[1].min(times.1)],
        }
        for (sums, time) in [
            (&mut self.compress, times.0),
            (&mut self.decompress, times.1),
        ] {
            *sums.last_mut().ok_or("no round has begun")? += time;
        }
        Ok(())
    }

    /// Replaces all rounds by one that nothing disturbed.
    fn keep_least(&mut self) {
        self.compress = vec![self.least.iter().map(|least| least[0]).sum()];
        self.decompress = vec![self.least.iter().map(|least| least[1]).sum()];
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
