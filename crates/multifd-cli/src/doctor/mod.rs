//! `multifd doctor`: would a migration work and be fast here, and what is slow?

mod args;
#[cfg(feature = "tls")]
mod certificates;
mod check;
mod ends;
mod far;
mod figures;
mod guest;
mod host;
mod way;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use multifd_codec::{Settings, delta};
use multifd_relay::leg::FarRelay;
use multifd_transport::Cancel;
use multifd_wire::Method;
use serde::Serialize;

pub(crate) use self::args::DoctorArgs;
use self::check::{Check, State};
use self::ends::Plan;
use self::figures::{Again, Figures, Run};
use self::guest::Memory;
use self::way::{Certificates, Scratch};
use crate::codec::Codec;
use crate::process::{Outcome, Told};
use crate::relay::memory;
use crate::say;
use crate::signals::Signals;

/// How long all of it may take: a multiple of what it should, for a host that is busy.
const LIMIT: Duration = Duration::from_secs(40);

/// How often a wish to end is noticed.
const TICK: Duration = Duration::from_millis(50);

/// How long the thread that looks may take to end, so that it leaves nothing behind.
const END: Duration = Duration::from_millis(500);

/// How long new pages are sent, with each method.
const FIRST: Duration = Duration::from_millis(1200);

/// How long pages are sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// The packets of all channels that are sent again: few enough for the memory of both ends.
const AGAIN_PACKETS: u64 = 128;

/// How long the codec alone compresses, and decompresses.
const CODEC: Duration = Duration::from_millis(400);

/// The most memory for differences. Both relays of this process share it.
const DELTA_MEMORY: u64 = 256 << 20;

/// News of the thread that looks.
enum News {
    Check(Check),
    Figures(Box<Figures>),
}

/// All that was found, for programs.
#[derive(Serialize)]
struct Report {
    /// Nothing would fail.
    ok: bool,
    checks: Vec<Check>,
    figures: Option<Figures>,
}

/// Looks at this host, and at the way to another one.
pub(crate) fn run(args: &DoctorArgs) -> Outcome {
    let codec = args
        .codec
        .codec(true)
        .map_err(|words| Told { status: 2, words })?;
    let signals = Signals::install()?;
    let cancel = signals.cancel();
    let scratch = Scratch::new();
    let (tell, news) = mpsc::channel();
    let work = {
        let (args, cancel) = (args.clone(), cancel.clone());
        let folder = scratch.as_ref().map(|scratch| scratch.path().to_owned());
        let folder = folder.map_err(|error| say::chain(error));
        thread::Builder::new()
            .name("doctor".to_owned())
            .spawn(move || {
                Examination {
                    args,
                    codec,
                    folder,
                    cancel,
                    tell,
                }
                .run()
            })
    };
    let work = work.map_err(|error| Told {
        status: 1,
        words: format!("this host gives no thread ({error}): raise ulimit -u, or TasksMax="),
    })?;
    let outcome = listen(args, &news, &signals);
    cancel.cancel();
    // Its panic was told of. A thread that still does something ends with the process.
    let end = Instant::now() + END;
    while !work.is_finished() && Instant::now() < end {
        thread::sleep(TICK / 10);
    }
    // Sockets and certificates go in any case.
    drop(scratch);
    outcome
}

/// Prints what is found, until all was looked at.
fn listen(args: &DoctorArgs, news: &Receiver<News>, signals: &Signals) -> Outcome {
    let begun = Instant::now();
    let mut report = Report {
        ok: true,
        checks: Vec::new(),
        figures: None,
    };
    loop {
        match news.recv_timeout(TICK) {
            Ok(News::Check(check)) => {
                if !args.json {
                    check.to_string().lines().try_for_each(say::result)?;
                }
                report.checks.push(check);
            }
            Ok(News::Figures(figures)) => report.figures = Some(*figures),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if signals.first() => {
                return Err("ended before all was looked at".into());
            }
            Err(RecvTimeoutError::Timeout) if begun.elapsed() >= LIMIT => {
                let limit = LIMIT.as_secs();
                let found = format!("not all was looked at within {limit} s");
                let advice = "see what keeps this host busy: top";
                let check = Check::fail("doctor", found, advice);
                if !args.json {
                    check.to_string().lines().try_for_each(say::result)?;
                }
                report.checks.push(check);
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    if signals.first() {
        return Err("ended before all was looked at".into());
    }
    let states = |state| {
        let checks = report.checks.iter();
        checks.filter(move |check| check.state == state).count()
    };
    let (failed, warned) = (states(State::Fail), states(State::Warn));
    let is_whole = report.figures.is_some();
    report.ok = failed == 0 && is_whole;
    if args.json {
        say::json(&report)?;
    } else if let Some(figures) = &report.figures {
        figures.lines().into_iter().try_for_each(say::result)?;
    }
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    };
    match (report.ok, warned) {
        (true, _) if args.json => Ok(()),
        (true, 0) => Ok(say::result("a migration would work here")?),
        (true, _) => Ok(say::result(format_args!(
            "a migration would work here: {}",
            count(warned, "warning")
        ))?),
        (false, _) => Err(Told {
            status: 1,
            words: format!("a migration would fail: {}", count(failed.max(1), "check")),
        }
        .into()),
    }
}

/// The thread that looks.
struct Examination {
    args: DoctorArgs,
    codec: Codec,
    folder: Result<std::path::PathBuf, String>,
    cancel: Cancel,
    tell: Sender<News>,
}

impl Examination {
    fn check(&self, check: Check) {
        // Nobody listens any more once the command ends.
        let _ = self.tell.send(News::Check(check));
    }

    fn is_over(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn run(&self) {
        let asked = self.args.codec.accel;
        let mut can_compute = true;
        for check in host::checks(self.args.channels, &self.codec, asked) {
            can_compute &= check.check != host::ACCELERATOR || check.state != State::Fail;
            self.check(check);
        }
        let certificates = self.certificates();
        let far = self.args.to.as_ref().and_then(|to| {
            let tell = &mut |check| self.check(check);
            far::visit(to, &self.args, &self.codec, &self.cancel, tell)
        });
        if let (Some(far), Some(link)) = (&far, self.args.link) {
            let round_trip = far.round_trip.as_secs_f64();
            let check = host::buffers(link, round_trip, self.args.channels);
            check.into_iter().for_each(|check| self.check(check));
        }
        // Without the wanted codec there is nothing to measure.
        if can_compute && !self.is_over() {
            self.measure(certificates.as_ref(), far.as_ref());
        }
    }

    /// The certificates of the trunk on loopback: those of --tls-dir if it has both ends', or some
    /// that are made for it.
    #[cfg(feature = "tls")]
    fn certificates(&self) -> Option<Certificates> {
        if let Some(folder) = &self.args.tls_dir {
            let (checks, found) = certificates::checks(folder);
            checks.into_iter().for_each(|check| self.check(check));
            if found.is_some() {
                return found;
            }
        }
        let folder = self.folder.as_ref().ok()?.join("pki");
        match crate::tls::make_for_loopback(&folder) {
            Ok(hostname) => Some(Certificates {
                folder,
                hostname: hostname.to_owned(),
            }),
            Err(words) => {
                let advice = "see whether there is room in the folder of TMPDIR, or /tmp: df";
                self.check(Check::warn("tls", words, advice));
                None
            }
        }
    }

    #[cfg(not(feature = "tls"))]
    fn certificates(&self) -> Option<Certificates> {
        if self.args.tls_dir.is_some() {
            let found = "this program was built without TLS (feature `tls`)";
            self.check(Check::fail(
                "tls",
                found,
                "install a build with the feature tls",
            ));
        }
        None
    }

    /// Lets made guests pass through two relays here.
    fn measure(&self, certificates: Option<&Certificates>, far: Option<&FarRelay>) {
        const NAME: &str = "pages";
        let scratch = match &self.folder {
            Ok(folder) => folder.as_path(),
            Err(words) => {
                let advice = "set TMPDIR to a folder that this user may write to";
                return self.check(Check::fail(NAME, words.as_str(), advice));
            }
        };
        let guest = Memory::new();
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let available = memory::available().unwrap_or_default();
        delta::memory::set_limit(DELTA_MEMORY.min(available / memory::SHARE));
        // All ends of all channels are in this process.
        let channels = self.args.channels.min(host::fitting_channels());
        let plan = |first, packets, again| Plan {
            channels,
            first,
            packets,
            again,
        };
        let plain = Codec {
            method: Method::None,
            settings: Settings::default(),
            auto: false,
        };
        let mut runs = Vec::new();
        // An automatic effort lies between the fastest compression and plain pages.
        let fixed = Codec {
            method: far.map_or(self.codec.method, |far| match self.codec.auto {
                true => far.method,
                false => self.codec.method,
            }),
            auto: false,
            ..self.codec
        };
        let mut wanted = Vec::new();
        if self.codec.auto || fixed.method == Method::None {
            wanted.push(plain);
        }
        if fixed.method != Method::None {
            wanted.push(fixed);
        }
        let over = match certificates {
            Some(certificates) if Some(&certificates.folder) == self.args.tls_dir.as_ref() => {
                "a trunk with these certificates"
            }
            Some(_) => "an encrypted trunk",
            None => "a trunk in clear",
        };
        let pass = |codec: Codec, plan: Plan, differences: bool| {
            let run = way::Run {
                codec,
                plan,
                differences,
            };
            let passed = way::run(&run, certificates, scratch, &guest, &self.cancel);
            if let (Err(words), false) = (&passed, self.is_over()) {
                let advice = "see what it says; if it stays, report it with `multifd --version`";
                let words = format!("{} over {over}: {words}", codec.method);
                self.check(Check::fail(NAME, words, advice));
            }
            passed.ok()
        };
        for codec in wanted {
            let Some(measured) = pass(codec, plan(FIRST, u64::MAX, Duration::ZERO), false) else {
                return;
            };
            runs.push(Run::new(&measured, self.args.link, processors));
        }
        let mut again = None;
        if fixed.method != Method::None {
            let packets = (AGAIN_PACKETS / u64::from(channels)).max(1);
            let Some(measured) = pass(fixed, plan(FIRST, packets, AGAIN), true) else {
                return;
            };
            again = Again::new(&measured);
        }
        // On loopback it has no link to adapt to, so its figures say nothing; that it works does.
        if self.codec.auto && pass(self.codec, plan(AGAIN, u64::MAX, AGAIN), true).is_none() {
            return;
        }
        let pages: u64 = runs.iter().map(|run| run.pages).sum();
        let found = format!(
            "{} pages went through two relays here over {over}, and all arrived whole",
            figures::thousands(pages as f64)
        );
        self.check(Check::ok(NAME, found));
        if let Some(link) = self.args.link {
            let check = figures::judge_link(&runs, link);
            check.into_iter().for_each(|check| self.check(check));
        }
        let codec = figures::codec_rates(&fixed, &guest, processors, CODEC);
        let _ = self.tell.send(News::Figures(Box::new(Figures {
            channels,
            processors,
            tls: certificates.is_some(),
            codec,
            runs,
            again,
        })));
    }
}
