//! Limits of this host, read from files of the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use multifd_codec::{Accel, BackendKind, delta};
use multifd_relay::relay::RelayConfig;
use multifd_wire::Method;
use rustix::process::{Resource, getrlimit, getuid};

use super::check::Check;
use crate::codec::Codec;
use crate::relay::memory;
use crate::sandbox::Sandbox;
use crate::say;

/// The channels that a migration can have at most.
const MOST_CHANNELS: u64 = 255;

/// Descriptors and threads beside those of channels: listeners, signals, output, libraries.
const OTHERS: u64 = 64;

/// Less memory than this is used up by buffers and decoders of a migration with many channels.
const LITTLE_MEMORY: u64 = 512 << 20;

/// The check of what computes.
pub(super) const ACCELERATOR: &str = "accelerator";

/// All checks of this host.
pub(super) fn checks(channels: u8, codec: &Codec, asked: Option<Accel>) -> Vec<Check> {
    let channels = u64::from(channels);
    vec![
        processors(),
        load(),
        accelerator(codec, asked),
        descriptors(channels),
        threads(channels),
        memory(),
        sandbox(),
    ]
}

fn processors() -> Check {
    const NAME: &str = "processors";
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let quota = ControlGroup::own().lowest("cpu.max", processors_of);
    let mut found = match usable {
        1 => "1 can be used".to_owned(),
        many => format!("{many} can be used"),
    };
    if let Some(quota) = quota {
        found.push_str(&format!(
            ", and this control group has the time of {} (cpu.max)",
            say::rounded(quota, 2)
        ));
    }
    let (has, lacks) = features();
    if !has.is_empty() {
        found.push_str(&format!("; {}", has.join(", ")));
    }
    if quota.is_some_and(|quota| quota < 1.0) {
        let advice = "give the service more: CPUQuota= of its unit, or cpu.max of its group";
        return Check::warn(NAME, found, advice);
    }
    match lacks.is_empty() {
        true => Check::ok(NAME, found),
        false => Check::warn(
            NAME,
            format!("{found}; no {}: slower code is used", lacks.join(", no ")),
            "in a virtual machine, give it the host's processor: -cpu host",
        ),
    }
}

/// Whether other processes take the time of the processors.
fn load() -> Check {
    const NAME: &str = "load";
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = text.split_whitespace().next();
    let Some(load) = minute.and_then(|load| load.parse::<f64>().ok()) else {
        return Check::ok(NAME, "the system does not say what else runs");
    };
    let found = format!("{load} threads ran or wanted to run in the last minute");
    match load > usable as f64 {
        false => Check::ok(NAME, found),
        true => Check::warn(
            NAME,
            format!(
                "{found}: the figures below are lower than this host's own, and their limits may be wrong"
            ),
            "see what runs, and look again when it is over: top",
        ),
    }
}

/// The processor's features that the codecs and TLS make use of, and those that all machines of
/// the last ten years have and this one lacks.
fn features() -> (Vec<&'static str>, Vec<&'static str>) {
    #[cfg(target_arch = "x86_64")]
    {
        let usual = [
            ("AVX2", is_x86_feature_detected!("avx2")),
            (
                "BMI2",
                is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("lzcnt"),
            ),
            (
                "AES",
                is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq"),
            ),
        ];
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let names = |wanted: bool| {
            let named = usual
                .iter()
                .filter(move |(_, is_there)| *is_there == wanted);
            named.map(|(name, _)| *name)
        };
        let has = names(true).chain(wide.then_some("AVX-512")).collect();
        (has, names(false).collect())
    }
    #[cfg(not(target_arch = "x86_64"))]
    (Vec::new(), Vec::new())
}

fn accelerator(codec: &Codec, asked: Option<Accel>) -> Check {
    const NAME: &str = ACCELERATOR;
    let iaa = iaa_detect::detect(Path::new("/"));
    let verdict = iaa.verdict().to_string();
    let iaa = match iaa.is_ready() {
        true => format!("an IAA is ready: {verdict}"),
        false => verdict,
    };
    let mut config = RelayConfig::new(
        multifd_transport::Address::Tcp("localhost:1".to_owned()),
        codec.method,
    );
    config.settings = codec.settings;
    match config.backend() {
        Err(error) => Check::fail(
            NAME,
            format!("{}: {error}; {iaa}", codec.method),
            "multifd detect",
        ),
        Ok(backend) => {
            let by = match backend.kind() {
                _ if codec.method == Method::None => "needs no work".to_owned(),
                BackendKind::Plain => "by the usual library".to_owned(),
                kind => format!("by {kind}"),
            };
            let found = format!("{} {by}; {iaa}", codec.method);
            match (backend.reason(), asked) {
                // What was asked for, and is not what computes.
                (Some(reason), Some(_)) => {
                    Check::warn(NAME, format!("{found} ({reason})"), "multifd detect")
                }
                _ => Check::ok(NAME, found),
            }
        }
    }
}

fn descriptors(channels: u64) -> Check {
    const NAME: &str = "descriptors";
    // The limit that this process could raise is raised already.
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return Check::ok(NAME, "as many as the system has");
    };
    let need = |channels: u64| 4 * (channels + 1) + OTHERS;
    let most = limit.saturating_sub(OTHERS) / 4;
    let advice = format!(
        "ulimit -n {0} as root, or LimitNOFILE={0} of the relay's unit",
        need(MOST_CHANNELS).next_power_of_two()
    );
    if limit < need(channels) {
        let found = format!("{limit} for a process: too few for {channels} channels");
        Check::fail(NAME, found, advice)
    } else if limit < need(MOST_CHANNELS) {
        let most = most.saturating_sub(1);
        let found = format!("{limit} for a process: enough for {most} channels in all migrations");
        Check::warn(NAME, found, advice)
    } else {
        Check::ok(
            NAME,
            format!("{limit} for a process, enough for {most} channels"),
        )
    }
}

/// The most channels whose ends all fit into this process: both relays, source and destination.
pub(super) fn fitting_channels() -> u8 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let fitting = (limit.saturating_sub(OTHERS) / 8).clamp(1, MOST_CHANNELS);
    u8::try_from(fitting).unwrap_or(u8::MAX)
}

fn threads(channels: u64) -> Check {
    const NAME: &str = "threads";
    let group = ControlGroup::own();
    // (what limits them, the limit, those that there are, what raises it)
    let mut limits: Vec<(&str, u64, u64, &str)> = Vec::new();
    let number = |text: &str| text.trim().parse().ok();
    if let Some((limit, used)) = group.tightest("pids.max", "pids.current", number) {
        limits.push((
            "this control group (pids.max)",
            limit,
            used,
            "TasksMax= of the relay's unit, or pids.max of its group",
        ));
    }
    if let (Some(limit), false) = (getrlimit(Resource::Nproc).current, getuid().is_root()) {
        let raise = "LimitNPROC= of the relay's unit, or ulimit -u";
        limits.push(("this user (RLIMIT_NPROC)", limit, 0, raise));
    }
    let need = |channels: u64| channels + 3 + OTHERS;
    let left = |&(_, limit, used, _): &(&str, u64, u64, &str)| limit.saturating_sub(used);
    let Some(tightest) = limits.into_iter().min_by_key(left) else {
        return Check::ok(NAME, "no limit of a user or a control group");
    };
    let (whose, limit, used, raise) = tightest;
    let found = match used {
        0 => format!("{limit} for {whose}"),
        used => format!("{limit} for {whose}, {used} in use"),
    };
    let left = limit.saturating_sub(used);
    if left < need(channels) {
        Check::fail(
            NAME,
            format!("{found}: too few for {channels} channels"),
            format!("raise {raise}"),
        )
    } else if left < need(MOST_CHANNELS) {
        Check::warn(
            NAME,
            format!("{found}: too few for a migration of {MOST_CHANNELS} channels"),
            format!("raise {raise}"),
        )
    } else {
        Check::ok(NAME, found)
    }
}

fn memory() -> Check {
    const NAME: &str = "memory";
    let Some(available) = memory::available() else {
        let advice = "mount /proc: a relay sizes --delta-memory by it";
        return Check::warn(NAME, "the system does not say what is available", advice);
    };
    let usual = say::size(available / memory::SHARE);
    let found = format!(
        "{} available; a relay keeps up to {usual} of pages, so that pages sent again go as \
         differences (--delta-memory)",
        say::size(available)
    );
    let is_limited = delta::memory::left().is_some_and(|left| left <= available);
    match available < LITTLE_MEMORY {
        false => Check::ok(NAME, found),
        true if is_limited => Check::warn(
            NAME,
            found,
            "raise the limit of this process: ulimit -v, MemoryMax= of the unit, or memory.max",
        ),
        true => Check::warn(NAME, found, "free memory on this host"),
    }
}

fn sandbox() -> Check {
    const NAME: &str = "sandbox";
    let sandbox = Sandbox::probe();
    let found = sandbox.to_string();
    let found = found.trim_start_matches("sandbox: ").to_owned();
    match sandbox.is_whole() {
        true => Check::ok(NAME, found),
        false => Check::warn(
            NAME,
            found,
            "nothing if you can do without: a relay goes on with the parts that there are \
             (Landlock needs Linux 5.13 and lsm=landlock)",
        ),
    }
}

/// The buffers of TCP, against what the way holds: `bits` a second at this round trip.
pub(super) fn buffers(bits: f64, round_trip: f64, channels: u8) -> Option<Check> {
    const NAME: &str = "tcp buffers";
    let most = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/net/ipv4").join(name)).ok()?;
        text.split_whitespace().nth(2)?.parse::<u64>().ok()
    };
    let (write, read) = (most("tcp_wmem")?, most("tcp_rmem")?);
    let check = judge_buffers(write, read, bits, round_trip, channels);
    Some(Check {
        check: NAME,
        ..check
    })
}

fn judge_buffers(write: u64, read: u64, bits: f64, round_trip: f64, channels: u8) -> Check {
    // The kernel counts its own records of packets too. About half is left for bytes.
    let window = write.min(read) as f64 / 2.0;
    let holds = bits / 8.0 * round_trip;
    let all = window * f64::from(channels);
    let found = format!(
        "tcp_wmem up to {}, tcp_rmem up to {}; the way holds {} at {} ms",
        say::size(write),
        say::size(read),
        say::size(holds as u64),
        say::rounded(round_trip * 1000.0, 2)
    );
    if all >= holds {
        return Check::ok("", found);
    }
    let fills = all * 8.0 / round_trip.max(1e-9);
    let strands = (holds / all.max(1.0)).ceil().min(16.0);
    let wanted = (holds / f64::from(channels) * 2.0).ceil() as u64;
    let wanted = wanted.next_power_of_two();
    Check::warn(
        "",
        format!(
            "{found}: {channels} connections fill {} of {}",
            super::figures::bits(fills),
            super::figures::bits(bits)
        ),
        format!(
            "--trunk-channels {strands} at the source's relay, or on both hosts: sysctl -w \
             net.ipv4.tcp_wmem='4096 16384 {wanted}' net.ipv4.tcp_rmem='4096 131072 {wanted}'"
        ),
    )
}

/// `MAX PERIOD` of `cpu.max`, in processors.
fn processors_of(text: &str) -> Option<f64> {
    let mut parts = text.split_whitespace();
    let quota: f64 = parts.next()?.parse().ok()?;
    let period: f64 = parts.next()?.parse().ok()?;
    (period > 0.0).then(|| quota / period)
}

/// The folders of this process's control group and those above it, in version 2.
struct ControlGroup(Vec<PathBuf>);

impl ControlGroup {
    fn own() -> Self {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let root = Path::new("/sys/fs/cgroup");
        let own = root.join(path.unwrap_or_default());
        let folders = own
            .ancestors()
            .take_while(|folder| folder.starts_with(root));
        Self(folders.map(Path::to_owned).collect())
    }

    /// The lowest value of a file of this name.
    fn lowest(&self, name: &str, parse: fn(&str) -> Option<f64>) -> Option<f64> {
        let files = self.0.iter().map(|folder| folder.join(name));
        let values = files.filter_map(|file| parse(&fs::read_to_string(file).ok()?));
        values.min_by(f64::total_cmp)
    }

    /// The limit of which the least is left, and what is used of it.
    fn tightest(
        &self,
        limit: &str,
        used: &str,
        parse: impl Fn(&str) -> Option<u64>,
    ) -> Option<(u64, u64)> {
        let read = |path: PathBuf| parse(&fs::read_to_string(path).ok()?);
        let folders = self.0.iter();
        let both = folders.filter_map(|folder| {
            let limit = read(folder.join(limit))?;
            Some((limit, read(folder.join(used)).unwrap_or_default()))
        });
        both.min_by_key(|(limit, used)| limit.saturating_sub(*used))
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn a_quota_is_a_number_of_processors() {
        assert_eq!(processors_of("150000 100000\n"), Some(1.5));
        assert_eq!(processors_of("max 100000\n"), None);
        assert_eq!(processors_of("1 0"), None);
    }

    #[test]
    fn long_ways_need_long_buffers() {
        // 10 Gbit/s at 50 ms hold 62.5 MB, and two connections with 4 MiB about 4 MB.
        let check = judge_buffers(4 << 20, 6 << 20, 1e10, 0.05, 2);
        assert_eq!(check.state, State::Warn);
        let advice = check.advice.unwrap();
        assert!(advice.contains("--trunk-channels 15 "), "{advice}");
        assert!(advice.contains("16384 67108864'"), "{advice}");
        let check = judge_buffers(4 << 20, 6 << 20, 1e10, 0.000_2, 2);
        assert_eq!(check.state, State::Ok);
    }

    #[test]
    fn few_descriptors_are_told_of() {
        let check = descriptors(2);
        assert_ne!(check.state, State::Fail, "{check}");
        assert_eq!(descriptors(u64::MAX / 8).state, State::Fail);
    }
}
