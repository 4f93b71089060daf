//! Turns times into figures, and prints them.

use std::path::Path;
use std::time::Duration;

use multifd_benches::PAGE_SIZE;
use serde_json::json;

use crate::contender::Label;
use crate::pages::Corpus;
use crate::{Result, Run};

/// The results of one contender.
pub struct Row {
    label: Label,
    compress: Speed,
    decompress: Speed,
    ratio: f64,
    over_stock_zlib: f64,
    over_stock_inflate: f64,
    stock_zlib_reads_it: bool,
}

/// The speed over all pages.
#[derive(Clone, Copy)]
struct Speed {
    bytes: usize,
    median: Duration,
    /// The difference between the fastest and the slowest round, relative to the median.
    spread: f64,
}

impl Speed {
    fn of(times: &[Duration], bytes: usize) -> Self {
        let mut times = times.to_vec();
        times.sort_unstable();
        let at = |index: usize| times.get(index).copied().unwrap_or_default();
        let median = at(times.len() / 2);
        let range = at(times.len().saturating_sub(1)).saturating_sub(at(0));
        Self {
            bytes,
            median,
            spread: range.as_secs_f64() / median.as_secs_f64(),
        }
    }

    fn mbps(self) -> f64 {
        self.bytes as f64 / 1e6 / self.median.as_secs_f64()
    }

    fn pages_per_s(self) -> f64 {
        (self.bytes / PAGE_SIZE.bytes()) as f64 / self.median.as_secs_f64()
    }
}

impl Row {
    pub fn all(runs: &[Run], corpus: &Corpus) -> Vec<Self> {
        let reference = runs.iter().find(|run| run.label().is_reference());
        let times = reference.map_or((&[][..], &[][..]), |run| (&run.compress, &run.decompress));
        runs.iter()
            .map(|run| Self {
                label: run.label().clone(),
                compress: Speed::of(&run.compress, corpus.len_bytes()),
                decompress: Speed::of(&run.decompress, corpus.len_bytes()),
                ratio: corpus.len_bytes() as f64 / run.payload_bytes as f64,
                over_stock_zlib: times_faster(times.0, &run.compress),
                over_stock_inflate: times_faster(times.1, &run.decompress),
                stock_zlib_reads_it: run.stock_zlib_reads_it,
            })
            .collect()
    }
}

/// The median of the rounds.
fn times_faster(slower: &[Duration], faster: &[Duration]) -> f64 {
    let mut factors: Vec<f64> = slower
        .iter()
        .zip(faster)
        .map(|(slower, faster)| slower.as_secs_f64() / faster.as_secs_f64())
        .collect();
    factors.sort_unstable_by(f64::total_cmp);
    factors.get(factors.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints a table to the terminal. It lists missing contenders with the reason.
pub fn print(rows: &[Row], absent: &[(String, String)]) {
    println!(
        "\n{:<28} {:>7} {:>4} {:>6}  {:>7} {:>4} {:>6}  {:>6}  zlib",
        "", "MB/s", "±%", "x zlib", "un-MB/s", "±%", "x infl", "ratio"
    );
    for row in rows {
        println!(
            "{:<28} {:>7.0} {:>4.0} {:>6.2}  {:>7.0} {:>4.0} {:>6.2}  {:>6.3}  {}",
            row.label.name,
            row.compress.mbps(),
            row.compress.spread * 50.0,
            row.over_stock_zlib,
            row.decompress.mbps(),
            row.decompress.spread * 50.0,
            row.over_stock_inflate,
            row.ratio,
            if row.stock_zlib_reads_it {
                "reads"
            } else {
                "-"
            },
        );
    }
    for (name, reason) in absent {
        println!("NOT MEASURED: {name}: {reason}");
    }
}

pub fn write_json(path: &Path, pages: &str, rows: &[Row]) -> Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.label.name,
                "method": row.label.method,
                "accel": row.label.accel,
                "huffman": row.label.huffman,
                "effort": row.label.effort,
                "window": row.label.window,
                "streams": row.label.streams,
                "compress_mbps": row.compress.mbps(),
                "compress_pages_per_s": row.compress.pages_per_s(),
                "decompress_mbps": row.decompress.mbps(),
                "decompress_pages_per_s": row.decompress.pages_per_s(),
                "ratio": row.ratio,
                "over_stock_zlib": row.over_stock_zlib,
                "over_stock_inflate": row.over_stock_inflate,
                "compress_spread": row.compress.spread,
                "decompress_spread": row.decompress.spread,
                "stock_zlib_reads_it": row.stock_zlib_reads_it,
            })
        })
        .collect();
    let report = json!({
        "machine": machine(),
        "pages": pages,
        "rows": rows,
    });
    std::fs::write(path, serde_json::to_string_pretty(&report)?)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(())
}

/// The processor model and the number of processors.
pub fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or(std::env::consts::ARCH, |(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {processors} processors")
}
