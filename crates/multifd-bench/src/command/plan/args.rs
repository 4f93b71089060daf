//! The options of `multifd-bench plan`.

use std::num::{NonZeroU8, NonZeroU64};

use clap::Args;

use crate::command::args::{bandwidth, size};
use crate::command::migrate::Rate;
use crate::plan::Choice;

/// Predict what a migration will take with each method, and say which is best.
#[derive(Args, Debug)]
#[command(after_help = "\
Codecs and sockets of this host are measured for about two seconds, on pages like the guest's; the rest is computed.
`none` is QEMU without relays; the other methods are two relays with a trunk. Sizes take K, M or G.

Examples:
  multifd-bench plan --memory 64G --used 48G --dirty-rate 20000 --link 10gbit --channels 4 --cpus 4
  multifd-bench plan --from $(pidof qemu-system-x86_64) --link 10gbit --delta
  multifd-bench plan --from /run/vm1.qmp --link 10gbit --pages idle")]
pub struct PlanArgs {
    /// The guest's memory.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// How much of it is not zero.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub used: Option<u64>,
    /// Distinct pages that the guest writes in a second.
    #[arg(long, value_name = "PAGES", value_parser = pages)]
    pub dirty_rate: Option<f64>,
    /// How much memory it writes to at all (default: all that is used).
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
    /// Processors that each host has for the migration (default: those that are free now).
    #[arg(long, value_name = "N", value_parser = processors)]
    pub cpus: Option<f64>,
    /// none, zlib, zstd, qpl, canned or auto; repeatable.
    #[arg(long, value_name = "METHOD,...", value_delimiter = ',')]
    pub method: Vec<Choice>,
    /// Every method.
    #[arg(long, conflicts_with = "method")]
    pub all: bool,
    /// Also plan with differences of pages that are sent again.
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
    /// Plan qpl and canned with so many Intel IAA devices at each host, by published figures.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub iaa: Option<u32>,
    /// A hypervisor to look at first: its process, or its monitor's socket. It is not stopped.
    #[arg(long, value_name = "PID|SOCKET")]
    pub from: Option<String>,
    /// How long to look at it.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60))]
    pub for_seconds: u64,
    /// Both ends are on this host, and share its processors.
    #[arg(long)]
    pub same_host: bool,
    /// Compare the model with published measurements of IAA devices instead.
    #[arg(long)]
    pub published: bool,
    /// Print one JSON object.
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
