//! What a migration is asked for, and what QEMU tells of it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// More than any link or memory carries: QEMU's own default of 128 MiB/s would decide how long
/// everything takes.
const NO_BANDWIDTH_LIMIT: u64 = 1 << 40;

/// Settings of one end of a migration, under QEMU's names. Where one is `None` it stays what it was
/// in that process, QEMU's own unless an earlier migration has set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// `multifd-channels`; `None` leaves multifd off.
    pub channels: Option<u8>,
    /// `multifd-compression`: `none`, `zlib`, `zstd`, ...
    pub compression: String,
    /// `multifd-zlib-level`.
    pub zlib_level: Option<u8>,
    /// `multifd-zstd-level`.
    pub zstd_level: Option<u8>,
    /// `zero-page-detection`: `none`, `legacy`, `multifd`; known to QEMU 9.0 and later, for the
    /// source.
    pub zero_page_detection: Option<String>,
    /// `return-path`: the source waits until the destination says that it has everything.
    pub return_path: bool,
    /// `validate-uuid`.
    pub validate_uuid: bool,
    /// `max-bandwidth` in bytes a second; `None` means none that matters.
    pub max_bandwidth: Option<u64>,
    /// `downtime-limit`.
    pub downtime_limit: Option<Duration>,
    /// Capabilities that are on besides, such as `postcopy-ram`.
    pub capabilities: Vec<&'static str>,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            channels: Some(2),
            compression: "none".to_owned(),
            zlib_level: None,
            zstd_level: None,
            zero_page_detection: None,
            return_path: false,
            validate_uuid: false,
            max_bandwidth: None,
            downtime_limit: None,
            capabilities: Vec::new(),
        }
    }
}

impl Parameters {
    /// Multifd with a number of channels and a compression method, the rest as by default.
    #[must_use]
    pub fn multifd(channels: u8, compression: &str) -> Self {
        Parameters {
            channels: Some(channels),
            compression: compression.to_owned(),
            ..Self::default()
        }
    }

    /// Arguments of `migrate-set-capabilities`.
    pub(crate) fn capabilities(&self) -> Value {
        let states = [
            ("multifd", self.channels.is_some()),
            ("return-path", self.return_path),
            ("validate-uuid", self.validate_uuid),
            // Whoever waits for the end is told of it, and need not ask in the meantime.
            ("events", true),
        ];
        let list: Vec<Value> = states
            .into_iter()
            .chain(self.capabilities.iter().map(|&name| (name, true)))
            .map(|(capability, state)| json!({"capability": capability, "state": state}))
            .collect();
        json!({ "capabilities": list })
    }

    /// Arguments of `migrate-set-parameters`.
    pub(crate) fn parameters(&self) -> Value {
        let mut map = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(name.to_owned(), value);
            }
        };
        set(
            "max-bandwidth",
            Some(self.max_bandwidth.unwrap_or(NO_BANDWIDTH_LIMIT).into()),
        );
        set(
            "downtime-limit",
            self.downtime_limit
                .map(|limit| (limit.as_millis() as u64).into()),
        );
        set(
            "zero-page-detection",
            self.zero_page_detection.clone().map(Value::from),
        );
        if let Some(channels) = self.channels {
            set("multifd-channels", Some(channels.into()));
            set("multifd-compression", Some(self.compression.clone().into()));
            set("multifd-zlib-level", self.zlib_level.map(Value::from));
            set("multifd-zstd-level", self.zstd_level.map(Value::from));
        }
        Value::Object(map)
    }
}

/// What `query-migrate` says; times are in milliseconds. QEMU leaves out what does not apply.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationStatus {
    /// `setup`, `active`, `device`, `completed`, `failed`, `cancelled`, ...; empty before the first
    /// migration.
    pub status: String,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// From beginning to end.
    pub total_time: u64,
    /// How long the guest stood still.
    pub downtime: u64,
    /// Until the first page.
    pub setup_time: u64,
    /// Figures about memory, at the source.
    pub ram: RamStatus,
}

/// The memory's part of `query-migrate`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamStatus {
    /// Bytes on all connections.
    pub transferred: u64,
    /// Bytes on the multifd channels.
    pub multifd_bytes: u64,
    /// The guest's memory in bytes.
    pub total: u64,
    /// Bytes still to send.
    pub remaining: u64,
    /// Pages sent with content.
    pub normal: u64,
    /// Pages sent as zeros.
    pub duplicate: u64,
    /// Megabits a second.
    pub mbps: f64,
    /// Pages a second.
    pub pages_per_second: u64,
    /// How often the dirty pages were collected.
    pub dirty_sync_count: u64,
}

impl MigrationStatus {
    /// Whether nothing more will happen to this migration.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "cancelled")
    }

    /// Whether the guest has moved.
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.status == "completed"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{MigrationStatus, Parameters};

    #[test]
    fn only_what_was_asked_for_is_set() {
        let parameters = Parameters {
            zlib_level: Some(9),
            ..Parameters::multifd(4, "zlib")
        };
        let expected = json!({
            "max-bandwidth": 1u64 << 40,
            "multifd-channels": 4,
            "multifd-compression": "zlib",
            "multifd-zlib-level": 9,
        });
        assert_eq!(parameters.parameters(), expected);
        let plain = Parameters {
            channels: None,
            ..Parameters::default()
        };
        assert_eq!(plain.parameters(), json!({"max-bandwidth": 1u64 << 40}));
    }

    #[test]
    fn a_status_is_read_whatever_it_leaves_out() {
        let status: MigrationStatus = serde_json::from_value(json!({})).unwrap();
        assert!(!status.is_final());
        let told = json!({"status": "failed", "error-desc": "broken pipe", "ram": {"mbps": 1.5, "dirty-sync-count": 2}});
        let status: MigrationStatus = serde_json::from_value(told).unwrap();
        assert!(status.is_final() && !status.is_completed());
        assert_eq!((status.ram.mbps, status.ram.dirty_sync_count), (1.5, 2));
    }
}
