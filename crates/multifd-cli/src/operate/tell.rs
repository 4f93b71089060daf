//! The output of `multifd migrate` and `multifd accept`: notes and progress, or JSON lines.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use multifd_operate::destination::Arrived;
use multifd_operate::qemu::{MigrationStatus, RamStatus};
use multifd_operate::settings::{Change, Plan};
use multifd_operate::source::Moved;
use multifd_operate::{Failure, News, Progress, Whereabouts};
use multifd_relay::relay::{MigrationReport, Traffic};
use serde::Serialize;
use serde_json::Value;

use crate::pace::{self, Left, Limit, Pace};
use crate::page::{Ending, Page, Record};
use crate::process::Told;
use crate::relay::report::{Differences, Efforts, ratio};
use crate::say;

/// Time between two printed lines of progress where output is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Exit status of a migration that failed: the source has the guest.
const FAILED: u8 = 1;
/// The place of the guest is unknown here.
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

/// The progress of a migration.
#[derive(Serialize)]
struct Figures {
    seconds: f64,
    status: String,
    /// QEMU's figures, at the source alone.
    memory: Option<Memory>,
    /// Bytes from QEMU or the other relay to this one, and from this one on.
    bytes_in: u64,
    bytes_out: u64,
    /// The share that was sent: of the guest's memory, or of its first pass if QEMU reports
    /// nothing.
    percent: Option<f64>,
    /// Estimated time for the rest at this rate. None if it is not known, or has no end.
    seconds_left: Option<f64>,
    /// Whether the guest's memory is sent faster than the guest writes to it, after the first
    /// round.
    converges: Option<bool>,
    /// The activity that takes most of the channels' time.
    limit: Option<&'static str>,
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

impl Memory {
    fn percent(&self) -> f64 {
        let gone = self.total.saturating_sub(self.remaining);
        gone as f64 / self.total.max(1) as f64 * 100.0
    }

    /// Time at this rate to send the remaining bytes, and the pages that the guest writes
    /// meanwhile.
    fn left(&self) -> Option<Duration> {
        let gain = self.throughput.saturating_sub(self.dirty_rate);
        pace::seconds(self.remaining as f64 / gain as f64)
    }

    /// In the first round QEMU does not know what the guest writes.
    fn converges(&self) -> Option<bool> {
        let is_known = self.rounds > 1 && self.throughput > 0 && self.remaining > 0;
        is_known.then_some(self.throughput > self.dirty_rate)
    }
}

impl Figures {
    fn of(progress: &Progress, pace: &Pace) -> Self {
        let Progress {
            elapsed,
            qemu,
            traffic,
            ..
        } = progress;
        let memory = Memory::of(&qemu.ram);
        // In the switch-over the guest stands still, and in postcopy it runs elsewhere.
        let is_sending = qemu.status == "active";
        let (percent, left) = match &memory {
            Some(memory) => {
                // QEMU keeps its last rate while nothing moves.
                let moves = pace.rates().is_none_or(|[came, _]| came > 0.0);
                let left = memory.left().filter(|_| is_sending && moves);
                (Some(memory.percent()), left)
            }
            None => match pace.first_pass() {
                Some((percent, left)) => (Some(percent), left),
                None => (None, None),
            },
        };
        Self {
            seconds: say::seconds(*elapsed),
            status: qemu.status.clone(),
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
            percent: percent.map(|percent| say::rounded(percent, 1)),
            seconds_left: left.map(say::seconds),
            converges: memory
                .as_ref()
                .and_then(Memory::converges)
                .filter(|_| is_sending),
            limit: pace.limit().map(Limit::as_str),
            memory,
        }
    }
}

/// On one line; `{:#}` is for a terminal, the most important first.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s, {}", self.seconds, self.status)?;
        let (came, went) = (self.bytes_in, self.bytes_out);
        let memory = self.memory.as_ref();
        if let (Some(memory), false) = (memory, f.alternate()) {
            write!(f, ", round {}", memory.rounds)?;
        }
        if came == 0 && memory.is_none() {
            return Ok(());
        }
        f.write_str(": ")?;
        if let Some(percent) = self.percent {
            // Not 100 before it is.
            write!(f, "{:.0} %, ", percent.min(99.0))?;
        }
        match (self.converges, self.seconds_left) {
            (Some(false), _) => f.write_str("does not converge, ")?,
            (_, Some(left)) => write!(f, "{}, ", Left(Duration::from_secs_f64(left)))?,
            _ => {}
        }
        match (memory, f.alternate()) {
            (Some(memory), true) => write!(
                f,
                "{} to go, {}/s, dirty {}/s, {:.1}:1",
                say::size(memory.remaining),
                say::size(memory.throughput),
                say::size(memory.dirty_rate),
                ratio(came, went)
            )?,
            (Some(memory), false) => write!(
                f,
                "{} of {} to go, sends {}/s, guest writes {}/s; {} on the link, ratio {:.2}",
                say::size(memory.remaining),
                say::size(memory.total),
                say::size(memory.throughput),
                say::size(memory.dirty_rate),
                say::size(went),
                ratio(came, went)
            )?,
            (None, _) => write!(
                f,
                "{} from the link, {} to QEMU",
                say::size(came),
                say::size(went)
            )?,
        }
        match self.limit {
            Some(limit) => write!(f, ", limit: {limit}"),
            None => Ok(()),
        }
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
    pace: Pace,
    begun: Instant,
    record: Record,
    /// The traffic so far.
    traffic: Traffic,
}

/// A migration that went well.
pub(super) enum Good {
    Moved(Moved),
    Arrived(Arrived),
}

impl Good {
    fn report(&self) -> Option<&MigrationReport> {
        match self {
            Self::Moved(moved) => moved.report.as_ref(),
            Self::Arrived(arrived) => Some(&arrived.report),
        }
    }

    fn end(&self) -> End {
        let whole = End::of("whole", Whereabouts::Destination);
        let end = match self {
            Self::Moved(moved) => whole.with_qemu(&moved.qemu),
            Self::Arrived(arrived) => End {
                state: Some(arrived.state.to_string()),
                ..whole
            },
        };
        end.with_report(self.report())
    }
}

impl Teller {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stderr().is_terminal(),
            progress: say::Progress::new(),
            line: None,
            pace: Pace::default(),
            begun: Instant::now(),
            record: Record::new(),
            traffic: Traffic::default(),
        }
    }

    pub(super) fn tell(&mut self, news: News) {
        self.keep(&news);
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
                    say::report_json(&Line::Progress(Figures::of(progress, &self.pace)));
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
                let figures = Figures::of(&progress, &self.pace);
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

    /// Keeps what the page and the next lines are made from.
    fn keep(&mut self, news: &News) {
        let at = self.begun.elapsed();
        match news {
            News::Begun(_) => {
                self.begun = Instant::now();
                self.record.begins();
            }
            News::Status(status) => {
                let words = format_args!("QEMU's migration is {status}");
                self.record.note(at, words);
            }
            News::Note(text) => self.record.note(at, text),
            News::Progress(progress) => {
                let Progress {
                    elapsed,
                    qemu,
                    traffic,
                    waits,
                    ..
                } = progress.as_ref();
                self.traffic = *traffic;
                self.pace.waits(waits);
                self.pace.progress(*elapsed, traffic);
                self.record.waits(waits);
                self.record.progress(*elapsed, traffic, Some(&qemu.ram));
            }
            _ => {}
        }
    }

    /// The page about a migration that has ended.
    pub(super) fn page(&mut self, title: String, outcome: Result<&Good, &Failure>) -> Page {
        let record = std::mem::replace(&mut self.record, Record::new());
        let good = match outcome {
            Ok(good) => good,
            Err(failure) => return self.failed_page(title, failure, record),
        };
        let (end, report) = (good.end(), good.report());
        let mut page = Page::new(title, Ending::Whole, end.words(), record);
        if let (Some(total), Some(downtime)) = (end.total_time, end.downtime) {
            page.figure("QEMU's total time", format_args!("{total} ms"));
            page.figure("downtime", format_args!("{downtime} ms"));
        }
        if let Some(memory) = &end.memory {
            page.figure("rounds", memory.rounds);
            page.figure("bytes from QEMU", say::size(memory.transferred));
        }
        match report {
            Some(report) => page.report(report),
            None => page.traffic(&self.traffic, self.begun.elapsed()),
        }
        page
    }

    fn failed_page(&self, title: String, failure: &Failure, record: Record) -> Page {
        let ending = match (failure.guest, failure.cancelled) {
            (Whereabouts::Unknown, _) => Ending::Unknown,
            (_, true) => Ending::Cancelled,
            _ => Ending::Failed,
        };
        let mut page = Page::new(title, ending, failure.to_string(), record);
        page.figure("guest", failure.guest.as_str());
        page.traffic(&self.traffic, self.begun.elapsed());
        page
    }

    pub(super) fn clear(&mut self) {
        self.progress.clear();
    }

    fn note(&mut self, text: &str) {
        self.progress.clear();
        say::note(text);
    }

    /// Tells that it went well. Remarks come before the line with the outcome.
    pub(super) fn well(&mut self, good: &Good) {
        let end = good.end();
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
            percent: Some(98.5),
            seconds_left: Some(12.0),
            converges: Some(true),
            limit: Some("network"),
        }
    }

    #[test]
    fn progress_has_the_most_important_first_and_a_log_has_all_of_it() {
        let short = format!("{:#}", figures());
        let expected = "119.5 s, active: 98 %, 12 s left, 1000.0 MiB to go, 1000.0 MiB/s, dirty 1000.0 \
                        MiB/s, 3.0:1, limit: network";
        assert_eq!(short, expected);
        let long = figures().to_string();
        assert!(
            long.contains("active, round 3: 98 %, 12 s left, 1000.0 MiB of 64.0 GiB to go"),
            "{long}"
        );
        let destination = Figures {
            memory: None,
            converges: None,
            ..figures()
        };
        let expected = "119.5 s, active: 98 %, 12 s left, 3.0 GiB from the link, 1.0 GiB to QEMU, \
                        limit: network";
        assert_eq!(destination.to_string(), expected);
        let busy = Figures {
            converges: Some(false),
            ..figures()
        };
        assert!(format!("{busy:#}").contains("98 %, does not converge, 1000.0 MiB to go"));
    }

    #[test]
    fn a_guest_that_writes_faster_than_it_is_sent_has_no_end() {
        let memory = |throughput, rounds| Memory {
            throughput,
            rounds,
            remaining: 100,
            total: 400,
            dirty_rate: 50,
            ..figures().memory.unwrap()
        };
        assert_eq!(memory(100, 2).left(), Some(Duration::from_secs(2)));
        assert_eq!(memory(100, 2).converges(), Some(true));
        assert_eq!(memory(100, 2).percent(), 75.0);
        assert_eq!(memory(50, 2).left(), None);
        assert_eq!(memory(50, 2).converges(), Some(false));
        assert_eq!(memory(50, 1).converges(), None, "it is not known yet");
    }
}
