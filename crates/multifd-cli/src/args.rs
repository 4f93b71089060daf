//! What can be typed.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use multifd_codec::{Accel, Effort, Huffman, Streams, WindowSize, ZlibLevel, ZstdLevel};
use multifd_transport::Address;
use multifd_wire::Method;

use crate::relay::Route;

/// Live migration over multifd for unmodified QEMUs.
///
/// ADDR is unix:PATH or tcp:HOST:PORT.
#[derive(Debug, Parser)]
#[command(name = "multifd", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Relay(RelayArgs),
    Receive(ReceiveArgs),
    Record(RecordArgs),
    Replay(ReplayArgs),
    Inspect(InspectArgs),
    Detect(DetectArgs),
}

/// Pass migrations on, recompressed.
#[derive(Args, Debug)]
#[command(after_help = "\
Serves any number of migrations at once. Payloads of any method leave in --compression's; all else passes unchanged.

Example, between two QEMUs that use no compression:
  multifd relay --listen tcp:0.0.0.0:4444 --connect unix:/run/dst.sock
  multifd relay --listen unix:/run/src.sock --connect tcp:dst:4444 --compression zstd")]
pub struct RelayArgs {
    /// Where the source QEMU, or another relay, connects to.
    #[arg(long, value_name = "ADDR", value_parser = address(), requires = "connect")]
    #[arg(required_unless_present_any = ["route", "routes"])]
    pub listen: Option<Address>,
    /// Where the destination QEMU, or another relay, listens.
    #[arg(long, value_name = "ADDR", value_parser = address(), requires = "listen")]
    pub connect: Option<Address>,
    /// One more pair of both, as often as you like.
    #[arg(long, value_name = "LISTEN=CONNECT", value_parser = Route::parser())]
    pub route: Vec<Route>,
    /// A file with a LISTEN=CONNECT on each line.
    #[arg(long, value_name = "FILE")]
    pub routes: Option<PathBuf>,
    /// Seconds that one connection to the destination may take.
    #[arg(long, value_name = "S", default_value = "10")]
    pub dial_timeout: NonZeroU32,
    /// Seconds that migrations under way have to end after SIGTERM or SIGINT.
    #[arg(long, value_name = "S", default_value = "80")]
    pub drain: u32,
    /// Who may connect to a unix socket that is listened on, as a file's mode.
    #[arg(long, value_name = "OCTAL", default_value = "600", value_parser = mode)]
    pub mode: u32,
    #[command(flatten)]
    pub codec: CodecArgs,
    /// Stop after one migration; the exit status tells how it went.
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object per migration.
    #[arg(long)]
    pub json: bool,
}

/// How pages are compressed.
#[derive(Args, Clone, Debug)]
pub struct CodecArgs {
    /// Of pages: none, zlib, zstd, qpl, or canned (multifd at both ends).
    #[arg(long, value_name = "METHOD", default_value_t = Compression::None)]
    #[arg(value_enum, hide_possible_values = true)]
    pub compression: Compression,
    /// 0 to 9, with --compression zlib and --accel none.
    #[arg(long, value_name = "N", value_parser = zlib_level)]
    pub zlib_level: Option<ZlibLevel>,
    /// 0 to 20, with --compression zstd.
    #[arg(long, value_name = "N", value_parser = zstd_level)]
    pub zstd_level: Option<ZstdLevel>,
    /// Who computes: none, software, qpl, qpl-hardware, qpl-software or auto.
    #[arg(long, value_name = "WHO", default_value_t = Accel::None)]
    pub accel: Accel,
    /// Independent streams within a channel, compressed at once: 1 to 128.
    #[arg(long, value_name = "K", value_parser = streams)]
    pub streams: Option<Streams>,
    /// The Huffman code of qpl, and of zlib by libqpl: fixed or dynamic.
    #[arg(long, value_name = "CODE")]
    pub huffman: Option<Huffman>,
    /// How much time our own deflate spends on size: fast, balanced or dense.
    #[arg(long, value_name = "EFFORT")]
    pub effort: Option<Effort>,
    /// How far back --accel software refers: 4k, which an IAA can read too, or 32k.
    #[arg(long, value_name = "SIZE")]
    pub window: Option<WindowSize>,
}

/// Take a migration: the memory of a QEMU's guest, or a guest of `multifd-bench send`.
#[derive(Args, Debug)]
#[command(after_help = "\
Who comes is seen from the first bytes. Each RAM block becomes DIR/BLOCK.ram, with `_` for `/`; until the
migration is whole the files end in .partial, and after a failure there are none. A QEMU's guest stays stopped
once it has completed. Without --dump only `multifd-bench send` is served, and its guest is forgotten at the end.

Example:
  multifd receive --listen unix:/run/dump.sock --dump ram/
  then in the source's monitor: migrate unix:/run/dump.sock")]
pub struct ReceiveArgs {
    /// Where the source connects to.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub listen: Address,
    /// A folder without .ram files; it is made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Who may connect to a unix socket, as a file's mode in octal; by default its owner.
    #[arg(long, value_name = "OCTAL", value_parser = mode, default_value = "600")]
    pub mode: u32,
    /// Who decompresses what `multifd-bench send` sends: as with `multifd relay`.
    #[arg(long, value_name = "WHO", default_value_t = Accel::None)]
    pub accel: Accel,
    /// The source is a QEMU with switchover-ack on, and a machine type before 8.1 or without version.
    #[arg(long)]
    pub switchover_ack: bool,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Take a migration from a QEMU and keep it, byte for byte, in one file.
#[derive(Args, Debug)]
#[command(after_help = "\
Until the migration is whole the file ends in .partial; after a failure there is none. The source's guest
stays stopped once the migration has completed: it lives on in the file.

Example:
  multifd record --listen unix:/run/rec.sock --out guest.mfd
  then in the source's monitor: migrate unix:/run/rec.sock")]
pub struct RecordArgs {
    /// Where the source QEMU connects to.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub listen: Address,
    /// The file to make; it must not be there yet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Who may connect to a unix socket, as a file's mode in octal; by default its owner.
    #[arg(long, value_name = "OCTAL", value_parser = mode, default_value = "600")]
    pub mode: u32,
    /// The source has switchover-ack on, and a machine type of before 8.1 or without a version.
    #[arg(long)]
    pub switchover_ack: bool,
}

/// Send a recorded migration to a QEMU which waits for one.
#[derive(Args, Debug)]
#[command(after_help = "\
The recording is checked whole before anything is sent. The destination needs the recorded machine, number of
channels and compression.

Example:
  multifd replay guest.mfd --connect unix:/run/dst.sock")]
pub struct ReplayArgs {
    /// A file made by `multifd record`.
    pub file: PathBuf,
    /// Where the destination QEMU listens.
    #[arg(long, value_name = "ADDR", value_parser = address())]
    pub connect: Address,
}

/// Say what is in captured channels and recordings.
#[derive(Args, Debug)]
#[command(after_help = "\
A file is one direction of one connection (the main channel or a multifd channel) or a recording; its first
bytes tell which.

Example:
  multifd inspect main.fwd mfd0.fwd
  multifd inspect guest.mfd --packets --json")]
pub struct InspectArgs {
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

/// Say whether this machine has an Intel IAA that libqpl can use.
#[derive(Args, Debug)]
#[command(after_help = "\
If not, the first thing in the way is named, with the commands that remove it. Nothing is changed.

Example:
  multifd detect --json")]
pub struct DetectArgs {
    /// Where the machine's /sys, /proc, /dev and /etc are, as seen from a container.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Print all that was found as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// The methods that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Pages as they are.
    None,
    /// QEMU's multifd-compression=zlib.
    Zlib,
    /// QEMU's multifd-compression=zstd.
    Zstd,
    /// QEMU's multifd-compression=qpl, 9.1 and later.
    Qpl,
    /// Our own. No QEMU reads it; who is at the other end is not known before it answers with an error.
    Canned,
}

impl From<Compression> for Method {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Method::None,
            Compression::Zlib => Method::Zlib,
            Compression::Zstd => Method::Zstd,
            Compression::Qpl => Method::Qpl,
            Compression::Canned => Method::Canned,
        }
    }
}

/// An address in which a path need not be UTF-8.
pub fn address() -> impl TypedValueParser<Value = Address> {
    OsStringValueParser::new().try_map(|text| Address::from_os_str(&text))
}

/// The mode of a file, as chmod takes it.
pub fn mode(text: &str) -> Result<u32, String> {
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
    fn levels_are_checked() {
        let level = |text: &str| zlib_level(text).map(|level| level.value());
        assert_eq!(level("9"), Ok(9));
        assert!(level("10").is_err());
        assert_eq!(level("x"), Err("levels are 0 to 9".into()));
        assert!(zstd_level("21").is_err());
    }
}
