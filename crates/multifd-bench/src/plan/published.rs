//! The published rows of QEMU's `qpl` method, beside what the model makes of them.
//!
//! They are from the seventh version of the proposal (qemu-devel, 2024): Sapphire Rapids hosts, a
//! VM of 64 GB with 90 % of it full of the Silesia corpus and idle processors, 4 IAA devices at
//! each end, 100 Gbit/s. Sent bytes are time by bandwidth, so sizes are known. The pages are not at
//! hand, so the speed of a channel is taken from the row with 2 channels of each method, and the
//! model has to find those with 4 and 8.

use std::fmt;

use super::costs::{IAA_BYTES_PER_S, IAA_JOB_BYTE};
use super::model::{Codec, Guest, Moving, Path, Way};

/// A published row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// QEMU's method and what computes.
    pub method: &'static str,
    /// `multifd-channels`.
    pub channels: u32,
    /// Milliseconds from start to end.
    pub total_ms: f64,
    /// The row gave a constant to the model, and proves nothing.
    pub is_calibration: bool,
}

/// A row and its prediction in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// What was published.
    pub row: Row,
    /// What the model says.
    pub predicted_ms: f64,
}

const fn row(method: &'static str, channels: u32, total_ms: f64, is_calibration: bool) -> Row {
    Row {
        method,
        channels,
        total_ms,
        is_calibration,
    }
}

const ROWS: [Row; 12] = [
    row("none", 2, 7493.0, true),
    row("none", 4, 5901.0, false),
    // The bandwidth of the link.
    row("none", 8, 5789.0, true),
    row("qpl", 2, 7330.0, true),
    // The rate of a device.
    row("qpl", 4, 5219.0, true),
    row("qpl", 8, 5250.0, false),
    row("qpl in software", 2, 73_535.0, true),
    row("qpl in software", 4, 37_299.0, false),
    row("qpl in software", 8, 18_964.0, false),
    row("zstd", 2, 78_291.0, true),
    row("zstd", 4, 39_544.0, false),
    row("zstd", 8, 20_180.0, false),
];

/// Bytes of the pages of the VM: what `none` sent in each row.
const PAGE_BYTES: f64 = 62.5e9;
/// Payload of the link, from `none` with 8 channels.
const LINK_BYTES_PER_S: f64 = 86.5e9 / 8.0;
/// Seconds of a channel's thread for a byte, from `none` with 2 channels: 4.17 GB/s.
const WIRE: f64 = 0.24e-9;
/// Seconds of a channel's thread for a byte in software, from the rows with 2 channels: 425 and 399
/// MB/s, less what sending takes.
const SOFTWARE: f64 = 2.216e-9;
const ZSTD: f64 = 2.422e-9;
/// Processors that such hosts have for a migration: none of these rows met a limit.
const PROCESSORS: f64 = 64.0;

/// All rows, with so many devices where there are any.
#[must_use]
pub fn compare(devices: u32) -> Vec<Compared> {
    let device = f64::from(devices) * IAA_BYTES_PER_S;
    let rows = ROWS.into_iter().map(|row| Compared {
        row,
        predicted_ms: predict(&row, device) * 1e3,
    });
    rows.collect()
}

fn predict(row: &Row, device: f64) -> f64 {
    let (encoding, size, device) = match row.method {
        "none" => (0.0, 1.0, None),
        "qpl" => (IAA_JOB_BYTE, 31.8 / 62.5, Some(device)),
        "zstd" => (ZSTD, 21.6 / 62.5, None),
        _ => (SOFTWARE, 35.8 / 62.5, None),
    };
    let codec = Codec {
        encoding,
        decoding: 0.0,
        size,
        device,
    };
    let pages = PAGE_BYTES / 4096.0;
    let guest = Guest {
        page_bytes: 4096.0,
        memory_pages: pages,
        used_pages: pages,
        dirty_rate: 0.0,
        working_set_pages: pages,
    };
    let path = Path {
        channels: f64::from(row.channels),
        processors: PROCESSORS,
        is_one_host: false,
        link: Some(LINK_BYTES_PER_S),
        max_bandwidth: None,
        downtime_limit: 0.3,
    };
    let moving = Moving {
        wire: WIRE,
        ..Moving::default()
    };
    let way = Way {
        moving,
        first: codec,
        again: codec,
        is_again_late: false,
    };
    path.predict(&guest, &way).total_s
}

impl Compared {
    /// The error as a part of the published time.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.predicted_ms / self.row.total_ms - 1.0
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row {
            method,
            channels,
            total_ms,
            is_calibration,
        } = self.row;
        write!(
            f,
            "| {method} | {channels} | {total_ms:.0} | {:.0} | {:+.1} % | {} |",
            self.predicted_ms,
            self.error() * 100.0,
            if is_calibration {
                "constant"
            } else {
                "prediction"
            }
        )
    }
}

/// The heading of the table.
pub const HEADER: &str = "\
| method | channels | published, ms | model, ms | error | row |
| --- | ---: | ---: | ---: | ---: | --- |";

/// What no model can make of what was published.
pub const UNKNOWN: &str = "\
Rows that are marked `constant` gave the model a figure, so only the others test it.

What the published rows do not tell:
- The decompression speed of a device: no row was limited by it.
- What memory costs that the destination has not touched: without mem-prealloc the same rows take 4 to 7 times as \
long with 4 and 2 channels. Plan with prealloc=on.
- The older rows, zlib on an IAA with an idle VM and with a Redis: size and content of memory and the dirty rate were \
not published. No dirty rate fits them all: what makes the IAA's rows (62.7, 54.6 and 24.4 s) last so long would keep \
zlib with 8 channels from converging, and it did, in 93.5 s. So nothing is predicted for them.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_rows_are_found_within_a_fifth() {
        let rows = compare(4);
        assert_eq!(rows.len(), 12);
        for row in &rows {
            assert!(row.error().abs() < 0.2, "{row}");
        }
        assert_eq!(rows.iter().filter(|row| !row.row.is_calibration).count(), 6);
    }

    #[test]
    fn fewer_devices_are_slower() {
        let with = |devices| compare(devices)[4].predicted_ms;
        assert!(with(1) > 3.5 * with(4));
    }
}
