//! The options of `multifd-bench plan`.

use std::num::{NonZeroU8, NonZeroU64};

use clap::Args;

use crate::command::args::{bandwidth, size};
use crate::command::migrate::Rate;
use crate::plan::Choice;

/// Predict time, downtime and bytes of a migration with each method, and name the best method.
#[derive(Args, Debug)]
#[command(after_help = "\
It measures codecs and sockets of this host for about two seconds, on pages like the guest's, and computes the rest.
`none` is QEMU without relays; the other methods need two relays with a trunk. Sizes take K, M or G.

Examples:
  multifd-bench plan --memory 64G --used 48G --dirty-rate 20000 --link 10gbit --channels 4 --cpus 4
  multifd-bench plan --from $(pidof qemu-system-x86_64) --link 10gbit --delta
  multifd-bench plan --from /run/vm1.qmp --link 10gbit --pages idle")]
pub(crate) struct PlanArgs {
    /// Size of the guest's memory.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Size of its nonzero pages (default: as in --pages).
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub used: Option<u64>,
    /// Distinct pages that the guest writes in a second.
    #[arg(long, value_name = "PAGES", value_parser = pages)]
    pub dirty_rate: Option<f64>,
    /// Size of the memory that the guest ever writes (default: --used).
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub working_set: Option<u64>,
    /// Bytes of a page that change before it is sent again, for --delta (default: 8, or measured).
    #[arg(long, value_name = "BYTES")]
    pub rewrite: Option<usize>,
    /// Rate of the link, such as 10gbit (default: no limit).
    #[arg(long, value_name = "RATE")]
    pub link: Option<Rate>,
    /// QEMU's multifd-channels (default: 2, or the monitor's).
    #[arg(long, value_name = "N")]
    pub channels: Option<NonZeroU8>,
    /// Processors of each host for the migration (default: those that are free here now).
    #[arg(long, value_name = "N", value_parser = processors)]
    pub cpus: Option<f64>,
    /// Methods: none, zlib, zstd, qpl, canned or auto (default: none, zlib, zstd, auto).
    #[arg(long, value_name = "METHOD,...", value_delimiter = ',')]
    pub method: Vec<Choice>,
    /// Plan with every method.
    #[arg(long, conflicts_with = "method")]
    pub all: bool,
    /// Also plan with differences for pages that are sent again.
    #[arg(long)]
    pub delta: bool,
    /// QEMU's downtime-limit in milliseconds (default: 300, or the monitor's).
    #[arg(long, value_name = "MS")]
    pub downtime_limit: Option<u64>,
    /// QEMU's max-bandwidth in bytes a second (default: no limit, or the monitor's).
    #[arg(long, value_name = "SIZE", value_parser = bandwidth)]
    pub max_bandwidth: Option<NonZeroU64>,
    /// Content like the guest's: idle, redis, or a file of its pages.
    #[arg(long, value_name = "PAGES", default_value = "redis")]
    pub pages: String,
    /// Number of Intel IAA devices at each host, for qpl and canned; by published figures.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub iaa: Option<u32>,
    /// Running hypervisor to measure first: its process, or its QMP socket. The guest runs on.
    #[arg(long, value_name = "PID|SOCKET")]
    pub from: Option<String>,
    /// Time for this measurement.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60))]
    pub for_seconds: u64,
    /// Both ends are on one host and share its processors.
    #[arg(long)]
    pub same_host: bool,
    /// Compare the model with published measurements of IAA devices instead.
    #[arg(long)]
    pub published: bool,
    /// Print the plan as one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn processors(text: &str) -> Result<f64, String> {
    positive(text, 0.01, 4096.0)
}

fn pages(text: &str) -> Result<f64, String> {
    positive(text, 0.0, 1e9)
}

fn positive(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse::<f64>().ok();
    number
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("a number from {least} to {most} is needed"))
}
