//! A QEMU as its monitor shows it. Fields that are missing, or of another kind, are read as if they
//! were empty.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::failure::chain;
use crate::news::News;
use crate::qmp::{Event, Qmp, QmpError, field, quote};

/// The number of times that a monitor's connection may break.
const MOST_RECONNECTS: u32 = 8;

/// Poll interval for a state that no event reports.
const LOOK: Duration = Duration::from_millis(100);

/// The time limit for the state of a migration, which is asked for again and again. QEMU may be
/// silent for a while.
const STATE_LIMIT: Duration = Duration::from_secs(5);

/// The most reasons of a blocked migration that are quoted.
const MOST_REASONS: usize = 16;

/// The state of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunState {
    /// As QEMU names it: `running`, `paused`, `inmigrate`, `postmigrate`, ...
    pub status: String,
    /// The guest runs.
    pub running: bool,
}

/// The phase of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Phase {
    /// There was none yet.
    None,
    /// Connections are made, and nothing is sent yet.
    Setup,
    /// Pages are sent, and the guest runs at the source. Unknown states count as this.
    Active,
    /// The guest stands still, and QEMU waits for [`Qemu::go_on`]. No destination can have the
    /// guest before that.
    PreSwitchover,
    /// The guest stands still, and the last of it is sent.
    Switchover,
    /// The guest runs at the destination, and its memory follows.
    Postcopy,
    /// A connection broke in postcopy.
    PostcopyPaused,
    /// It was cancelled, and has not ended yet.
    Cancelling,
    /// It has ended: the destination has the guest.
    Completed,
    /// It has ended: it was cancelled.
    Cancelled,
    /// It has ended: it failed.
    Failed,
}

impl Phase {
    /// The phase of a status of QEMU's.
    #[must_use]
    pub(crate) fn of(status: &str) -> Self {
        match status {
            "" | "none" => Self::None,
            "setup" | "wait-unplug" => Self::Setup,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Switchover,
            "postcopy-paused" => Self::PostcopyPaused,
            "cancelling" => Self::Cancelling,
            "completed" => Self::Completed,
            "cancelled" => Self::Cancelled,
            "failed" => Self::Failed,
            status if status.starts_with("postcopy-") => Self::Postcopy,
            _ => Self::Active,
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Failed)
    }
}

/// The answer of `query-migrate`; times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct MigrationStatus {
    /// `setup`, `active`, `device`, `completed`, `failed`, `cancelled`, ...; empty before the first
    /// migration.
    pub status: String,
    /// The reason of a failure.
    pub error_desc: Option<String>,
    /// Why the machine cannot migrate.
    pub(crate) blocked_reasons: Vec<String>,
    /// From start to end, or until now.
    pub total_time: u64,
    /// The time for which the guest was stopped.
    pub downtime: u64,
    /// The time for which it would be stopped now.
    pub(crate) expected_downtime: u64,
    /// Until the first page.
    pub setup_time: u64,
    /// Figures about memory, at the source.
    pub ram: RamStatus,
}

/// The memory's part of `query-migrate`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RamStatus {
    /// Bytes on all connections.
    pub transferred: u64,
    /// The guest's memory in bytes.
    pub total: u64,
    /// Bytes still to send.
    pub remaining: u64,
    /// Pages sent with content.
    pub normal: u64,
    /// Pages sent as zeros.
    pub duplicate: u64,
    /// Megabits per second.
    pub(crate) mbps: f64,
    /// The number of collections of dirty pages.
    pub dirty_sync_count: u64,
    /// Pages that the guest writes to in a second.
    pub(crate) dirty_pages_rate: u64,
    /// Bytes in a page.
    pub(crate) page_size: u64,
}

impl MigrationStatus {
    /// Reads QEMU's answer.
    #[must_use]
    pub fn read(answer: &Value) -> Self {
        let number = |name: &str| field(answer, name).as_u64().unwrap_or_default();
        let reasons = field(answer, "blocked-reasons")
            .as_array()
            .into_iter()
            .flatten();
        let reasons = reasons.filter_map(Value::as_str).take(MOST_REASONS);
        Self {
            status: field(answer, "status")
                .as_str()
                .map(quote)
                .unwrap_or_default(),
            error_desc: field(answer, "error-desc").as_str().map(quote),
            blocked_reasons: reasons.map(quote).collect(),
            total_time: number("total-time"),
            downtime: number("downtime"),
            expected_downtime: number("expected-downtime"),
            setup_time: number("setup-time"),
            ram: RamStatus::read(field(answer, "ram")),
        }
    }

    /// Its phase.
    #[must_use]
    pub(crate) fn phase(&self) -> Phase {
        Phase::of(&self.status)
    }

    /// Returns whether the migration is over.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.phase().is_final()
    }

    /// Returns whether a migration runs.
    #[must_use]
    pub(crate) fn is_under_way(&self) -> bool {
        !self.is_final() && self.phase() != Phase::None
    }

    /// Returns whether the guest has moved.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.phase() == Phase::Completed
    }
}

impl RamStatus {
    fn read(answer: &Value) -> Self {
        let number = |name: &str| field(answer, name).as_u64().unwrap_or_default();
        Self {
            transferred: number("transferred"),
            total: number("total"),
            remaining: number("remaining"),
            normal: number("normal"),
            duplicate: number("duplicate"),
            mbps: field(answer, "mbps").as_f64().unwrap_or_default(),
            dirty_sync_count: number("dirty-sync-count"),
            dirty_pages_rate: number("dirty-pages-rate"),
            page_size: number("page-size"),
        }
    }

    /// Bytes that the guest writes to in a second, in whole pages.
    #[must_use]
    pub fn dirty_rate(&self) -> u64 {
        self.dirty_pages_rate.saturating_mul(self.page_size)
    }

    /// Bytes that QEMU sends in a second, before any relay compresses them.
    #[must_use]
    pub fn throughput(&self) -> u64 {
        // A float that is too large, or no number, becomes a bound of the integer.
        (self.mbps.max(0.0) * 125_000.0) as u64
    }
}

/// The settings of both ends of a migration, as QEMU has them.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub(crate) struct Settings {
    /// Capabilities, by name.
    pub(crate) capabilities: BTreeMap<String, bool>,
    /// Parameters, by name.
    pub(crate) parameters: Map<String, Value>,
}

/// A QEMU with a monitor.
#[derive(Debug)]
pub(crate) struct Qemu {
    qmp: Qmp,
    /// The number of times that its connection was made again.
    reconnects: u32,
}

impl Qemu {
    /// Connects to the monitor at `path`.
    ///
    /// # Errors
    /// When no QEMU serves it, or another client has it.
    pub(crate) fn connect(path: &Path) -> Result<Self, QmpError> {
        Ok(Self {
            qmp: Qmp::connect(path)?,
            reconnects: 0,
        })
    }

    /// Whether QEMU is still there after a connection that broke. It may wait before its
    /// switch-over, with its guest standing still, until it is told to go on.
    pub(crate) fn connects_again(
        &mut self,
        error: &QmpError,
        observe: &mut dyn FnMut(News),
    ) -> bool {
        let may = self.reconnects < MOST_RECONNECTS;
        self.reconnects = self.reconnects.saturating_add(1);
        let is_there = may && self.qmp.reconnect().is_ok();
        if is_there {
            observe(News::Note(format!("{}; connected again", chain(error))));
        }
        is_there
    }

    /// Asks QEMU, and asks once more over a new connection if this one has broken.
    ///
    /// # Errors
    /// As the question, the second time.
    pub(crate) fn ask_again<T>(
        &mut self,
        ask: impl Fn(&mut Self) -> Result<T, QmpError>,
    ) -> Result<T, QmpError> {
        match ask(self) {
            Err(error) if error.is_final() && self.qmp.reconnect().is_ok() => ask(self),
            outcome => outcome,
        }
    }

    /// The connection, for commands that are not here.
    pub(crate) fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The state of the machine.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn run_state(&mut self) -> Result<RunState, QmpError> {
        let answer = self.qmp.execute("query-status", json!({}))?;
        Ok(RunState {
            status: field(&answer, "status")
                .as_str()
                .map(quote)
                .unwrap_or_default(),
            running: field(&answer, "running").as_bool().unwrap_or_default(),
        })
    }

    /// Waits until the guest runs, at most for `limit`, and returns its last state.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn wait_running(&mut self, limit: Duration) -> Result<RunState, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            let state = self.run_state()?;
            if state.running || Instant::now() >= deadline {
                return Ok(state);
            }
            self.qmp.wait_event(LOOK)?;
        }
    }

    /// The state of the migration.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn migration(&mut self) -> Result<MigrationStatus, QmpError> {
        let answer = self
            .qmp
            .execute_within("query-migrate", json!({}), STATE_LIMIT)?;
        Ok(MigrationStatus::read(&answer))
    }

    /// Waits until the migration is over, at most for `limit`, and returns its last state.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn wait_migration(&mut self, limit: Duration) -> Result<MigrationStatus, QmpError> {
        self.wait_until(limit, MigrationStatus::is_final)
    }

    /// Waits until no migration runs, at most for `limit`, and returns its last state.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn wait_idle(&mut self, limit: Duration) -> Result<MigrationStatus, QmpError> {
        self.wait_until(limit, |status| !status.is_under_way())
    }

    /// QEMU may be silent for a while, and say it then.
    fn wait_until(
        &mut self,
        limit: Duration,
        is_so: impl Fn(&MigrationStatus) -> bool,
    ) -> Result<MigrationStatus, QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            let is_late = || Instant::now() >= deadline;
            match self.migration() {
                Ok(status) if is_so(&status) || is_late() => return Ok(status),
                Err(error) if error.is_final() || is_late() => return Err(error),
                Ok(_) | Err(_) => {}
            }
            self.qmp.wait_event(LOOK)?;
        }
    }

    /// Its settings.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn settings(&mut self) -> Result<Settings, QmpError> {
        let answer = self.qmp.execute("query-migrate-capabilities", json!({}))?;
        let all = answer.as_array().into_iter().flatten();
        let capabilities = all.filter_map(|one| {
            let name = field(one, "capability").as_str()?.to_owned();
            Some((name, field(one, "state").as_bool()?))
        });
        let capabilities = capabilities.collect();
        let parameters = self.qmp.execute("query-migrate-parameters", json!({}))?;
        Ok(Settings {
            capabilities,
            parameters: match parameters {
                Value::Object(parameters) => parameters,
                _ => Map::new(),
            },
        })
    }

    /// Sets capabilities, all at once.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; then none is set.
    pub(crate) fn set_capabilities<'a>(
        &mut self,
        states: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> Result<(), QmpError> {
        let states = states.into_iter();
        let list: Vec<Value> = states
            .map(|(capability, state)| json!({"capability": capability, "state": state}))
            .collect();
        if list.is_empty() {
            return Ok(());
        }
        let arguments = json!({ "capabilities": list });
        self.qmp
            .execute("migrate-set-capabilities", arguments)
            .map(drop)
    }

    /// Sets parameters, all at once.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; then none is set.
    pub(crate) fn set_parameters(
        &mut self,
        parameters: Map<String, Value>,
    ) -> Result<(), QmpError> {
        if parameters.is_empty() {
            return Ok(());
        }
        let arguments = Value::Object(parameters);
        self.qmp
            .execute("migrate-set-parameters", arguments)
            .map(drop)
    }

    /// Starts to send the guest to `unix:PATH`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn migrate(&mut self, uri: &str) -> Result<(), QmpError> {
        self.qmp.execute("migrate", json!({ "uri": uri })).map(drop)
    }

    /// Waits for a guest at `unix:PATH`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn listen(&mut self, uri: &str) -> Result<(), QmpError> {
        let version = self.qmp.version();
        let arguments = match (version.major, version.minor) >= (9, 1) {
            // It stays to say why it has failed. Older ones exit.
            true => json!({"uri": uri, "exit-on-error": false}),
            false => json!({ "uri": uri }),
        };
        self.qmp.execute("migrate-incoming", arguments).map(drop)
    }

    /// Cancels the migration.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn cancel(&mut self) -> Result<(), QmpError> {
        self.qmp.execute("migrate_cancel", json!({})).map(drop)
    }

    /// Lets a migration go on that waits before its switch-over, and has `status`.
    ///
    /// # Errors
    /// As [`Qmp::execute`]. It is refused if the status is another one by now.
    pub(crate) fn go_on(&mut self, status: &str) -> Result<(), QmpError> {
        let arguments = json!({ "state": status });
        self.qmp.execute("migrate-continue", arguments).map(drop)
    }

    /// Runs the guest at the destination now; its pages follow.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn start_postcopy(&mut self) -> Result<(), QmpError> {
        self.qmp
            .execute("migrate-start-postcopy", json!({}))
            .map(drop)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.status.as_str() {
            "" => "unknown",
            status => status,
        })
    }
}

/// The status that an event about a migration reports.
pub(crate) fn status_of(event: &Event) -> Option<&str> {
    let is_about_one = event.name == "MIGRATION";
    is_about_one.then(|| field(&event.data, "status").as_str())?
}

/// The same, if it is the last one of its migration.
pub(crate) fn end_of(event: &Event) -> Option<String> {
    let status = status_of(event).filter(|status| Phase::of(status).is_final());
    status.map(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whatever_it_leaves_out() {
        for odd in [
            json!({}),
            json!([]),
            json!(7),
            json!({"ram": 3, "status": 4}),
        ] {
            let status = MigrationStatus::read(&odd);
            assert_eq!(status, MigrationStatus::default(), "{odd}");
            assert_eq!(status.phase(), Phase::None);
        }
        let told = json!({"status": "failed", "error-desc": "broken pipe", "remaining": 1,
            "ram": {"mbps": 1.5, "dirty-sync-count": 2, "dirty-pages-rate": u64::MAX, "page-size": 4096}});
        let status = MigrationStatus::read(&told);
        assert!(status.is_final() && !status.is_completed());
        assert_eq!((status.ram.mbps, status.ram.dirty_sync_count), (1.5, 2));
        assert_eq!(status.ram.throughput(), 187_500);
        assert_eq!(status.ram.dirty_rate(), u64::MAX);
    }

    #[test]
    fn states_of_later_releases_end_nothing() {
        for (status, phase) in [
            ("active", Phase::Active),
            ("colo", Phase::Active),
            ("failing", Phase::Active),
            ("next-year", Phase::Active),
            ("pre-switchover", Phase::PreSwitchover),
            ("device", Phase::Switchover),
            ("postcopy-device", Phase::Postcopy),
            ("postcopy-recover-setup", Phase::Postcopy),
            ("postcopy-paused", Phase::PostcopyPaused),
            ("wait-unplug", Phase::Setup),
        ] {
            assert_eq!(Phase::of(status), phase, "{status}");
            assert!(!phase.is_final());
        }
    }
}
