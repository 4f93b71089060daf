//! The command lines of `multifd migrate` and `multifd accept`.

use std::num::{NonZeroU8, NonZeroU32};
use std::path::PathBuf;

use clap::Args;
use multifd_relay::leg::{LegAddress, Name};
use multifd_transport::RateLimit;

use crate::args::{CodecArgs, leg, name, processors, rate, size};

/// Send the guest of a QEMU to `multifd accept`, and follow it to the end.
#[derive(Args, Debug)]
#[command(after_help = "\
Sets QEMU over QMP, relays the migration itself, and puts the former settings back. Ctrl-C cancels.
Exit: 0 the destination has the guest; 1 failed, 4 cancelled: it stays here; 3 unknown; 2 usage.
Example, after `multifd accept` at dst; DIR holds ca-cert.pem, client-cert.pem and client-key.pem:
  multifd migrate --qmp /run/src.qmp --to trunk:dst:4444 --tls-dir DIR")]
pub(crate) struct MigrateArgs {
    /// Where `multifd accept` listens: trunk:HOST:PORT.
    #[arg(long, value_name = "LEG", value_parser = leg())]
    pub to: LegAddress,
    #[command(flatten)]
    pub end: EndArgs,
    /// The guest's name on the trunk (`vm` if not given).
    #[arg(long, value_name = "NAME", value_parser = name, hide_short_help = true)]
    pub name: Option<Name>,
    /// Name to expect in the server's certificate, if it is not the host in --to.
    #[arg(long, value_name = "HOST", hide_short_help = true)]
    pub tls_hostname: Option<String>,
    /// The longest that the guest may stand still, in milliseconds.
    #[arg(long, value_name = "MS", default_value = "300")]
    pub downtime_limit: u32,
    /// Most bytes that QEMU sends a second, before compression; 0 for no limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    pub max_bandwidth: u64,
    /// Cancel after S seconds; 0 for never.
    #[arg(long, value_name = "S", default_value = "120")]
    pub timeout: u32,
    /// Run the guest at the destination after S seconds, and let its memory follow.
    #[arg(long, value_name = "S")]
    pub postcopy_after: Option<NonZeroU32>,
    /// Limit for the bytes that go over the trunk in a second, after compression, such as 1gbit.
    ///
    /// RATE is a number of bits with kbit, mbit or gbit (1gbit is 1,000,000,000 bits), or of bytes
    /// like 100M (100 x 1,048,576 bytes); at least 1mbit. Encryption counts; TCP's and IP's own
    /// bytes, a few percent, do not.
    #[arg(long, value_name = "RATE", value_parser = rate, hide_short_help = true)]
    pub max_rate: Option<RateLimit>,
    #[command(flatten)]
    pub codec: CodecArgs,
    /// Processors that --effort auto may take, such as 1.5.
    #[arg(long, value_name = "N", value_parser = processors, hide_short_help = true)]
    pub cpus: Option<f64>,
    /// Connections of the trunk for each multifd channel: 1 to 16.
    ///
    /// More help where one connection does not fill the path: over a long distance, or where a
    /// network spreads connections over several links.
    #[arg(long, value_name = "N", default_value = "1", hide_short_help = true,
          value_parser = clap::value_parser!(u8).range(1..=16))]
    pub trunk_channels: u8,
}

/// Take one guest from `multifd migrate` into a QEMU that was started with -incoming defer.
#[derive(Args, Debug)]
#[command(after_help = "\
Sets QEMU over QMP, relays the migration itself, and puts the former settings back. Ctrl-C ends it.
Exit: 0 this QEMU has the guest; 1 failed, 4 cancelled: it stays at the source; 3 unknown; 2 usage.

Example; DIR holds ca-cert.pem, server-cert.pem and server-key.pem (`multifd tls init DIR --host dst`):
  multifd accept --qmp /run/dst.qmp --listen trunk:0.0.0.0:4444 --tls-dir DIR")]
pub(crate) struct AcceptArgs {
    /// Where `multifd migrate` connects to: trunk:ADDRESS:PORT.
    #[arg(long, value_name = "LEG", value_parser = leg())]
    pub listen: LegAddress,
    #[command(flatten)]
    pub end: EndArgs,
    /// Serve only the client CLIENT, and only its guests NAME. Both may contain `*`. Repeatable.
    #[arg(long, value_name = "CLIENT[=NAME]", hide_short_help = true)]
    pub allow: Vec<String>,
    /// Switch postcopy on, for `multifd migrate --postcopy-after`.
    #[arg(long)]
    pub postcopy: bool,
}

/// Options of both ends.
#[derive(Args, Debug)]
pub(crate) struct EndArgs {
    /// Socket of QEMU's QMP monitor (-qmp unix:PATH,server=on,wait=off).
    #[arg(long, value_name = "PATH")]
    pub qmp: PathBuf,
    /// Multifd channels; say the same at both ends.
    #[arg(long, value_name = "N", default_value = "4")]
    pub channels: NonZeroU8,
    /// Folder with certificates and keys for TLS: see `multifd tls init`.
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Allow a trunk in clear to other hosts: everybody in between can read the guest's memory.
    #[arg(long, hide_short_help = true)]
    pub insecure: bool,
    /// Memory for pages, so that pages sent again go as differences; 0 for none.
    ///
    /// SIZE is a number of bytes, or 512M, 4G. The default is a quarter of the memory that is
    /// available at the start.
    #[arg(long, value_name = "SIZE", value_parser = size, hide_short_help = true)]
    pub delta_memory: Option<u64>,
    /// Folder for a socket that QEMU uses too. The default is the folder of --qmp.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub socket_dir: Option<PathBuf>,
    /// Say what would be set in QEMU, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Write a report with plots to FILE, which must not exist: a page for a browser.
    ///
    /// It is written when the migration has ended, whatever its outcome, and does not change the
    /// exit status.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print one JSON object for each thing that happens.
    #[arg(long)]
    pub json_lines: bool,
}
