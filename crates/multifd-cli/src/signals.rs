//! SIGTERM, SIGINT and SIGHUP.
//!
//! A signal ends the process with status 128 + N, and no socket and no unfinished file stays. That
//! is so at once, but for commands that [take charge](Signals::install) of the first signal, to end
//! in their own way: then the second one does it. A signal that was ignored when the process was
//! started stays ignored, as `nohup` and shells want it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use multifd_transport::{Cancel, Stop, cleanup};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

use crate::say;

/// Time limit for writing the message about a signal.
const LAST_WORDS: Duration = Duration::from_millis(200);

static SIGNALS: OnceLock<Signals> = OnceLock::new();

/// The signals that this process is told to end by.
///
/// A loop asks whether the first one has come; work that takes a [`Cancel`] takes
/// [`cancel`](Signals::cancel).
#[derive(Clone)]
pub struct Signals(Arc<Shared>);

struct Shared {
    stop: Stop,
    /// The first signal, or 0.
    first: AtomicI32,
    /// The first signal is the command's.
    is_in_charge: AtomicBool,
    cancels: Mutex<Vec<Cancel>>,
    /// The action on SIGHUP of a command that has something to read anew.
    hangup: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Signals {
    /// From now on signals end the process tidily: at once, until a command takes charge.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor or no thread for it.
    pub(crate) fn watch() -> io::Result<Signals> {
        if let Some(signals) = SIGNALS.get() {
            return Ok(signals.clone());
        }
        let signals = Signals(Arc::new(Shared {
            stop: Stop::new()?,
            first: AtomicI32::new(0),
            is_in_charge: AtomicBool::new(false),
            cancels: Mutex::default(),
            hangup: Mutex::default(),
        }));
        let ignored = ignored();
        let heeded = [SIGTERM, SIGINT, SIGHUP].into_iter();
        let heeded = heeded.filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut coming = signal_hook::iterator::Signals::new(heeded)?;
        // A file that reaches the limit of file sizes is an error like a full disk.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let told = signals.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in coming.forever() {
                    told.came(signal);
                }
            })
            .map_err(multifd_transport::failure::NoThread::io)?;
        Ok(SIGNALS.get_or_init(|| signals).clone())
    }

    /// Takes charge of the first signal: from now on it only shows here, and the second one ends
    /// the process at once.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor or no thread for it.
    pub fn install() -> io::Result<Signals> {
        let signals = Self::watch()?;
        signals.0.is_in_charge.store(true, Ordering::Release);
        Ok(signals)
    }

    /// From now on SIGHUP ends nothing, and calls `reload`.
    pub(crate) fn on_hangup(&self, reload: impl Fn() + Send + 'static) {
        *lock(&self.0.hangup) = Some(Box::new(reload));
    }

    /// Whether the first signal has come.
    pub(crate) fn first(&self) -> bool {
        self.0.stop.is_requested()
    }

    /// A wish to cancel that the first signal has, for what is to end with it.
    pub fn cancel(&self) -> Cancel {
        let cancel = Cancel::new();
        let mut cancels = lock(&self.0.cancels);
        cancels.push(cancel.clone());
        if self.first() {
            cancel.cancel();
        }
        cancel
    }

    /// The name of the first signal, if it has come.
    pub(crate) fn told() -> Option<&'static str> {
        Self::number().map(name)
    }

    /// The exit status of a process that was ended by the first signal, if it has come.
    pub(crate) fn status() -> Option<u8> {
        Self::number().and_then(|signal| u8::try_from(128 + signal).ok())
    }

    fn number() -> Option<i32> {
        let first = SIGNALS.get()?.0.first.load(Ordering::Acquire);
        (first != 0).then_some(first)
    }

    fn came(&self, signal: i32) {
        let shared = &*self.0;
        if signal == SIGHUP
            && let Some(reload) = &*lock(&shared.hangup)
        {
            return reload();
        }
        let is_first =
            shared
                .first
                .compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire);
        if is_first.is_ok() && shared.is_in_charge.load(Ordering::Acquire) {
            shared.stop.request();
            for cancel in &*lock(&shared.cancels) {
                cancel.cancel();
            }
            return;
        }
        say::note(format_args!(
            "{}: ended; running migrations have failed",
            name(signal)
        ));
        say::flush(LAST_WORDS);
        cleanup::exit(128 + signal)
    }
}

/// Lets the process that started this one decide what a key of the terminal does to both.
///
/// # Errors
///
/// When the system does not let it.
pub fn leave_to_parent() -> io::Result<()> {
    for signal in [SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    Ok(())
}

/// The signals that were ignored when this process was started, a bit for each
/// (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}

fn name(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("a signal")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
