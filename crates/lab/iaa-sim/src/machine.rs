//! The one simulated machine of the process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::counters::Counters;
use crate::queue::Queue;
use crate::settings::{AccelConfig, FaultKind, Settings, VARIABLE};

/// The machine, as the environment describes it until somebody configures it.
pub(crate) static MACHINE: LazyLock<Machine> = LazyLock::new(Machine::from_environment);

/// What the settings have in store for one descriptor.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) latency: Duration,
    pub(crate) fault: Option<FaultKind>,
}

pub(crate) struct Machine {
    state: Mutex<State>,
    /// The settings have changed.
    changed: Condvar,
}

struct State {
    settings: Arc<Settings>,
    counters: Counters,
    counters_file: Option<File>,
    /// Descriptors which had their turn, probes left out.
    turns: u32,
    /// How often each fault of the settings has befallen a descriptor.
    befallen: Vec<u32>,
    queues: Vec<Arc<Queue>>,
}

impl Machine {
    fn from_environment() -> Machine {
        let text = std::env::var_os(VARIABLE).unwrap_or_default();
        let settings = match text.to_string_lossy().parse() {
            Ok(settings) => settings,
            Err(error) => {
                // There is nobody to return this to. A machine which does not work says more than
                // one which is not as it was meant to be.
                eprintln!("{VARIABLE}: {error}");
                Settings {
                    library: AccelConfig::Broken,
                    ..Settings::default()
                }
            }
        };
        let machine = Machine {
            state: Mutex::new(State {
                settings: Arc::default(),
                counters: Counters::default(),
                counters_file: None,
                turns: 0,
                befallen: Vec::new(),
                queues: Vec::new(),
            }),
            changed: Condvar::new(),
        };
        machine.configure(settings);
        machine
    }

    /// Replaces the settings and begins to count anew.
    pub(crate) fn configure(&self, settings: Settings) {
        let mut state = self.lock();
        state.counters = Counters::default();
        state.counters_file = settings.counters.as_ref().and_then(|path| {
            let file = File::create(path);
            file.inspect_err(|error| eprintln!("{VARIABLE}: {}: {error}", path.display()))
                .ok()
        });
        state.turns = 0;
        state.befallen = vec![0; settings.faults.len()];
        state.settings = Arc::new(settings);
        state.count(|_| {});
        if state.settings.busy {
            state.queues.iter().for_each(|queue| queue.fill());
        }
        self.changed.notify_all();
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.lock().settings)
    }

    pub(crate) fn counters(&self) -> Counters {
        self.lock().counters
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.lock().count(change);
    }

    /// A queue is open: from now on it can be made busy.
    pub(crate) fn opened(&self, queue: &Arc<Queue>) {
        let mut state = self.lock();
        if state.settings.busy {
            queue.fill();
        }
        state.queues.push(Arc::clone(queue));
    }

    /// Calls `take` as soon as the device may take from its queues, and lets nobody change that
    /// meanwhile.
    pub(crate) fn when_running<T>(&self, take: impl FnOnce(&Settings) -> T) -> T {
        let state = self
            .changed
            .wait_while(self.lock(), |state| state.settings.holds());
        take(&state.unwrap_or_else(PoisonError::into_inner).settings)
    }

    /// It is the next descriptor's turn: how long it takes, and what goes wrong with it, if
    /// anything.
    pub(crate) fn next_turn(&self) -> Turn {
        let mut state = self.lock();
        state.turns = state.turns.saturating_add(1);
        let settings = Arc::clone(&state.settings);
        let turn = state.turns.saturating_sub(settings.healthy_for);
        if turn == 0 {
            return Turn::default();
        }
        let mut faults = settings.faults.iter().zip(&mut state.befallen);
        let due = faults.find(|(fault, befallen)| {
            turn % fault.every == 0 && (fault.limit == 0 || **befallen < fault.limit)
        });
        Turn {
            latency: settings.latency,
            fault: due.map(|(fault, befallen)| {
                *befallen += 1;
                fault.kind
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters);
        if let Some(file) = &self.counters_file
            && let Err(error) = file.write_all_at(&self.counters.to_bytes(), 0)
        {
            eprintln!("{VARIABLE}: counters: {error}");
            self.counters_file = None;
        }
    }
}
