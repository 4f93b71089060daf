//! The settings that a migration needs in a QEMU, and how they are put back.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::qemu::{Qemu, Settings};
use crate::qmp::QmpError;

/// Capabilities that are on during the migration, at both ends.
const ON: [&str; 3] = ["multifd", "return-path", "events"];

/// Capabilities that are off during the migration: each of them needs another stream, or another
/// socket, than a relay carries.
const OFF: [&str; 7] = [
    "background-snapshot",
    "compress",
    "mapped-ram",
    "rdma-pin-all",
    "x-colo",
    "xbzrle",
    "zero-copy-send",
];

/// The source waits before its switch-over until it is told to go on. So a migration can be
/// cancelled up to that moment, and never later: a destination that is about to start its guest
/// cannot be held back, and the guest would run at both ends.
const PAUSE: &str = "pause-before-switchover";

const POSTCOPY: &str = "postcopy-ram";

/// Time limit for a QEMU that refuses its former values because its migration has not quite ended.
const RESTORE_LIMIT: Duration = Duration::from_secs(5);

const RESTORE_PAUSE: Duration = Duration::from_millis(100);

/// The settings that both ends need.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wish {
    /// `multifd-channels`.
    pub channels: u8,
    /// `postcopy-ram`.
    pub postcopy: bool,
    /// `pause-before-switchover`, at the source.
    pub(crate) pause: bool,
    /// `max-bandwidth` in bytes a second, 0 for no limit; the source's alone.
    pub max_bandwidth: Option<u64>,
    /// `downtime-limit`; the source's alone.
    pub downtime_limit: Option<Duration>,
}

impl Wish {
    /// `channels` channels; everything else as every migration needs it.
    #[must_use]
    pub fn new(channels: u8) -> Self {
        Self {
            channels,
            postcopy: false,
            pause: false,
            max_bandwidth: None,
            downtime_limit: None,
        }
    }
}

/// A setting that changes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// QEMU's name for it.
    pub name: String,
    /// The value before.
    pub from: Value,
    /// The value after.
    pub to: Value,
    /// It is a capability, and no parameter.
    pub(crate) is_capability: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, from, to, .. } = self;
        write!(f, "{name} {} (now {})", word(to), word(from))
    }
}

/// A value as a monitor shows it.
fn word(value: &Value) -> String {
    match value {
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Why a QEMU cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// It does not know a setting that the migration needs.
    #[error("this QEMU does not know `{name}`, so it cannot migrate this way")]
    Unknown {
        /// QEMU's name for the setting.
        name: &'static str,
    },
    /// It would encrypt by itself.
    #[error(
        "QEMU's own TLS is on (tls-creds {creds}). The relay beside QEMU reads plain pages, and the \
         trunk encrypts them: switch it off with migrate-set-parameters tls-creds \"\""
    )]
    Tls {
        /// The name of the credentials.
        creds: String,
    },
}

/// The settings that a migration changes.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// The settings that change. Others have the right value already.
    pub changes: Vec<Change>,
}

impl Plan {
    /// Compares what is with what is needed.
    ///
    /// # Errors
    /// When a QEMU lacks what is needed, or encrypts by itself.
    pub(crate) fn of(wish: &Wish, now: &Settings) -> Result<Self, PlanError> {
        if let Some(creds) = now.parameters.get("tls-creds").and_then(Value::as_str)
            && !creds.is_empty()
        {
            return Err(PlanError::Tls {
                creds: creds.to_owned(),
            });
        }
        let mut plan = Self::default();
        for name in ON {
            plan.capability(now, name, true)?;
        }
        if wish.pause {
            plan.capability(now, PAUSE, true)?;
        }
        if wish.postcopy || now.capabilities.contains_key(POSTCOPY) {
            plan.capability(now, POSTCOPY, wish.postcopy)?;
        }
        for name in OFF {
            // A setting that it does not know is off.
            if now.capabilities.contains_key(name) {
                plan.capability(now, name, false)?;
            }
        }
        plan.parameter(now, "multifd-channels", wish.channels.into())?;
        plan.parameter(now, "multifd-compression", "none".into())?;
        if let Some(limit) = wish.max_bandwidth {
            plan.parameter(now, "max-bandwidth", limit.into())?;
        }
        if let Some(limit) = wish.downtime_limit {
            let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            plan.parameter(now, "downtime-limit", limit.into())?;
        }
        Ok(plan)
    }

    fn capability(
        &mut self,
        now: &Settings,
        name: &'static str,
        to: bool,
    ) -> Result<(), PlanError> {
        let from = now.capabilities.get(name).copied();
        let from = from.ok_or(PlanError::Unknown { name })?;
        self.change(name, from.into(), to.into(), true);
        Ok(())
    }

    fn parameter(
        &mut self,
        now: &Settings,
        name: &'static str,
        to: Value,
    ) -> Result<(), PlanError> {
        let from = now.parameters.get(name).cloned();
        let from = from.ok_or(PlanError::Unknown { name })?;
        self.change(name, from, to, false);
        Ok(())
    }

    fn change(&mut self, name: &str, from: Value, to: Value, is_capability: bool) {
        if from != to {
            self.changes.push(Change {
                name: name.to_owned(),
                from,
                to,
                is_capability,
            });
        }
    }

    /// The changes the other way.
    fn back(&self) -> Self {
        let back = |change: &Change| Change {
            from: change.to.clone(),
            to: change.from.clone(),
            ..change.clone()
        };
        Self {
            changes: self.changes.iter().map(back).collect(),
        }
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// When QEMU refuses; some may be made then.
    pub(crate) fn apply(&self, qemu: &mut Qemu) -> Result<(), QmpError> {
        self.set_capabilities(qemu)?;
        self.set_parameters(qemu)
    }

    /// Undoes the changes. The parts are tried one by one, so that one refusal keeps nothing else
    /// from being undone. Returns what stayed.
    pub(crate) fn undo(&self, qemu: &mut Qemu) -> Result<(), QmpError> {
        let back = self.back();
        let parameters = persist(|| back.set_parameters(qemu));
        let capabilities = persist(|| back.set_capabilities(qemu));
        parameters.and(capabilities)
    }

    fn set_capabilities(&self, qemu: &mut Qemu) -> Result<(), QmpError> {
        let all = self.changes.iter().filter(|change| change.is_capability);
        let states = all.map(|change| (change.name.as_str(), change.to == Value::Bool(true)));
        qemu.set_capabilities(states.collect::<Vec<_>>())
    }

    fn set_parameters(&self, qemu: &mut Qemu) -> Result<(), QmpError> {
        let all = self.changes.iter().filter(|change| !change.is_capability);
        let map: Map<_, _> = all
            .map(|change| (change.name.clone(), change.to.clone()))
            .collect();
        qemu.set_parameters(map)
    }
}

/// Tries again what a QEMU refuses that has not done with its migration.
fn persist(mut attempt: impl FnMut() -> Result<(), QmpError>) -> Result<(), QmpError> {
    let deadline = Instant::now() + RESTORE_LIMIT;
    loop {
        match attempt() {
            Err(QmpError::Refused { .. }) if Instant::now() < deadline => {
                thread::sleep(RESTORE_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        let mut settings = Settings::default();
        for name in ["multifd", "return-path", "events", "postcopy-ram", "xbzrle"] {
            settings.capabilities.insert(name.to_owned(), false);
        }
        let parameters = json!({"multifd-channels": 2, "multifd-compression": "zstd",
            "max-bandwidth": 134_217_728, "downtime-limit": 300, "tls-creds": "", "new": [1]});
        settings.parameters = parameters.as_object().unwrap().clone();
        settings
    }

    fn words(plan: &Plan) -> Vec<String> {
        plan.changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let mut now = settings();
        now.capabilities.insert("events".to_owned(), true);
        now.capabilities.insert("xbzrle".to_owned(), true);
        let wish = Wish {
            max_bandwidth: Some(0),
            downtime_limit: Some(Duration::from_millis(300)),
            ..Wish::new(4)
        };
        let plan = Plan::of(&wish, &now).unwrap();
        let expected = [
            "multifd on (now off)",
            "return-path on (now off)",
            "xbzrle off (now on)",
            "multifd-channels 4 (now 2)",
            "multifd-compression none (now zstd)",
            "max-bandwidth 0 (now 134217728)",
        ];
        assert_eq!(words(&plan), expected);
        let back = words(&plan.back());
        assert_eq!(back[0], "multifd off (now on)");
        assert_eq!(back[5], "max-bandwidth 134217728 (now 0)");
    }

    #[test]
    fn what_a_qemu_lacks_is_named() {
        let mut now = settings();
        now.capabilities.remove("multifd");
        let unknown = Plan::of(&Wish::new(4), &now);
        assert_eq!(unknown, Err(PlanError::Unknown { name: "multifd" }));
        let mut now = settings();
        now.parameters["tls-creds"] = json!("tls0");
        let refused = Plan::of(&Wish::new(4), &now).unwrap_err();
        assert!(refused.to_string().contains("tls-creds tls0"), "{refused}");
        let mut now = settings();
        now.capabilities.remove("postcopy-ram");
        assert!(Plan::of(&Wish::new(4), &now).is_ok());
        let wish = Wish {
            postcopy: true,
            ..Wish::new(4)
        };
        assert!(Plan::of(&wish, &now).is_err());
    }
}
