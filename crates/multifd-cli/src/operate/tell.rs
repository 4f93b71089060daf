//! What `multifd migrate` and `multifd accept` print: notes and progress, or JSON lines.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use multifd_operate::destination::Arrived;
use multifd_operate::qemu::{MigrationStatus, RamStatus};
use multifd_operate::settings::{Change, Plan};
use multifd_operate::source::Moved;
use multifd_operate::{Failure, News, Progress, Whereabouts};
use multifd_relay::relay::MigrationReport;
use serde::Serialize;
use serde_json::Value;

use crate::process::Told;
use crate::relay::report::{Differences, Efforts, ratio};
use crate::say;

/// How often a line of progress is printed that nobody can overwrite.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Exit status of a migration that failed: the source has the guest.
const FAILED: u8 = 1;
/// Nobody can say here who has the guest.
const UNKNOWN: u8 = 3;
/// It was cancelled: the source has the guest.
const CANCELLED: u8 = 4;

/// One line of `--json-lines`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    Plan {
        side: &'a str,
        changes: Vec<ChangeLine<'a>>,
    },
    Listening {
        address: &'a str,
    },
    Begun {
        peer: &'a str,
    },
    Status {
        status: &'a str,
    },
    Progress(Figures),
    Note {
        text: &'a str,
    },
    End(Box<End>),
}

#[derive(Serialize)]
struct ChangeLine<'a> {
    name: &'a str,
    from: &'a Value,
    to: &'a Value,
}

impl<'a> From<&'a Change> for ChangeLine<'a> {
    fn from(change: &'a Change) -> Self {
        Self {
            name: &change.name,
            from: &change.from,
            to: &change.to,
        }
    }
}

/// How far a migration is.
#[derive(Serialize)]
struct Figures {
    seconds: f64,
    status: String,
    /// QEMU's figures, at the source alone.
    memory: Option<Memory>,
    /// Bytes from QEMU or the other relay to this one, and from this one on.
    bytes_in: u64,
    bytes_out: u64,
}

/// Figures of the source QEMU, before compression; in bytes, and bytes a second.
#[derive(Serialize)]
struct Memory {
    total: u64,
    remaining: u64,
    transferred: u64,
    rounds: u64,
    throughput: u64,
    dirty_rate: u64,
}

impl Memory {
    /// A destination has none.
    fn of(ram: &RamStatus) -> Option<Self> {
        (ram.total > 0).then(|| Self {
            total: ram.total,
            remaining: ram.remaining,
            transferred: ram.transferred,
            rounds: ram.dirty_sync_count,
            throughput: ram.throughput(),
            dirty_rate: ram.dirty_rate(),
        })
    }
}

impl Figures {
    fn of(progress: &Progress) -> Self {
        let Progress {
            elapsed,
            qemu,
            traffic,
            ..
        } = progress;
        Self {
            seconds: say::seconds(*elapsed),
            status: qemu.status.clone(),
            memory: Memory::of(&qemu.ram),
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
        }
    }
}

/// On one line; `{:#}` is for the width of a terminal.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s, {}", self.seconds, self.status)?;
        let (came, went) = (self.bytes_in, self.bytes_out);
        let Some(memory) = &self.memory else {
            if came == 0 {
                return Ok(());
            }
            let (came, went) = (say::size(came), say::size(went));
            return write!(f, ": {came} from the link, {went} to QEMU");
        };
        if f.alternate() {
            return write!(
                f,
                ": {} left, {}/s, dirty {}/s, link {} ({:.1}:1)",
                say::size(memory.remaining),
                say::size(memory.throughput),
                say::size(memory.dirty_rate),
                say::size(went),
                ratio(came, went)
            );
        }
        write!(
            f,
            ", round {}: {} of {} left, sends {}/s, guest writes {}/s; {} on the link, ratio {:.2}",
            memory.rounds,
            say::size(memory.remaining),
            say::size(memory.total),
            say::size(memory.throughput),
            say::size(memory.dirty_rate),
            say::size(went),
            ratio(came, went)
        )
    }
}

/// How it ended.
#[derive(Serialize)]
struct End {
    /// `whole`, `failed`, `cancelled` or `unknown`.
    outcome: &'static str,
    /// `source`, `destination` or `unknown`.
    guest: &'static str,
    error: Option<String>,
    /// QEMU's own figures, in milliseconds and bytes; at the source alone.
    total_time: Option<u64>,
    downtime: Option<u64>,
    memory: Option<Memory>,
    /// The state of the guest's machine, at the destination alone.
    state: Option<String>,
    /// The relay's figures.
    channels: Option<usize>,
    pages: Option<u64>,
    zero_pages: Option<u64>,
    bytes_in: Option<u64>,
    bytes_out: Option<u64>,
    ratio: Option<f64>,
    differences: Option<Differences>,
    auto: Option<Efforts>,
    remarks: Vec<String>,
}

impl End {
    fn of(outcome: &'static str, guest: Whereabouts) -> Self {
        Self {
            outcome,
            guest: guest.as_str(),
            error: None,
            total_time: None,
            downtime: None,
            memory: None,
            state: None,
            channels: None,
            pages: None,
            zero_pages: None,
            bytes_in: None,
            bytes_out: None,
            ratio: None,
            differences: None,
            auto: None,
            remarks: Vec::new(),
        }
    }

    fn with_report(mut self, report: Option<&MigrationReport>) -> Self {
        let Some(report) = report else {
            return self;
        };
        let totals = report.totals;
        self.channels = Some(report.channels);
        self.pages = Some(totals.pages);
        self.zero_pages = Some(totals.zero_pages);
        self.bytes_in = Some(totals.bytes_in);
        self.bytes_out = Some(totals.bytes_out);
        self.ratio = Some(ratio(totals.bytes_in, totals.bytes_out));
        self.differences = report.differences.map(Differences::from);
        self.auto = report.auto.as_ref().map(Efforts::from);
        self.remarks = report.remarks.iter().map(ToString::to_string).collect();
        self
    }

    fn with_qemu(mut self, qemu: &MigrationStatus) -> Self {
        self.total_time = Some(qemu.total_time);
        self.downtime = Some(qemu.downtime);
        self.memory = Memory::of(&qemu.ram);
        self
    }

    /// One sentence for people.
    fn words(&self) -> String {
        let mut text = match &self.state {
            Some(state) => format!("this QEMU has the guest (its state is {state})"),
            None => "the destination has the guest".to_owned(),
        };
        let mut add = |part: fmt::Arguments<'_>| text.push_str(&part.to_string());
        if let (Some(total), Some(downtime)) = (self.total_time, self.downtime) {
            add(format_args!("; total {total} ms, downtime {downtime} ms"));
        }
        if let Some(memory) = &self.memory {
            let (total, sent) = (say::size(memory.total), say::size(memory.transferred));
            let rounds = memory.rounds;
            add(format_args!(
                ", {total} of memory, {sent} from QEMU in {rounds} rounds"
            ));
        }
        if let (Some(came), Some(went), Some(channels)) =
            (self.bytes_in, self.bytes_out, self.channels)
        {
            let ratio = ratio(came, went);
            add(format_args!(
                "; {channels} channels, {came} bytes became {went}, ratio {ratio:.3}"
            ));
        }
        if let Some(differences) = &self.differences {
            add(format_args!(", {differences}"));
        }
        if let Some(auto) = &self.auto {
            add(format_args!(", {auto}"));
        }
        text
    }
}

/// Prints the news of one migration.
pub(super) struct Teller {
    json: bool,
    terminal: bool,
    progress: say::Progress,
    /// When the last line of progress was printed.
    line: Option<Instant>,
}

impl Teller {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stderr().is_terminal(),
            progress: say::Progress::new(),
            line: None,
        }
    }

    pub(super) fn tell(&mut self, news: News) {
        if self.json {
            match &news {
                News::Listening(address) => {
                    // Scripts and people wait for this line alike.
                    say::note(format_args!("listening on {address}"));
                    say::report_json(&Line::Listening { address });
                }
                News::Begun(peer) => say::report_json(&Line::Begun { peer }),
                News::Status(status) => say::report_json(&Line::Status { status }),
                News::Progress(progress) => {
                    say::report_json(&Line::Progress(Figures::of(progress)));
                }
                News::Note(text) => say::report_json(&Line::Note { text }),
                _ => {}
            }
            return;
        }
        match news {
            News::Listening(address) => self.note(&format!("listening on {address}")),
            News::Begun(peer) => self.note(&format!("a migration begins, from {peer}")),
            News::Status(status) => self.note(&format!("QEMU's migration is {status}")),
            News::Note(text) => self.note(&text),
            News::Progress(progress) => {
                let figures = Figures::of(&progress);
                if self.terminal {
                    self.progress.show(format_args!("{figures:#}"));
                } else if self.line.is_none_or(|line| line.elapsed() >= LINE_EVERY) {
                    self.line = Some(Instant::now());
                    say::note(figures);
                }
            }
            _ => {}
        }
    }

    pub(super) fn clear(&mut self) {
        self.progress.clear();
    }

    fn note(&mut self, text: &str) {
        self.progress.clear();
        say::note(text);
    }

    pub(super) fn moved(&mut self, moved: &Moved) {
        let end = End::of("whole", Whereabouts::Destination);
        self.end(
            end.with_qemu(&moved.qemu)
                .with_report(moved.report.as_ref()),
        );
    }

    pub(super) fn arrived(&mut self, arrived: &Arrived) {
        let mut end = End::of("whole", Whereabouts::Destination);
        end.state = Some(arrived.state.to_string());
        self.end(end.with_report(Some(&arrived.report)));
    }

    fn end(&mut self, end: End) {
        if self.json {
            say::report_json(&Line::End(Box::new(end)));
            return;
        }
        end.remarks.iter().for_each(|remark| self.note(remark));
        say::report_line(end.words());
    }
}

/// The end of a migration that did not come to a good one.
pub(super) fn failed(failure: &Failure, json: bool) -> Told {
    let (status, outcome) = match (failure.guest, failure.cancelled) {
        (Whereabouts::Unknown, _) => (UNKNOWN, "unknown"),
        (_, true) => (CANCELLED, "cancelled"),
        _ => (FAILED, "failed"),
    };
    let words = failure.to_string();
    if json {
        let mut end = End::of(outcome, failure.guest);
        end.error = Some(words.clone());
        say::report_json(&Line::End(Box::new(end)));
    }
    Told { status, words }
}

/// Prints what would be set.
pub(super) fn plan(plan: &Plan, side: &str, qmp: &Path, json: bool) -> io::Result<()> {
    if json {
        return say::json(&Line::Plan {
            side,
            changes: plan.changes.iter().map(ChangeLine::from).collect(),
        });
    }
    let at = say::printable_path(qmp);
    if plan.changes.is_empty() {
        return say::result(format_args!("{side} QEMU at {at}: nothing has to be set"));
    }
    say::result(format_args!(
        "{side} QEMU at {at}: would be set, and put back at the end:"
    ))?;
    let mut changes = plan.changes.iter();
    changes.try_for_each(|change| say::result(format_args!("  {change}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            seconds: 119.5,
            status: "active".to_owned(),
            memory: Some(Memory {
                total: 64 << 30,
                remaining: 1000 << 20,
                transferred: 1,
                rounds: 3,
                throughput: 1000 << 20,
                dirty_rate: 1000 << 20,
            }),
            bytes_in: 3 << 30,
            bytes_out: 1 << 30,
        }
    }

    #[test]
    fn progress_fits_a_terminal_and_a_log_has_all_of_it() {
        let short = format!("{:#}", figures());
        let expected = "119.5 s, active: 1000.0 MiB left, 1000.0 MiB/s, dirty 1000.0 MiB/s, link 1.0 \
                        GiB (3.0:1)";
        assert_eq!(short, expected);
        let long = figures().to_string();
        assert!(
            long.contains("round 3: 1000.0 MiB of 64.0 GiB left"),
            "{long}"
        );
        let destination = Figures {
            memory: None,
            ..figures()
        };
        let expected = "119.5 s, active: 3.0 GiB from the link, 1.0 GiB to QEMU";
        assert_eq!(destination.to_string(), expected);
    }
}
