//! `multifd-bench send`.

use std::fmt;
use std::time::{Duration, Instant};

use crate::guests::{Guest, Kind, Spec};
use multifd_cli::process::{Outcome, cpu_seconds};
use multifd_cli::say::{self, Progress};
use multifd_cli::signals::Signals;
use multifd_codec::delta;
use multifd_engine::dirty::PagemapLog;
use multifd_engine::failure::Cause;
use multifd_engine::memory::{MappedMemory, Mapping};
use multifd_engine::source::{self, SourceFailure};
use multifd_engine::{Parameters, Phase, Progress as Moment, Statistics, VmError, VmHandle};
use multifd_wire::{BlockName, Method, PageSize};
use serde::{Deserialize, Serialize};

use super::args::SendArgs;
use super::this_program;

/// Starts a guest and migrates it.
pub(super) fn run(args: &SendArgs) -> Outcome {
    let parameters = parameters(args)?;
    let spec = spec(args)?;
    say::note(format_args!(
        "starting a guest: {}, {}",
        spec.kind,
        say::size(spec.bytes)
    ));
    let guest = Guest::start(this_program::command()?.arg("guest"), &spec)?;
    let mapping = Mapping::shared(guest.memory().try_clone()?.into())?;
    let memory = MappedMemory::new(vec![(BlockName::new(BLOCK)?, mapping)]);
    let mut log = PagemapLog::of_process(guest.pid(), vec![guest.addresses()])?;
    let mut vm = Vm::new(guest);
    let moved = source::Guest {
        uuid: [0; 16],
        memory: &memory,
        dirty: &mut log,
        vm: &mut vm,
    };
    let mut progress = Progress::new();
    let mut dirty_rate = None;
    let outcome = source::send(
        &args.connect,
        moved,
        &parameters,
        &Signals::install()?.cancel(),
        &mut |moment| {
            // The log says nothing more once the guest stands still.
            if moment.phase != Phase::SwitchOver {
                dirty_rate = moment.dirty_pages_rate.or(dirty_rate);
            }
            progress.show(Running(moment));
        },
    );
    drop(progress);
    let guest_rate = vm.rate();
    let summary = |statistics: &Statistics| {
        let rates = Rates {
            guest: guest_rate,
            dirty_pages: dirty_rate.map(|rate| say::rounded(rate, 0)),
        };
        Summary::new(&spec.kind, rates, &parameters, statistics)
    };
    match outcome {
        Ok(statistics) => {
            say::report(&summary(&statistics)?, args.json);
            Ok(())
        }
        Err(failure) => {
            if args.json {
                say::report_json(&Failed {
                    error: say::chain(&failure),
                    timed_out: timed_out(&failure),
                    summary: summary(&failure.statistics)?,
                });
            }
            say::note("the guest was made for this command and ends with it");
            Err(failure.into())
        }
    }
}

fn parameters(args: &SendArgs) -> Result<Parameters, String> {
    let mut parameters = Parameters::default();
    parameters.multifd_channels = args.multifd_channels;
    // The destination is one of our own, as on a trunk.
    let codec = args.codec.codec(true)?;
    parameters.auto = codec.auto;
    parameters.multifd_compression = codec.method;
    parameters.codec = codec.settings;
    parameters.downtime_limit = Duration::from_millis(args.downtime_limit);
    parameters.max_bandwidth = args.max_bandwidth;
    parameters.zero_page_detection = args.zero_page_detection;
    parameters.timeout = Duration::from_secs(args.timeout);
    parameters.digest = args.digest;
    parameters.delta_memory = args.delta_memory;
    delta::memory::set_limit(args.delta_memory);
    // Check before starting a guest in vain.
    multifd_codec::encoder(parameters.multifd_compression, &parameters.codec)
        .map_err(|error| error.to_string())?;
    Ok(parameters)
}

fn spec(args: &SendArgs) -> Result<Spec, String> {
    let bytes = match (args.memory, &args.guest) {
        (Some(bytes), _) => bytes,
        (None, Kind::Image(file)) => std::fs::metadata(file)
            .map_err(|error| format!("cannot open {}: {error}", file.display()))?
            .len()
            .next_multiple_of(PageSize::K4.bytes() as u64)
            .max(Spec::MIN_BYTES),
        (None, _) => USUAL_BYTES,
    };
    let mut spec = Spec::new(args.guest.clone(), bytes);
    spec.threads = args.guest_threads;
    if let Some(rate) = args.guest_rate {
        spec.rate = rate;
    }
    spec.check().map_err(|error| error.to_string())?;
    Ok(spec)
}

/// A guest's process as a VM for the engine. It has only memory.
struct Vm {
    guest: Guest,
    started: Instant,
    /// The number of operations when it was stopped, and the time.
    stopped: Option<(u64, Instant)>,
}

impl Vm {
    fn new(guest: Guest) -> Self {
        Self {
            guest,
            started: Instant::now(),
            stopped: None,
        }
    }

    /// The operations per second until the stop. It is below the requested rate if processors are
    /// scarce.
    fn rate(&self) -> Option<f64> {
        let (acts, when) = self.stopped?;
        let seconds = (when - self.started).as_secs_f64();
        Some(say::rounded(acts as f64 / seconds, 0))
    }
}

impl VmHandle for Vm {
    fn pause(&mut self) -> Result<(), VmError> {
        self.stopped = Some((self.guest.pause()?, Instant::now()));
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmError> {
        Ok(self.guest.resume().map(|_| ())?)
    }

    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError> {
        Ok(Vec::new())
    }

    fn load_device_state(&mut self, _: &[u8]) -> Result<(), VmError> {
        Err("this guest is only ever sent".into())
    }
}

/// The printed summary of a migration. Names are those of QEMU's `query-migrate`, with units.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Summary {
    guest: String,
    /// The guest's rate until its stop: operations per second for redis, else writes. `None` if it
    /// was never stopped.
    pub guest_rate: Option<f64>,
    /// Pages that the guest wrote per second, as the log said last. `None` if it was not read.
    pub dirty_pages_rate: Option<f64>,
    /// QEMU's `multifd-channels`.
    channels: usize,
    method: String,
    /// The backend, and why no better one was in use.
    pub backend: String,
    pub total_time_ms: f64,
    pub downtime_ms: f64,
    setup_time_ms: f64,
    pub mbps: f64,
    pub pages_per_second: f64,
    normal: u64,
    duplicate: u64,
    pub transferred: u64,
    dirty_sync_count: u64,
    pub rounds: u64,
    /// Bytes of normal pages per byte sent.
    pub ratio: f64,
    /// Pages compressed by an accelerator, compressed by a processor, and sent uncompressed.
    pub hardware: u64,
    pub software: u64,
    pub raw: u64,
    /// Pages that went as differences, if both ends had them.
    delta: Option<Delta>,
    /// CPU time of this process, without the guest's.
    pub cpu_seconds: f64,
}

/// The figures of pages with differences on.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Delta {
    /// Pages as differences, of which some were the same as before.
    differences: u64,
    same: u64,
    /// Bytes of the differences, before they were compressed.
    bytes: u64,
    /// Pages that went whole, by reason.
    new: u64,
    lost: u64,
    changed: u64,
    skipped: u64,
    /// Pages that were held at the end, and the most that could be.
    held: u64,
    most_held: u64,
}

/// Rates of a guest.
struct Rates {
    guest: Option<f64>,
    dirty_pages: Option<f64>,
}

/// The printed summary of a failed migration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failed {
    pub error: String,
    /// The time limit expired.
    pub timed_out: bool,
    /// The progress.
    #[serde(flatten)]
    pub summary: Summary,
}

impl Summary {
    fn new(
        kind: &Kind,
        rates: Rates,
        parameters: &Parameters,
        statistics: &Statistics,
    ) -> std::io::Result<Self> {
        let method: Method = parameters.multifd_compression;
        let bytes = statistics.normal as f64 * parameters.page_size.bytes() as f64;
        let backend = statistics.backend.as_ref();
        Ok(Self {
            guest: kind.to_string(),
            guest_rate: rates.guest,
            dirty_pages_rate: rates.dirty_pages,
            channels: statistics.channels,
            method: method.to_string(),
            backend: backend.map(ToString::to_string).unwrap_or_default(),
            total_time_ms: milliseconds(statistics.total_time),
            downtime_ms: milliseconds(statistics.downtime),
            setup_time_ms: milliseconds(statistics.setup_time),
            mbps: say::rounded(statistics.mbps, 1),
            pages_per_second: say::rounded(statistics.pages_per_second, 0),
            normal: statistics.normal,
            duplicate: statistics.duplicate,
            transferred: statistics.transferred,
            dirty_sync_count: statistics.dirty_sync_count,
            rounds: statistics.rounds,
            ratio: say::rounded(bytes / statistics.transferred.max(1) as f64, 3),
            hardware: statistics.path_counts.hardware,
            software: statistics.path_counts.software,
            raw: statistics.path_counts.raw,
            delta: statistics.differences.as_ref().map(Delta::new),
            cpu_seconds: cpu_seconds()?,
        })
    }
}

impl Delta {
    const fn new(counts: &delta::Counts) -> Self {
        Self {
            differences: counts.differences,
            same: counts.same,
            bytes: counts.area_bytes,
            new: counts.misses.new,
            lost: counts.misses.lost,
            changed: counts.misses.changed,
            skipped: counts.misses.skipped,
            held: counts.slots_in_use,
            most_held: counts.slots,
        }
    }
}

impl fmt::Display for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            ", differences {} ({}), whole: new {}, lost {}, changed {}, skipped {}; held {} of {}",
            self.differences,
            say::size(self.bytes),
            self.new,
            self.lost,
            self.changed,
            self.skipped,
            self.held,
            self.most_held
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "total time {} ms, downtime {} ms, setup {} ms, {} mbps, {} pages/s, normal {}, duplicate {}, transferred {}, \
             rounds {}, ratio {:.3}, channels {}, {} by {}: hardware {}, software {}, raw {}, cpu {:.2} s",
            self.total_time_ms,
            self.downtime_ms,
            self.setup_time_ms,
            self.mbps,
            self.pages_per_second,
            self.normal,
            self.duplicate,
            self.transferred,
            self.rounds,
            self.ratio,
            self.channels,
            self.method,
            self.backend,
            self.hardware,
            self.software,
            self.raw,
            self.cpu_seconds
        )?;
        self.delta.as_ref().map_or(Ok(()), |delta| delta.fmt(f))
    }
}

/// A migration under way.
struct Running<'a>(&'a Moment);

impl fmt::Display for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = self.0;
        let phase = match moment.phase {
            Phase::Setup => "setting up",
            Phase::Bulk => "all pages",
            Phase::Dirty => "written pages",
            Phase::SwitchOver => "guest stopped",
            _ => "under way",
        };
        write!(
            f,
            "{phase}, round {}, {} pages left, {} sent",
            moment.round,
            moment.remaining_pages,
            say::size(moment.transferred)
        )?;
        if let Some(dirty) = moment.dirty_pages_rate {
            write!(f, ", {dirty:.0} pages/s written")?;
        }
        if let Some(downtime) = moment.expected_downtime {
            write!(f, ", expected downtime {} ms", downtime.as_millis())?;
        }
        Ok(())
    }
}

fn timed_out(failure: &SourceFailure) -> bool {
    matches!(&failure.failure.cause, Cause::Engine(error) if error.is_timeout())
}

fn milliseconds(duration: Duration) -> f64 {
    say::rounded(duration.as_secs_f64() * 1e3, 1)
}

/// QEMU's name for the memory of a PC.
const BLOCK: &[u8] = b"pc.ram";

const USUAL_BYTES: u64 = 1 << 30;
