//! The properties of the simulated machine, and its faults.
//!
//! [`Settings`] are text in the environment variable [`VARIABLE`] or in
//! [`Simulator::configure`](crate::Simulator::configure): `key=value` separated by commas, in any
//! order; absent keys have their defaults. [`Settings`] implements [`Display`](fmt::Display) and
//! [`FromStr`], so a test builds the value and never the text.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The environment variable that is read when the shared object is loaded.
pub const VARIABLE: &str = "IAA_SIM";

/// The simulated machine.
///
/// libqpl reads the first group once per process, at the first use of its hardware path; later
/// changes have no effect. The second group may change at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `devices`: IAA devices, 0..=8.
    pub devices: u32,
    /// `queues`: work queues of each device, 1..=8.
    pub queues: u32,
    /// `depth`: descriptors that wait in one queue before it is full; a power of two, 1..=128. The
    /// one in work does not count.
    pub depth: u32,
    /// `numa`: the node of every device, -1 for none (which fits every caller).
    pub numa_node: i32,
    /// `device`: `enabled` or `disabled`.
    pub device_enabled: bool,
    /// `queue`: `enabled` or `disabled`.
    pub queue_enabled: bool,
    /// `mode`: `shared` or `dedicated`.
    pub dedicated: bool,
    /// `access`: whether a queue's device node can be used.
    pub access: Access,
    /// `library`: the abilities of libaccel-config, and of the kernel below it.
    pub library: AccelConfig,
    /// `operations`: the operations permitted by the queues' `op_config`.
    pub operations: Operations,
    /// `max-transfer`: the queues' largest transfer in bytes.
    pub max_transfer_bytes: u64,
    /// `block-on-fault`: whether the queues wait for a missing page instead of reporting it.
    pub block_on_fault: bool,

    /// `latency-us`: time from a descriptor's turn to its completion, in whole microseconds.
    pub latency: Duration,
    /// `order`: which waiting descriptor is next.
    pub order: Order,
    /// `healthy-for`: this many descriptors have no latency and no fault, excluding the queues'
    /// probes at opening. Use it to delay faults until a program is at work.
    pub healthy_for: u32,
    /// `paused`: whether the device stops reading from its queues.
    pub paused: bool,
    /// `busy`: whether the queues are full of others' descriptors. Implies `paused`.
    pub busy: bool,
    /// `fault`: injected faults; the key may occur several times. If several apply to a descriptor,
    /// the first one wins.
    pub faults: Vec<Fault>,
    /// `counters`: a file that always has the [`Counters`](crate::Counters), for another process.
    pub counters: Option<PathBuf>,
}

impl Default for Settings {
    /// A healthy machine with one device with one queue of the hardware's depth.
    fn default() -> Self {
        Settings {
            devices: 1,
            queues: 1,
            depth: 128,
            numa_node: -1,
            device_enabled: true,
            queue_enabled: true,
            dedicated: false,
            access: Access::Granted,
            library: AccelConfig::Current,
            operations: Operations::All,
            max_transfer_bytes: 1 << 31,
            block_on_fault: false,
            latency: Duration::ZERO,
            order: Order::Queue,
            healthy_for: 0,
            paused: false,
            busy: false,
            faults: Vec::new(),
            counters: None,
        }
    }
}

/// Declares an enumeration with values that are words of the text form.
macro_rules! words {
    ($($(#[$type_doc:meta])* $type_name:ident {
        $($(#[$doc:meta])* $name:ident = $word:literal,)*
    })*) => {$(
        $(#[$type_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type_name {
            $($(#[$doc])* $name,)*
        }

        impl $type_name {
            const fn word(self) -> &'static str {
                match self {
                    $($type_name::$name => $word,)*
                }
            }

            fn from_word(word: &str) -> Option<$type_name> {
                match word {
                    $($word => Some($type_name::$name),)*
                    _ => None,
                }
            }
        }
    )*};
}

words! {
    /// The behaviour of a queue's device node.
    Access {
        /// It opens and takes descriptors.
        Granted = "granted",
        /// It does not open.
        Denied = "denied",
        /// It opens and refuses every descriptor.
        Refused = "refused",
    }

    /// The abilities of libaccel-config, and of the kernel below it.
    AccelConfig {
        /// A device of the first generation with all functions.
        Current = "current",
        /// A device of the second generation, without a function to read its capabilities.
        Old = "old",
        /// A device of the second generation, with a kernel that does not show its capabilities.
        OldKernel = "old-kernel",
        /// No context can be made.
        Broken = "broken",
    }

    /// The operations permitted by a queue's `op_config`.
    Operations {
        /// All operations; there is no `op_config`.
        All = "all",
        /// Compression, not decompression.
        Compress = "compress",
        /// Decompression, not compression.
        Decompress = "decompress",
    }

    /// The order of waiting descriptors.
    Order {
        /// The first.
        Queue = "queue",
        /// The last one that has arrived so far.
        Reversed = "reversed",
    }
}

/// An injected fault of some of the descriptors.
///
/// In text: `KIND`, `KIND@EVERY`, `KIND*LIMIT` or `KIND@EVERY*LIMIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// Applies to every n-th descriptor (1 = all), counted from the settings or from the end of the
    /// healthy phase, without the queue's probe at opening, and including those that libqpl submits
    /// again.
    pub every: NonZeroU32,
    /// The maximum number of injections, 0 for no limit.
    pub limit: u32,
}

impl Fault {
    /// A fault of every descriptor.
    pub const fn always(kind: FaultKind) -> Fault {
        Fault {
            kind,
            every: NonZeroU32::MIN,
            limit: 0,
        }
    }
}

/// The kinds of faults of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// `read-page`: the input's first page is missing (status byte 0x03).
    ReadPage,
    /// `read-page-nowhere`: the same, without the address of the page.
    ReadPageNowhere,
    /// `write-page`: the output's first page is missing (status byte 0x83).
    WritePage,
    /// `write-page-nowhere`: the same, without the address of the page.
    WritePageNowhere,
    /// `record:STATUS:ERROR`, both hexadecimal: a completion record with these two bytes.
    Record {
        /// The record's byte 0.
        status: u8,
        /// The record's byte 1.
        error: u8,
    },
    /// `lost`: no completion record at all.
    Lost,
    /// `late:MILLISECONDS`: a correct result, delayed by this time. Later descriptors do not wait.
    Late(Duration),
}

/// The text is not valid settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is not a setting of the simulated IAA")]
pub struct ParseError {
    /// The invalid part.
    pub entry: String,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "devices={},queues={},depth={},numa={}",
            self.devices, self.queues, self.depth, self.numa_node
        )?;
        write!(
            f,
            ",device={},queue={}",
            ability(self.device_enabled),
            ability(self.queue_enabled)
        )?;
        write!(
            f,
            ",mode={},access={}",
            if self.dedicated { DEDICATED } else { SHARED },
            self.access.word()
        )?;
        write!(
            f,
            ",library={},operations={}",
            self.library.word(),
            self.operations.word()
        )?;
        write!(
            f,
            ",max-transfer={},block-on-fault={}",
            self.max_transfer_bytes, self.block_on_fault
        )?;
        write!(
            f,
            ",latency-us={},order={}",
            self.latency.as_micros(),
            self.order.word()
        )?;
        write!(
            f,
            ",healthy-for={},paused={},busy={}",
            self.healthy_for, self.paused, self.busy
        )?;
        for fault in &self.faults {
            write!(f, ",fault={fault}")?;
        }
        if let Some(path) = &self.counters {
            write!(f, ",counters={}", path.display())?;
        }
        Ok(())
    }
}

impl FromStr for Settings {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut settings = Settings::default();
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            let understood = entry
                .split_once('=')
                .and_then(|(key, value)| settings.set(key, value));
            understood.ok_or_else(|| ParseError {
                entry: entry.to_owned(),
            })?;
        }
        Ok(settings)
    }
}

impl Settings {
    /// Returns whether the device does not read from its queues.
    pub(crate) fn holds(&self) -> bool {
        self.paused || self.busy
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "devices" => self.devices = number(value, 0..=8)?,
            "queues" => self.queues = number(value, 1..=8)?,
            "depth" => {
                self.depth = number(value, 1..=128).filter(|depth| depth.is_power_of_two())?;
            }
            "numa" => self.numa_node = value.parse().ok().filter(|node| *node >= -1)?,
            "device" => self.device_enabled = from_ability(value)?,
            "queue" => self.queue_enabled = from_ability(value)?,
            "mode" => {
                self.dedicated = match value {
                    DEDICATED => true,
                    SHARED => false,
                    _ => return None,
                }
            }
            "access" => self.access = Access::from_word(value)?,
            "library" => self.library = AccelConfig::from_word(value)?,
            "operations" => self.operations = Operations::from_word(value)?,
            "max-transfer" => self.max_transfer_bytes = value.parse().ok()?,
            "block-on-fault" => self.block_on_fault = value.parse().ok()?,
            "latency-us" => self.latency = Duration::from_micros(value.parse().ok()?),
            "order" => self.order = Order::from_word(value)?,
            "healthy-for" => self.healthy_for = value.parse().ok()?,
            "paused" => self.paused = value.parse().ok()?,
            "busy" => self.busy = value.parse().ok()?,
            "fault" => self.faults.push(value.parse().ok()?),
            "counters" => self.counters = Some(PathBuf::from(value)),
            _ => return None,
        }
        Some(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FaultKind::ReadPage => f.write_str(READ_PAGE)?,
            FaultKind::ReadPageNowhere => f.write_str(READ_PAGE_NOWHERE)?,
            FaultKind::WritePage => f.write_str(WRITE_PAGE)?,
            FaultKind::WritePageNowhere => f.write_str(WRITE_PAGE_NOWHERE)?,
            FaultKind::Record { status, error } => write!(f, "{RECORD}{status:02x}:{error:02x}")?,
            FaultKind::Lost => f.write_str(LOST)?,
            FaultKind::Late(delay) => write!(f, "{LATE}{}", delay.as_millis())?,
        }
        write!(f, "@{}*{}", self.every, self.limit)
    }
}

impl FromStr for Fault {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_fault(text).ok_or_else(|| ParseError {
            entry: text.to_owned(),
        })
    }
}

fn parse_fault(text: &str) -> Option<Fault> {
    let (text, limit) = match text.split_once('*') {
        Some((text, limit)) => (text, limit.parse().ok()?),
        None => (text, 0),
    };
    let (text, every) = match text.split_once('@') {
        Some((text, every)) => (text, every.parse().ok()?),
        None => (text, NonZeroU32::MIN),
    };
    let kind = match text {
        READ_PAGE => FaultKind::ReadPage,
        READ_PAGE_NOWHERE => FaultKind::ReadPageNowhere,
        WRITE_PAGE => FaultKind::WritePage,
        WRITE_PAGE_NOWHERE => FaultKind::WritePageNowhere,
        LOST => FaultKind::Lost,
        late if late.starts_with(LATE) => {
            let delay = late.strip_prefix(LATE)?.parse().ok()?;
            FaultKind::Late(Duration::from_millis(delay))
        }
        record => {
            let (status, error) = record.strip_prefix(RECORD)?.split_once(':')?;
            // Status 0 would be an unwritten record: that is `lost`.
            let status = u8::from_str_radix(status, 16)
                .ok()
                .filter(|status| *status != 0)?;
            let error = u8::from_str_radix(error, 16).ok()?;
            FaultKind::Record { status, error }
        }
    };
    Some(Fault { kind, every, limit })
}

fn number(value: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    value.parse().ok().filter(|number| range.contains(number))
}

const fn ability(enabled: bool) -> &'static str {
    if enabled { ENABLED } else { DISABLED }
}

fn from_ability(word: &str) -> Option<bool> {
    match word {
        ENABLED => Some(true),
        DISABLED => Some(false),
        _ => None,
    }
}

const ENABLED: &str = "enabled";
const DISABLED: &str = "disabled";
const SHARED: &str = "shared";
const DEDICATED: &str = "dedicated";
const READ_PAGE: &str = "read-page";
const READ_PAGE_NOWHERE: &str = "read-page-nowhere";
const WRITE_PAGE: &str = "write-page";
const WRITE_PAGE_NOWHERE: &str = "write-page-nowhere";
const RECORD: &str = "record:";
const LOST: &str = "lost";
const LATE: &str = "late:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_value_are_one() {
        let every = NonZeroU32::new(7).unwrap();
        let settings = Settings {
            devices: 2,
            queues: 3,
            depth: 16,
            numa_node: 1,
            device_enabled: false,
            queue_enabled: false,
            dedicated: true,
            access: Access::Denied,
            library: AccelConfig::OldKernel,
            operations: Operations::Compress,
            max_transfer_bytes: 4096,
            block_on_fault: true,
            latency: Duration::from_micros(250),
            order: Order::Reversed,
            healthy_for: 12,
            paused: true,
            busy: true,
            faults: vec![
                Fault::always(FaultKind::Lost),
                Fault {
                    kind: FaultKind::Record {
                        status: 0x0a,
                        error: 19,
                    },
                    every,
                    limit: 3,
                },
                Fault::always(FaultKind::WritePageNowhere),
                Fault::always(FaultKind::Late(Duration::from_millis(2500))),
            ],
            counters: Some(PathBuf::from("/somewhere/counters")),
        };
        assert_eq!(settings.to_string().parse(), Ok(settings));
    }

    #[test]
    fn what_is_left_out_keeps_its_default() {
        let settings: Settings = "depth=4,fault=read-page".parse().unwrap();
        let expected = Settings {
            depth: 4,
            faults: vec![Fault::always(FaultKind::ReadPage)],
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for entry in [
            "depth=3",
            "depth=0",
            "devices=9",
            "order=random",
            "fault=record:00:00",
            "fault=lost@0",
            "fault=late",
            "numa=-2",
            "colour=red",
            "depth",
        ] {
            let error = entry.parse::<Settings>().unwrap_err();
            assert_eq!(error.entry, entry);
        }
    }
}
