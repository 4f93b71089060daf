//! The command line.

use std::num::{NonZeroU8, NonZeroU64};
use std::path::PathBuf;

use crate::guests::Kind;
use clap::{Args, Parser, Subcommand};
use multifd_cli::{CodecArgs, ReceiveArgs, address};
use multifd_engine::ZeroPageDetection;
use multifd_transport::Address;

use super::migrate::{Mode, Rate};
use super::plan::PlanArgs;

/// Measure live migration without a VM: guests are processes.
///
/// ADDR is unix:PATH or tcp:HOST:PORT.
#[derive(Debug, Parser)]
#[command(name = "multifd-bench", version, max_term_width = 100)]
pub(super) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Migrate(MigrateArgs),
    Plan(Box<PlanArgs>),
    Send(SendArgs),
    /// The process of a guest; `send` starts it.
    #[command(hide = true)]
    Guest,
    /// `multifd receive` in this program, as the destination; `migrate` starts it.
    #[command(hide = true)]
    Receive(ReceiveArgs),
}

/// Move guests in every mode, and print the table of Intel's published measurements for this
/// machine.
#[derive(Args, Debug)]
#[command(after_help = "\
A mode is METHOD or METHOD+ACCEL, such as zlib+software. With +delta at its end, pages that are sent again go as
differences. Source and destination are two processes. With root's rights, --link makes a link between two network
namespaces. Without them the source limits its own rate.

Examples:
  multifd-bench migrate --workload redis --channels 2,4 --memory 1G --link 1gbit --modes zlib,zlib+software
  multifd-bench migrate --find-rate --workload redis --channels 2 --memory 1G --link 1gbit --modes zstd,zstd+delta")]
pub(super) struct MigrateArgs {
    /// Guests to move, as for `multifd-bench send`.
    #[arg(
        long,
        value_name = "GUESTS",
        value_delimiter = ',',
        default_value = "idle,redis"
    )]
    pub workload: Vec<Kind>,
    /// Numbers of multifd channels.
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "2,4,8"
    )]
    pub channels: Vec<NonZeroU8>,
    /// Size of each guest's memory.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "4G")]
    pub memory: u64,
    /// Modes to measure.
    #[arg(long, value_name = "MODES", value_delimiter = ',')]
    #[arg(default_value = "zlib,zlib+software,zlib+qpl,qpl,canned,zstd,none")]
    pub modes: Vec<Mode>,
    /// Rate of the link between source and destination, such as 10gbit (default: plain loopback).
    #[arg(long, value_name = "RATE")]
    pub link: Option<Rate>,
    /// Memory of the source for modes with +delta (default: the size of the guest's memory).
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub delta_memory: Option<u64>,
    /// Find the highest rate of the guest at which a migration ends within --timeout.
    ///
    /// It starts at --guest-rate, doubles or halves the rate, and then closes in on it to 10 %.
    #[arg(long, conflicts_with_all = ["runs", "report"])]
    pub find_rate: bool,
    /// Number of measurements of each mode; modes take turns.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub runs: u32,
    /// As for `multifd-bench send`.
    #[arg(long, value_name = "N")]
    pub guest_rate: Option<u64>,
    /// As for `multifd-bench send`.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub downtime_limit: u64,
    /// Seconds after which a migration counts as failed.
    #[arg(long, value_name = "S", default_value_t = 120)]
    pub timeout: u64,
    /// File for the figures.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// File for a report in HTML.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Send a guest without a hypervisor to a `multifd receive`.
#[derive(Args, Debug)]
#[command(after_help = "\
The guest is a process. Its memory behaves like an idle Linux or a busy Redis, or holds an image. It moves while it
writes, stops for the last round, and ends with this command. Sizes take K, M or G.

Example:
  multifd receive --listen tcp:0.0.0.0:4444
  multifd-bench send --guest redis --memory 4G --connect tcp:dst:4444 --multifd-channels 4 --compression zlib")]
pub(super) struct SendArgs {
    /// Content and work of the guest: idle, redis or image:FILE.
    #[arg(long, value_name = "GUEST")]
    pub guest: Kind,
    /// Size of its memory (default: 1G, or the image's size).
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Operations per second (redis) or page writes per second (others).
    #[arg(long, value_name = "N")]
    pub guest_rate: Option<u64>,
    /// Number of threads for these operations.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub guest_threads: u16,
    /// Address that the destination listens on.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub connect: Address,
    /// Number of connections for pages, 1 to 255.
    #[arg(long, value_name = "N", default_value = "2")]
    pub multifd_channels: NonZeroU8,
    #[command(flatten)]
    pub codec: CodecArgs,
    /// Longest time that the guest may be stopped, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pub downtime_limit: u64,
    /// Limit in bytes a second for all connections together (default: no limit).
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    pub max_bandwidth: Option<NonZeroU64>,
    /// How zero pages are found: none, legacy or multifd.
    ///
    /// `legacy` is the main thread, `multifd` are the channels' threads.
    #[arg(long, value_name = "PLACE", default_value_t = ZeroPageDetection::Multifd)]
    pub zero_page_detection: ZeroPageDetection,
    /// Seconds after which the migration is given up; the guest runs on.
    #[arg(long, value_name = "S", default_value_t = 120)]
    pub timeout: u64,
    /// Compare a digest of all memory at both ends while the guest is stopped.
    #[arg(long)]
    pub digest: bool,
    /// Memory to send pages again as differences.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "0")]
    pub delta_memory: u64,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Parses a number of bytes, with K, M, G or T for powers of 1024, like QEMU.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("sizes are whole numbers of bytes, K, M, G or T, such as 4G".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "sizes are whole numbers, such as 512M or 4G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "the size does not fit into 64 bits".to_owned())
}

/// Parses bytes a second.
pub(super) fn bandwidth(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(size(text)?)
        .ok_or_else(|| "0 would send nothing; for no limit omit the option".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_in_powers_of_1024() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4G"), Ok(4 << 30));
        for text in ["", "G", "1.5G", "-1", "4Gi", "99999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(bandwidth("0").is_err());
    }
}
