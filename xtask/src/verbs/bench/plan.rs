//! `cargo xtask bench plan`: predictions of `multifd-bench plan`, beside migrations between real
//! QEMUs.

use std::path::PathBuf;
use std::process::Command;

use multifd_bench::links::Link;
use qemu_lab::{Chain, Content, Guest, QemuBinary, SETUP_COMMAND, Version, guest_pages};
use serde_json::{Value, json};

use super::qemu::{Way, migrate, way};
use crate::multifd;
use crate::{Result, output};

#[derive(clap::Args)]
pub struct Arguments {
    /// The guest's memory in MiB; three quarters of it are nonzero
    #[arg(long, default_value_t = 384)]
    memory: u32,
    #[arg(long, default_value_t = 2)]
    channels: u8,
    /// Content of the guest: `redis`, `idle`, or a file of pages
    #[arg(long, value_name = "FILE", default_value = "redis")]
    pages: String,
    /// Rates of links to measure, or `loopback`
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "100mbit,1gbit,2500mbit,loopback"
    )]
    links: Vec<String>,
    /// Number of measurements of each case
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// File for the figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Methods of a plan, and the ways of `bench qemu` that measure them.
const METHODS: [(&str, &str); 4] = [
    ("none", "qemu none"),
    ("zlib", "two relays, zlib, trunk"),
    ("zstd", "two relays, zstd, trunk"),
    ("auto", "two relays, auto, trunk"),
];

/// A prediction beside its measurement.
struct Case {
    link: String,
    /// Pages that the guest writes in a second.
    dirty_rate: u32,
    method: &'static str,
    plan: Predicted,
    /// The same figures, measured.
    measured: [f64; 3],
    load: String,
}

/// The answer of `multifd-bench plan`.
struct Predicted {
    /// The way's name, and the limit.
    name: String,
    /// Total time and downtime in milliseconds, and bytes on the link.
    figures: [f64; 3],
    /// The processors that it found free.
    processors: f64,
}

/// The dirty rates for a link: a tenth and a half of the plain pages that it carries, but no more
/// than a guest under TCG writes reliably beside two QEMUs on two processors.
fn dirty_rates(link: &str) -> [u32; 2] {
    match link {
        "100mbit" => [300, 1500],
        _ => [1000, 8000],
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let binary = QemuBinary::find(Version::V10_0)
        .or_else(|| QemuBinary::all().into_iter().next())
        .ok_or_else(|| format!("no QEMU here; to have one: {SETUP_COMMAND}"))?;
    let relays = multifd::build()?;
    let planner = multifd::build_bench()?;
    let content = Content::Pages(guest_pages(&arguments.pages)?.into());
    println!(
        "{binary} under TCG, guest of {} MiB, {} channels; load is the mean of the last minute\n\n{HEADER}",
        arguments.memory, arguments.channels
    );
    let mut cases = Vec::new();
    for name in &arguments.links {
        let link = (name != "loopback").then(|| Link::new(name)).transpose()?;
        let ends = link.as_ref().map(Link::ends);
        for dirty_rate in dirty_rates(name) {
            let guest = Guest {
                ram_mib: arguments.memory,
                // Every page of the working set is written again within two seconds.
                counters: dirty_rate * 2,
                blinkers: 0,
                still: arguments.memory * 192 - dirty_rate * 2,
                pages_per_tick: dirty_rate.div_ceil(100),
                content: content.clone(),
                ..Guest::default()
            };
            let mut chain = match ends {
                Some([end, _]) => Chain::start_at(end, &binary, &guest, "q35")?,
                None => Chain::start(&binary, &guest, "q35")?,
            };
            let methods = METHODS.repeat(arguments.runs.max(1));
            for (hops, (method, way_name)) in methods.into_iter().enumerate() {
                let way: &Way = way(way_name).ok_or("no such way")?;
                let way_there = ends.map(|[a, b]| if hops % 2 == 0 { [a, b] } else { [b, a] });
                let plan = plan(arguments, &planner, name, dirty_rate, method)?;
                let load = load()?;
                let figures = migrate(
                    &mut chain,
                    &binary,
                    &relays,
                    arguments.channels,
                    way,
                    way_there,
                    || None,
                )?;
                let case = Case {
                    link: name.clone(),
                    dirty_rate,
                    method,
                    plan,
                    measured: [figures.total_ms, figures.downtime_ms, figures.bytes],
                    load,
                };
                println!("{}", case.line());
                cases.push(case);
            }
        }
    }
    println!("\n{}", summary(&cases));
    if let Some(path) = &arguments.json {
        let rows: Vec<Value> = cases.iter().map(Case::row).collect();
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// Runs `multifd-bench plan` for one method.
fn plan(
    arguments: &Arguments,
    planner: &std::path::Path,
    link: &str,
    dirty_rate: u32,
    method: &str,
) -> Result<Predicted> {
    let mut command = Command::new(planner);
    command
        .args(["plan", "--json", "--same-host", "--method", method])
        .args(["--pages", &arguments.pages])
        .args(["--memory", &format!("{}M", arguments.memory)])
        .args(["--used", &format!("{}M", arguments.memory * 3 / 4)])
        .args(["--dirty-rate", &dirty_rate.to_string()])
        .args(["--working-set", &format!("{}K", dirty_rate * 8)])
        .args(["--channels", &arguments.channels.to_string()]);
    if link != "loopback" {
        command.args(["--link", link]);
    }
    let plan: Value = serde_json::from_str(&output(&mut command)?)?;
    let candidate = &plan["candidates"][0];
    let prediction = &candidate["prediction"];
    let figure = |name: &str, times: f64| {
        let number = prediction[name].as_f64();
        number
            .map(|number| number * times)
            .ok_or("a figure is missing")
    };
    let figures = [
        figure("total_s", 1e3)?,
        figure("downtime_s", 1e3)?,
        figure("wire_bytes", 1.0)?,
    ];
    let limit = prediction["limit"].as_str().unwrap_or_default();
    let name = candidate["name"].as_str().unwrap_or_default();
    let processors = plan["processors"].as_f64().unwrap_or_default();
    Ok(Predicted {
        name: format!("{name}, {limit}"),
        figures,
        processors,
    })
}

fn load() -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}

impl Case {
    /// The prediction's error as a part of the measured total time.
    fn error(&self) -> f64 {
        self.plan.figures[0] / self.measured[0] - 1.0
    }

    fn line(&self) -> String {
        let name = &self.plan.name;
        let [total, down, bytes] = self.plan.figures;
        let [measured, stopped, sent] = self.measured;
        format!(
            "| {} | {} | {} | {name} | {total:.0} | {measured:.0} | {:+.0} % | {down:.0} | {stopped:.0} | {:.0} | {:.0} | {:.1} | {} |",
            self.link,
            self.dirty_rate,
            self.method,
            self.error() * 100.0,
            bytes / 1e6,
            sent / 1e6,
            self.plan.processors,
            self.load,
        )
    }

    fn row(&self) -> Value {
        json!({
            "link": self.link,
            "dirty_pages_per_s": self.dirty_rate,
            "method": self.method,
            "plan": self.plan.name,
            "predicted_ms_ms_bytes": self.plan.figures,
            "measured_ms_ms_bytes": self.measured,
            "processors": self.plan.processors,
            "load": self.load,
        })
    }
}

/// The median and the worst error of all cases, and of those with the same limit.
fn summary(cases: &[Case]) -> String {
    let of = |words: &str, chosen: Vec<&Case>| {
        let mut errors: Vec<f64> = chosen
            .iter()
            .map(|case| case.error().abs() * 100.0)
            .collect();
        errors.sort_by(f64::total_cmp);
        let median = errors.get(errors.len() / 2).copied().unwrap_or(f64::NAN);
        let worst = errors.last().copied().unwrap_or(f64::NAN);
        format!(
            "{words}: {} cases, median error {median:.0} %, worst {worst:.0} %",
            errors.len()
        )
    };
    let is_link = |case: &&Case| case.plan.name.ends_with(", link");
    [
        of("all", cases.iter().collect()),
        of(
            "limited by the link",
            cases.iter().filter(is_link).collect(),
        ),
        of(
            "limited by processors",
            cases.iter().filter(|case| !is_link(case)).collect(),
        ),
    ]
    .join("\n")
}

const HEADER: &str = "\
| link | pages/s | method | plan | total ms: plan | measured | error | downtime ms: plan | measured | MB: plan | measured | processors free | load |
| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";
