//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use multifd_codec::{Accel, Huffman, Streams, WindowSize, ZlibLevel, ZstdLevel};
use multifd_relay::leg::LegAddress;
use multifd_relay::leg::Name;
use multifd_transport::{Address, RateLimit};

use crate::codec::EffortArg;
use crate::doctor::DoctorArgs;
use crate::operate::{AcceptArgs, MigrateArgs};
use crate::relay::{Route, metrics};

/// Live migration over multifd for unmodified QEMUs.
// Without an empty line between its sentences, so that the help fits a screen.
#[derive(Debug, Parser)]
#[command(name = "multifd", version, max_term_width = 100)]
#[command(long_about = "Live migration over multifd for unmodified QEMUs.
ADDR is unix:PATH or tcp:HOST:PORT; `multifd relay -h` says what LEG is.")]
pub(crate) struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Migrate(Box<MigrateArgs>),
    Accept(AcceptArgs),
    Relay(Box<RelayArgs>),
    Receive(ReceiveArgs),
    Record(RecordArgs),
    Replay(ReplayArgs),
    Inspect(InspectArgs),
    Detect(DetectArgs),
    Doctor(Box<DoctorArgs>),
    #[cfg(feature = "tls")]
    Tls(crate::tls::TlsArgs),
}

/// Relay migrations and recompress their pages.
#[derive(Args, Debug)]
#[command(after_help = "\
Serves any number of migrations at once. It reads any method and writes --compression. --help shows all options.
LEG is unix:PATH, tcp:HOST:PORT or tls:HOST:PORT for a QEMU, and for another relay trunk:HOST:PORT over TLS,
or trunk+tcp:HOST:PORT and trunk+unix:PATH unencrypted.

Example, one relay on each host:
  multifd relay --listen trunk:0.0.0.0:4444 --connect unix:/run/{name}.sock --tls-dir pki
  multifd relay --listen unix:/run/src.sock --connect trunk:dst:4444 --name vm1 --compression zstd --tls-dir pki")]
pub(crate) struct RelayArgs {
    /// Where the source QEMU, or another relay, connects to; unix:DIR/{name} watches DIR.
    ///
    /// With unix:DIR/{name}.sock, an empty file DIR/vm1.sock becomes a socket for migrations of the
    /// guest vm1 within a second. Removing the socket ends that; migrations under way go on.
    #[arg(long, value_name = "LEG", value_parser = leg(), requires = "connect")]
    #[arg(required_unless_present_any = ["route", "routes"])]
    pub listen: Option<LegAddress>,
    /// Where the destination QEMU, or another relay, listens; {name} stands for --name.
    #[arg(long, value_name = "LEG", value_parser = leg(), requires = "listen")]
    pub connect: Option<LegAddress>,
    /// The guest's name on a trunk (`vm` if not given): letters, digits, `.`, `_` and `-`.
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Option<Name>,
    /// Folder with certificates and keys for TLS: see `multifd tls init`.
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Name to expect in the server's certificate, if it is not the host in --connect.
    #[arg(long, value_name = "HOST", hide_short_help = true)]
    pub tls_hostname: Option<String>,
    /// Serve only the client CLIENT, and only its guests NAME. Both may contain `*`. Repeatable.
    #[arg(long, value_name = "CLIENT[=NAME]", hide_short_help = true)]
    pub allow: Vec<String>,
    /// Allow a trunk in clear to other hosts: everybody in between can read the guest's memory.
    #[arg(long, hide_short_help = true)]
    pub insecure: bool,
    /// Another listening and destination address; repeatable.
    #[arg(long, value_name = "LISTEN=CONNECT", value_parser = Route::parser())]
    pub route: Vec<Route>,
    /// A file with a LISTEN=CONNECT on each line.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub routes: Option<PathBuf>,
    /// Read options from FILE (TOML): NAME = VALUE for --NAME VALUE. The command line wins.
    ///
    /// A flag is true or false, and a repeatable option a list: route = ["LISTEN=CONNECT"]. An
    /// option of the command line replaces the file's, lists too. The file is read at the start
    /// only.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Time limit for one connection to the destination, in seconds.
    #[arg(long, value_name = "S", default_value = "10", hide_short_help = true)]
    pub dial_timeout: NonZeroU32,
    /// Seconds to let running migrations finish after SIGTERM or SIGINT. With --tls-dir, SIGHUP
    /// reads certificates anew; without, it ends the relay too.
    #[arg(long, value_name = "S", default_value = "80", hide_short_help = true)]
    pub drain: u32,
    /// Permissions of listening unix sockets, in octal.
    #[arg(long, value_name = "OCTAL", default_value = "600", value_parser = mode, hide_short_help = true)]
    pub mode: u32,
    /// Serve metrics (/metrics, for Prometheus) and health (/healthz) over HTTP at ADDR.
    ///
    /// ADDR is a unix socket or a loopback address, such as tcp:127.0.0.1:9190. There is no
    /// password: every user of this host can read the counters at a TCP port. They name no guest.
    #[arg(long, value_name = "ADDR", value_parser = metrics::address(), hide_short_help = true)]
    pub metrics: Option<Address>,
    /// Write a report with plots on each migration to DIR: a page for a browser.
    ///
    /// The pages are called TIME-GUEST-NUMBER.html, and no file is overwritten. DIR must exist. A
    /// page that cannot be written is named, and changes nothing else.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub report: Option<PathBuf>,
    /// Switch off the sandbox (Landlock, seccomp), for debugging.
    #[arg(long, hide_short_help = true)]
    pub no_sandbox: bool,
    #[command(flatten)]
    pub codec: CodecArgs,
    /// Memory for pages, so that pages sent again go over a trunk as differences; 0 for none.
    ///
    /// SIZE is a number of bytes, or 512M, 4G. All migrations of this relay share it, and each
    /// keeps as many pages as both relays have room for. The default is a quarter of the memory
    /// that is available at the start. Differences need a --compression other than none at the
    /// source's relay.
    #[arg(long, value_name = "SIZE", value_parser = size, hide_short_help = true)]
    pub delta_memory: Option<u64>,
    /// Limit for the bytes that this relay writes towards --connect in a second, such as 1gbit.
    ///
    /// RATE is a number of bits with kbit, mbit or gbit (1gbit is 1,000,000,000 bits), or of bytes
    /// like 100M (100 x 1,048,576 bytes); at least 1mbit. All migrations and connections of this
    /// relay share it. Bytes count as they go to the network, compressed and encrypted; TCP's and
    /// IP's own, a few percent, do not.
    #[arg(long, value_name = "RATE", value_parser = rate, hide_short_help = true)]
    pub max_rate: Option<RateLimit>,
    /// Recompress payloads that already have the outgoing method. By default they pass unchanged.
    ///
    /// So a source QEMU with multifd-compression zlib and multifd-zlib-level 0 needs one relay to a
    /// stock destination.
    #[arg(long, hide_short_help = true)]
    pub recode: bool,
    /// Processors that --effort auto may take for each migration, such as 1.5.
    #[arg(long, value_name = "N", value_parser = processors, hide_short_help = true)]
    pub cpus: Option<f64>,
    /// Both relays of a trunk compare all pages of each round; a difference leaves the guest at its
    /// source. It costs a decompression at each of them.
    #[arg(long, hide_short_help = true)]
    pub verify: bool,
    /// Connections of a trunk for each multifd channel, or for a VM without multifd: 1 to 16.
    ///
    /// One is enough for most networks. More help where one connection does not fill the path: over
    /// a long distance, or where a network spreads connections over several links.
    #[arg(long, value_name = "N", default_value = "1", hide_short_help = true,
          value_parser = clap::value_parser!(u8).range(1..=16))]
    pub trunk_channels: u8,
    /// Exit after one migration: status 0 if it was delivered, 1 if it failed.
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object per migration.
    #[arg(long)]
    pub json: bool,
    /// Report each change of effort.
    #[arg(long, short, hide_short_help = true)]
    pub verbose: bool,
}

/// How pages are compressed.
#[derive(Args, Clone, Debug)]
pub struct CodecArgs {
    /// Method: none, zlib, zstd, qpl, canned (multifd at both ends), or auto (a trunk).
    ///
    /// The default is auto to a trunk, and none elsewhere.
    #[arg(long, value_name = "METHOD", value_enum, hide_possible_values = true)]
    pub(crate) compression: Option<Compression>,
    /// Level of zlib with --accel none: 0 to 9; the default is 1.
    #[arg(long, value_name = "N", value_parser = zlib_level, hide_short_help = true)]
    pub(crate) zlib_level: Option<ZlibLevel>,
    /// Level of zstd: 0 to 20; the default is 1.
    #[arg(long, value_name = "N", value_parser = zstd_level, hide_short_help = true)]
    pub(crate) zstd_level: Option<ZstdLevel>,
    /// Accelerator: none, software, qpl, qpl-hardware, qpl-software or auto.
    ///
    /// The default is auto where an IAA is ready, and software elsewhere.
    #[arg(long, value_name = "ACCEL")]
    pub(crate) accel: Option<Accel>,
    /// Independent streams within a channel, compressed in parallel: 1 to 128.
    #[arg(long, value_name = "K", value_parser = streams, hide_short_help = true)]
    pub(crate) streams: Option<Streams>,
    /// Huffman code of qpl, and of zlib by libqpl: fixed (faster) or dynamic (smaller).
    #[arg(long, value_name = "CODE", hide_short_help = true)]
    pub(crate) huffman: Option<Huffman>,
    /// Speed against size: auto (zlib, zstd), or fast, balanced or dense of --accel software.
    ///
    /// With auto, each packet gets what the link, the processors and the pages make best.
    #[arg(long, value_name = "EFFORT", hide_short_help = true)]
    pub(crate) effort: Option<EffortArg>,
    /// Deflate window of --accel software: 4k (an IAA can read it) or 32k.
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    pub(crate) window: Option<WindowSize>,
}

/// Take a migration: the memory of a QEMU's guest, or a guest of `multifd-bench send`.
#[derive(Args, Debug)]
#[command(after_help = "\
The first bytes show whether the source is a QEMU or multifd-bench. Each RAM block becomes DIR/BLOCK.ram, with
`_` for `/`. The files end in .partial until the migration is complete; after a failure they are removed. QEMU's
guest stays stopped then. Without --dump only `multifd-bench send` is served, and its guest is dropped at the end.

Example:
  multifd receive --listen unix:/run/dump.sock --dump ram/
  then in the source's monitor: migrate -d unix:/run/dump.sock")]
pub struct ReceiveArgs {
    /// Where the source connects to.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub(crate) listen: Address,
    /// Folder for the images. It must hold no .ram files; it is created if missing.
    #[arg(long, value_name = "DIR")]
    pub(crate) dump: Option<PathBuf>,
    /// Permissions of the unix socket, in octal.
    #[arg(long, value_name = "OCTAL", value_parser = mode, default_value = "600")]
    pub(crate) mode: u32,
    /// Accelerator for decompression; values as for `multifd relay`.
    #[arg(long, value_name = "ACCEL", default_value_t = Accel::None)]
    pub(crate) accel: Accel,
    /// Set this if the source has switchover-ack on and a machine type before 8.1 or without
    /// version.
    #[arg(long)]
    pub(crate) switchover_ack: bool,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Take a migration from a QEMU and keep it, byte for byte, in one file.
#[derive(Args, Debug)]
#[command(after_help = "\
The file ends in .partial until the migration is complete; after a failure it is removed. Then the source's
guest stays stopped: it lives on in the file.

Example:
  multifd record --listen unix:/run/rec.sock --out guest.mfd
  then in the source's monitor: migrate -d unix:/run/rec.sock")]
pub(crate) struct RecordArgs {
    /// Where the source QEMU connects to.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub listen: Address,
    /// The file to create. It must not exist.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Permissions of the unix socket, in octal.
    #[arg(long, value_name = "OCTAL", value_parser = mode, default_value = "600")]
    pub mode: u32,
    /// Set this if the source has switchover-ack on and a machine type before 8.1 or without
    /// version.
    #[arg(long)]
    pub switchover_ack: bool,
}

/// Send a recorded migration to a waiting QEMU.
#[derive(Args, Debug)]
#[command(after_help = "\
The recording is checked whole before anything is sent. The destination needs the recorded machine, number of
channels and compression. After ten minutes without any progress the replay fails.

Example:
  multifd replay guest.mfd --connect unix:/run/dst.sock")]
pub(crate) struct ReplayArgs {
    /// A file made by `multifd record`.
    pub file: PathBuf,
    /// Where the destination QEMU listens.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub connect: Address,
}

/// Show what captured channels and recordings hold.
#[derive(Args, Debug)]
#[command(after_help = "\
A file is one direction of one connection (the main channel or a multifd channel) or a recording; its first
bytes tell which.

Example:
  multifd inspect main.fwd mfd0.fwd
  multifd inspect guest.mfd --packets --json")]
pub(crate) struct InspectArgs {
    /// The files.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// List every packet too.
    #[arg(long)]
    pub packets: bool,
    /// Print a JSON array with one object per file.
    #[arg(long)]
    pub json: bool,
}

/// Check whether libqpl can use an Intel IAA here.
#[derive(Args, Debug)]
#[command(after_help = "\
If not, it names the first obstacle and the commands that remove it. It changes nothing.

Example:
  multifd detect --json")]
pub(crate) struct DetectArgs {
    /// Folder that holds the machine's /sys, /proc, /dev and /etc, for use in a container.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Print all that was found as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The methods that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compression {
    /// Pages as they are.
    None,
    /// QEMU's multifd-compression=zlib.
    Zlib,
    /// QEMU's multifd-compression=zstd.
    Zstd,
    /// QEMU's multifd-compression=qpl, 9.1 and later.
    Qpl,
    /// Our own. No QEMU reads it, and a relay learns that only from the QEMU's error.
    Canned,
    /// The best that both relays of a trunk have, with the effort that is best at the moment.
    Auto,
}

impl Compression {
    /// The word on a command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Canned => "canned",
            Self::Auto => "auto",
        }
    }
}

/// An address in which a path need not be UTF-8.
pub fn address() -> impl TypedValueParser<Value = Address> {
    OsStringValueParser::new().try_map(|text| Address::from_os_str(&text))
}

/// Reads the address of a leg in which the path of a socket need not be UTF-8.
pub(crate) fn leg() -> impl TypedValueParser<Value = LegAddress> {
    OsStringValueParser::new().try_map(|text| LegAddress::from_os_str(&text))
}

pub(crate) fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|fault| fault.to_string())
}

/// Parses a number of bytes, with K, M, G or T for powers of 1024, like QEMU.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("sizes are numbers of bytes, or of K, M, G or T".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "sizes are whole numbers, such as 512M or 4G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "that is more than 64 bits can say".to_owned())
}

/// Parses a rate: bits a second, with decimal prefixes as networks have them, or bytes a second as
/// [`size`] reads them. Each call makes a limit of its own.
pub(crate) fn rate(text: &str) -> Result<RateLimit, String> {
    let lower = text.to_ascii_lowercase();
    let bytes = match lower.strip_suffix("bit") {
        Some(bits) => {
            let digits = bits.trim_end_matches(['k', 'm', 'g']);
            let factor: u64 = match bits.get(digits.len()..).unwrap_or_default() {
                "" => 1,
                "k" => 1_000,
                "m" => 1_000_000,
                "g" => 1_000_000_000,
                _ => return Err(RATES.to_owned()),
            };
            let number: u64 = digits.parse().map_err(|_| RATES.to_owned())?;
            let bits = number.checked_mul(factor);
            bits.ok_or_else(|| "that is more than 64 bits can say".to_owned())? / 8
        }
        None => size(text).map_err(|_| RATES.to_owned())?,
    };
    RateLimit::new(bytes).map_err(|error| error.to_string())
}

const RATES: &str = "rates are whole numbers of bits a second with kbit, mbit or gbit, such as 500mbit, \
                     or of bytes a second, such as 100M";

pub(crate) fn processors(text: &str) -> Result<f64, String> {
    let count = text.parse().ok();
    count
        .filter(|count: &f64| (0.01..=4096.0).contains(count))
        .ok_or_else(|| "--cpus is 0.01 to 4096, such as 1.5".to_owned())
}

/// The mode of a file, as chmod takes it.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    let is_octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8);
    mode.ok()
        .filter(|mode| is_octal && *mode <= 0o777)
        .ok_or_else(|| "modes are 000 to 777 in octal, such as 660".to_owned())
}

fn zlib_level(text: &str) -> Result<ZlibLevel, String> {
    let level = text
        .parse()
        .map_err(|_| format!("levels are 0 to {}", ZlibLevel::MAX.value()))?;
    ZlibLevel::new(level).map_err(|error| error.to_string())
}

fn zstd_level(text: &str) -> Result<ZstdLevel, String> {
    let level = text
        .parse()
        .map_err(|_| format!("levels are 0 to {}", ZstdLevel::MAX.value()))?;
    ZstdLevel::new(level).map_err(|error| error.to_string())
}

fn streams(text: &str) -> Result<Streams, String> {
    let streams = text
        .parse()
        .map_err(|_| format!("streams are 1 to {}", Streams::MAX.value()))?;
    Streams::new(streams).map_err(|error| error.to_string())
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
    fn modes_are_octal() {
        assert_eq!(mode("660"), Ok(0o660));
        assert_eq!(mode("0600"), Ok(0o600));
        for text in ["", "8", "1777", "+600", "rw", "-1", "99999999999"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_bits_or_bytes() {
        let bytes = |text: &str| rate(text).map(|limit| limit.bytes_per_second());
        assert_eq!(bytes("1gbit"), Ok(125_000_000));
        assert_eq!(bytes("500Mbit"), Ok(62_500_000));
        assert_eq!(bytes("2500kbit"), Ok(312_500));
        assert_eq!(bytes("100M"), Ok(100 << 20));
        assert_eq!(bytes("1000000"), Ok(1_000_000));
        for text in [
            "", "bit", "1.5gbit", "1tbit", "kmbit", "1gbps", "100X", "-1mbit",
        ] {
            assert_eq!(bytes(text), Err(RATES.to_owned()), "{text}");
        }
        assert!(bytes("99999999999gbit").unwrap_err().contains("64 bits"));
        for text in ["0", "1", "999kbit", "124999"] {
            let error = bytes(text).unwrap_err();
            assert!(error.contains("the lowest rate is 1 mbit"), "{error}");
        }
        assert_eq!(bytes("1mbit"), Ok(RateLimit::LEAST));
    }

    #[test]
    fn levels_are_checked() {
        let level = |text: &str| zlib_level(text).map(|level| level.value());
        assert_eq!(level("9"), Ok(9));
        assert!(level("10").is_err());
        assert_eq!(level("x"), Err("levels are 0 to 9".into()));
        assert!(zstd_level("21").is_err());
    }
}
