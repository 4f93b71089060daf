//! The whole way of a migration within this process: a made source, two relays with a trunk on
//! loopback between them, and a made destination.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::delta;
use multifd_relay::leg::{Encryption, EncryptionOptions, LegAddress};
use multifd_relay::relay::{ChannelWaits, MigrationReport, Relay, RelayConfig, Waits, pass_on};
use multifd_transport::{Address, Cancel};
use multifd_wire::Method;

use super::ends::{self, Arrived, EndError, Plan};
use super::guest::{Memory, PAGE_BYTES};
use crate::codec::Codec;
use crate::process::cpu_seconds;
use crate::say;

/// How long a run may take. It is a multiple of what it should, for a host that is busy.
const RUN_LIMIT: Duration = Duration::from_secs(10);

/// How often a wait asks whether it is still wanted.
const TICK: Duration = Duration::from_millis(20);

/// How long threads may take to end once they are told to.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A folder for sockets and certificates, which goes with this value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        let mut tries = 0_u32;
        loop {
            let name = format!("multifd-doctor-{}-{tries}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 100 => {
                    tries += 1;
                }
                Ok(()) => return Ok(Self(path)),
                Err(error) => {
                    let words = format!("{}: {error}", say::printable_path(&path));
                    return Err(io::Error::new(error.kind(), words));
                }
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The system empties its folder for such files by itself.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The certificates of the trunk on loopback.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "a build without TLS"))]
pub(super) struct Certificates {
    pub(super) folder: PathBuf,
    /// A name in the server's certificate.
    pub(super) hostname: String,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) codec: Codec,
    pub(super) plan: Plan,
    /// Pages that are sent again go as differences.
    pub(super) differences: bool,
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) method: Method,
    pub(super) arrived: Arrived,
    /// Bytes of packets and main on the trunk, without TLS.
    pub(super) trunk_bytes: u64,
    /// Processor time of all threads, while the run took so long.
    pub(super) cpu: Duration,
    pub(super) took: Duration,
    /// Where the channels' time went, at the source's relay and at the destination's.
    pub(super) near: Waits,
    pub(super) far: Waits,
    pub(super) differences: Option<delta::Counts>,
}

impl Measured {
    /// Pages with contents a second, over all channels.
    pub(super) fn pages_per_second(&self) -> f64 {
        rate(self.arrived.first, self.arrived.first_took)
    }

    /// Pages a second that are sent again.
    pub(super) fn again_per_second(&self) -> f64 {
        rate(self.arrived.again, self.arrived.again_took)
    }

    /// Bytes on the trunk for each page with contents.
    pub(super) fn bytes_per_page(&self) -> f64 {
        let pages = self.arrived.first.saturating_add(self.arrived.again);
        self.trunk_bytes as f64 / pages.max(1) as f64
    }

    /// How many times smaller the pages are on the trunk.
    pub(super) fn ratio(&self) -> f64 {
        PAGE_BYTES as f64 / self.bytes_per_page().max(1.0)
    }
}

fn rate(pages: u64, took: Duration) -> f64 {
    match took.is_zero() {
        true => 0.0,
        false => pages as f64 / took.as_secs_f64(),
    }
}

/// What the threads of a run tell.
enum Told {
    Near(Result<Box<MigrationReport>, String>),
    Far(Result<Box<MigrationReport>, String>),
    Source(Result<u64, EndError>),
    Destination(Result<Arrived, EndError>),
}

/// Lets a migration pass.
///
/// # Errors
/// Why it did not, in words.
pub(super) fn run(
    run: &Run,
    certificates: Option<&Certificates>,
    scratch: &Path,
    memory: &Memory,
    cancel: &Cancel,
) -> Result<Measured, String> {
    let destination = scratch.join("destination");
    let listener = ends::listen(&destination).map_err(|error| say::chain(&error))?;
    let trunk: LegAddress = leg(match certificates {
        Some(_) => "trunk:127.0.0.1:0",
        None => "trunk+tcp:127.0.0.1:0",
    })?;
    let qemu = |path: PathBuf| LegAddress::from(Address::Unix(path));
    let mut options = EncryptionOptions::default();
    options.folder = certificates.map(|certificates| certificates.folder.clone());
    options.hostname = certificates.map(|certificates| certificates.hostname.clone());

    let mut config = RelayConfig::new(qemu(destination), Method::None);
    config.encryption = encryption(&trunk, &config.connect, &options)?;
    config.settings.accel = run.codec.settings.accel;
    let mut far = relay(&trunk, config)?;

    let source = qemu(scratch.join("source"));
    let mut config = RelayConfig::new(far.leg().clone(), run.codec.method);
    config.encryption = encryption(&source, &config.connect, &options)?;
    config.settings = run.codec.settings;
    config.auto = run.codec.auto;
    // Both relays share the memory of this process.
    config.delta_memory = match run.differences {
        true => delta::memory::limit() / 2,
        false => 0,
    };
    let mut near = relay(&source, config)?;

    let (tell, told) = mpsc::channel();
    let ends = Cancel::new();
    let (cpu, begun) = (cpu_seconds().unwrap_or_default(), Instant::now());
    let address = near.address().clone();
    thread::scope(|scope| {
        let (near, far, listener) = (&mut near, &mut far, &listener);
        let (ends, address) = (&ends, &address);
        let to = tell.clone();
        scope.spawn(move || to.send(Told::Near(serve(near, ends))));
        let to = tell.clone();
        scope.spawn(move || to.send(Told::Far(serve(far, ends))));
        let to = tell.clone();
        scope.spawn(move || {
            let outcome = ends::take(memory, run.plan, listener, ends);
            to.send(Told::Destination(outcome))
        });
        scope.spawn(move || {
            let outcome = ends::send(memory, run.plan, address, ends);
            tell.send(Told::Source(outcome))
        });
        let outcome = gather(&told, ends, cancel);
        ends.cancel();
        outcome
    })
    .map(|(near, far, arrived)| Measured {
        method: run.codec.method,
        arrived,
        trunk_bytes: near.totals.bytes_out,
        cpu: Duration::try_from_secs_f64(cpu_seconds().unwrap_or_default() - cpu)
            .unwrap_or_default(),
        took: begun.elapsed(),
        near: of_channels(&near.waits),
        far: of_channels(&far.waits),
        differences: near.differences,
    })
}

/// One migration through one relay.
fn serve(relay: &mut Relay, cancel: &Cancel) -> Result<Box<MigrationReport>, String> {
    let incoming = relay.accept(cancel);
    let incoming = incoming.map_err(|failure| say::chain(&failure))?;
    let passed = pass_on(incoming, relay.config(), cancel, &mut |_| {});
    passed.map(Box::new).map_err(|failure| say::chain(&failure))
}

/// Waits for all four. The first failure ends the others, and the relays' words say most.
fn gather(
    told: &mpsc::Receiver<Told>,
    ends: &Cancel,
    cancel: &Cancel,
) -> Result<(Box<MigrationReport>, Box<MigrationReport>, Arrived), String> {
    let begun = Instant::now();
    let (mut near, mut far, mut sent, mut arrived) = (None, None, None, None);
    // The first failure is the cause of those behind it, unless one of these is a wrong page.
    let mut failed: Option<String> = None;
    let mut fail = |is_worst: bool, words: String| {
        ends.cancel();
        if failed.is_none() || is_worst {
            failed = Some(words);
        }
    };
    let mut over = None;
    for _ in 0..4 {
        let news = loop {
            if let Ok(news) = told.recv_timeout(TICK) {
                break Some(news);
            }
            if over.is_none() && (cancel.is_cancelled() || begun.elapsed() >= RUN_LIMIT) {
                over = Some(Instant::now());
                let limit = RUN_LIMIT.as_secs();
                fail(false, format!("it did not get done within {limit} s"));
            }
            if over.is_some_and(|over| over.elapsed() >= END_LIMIT) {
                break None;
            }
        };
        match news {
            Some(Told::Near(Ok(report))) => near = Some(report),
            Some(Told::Far(Ok(report))) => far = Some(report),
            Some(Told::Source(Ok(pages))) => sent = Some(pages),
            Some(Told::Destination(Ok(pages))) => arrived = Some(pages),
            Some(Told::Near(Err(words))) => fail(false, format!("the source's relay: {words}")),
            Some(Told::Far(Err(words))) => fail(false, format!("the destination's relay: {words}")),
            Some(Told::Source(Err(error))) => fail(false, format!("the source: {error}")),
            Some(Told::Destination(Err(error))) => {
                let is_worst = !matches!(error, EndError::Io(_) | EndError::GivenUp);
                fail(is_worst, format!("the destination: {error}"));
            }
            None => break,
        }
        if over.is_none() && ends.is_cancelled() {
            over = Some(Instant::now());
        }
    }
    if let Some(words) = failed {
        return Err(words);
    }
    let missing = || "it ended without a word".to_owned();
    let arrived: Arrived = arrived.ok_or_else(missing)?;
    let (found, sent) = (
        arrived.first.saturating_add(arrived.again),
        sent.ok_or_else(missing)?,
    );
    match found == sent {
        true => Ok((near.ok_or_else(missing)?, far.ok_or_else(missing)?, arrived)),
        false => Err(EndError::Missing { found, sent }.to_string()),
    }
}

fn leg(text: &str) -> Result<LegAddress, String> {
    text.parse().map_err(|error| say::chain(&error))
}

fn relay(leg: &LegAddress, config: RelayConfig) -> Result<Relay, String> {
    Relay::bind(leg.clone(), config).map_err(|error| say::chain(&error))
}

fn encryption(
    listen: &LegAddress,
    connect: &LegAddress,
    options: &EncryptionOptions,
) -> Result<Encryption, String> {
    Encryption::open(listen, connect, options).map_err(|error| say::chain(&error))
}

/// Where the time of all multifd channels went.
fn of_channels(all: &[ChannelWaits]) -> Waits {
    use multifd_transport::failure::Channel;
    let channels = all
        .iter()
        .filter(|waits| matches!(waits.channel, Channel::Multifd(_)));
    channels.fold(Waits::default(), |sum, waits| sum.plus(&waits.waits))
}
