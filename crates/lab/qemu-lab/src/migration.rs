//! The parameters of a migration.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// Faster than any link or memory: QEMU's own default of 128 MiB/s would otherwise determine all
/// durations.
const NO_BANDWIDTH_LIMIT: u64 = 1 << 40;

/// Settings of one end of a migration, under QEMU's names. `None` keeps the process's value, which
/// is QEMU's default unless an earlier migration has set it.
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
    /// `zero-page-detection`: `none`, `legacy`, `multifd`; a setting of the source in QEMU 9.0 and
    /// later.
    pub zero_page_detection: Option<String>,
    /// `return-path`: the source waits for the destination's confirmation.
    pub return_path: bool,
    /// `validate-uuid`.
    pub validate_uuid: bool,
    /// `max-bandwidth` in bytes per second; `None` is practically unlimited.
    pub max_bandwidth: Option<u64>,
    /// `downtime-limit`.
    pub downtime_limit: Option<Duration>,
    /// Additional capabilities, such as `postcopy-ram`.
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
    /// Multifd with a number of channels and a compression method; all else is the default.
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
            // Waiting code gets an event, and need not poll in the meantime.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Parameters;

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
}
