//! Compares the model with the published measurements of QEMU's `qpl` method.
//!
//! The rows are from the seventh version of the proposal (qemu-devel, 2024): Sapphire Rapids hosts,
//! a VM of 64 GB that is idle and 90 % full of the Silesia corpus, 4 IAA devices at each end, 100
//! Gbit/s. Time and bandwidth give the bytes sent, and so the sizes. The pages were not published.
//! So each method's row with 2 channels gives the speed of a channel, and the model predicts the
//! rows with 4 and 8 channels.

use std::fmt;

use super::costs::{IAA_BYTES_PER_S, IAA_JOB_BYTE};
use super::model::{Codec, Conditions, Guest, Moving, Way};

/// A published row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// QEMU's method, with the backend if there are several.
    pub method: &'static str,
    /// `multifd-channels`.
    pub channels: u32,
    /// Milliseconds from start to end.
    pub total_ms: f64,
    /// A constant of the model is from this row, so the row does not test the model.
    pub is_calibration: bool,
}

/// A row beside its prediction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    /// The published row.
    pub row: Row,
    /// The model's time in milliseconds.
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
    // It gives the bandwidth of the link.
    row("none", 8, 5789.0, true),
    row("qpl", 2, 7330.0, true),
    // It gives the rate of a device.
    row("qpl", 4, 5219.0, true),
    row("qpl", 8, 5250.0, false),
    row("qpl in software", 2, 73_535.0, true),
    row("qpl in software", 4, 37_299.0, false),
    row("qpl in software", 8, 18_964.0, false),
    row("zstd", 2, 78_291.0, true),
    row("zstd", 4, 39_544.0, false),
    row("zstd", 8, 20_180.0, false),
];

/// Bytes of the VM's pages: `none` sent as many in each row.
const PAGE_BYTES: f64 = 62.5e9;
/// Payload of the link, from `none` with 8 channels.
const LINK_BYTES_PER_S: f64 = 86.5e9 / 8.0;
/// Seconds of a channel's thread for a byte, from `none` with 2 channels: 4.17 GB/s.
const WIRE: f64 = 0.24e-9;
/// Seconds of a channel's thread for a byte in software, from the rows with 2 channels: 425 and 399
/// MB/s, without the time of sending.
const SOFTWARE: f64 = 2.216e-9;
const ZSTD: f64 = 2.422e-9;
/// Processors of such a host for a migration: enough, because they were not the limit of any row.
const PROCESSORS: f64 = 64.0;

/// All rows, with `devices` accelerators at each end.
#[must_use]
pub(crate) fn compare(devices: u32) -> Vec<Compared> {
    let device = f64::from(devices) * IAA_BYTES_PER_S;
    let rows = ROWS.into_iter().map(|row| Compared {
        row,
        predicted_ms: predict(&row, device) * 1e3,
    });
    rows.collect()
}

fn predict(row: &Row, device_rate: f64) -> f64 {
    let (encoding, size, device_rate) = match row.method {
        "none" => (0.0, 1.0, None),
        "qpl" => (IAA_JOB_BYTE, 31.8 / 62.5, Some(device_rate)),
        "zstd" => (ZSTD, 21.6 / 62.5, None),
        _ => (SOFTWARE, 35.8 / 62.5, None),
    };
    let codec = Codec {
        encoding,
        decoding: 0.0,
        size,
        device_rate,
    };
    let pages = PAGE_BYTES / 4096.0;
    let guest = Guest {
        page_bytes: 4096.0,
        memory_pages: pages,
        used_pages: pages,
        dirty_rate: 0.0,
        working_set_pages: pages,
    };
    let conditions = Conditions {
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
    let way = Way::new(moving, codec);
    conditions.predict(&guest, &way).total_s
}

impl Compared {
    /// The prediction's error as a part of the published time.
    #[must_use]
    pub(crate) fn error(&self) -> f64 {
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
pub(crate) const HEADER: &str = "\
| method | channels | published, ms | model, ms | error | row |
| --- | ---: | ---: | ---: | ---: | --- |";

/// The limits of the comparison.
pub(crate) const UNKNOWN: &str = "\
Each row marked `constant` gave the model a constant, so only the other rows test it.

The published rows do not tell:
- The decompression speed of a device. It was not the limit of any row.
- The cost of memory that the destination has not touched. Without mem-prealloc the same rows take 7 times as long \
with 2 channels and 4 times with 4. So plan with prealloc=on.

The older rows (zlib on an IAA, with an idle VM and with a Redis) have no prediction, because memory size, content and \
dirty rate were not published. No dirty rate fits them all: one that explains the times of the IAA's rows (62.7, 54.6 \
and 24.4 s) keeps zlib with 8 channels from converging, but it converged in 93.5 s.";

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
