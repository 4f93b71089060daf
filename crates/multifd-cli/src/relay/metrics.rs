//! Counters of a relay, in the text format of Prometheus. [`server`] serves them to HTTP clients.
//!
//! The printing thread updates the counters with the events that it prints. Readers only load
//! atomics, so they cannot delay a migration. Counters never go down. The text has only numbers and
//! fixed names: no guest, no peer and no address.

mod server;

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use multifd_codec::delta::memory;
use multifd_relay::failure::Cause;
use multifd_relay::relay::{MigrationReport, Traffic};
use multifd_transport::failure::Cause as TransportCause;

pub(crate) use self::server::{Server, address};
use super::Ended;

/// The outcome of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The destination has said that it has the guest.
    Delivered,
    /// The relay has passed everything on, and the destination cannot confirm the guest.
    Unconfirmed,
    /// The migration failed.
    Failed,
    /// The source or this relay's operator ended the migration.
    Cancelled,
}

impl Ending {
    const ALL: [Self; 4] = [
        Self::Delivered,
        Self::Unconfirmed,
        Self::Failed,
        Self::Cancelled,
    ];

    fn of(outcome: &Result<MigrationReport, Ended>) -> Self {
        match outcome {
            Ok(report) if report.confirmed == Some(true) => Self::Delivered,
            Ok(_) => Self::Unconfirmed,
            Err(Ended::Failed(failure)) => match failure.cause {
                Cause::Incomplete | Cause::Transport(TransportCause::Cancelled) => Self::Cancelled,
                _ => Self::Failed,
            },
            Err(Ended::TooMany | Ended::Panicked) => Self::Failed,
        }
    }

    /// The value of the label `outcome`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Unconfirmed => "unconfirmed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Counts of this relay since its start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    delivered: AtomicU64,
    unconfirmed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    running: AtomicU64,
    microseconds: AtomicU64,
    pages: AtomicU64,
    zero_pages: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    difference_pages: AtomicU64,
    difference_page_bytes: AtomicU64,
    difference_bytes: AtomicU64,
    passed_over: AtomicU64,
}

impl Counters {
    /// Counts a migration that begins.
    pub(super) fn begun(&self) {
        add(&self.running, 1);
    }

    /// Adds the progress of a migration, whose totals were `before` at the last call and are `now`.
    pub(super) fn moved(&self, before: &Traffic, now: &Traffic) {
        let more = |counter, count: fn(&Traffic) -> u64| {
            add(counter, count(now).saturating_sub(count(before)));
        };
        more(&self.pages, |totals| totals.pages);
        more(&self.zero_pages, |totals| totals.zero_pages);
        more(&self.bytes_in, |totals| totals.bytes_in);
        more(&self.bytes_out, |totals| totals.bytes_out);
    }

    /// Counts a migration that has ended. Its totals were `before` at the last call of
    /// [`moved`](Self::moved). `took` is its duration if `outcome` has no report.
    pub(super) fn ended(
        &self,
        before: &Traffic,
        outcome: &Result<MigrationReport, Ended>,
        mut took: Duration,
    ) {
        if let Ok(report) = outcome {
            took = report.duration;
            self.moved(before, &report.totals);
            if let Some(counts) = &report.differences {
                add(&self.difference_pages, counts.differences);
                add(&self.difference_page_bytes, counts.difference_page_bytes);
                add(&self.difference_bytes, counts.area_bytes);
            }
        }
        add(
            &self.microseconds,
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        );
        // The order matters to readers: the outcome comes after the figures and before the end of
        // `running`, so a migration never misses from both.
        self.of(Ending::of(outcome)).fetch_add(1, Ordering::Release);
        self.running.fetch_sub(1, Ordering::Release);
    }

    /// Counts connections that were closed because they are no part of a migration.
    pub(super) fn passed_over(&self, connections: u64) {
        add(&self.passed_over, connections);
    }

    const fn of(&self, ending: Ending) -> &AtomicU64 {
        match ending {
            Ending::Delivered => &self.delivered,
            Ending::Unconfirmed => &self.unconfirmed,
            Ending::Failed => &self.failed,
            Ending::Cancelled => &self.cancelled,
        }
    }
}

/// The text format of Prometheus, version 0.0.4.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.running.load(Ordering::Acquire);
        let name = "multifd_migrations_total";
        head(f, name, "counter", "Migrations that have ended, by outcome")?;
        for ending in Ending::ALL {
            let count = self.of(ending).load(Ordering::Acquire);
            writeln!(f, "{name}{{outcome=\"{}\"}} {count}", ending.as_str())?;
        }
        let name = "multifd_migration_seconds_total";
        head(f, name, "counter", "Duration of all ended migrations")?;
        let microseconds = self.microseconds.load(Ordering::Relaxed);
        let (whole, part) = (microseconds / 1_000_000, microseconds % 1_000_000);
        writeln!(f, "{name} {whole}.{part:06}")?;
        let counters = [
            (
                "pages",
                "Pages with contents that were passed on",
                &self.pages,
            ),
            (
                "zero_pages",
                "Zero pages that were passed on",
                &self.zero_pages,
            ),
            ("received_bytes", "Bytes from sources", &self.bytes_in),
            ("sent_bytes", "Bytes to destinations", &self.bytes_out),
            (
                "difference_pages",
                "Pages of ended migrations that went as differences",
                &self.difference_pages,
            ),
            (
                "difference_page_bytes",
                "Bytes of the pages that went as differences",
                &self.difference_page_bytes,
            ),
            (
                "difference_bytes",
                "Bytes of these differences before compression",
                &self.difference_bytes,
            ),
            (
                "passed_over_connections",
                "Connections that were closed because they are no part of a migration",
                &self.passed_over,
            ),
        ];
        for (short, help, counter) in counters {
            let name = format!("multifd_{short}_total");
            one(f, &name, "counter", help, counter.load(Ordering::Relaxed))?;
        }
        let gauges = [
            (
                "multifd_migrations_running",
                "Migrations under way",
                running,
            ),
            (
                "multifd_delta_memory_limit_bytes",
                "Memory that pages kept for differences may take",
                memory::limit(),
            ),
            (
                "multifd_delta_memory_used_bytes",
                "Memory that running migrations have reserved for kept pages",
                memory::held(),
            ),
        ];
        for (name, help, value) in gauges {
            one(f, name, "gauge", help, value)?;
        }
        let name = "multifd_build_info";
        head(f, name, "gauge", "The version of this relay; always 1")?;
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, "{name}{{version=\"{version}\"}} 1")
    }
}

fn one(f: &mut impl Write, name: &str, kind: &str, help: &str, value: u64) -> fmt::Result {
    head(f, name, kind, help)?;
    writeln!(f, "{name} {value}")
}

fn head(f: &mut impl Write, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(f, "# HELP {name} {help}.")?;
    writeln!(f, "# TYPE {name} {kind}")
}

/// Adds to a counter, which wraps around at its last number. Prometheus takes this for a restart.
fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_relay::Failure;

    fn traffic(pages: u64, bytes_in: u64) -> Traffic {
        let mut traffic = Traffic::default();
        (traffic.pages, traffic.bytes_in) = (pages, bytes_in);
        traffic
    }

    #[test]
    fn counters_have_running_and_ended_migrations_and_never_go_down() {
        let counters = Counters::default();
        counters.begun();
        counters.begun();
        counters.moved(&traffic(0, 0), &traffic(5, 100));
        // Older totals arrive late.
        counters.moved(&traffic(5, 100), &traffic(4, 90));
        let failed = Err(Ended::Failed(Failure::here(Cause::Unconfirmed)));
        counters.ended(&traffic(5, 100), &failed, Duration::from_millis(1500));
        counters.passed_over(3);
        let text = counters.to_string();
        for line in [
            "multifd_migrations_total{outcome=\"failed\"} 1\n",
            "multifd_migrations_total{outcome=\"delivered\"} 0\n",
            "multifd_migrations_running 1\n",
            "multifd_migration_seconds_total 1.500000\n",
            "multifd_pages_total 5\n",
            "multifd_received_bytes_total 100\n",
            "multifd_passed_over_connections_total 3\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn a_cancelled_migration_is_no_failure() {
        let ending = |cause| Ending::of(&Err(Ended::Failed(Failure::here(cause))));
        let here = TransportCause::Cancelled.into();
        assert_eq!(ending(here), Ending::Cancelled);
        assert_eq!(ending(Cause::Incomplete), Ending::Cancelled);
        assert_eq!(ending(Cause::NotTold), Ending::Failed);
        assert_eq!(Ending::of(&Err(Ended::Panicked)), Ending::Failed);
    }

    #[test]
    fn each_metric_has_help_and_type_before_its_samples() {
        let text = Counters::default().to_string();
        assert!(text.ends_with('\n'));
        let mut described = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(text.contains(&format!("# HELP {name} ")), "{line}");
                assert!(!described.contains(&name), "{line}");
                described.push(name);
            } else if !line.starts_with("# HELP ") {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(described.last(), Some(&name), "{line}");
            }
        }
    }
}
