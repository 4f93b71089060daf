//! The report on one migration as a page for a browser: one file that needs nothing else.

mod chart;
mod markup;
mod series;
mod writer;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use multifd_operate::qemu::RamStatus;
use multifd_relay::relay::{ChannelWaits, MigrationReport, Traffic, Waits, Work};
use time::OffsetDateTime;

use self::chart::{Line, Plot, Unit, bar};
use self::markup::Markup;
use self::series::{Sample, Series};
pub(crate) use self::writer::Writer;
use crate::pace;
use crate::relay::report::{Differences, Efforts, ratio};
use crate::say;

/// The most notes that a page has.
const MOST_NOTES: usize = 100;

/// An interval with less than this part of the busiest one's bytes has a ratio of chance.
const LEAST_TRAFFIC: f64 = 0.01;

/// The figures of a migration that are kept for its page while it runs. It is bounded.
#[derive(Debug)]
pub(crate) struct Record {
    began: SystemTime,
    series: Series,
    channels: Vec<ChannelWaits>,
    notes: Vec<(Duration, String)>,
    more_notes: u64,
}

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The destination has the guest.
    Whole,
    /// Everything was delivered, and the destination could not say more.
    Unconfirmed,
    /// The source has the guest.
    Failed,
    /// It was cancelled: the source has the guest.
    Cancelled,
    /// The place of the guest is unknown here.
    Unknown,
}

impl Ending {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Unconfirmed => "not confirmed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }

    /// In the style sheet.
    const fn class(self) -> &'static str {
        match self {
            Self::Whole => "ending good",
            Self::Cancelled | Self::Unconfirmed => "ending",
            Self::Failed | Self::Unknown => "ending bad",
        }
    }
}

/// A page before it is written.
#[derive(Debug)]
pub(crate) struct Page {
    title: String,
    ending: Ending,
    words: String,
    record: Record,
    figures: Vec<(&'static str, String)>,
    /// The backend: in words, and pages by an accelerator, by processors and as they are.
    paths: Vec<(&'static str, String, [u64; 3])>,
    efforts: Vec<(String, u64)>,
    remarks: Vec<String>,
}

impl Record {
    /// A migration that begins.
    pub(crate) fn new() -> Self {
        Self {
            began: SystemTime::now(),
            series: Series::default(),
            channels: Vec::new(),
            notes: Vec::new(),
            more_notes: 0,
        }
    }

    /// It begins only now.
    pub(crate) fn begins(&mut self) {
        self.began = SystemTime::now();
    }

    /// The progress at a time.
    pub(crate) fn progress(&mut self, at: Duration, traffic: &Traffic, qemu: Option<&RamStatus>) {
        self.series.push(Sample::new(at, traffic, qemu));
    }

    /// The waits of its channels.
    pub(crate) fn waits(&mut self, channels: &[ChannelWaits]) {
        self.channels = channels.to_vec();
    }

    /// The messages about it.
    pub(crate) fn note(&mut self, at: Duration, text: impl Display) {
        match self.notes.len() < MOST_NOTES {
            true => self.notes.push((at, text.to_string())),
            false => self.more_notes = self.more_notes.saturating_add(1),
        }
    }

    /// Makes a name of its own for the page in `folder`, from the time of the beginning, what the
    /// guest is called, and a number.
    pub(crate) fn path_in(&self, folder: &Path, guest: Option<&str>, number: u64) -> PathBuf {
        let began = in_utc(self.began);
        let (year, month, day) = began.to_calendar_date();
        let (hour, minute, second) = began.to_hms();
        let time = format!(
            "{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}Z",
            u8::from(month)
        );
        // Names of guests are checked, and UUIDs are made here.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let guest = guest.filter(|guest| guest.chars().all(is_plain));
        let guest = guest.map(|guest| format!("-{guest}")).unwrap_or_default();
        folder.join(format!("{time}{guest}-{number}.html"))
    }
}

impl Page {
    pub(crate) fn new(title: String, ending: Ending, words: String, record: Record) -> Self {
        let began = in_words(in_utc(record.began));
        Self {
            title,
            ending,
            words,
            record,
            figures: vec![("began", began)],
            paths: Vec::new(),
            efforts: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Adds a line to the table of figures.
    pub(crate) fn figure(&mut self, name: &'static str, value: impl Display) {
        self.figures.push((name, value.to_string()));
    }

    /// Adds what a relay reports on a migration that it has delivered.
    pub(crate) fn report(&mut self, report: &MigrationReport) {
        let last = self.record.series.samples().last();
        let at = last.map_or(report.duration, |last| last.at.max(report.duration));
        let asked = last.filter(|last| last.remaining.is_some());
        let end = Sample {
            // QEMU's count goes on as it was.
            rounds: asked.map_or(report.totals.rounds, |last| last.rounds),
            remaining: asked.map(|_| 0),
            ..Sample::new(at, &report.totals, None)
        };
        self.record.series.push(end);
        self.record.waits(&report.waits);
        self.figure("peer", &report.peer);
        self.figure("channels", report.channels);
        self.traffic(&report.totals, report.duration);
        let works = [("decoded", &report.decoded), ("encoded", &report.encoded)];
        for (what, work) in works {
            if let Some(Work {
                method,
                backend,
                pages,
                ..
            }) = work
            {
                let words = format!("{method} by {backend}");
                let ways = [pages.hardware, pages.software, pages.raw];
                self.paths.push((what, words, ways));
            }
        }
        if let Some(auto) = &report.auto {
            let steps = auto.steps.iter();
            let efforts = steps.map(|(step, totals)| (step.to_string(), totals.page_bytes));
            self.efforts = efforts.filter(|(_, bytes)| *bytes > 0).collect();
            self.figure("efforts", Efforts::from(auto));
        }
        if let Some(differences) = report.differences {
            self.figure("differences", Differences::from(differences));
        }
        if let Some(verified) = &report.verified {
            self.figure(
                "verified",
                format_args!("{} pages in {} rounds", verified.pages, verified.rounds),
            );
        }
        self.remarks = report.remarks.iter().map(ToString::to_string).collect();
    }

    /// Adds what has gone through, in this much time.
    pub(crate) fn traffic(&mut self, traffic: &Traffic, took: Duration) {
        let (came, went) = (traffic.bytes_in, traffic.bytes_out);
        self.figure("duration", format_args!("{:.3} s", took.as_secs_f64()));
        if traffic.memory > 0 {
            self.figure("guest's memory", say::size(traffic.memory));
        }
        self.figure("pages with contents", traffic.pages);
        self.figure("zero pages", traffic.zero_pages);
        self.figure("bytes in", format_args!("{came} ({})", say::size(came)));
        self.figure("bytes out", format_args!("{went} ({})", say::size(went)));
        self.figure("ratio", format_args!("{:.3}", ratio(came, went)));
        let seconds = took.as_secs_f64();
        if seconds > 0.0 {
            let rate = |bytes: u64| say::size((bytes as f64 / seconds) as u64);
            self.figure(
                "mean rates",
                format_args!("{}/s in, {}/s out", rate(came), rate(went)),
            );
        }
    }

    /// The page's text.
    pub(crate) fn html(&self) -> String {
        let mut page = Markup::default();
        page.raw("<!DOCTYPE html>");
        page.element("html", &[("lang", &"en")], |page| {
            page.element("head", &[], |page| {
                page.void("meta", &[("charset", &"utf-8")]);
                let view = "width=device-width, initial-scale=1";
                page.void("meta", &[("name", &"viewport"), ("content", &view)]);
                page.void(
                    "meta",
                    &[("name", &"color-scheme"), ("content", &"light dark")],
                );
                page.words("title", &[], &self.title);
                page.element("style", &[], |page| page.raw(STYLE));
            });
            page.element("body", &[], |page| self.body(page));
        });
        page.finish() + "\n"
    }

    fn body(&self, page: &mut Markup) {
        page.words("h1", &[], &self.title);
        page.words(
            "p",
            &[("class", &self.ending.class())],
            self.ending.as_str(),
        );
        for line in self.words.lines() {
            page.words("p", &[], line);
        }
        if self.record.series.samples().len() > 2 {
            page.words("h2", &[], "Over time");
            self.plots(page);
        }
        self.waits(page);
        self.paths(page);
        page.words("h2", &[], "Figures");
        page.element("table", &[], |page| {
            for (name, value) in &self.figures {
                row(page, name, value);
            }
        });
        self.notes(page);
        let version = env!("CARGO_PKG_VERSION");
        page.words("footer", &[], format_args!("multifd {version}"));
    }

    fn plots(&self, page: &mut Markup) {
        let samples = &self.record.series.spaced();
        let until = samples.last().map_or(0.0, |last| last.at.as_secs_f64());
        let pairs = || samples.iter().zip(samples.iter().skip(1));
        let ends = pairs().filter(|(before, now)| now.rounds > before.rounds);
        let marks: Vec<_> = ends
            .map(|(_, now)| (now.at.as_secs_f64(), now.rounds))
            .collect();
        let over = |value: fn(&Sample) -> Option<u64>| -> Vec<(f64, f64)> {
            let points = samples.iter();
            let points = points.filter_map(|now| Some((now.at, value(now)?)));
            points
                .map(|(at, value)| (at.as_secs_f64(), value as f64))
                .collect()
        };
        // The bytes between two samples, with the time of both.
        let between = |count: fn(&Sample) -> u64| {
            pairs().map(move |(before, now)| {
                let (from, to) = (before.at.as_secs_f64(), now.at.as_secs_f64());
                let more = count(now).saturating_sub(count(before));
                (from, to, more as f64)
            })
        };
        let rate = |count: fn(&Sample) -> u64| -> Vec<(f64, f64)> {
            between(count)
                .filter(|(from, to, _)| to > from)
                .flat_map(|(from, to, bytes)| [from, to].map(|at| (at, bytes / (to - from))))
                .collect()
        };
        let line = |name, class, points| Line {
            name,
            class,
            points,
        };
        let bytes_in: fn(&Sample) -> u64 = |sample| sample.bytes_in;
        let bytes_out: fn(&Sample) -> u64 = |sample| sample.bytes_out;
        let busiest = between(bytes_in).fold(0.0, |most, (.., bytes)| f64::max(most, bytes));
        let ratios = between(bytes_in)
            .zip(between(bytes_out))
            .filter(|((.., came), (.., went))| *came >= busiest * LEAST_TRAFFIC && *went > 0.0)
            .flat_map(|((from, to, came), (.., went))| [from, to].map(|at| (at, came / went)));
        let plots = [
            (
                "Rates",
                Unit::BytesPerSecond,
                vec![
                    line("before", "in", rate(bytes_in)),
                    line("after", "out", rate(bytes_out)),
                ],
            ),
            (
                "Bytes",
                Unit::Bytes,
                vec![
                    line("before", "in", over(|sample| Some(sample.bytes_in))),
                    line("after", "out", over(|sample| Some(sample.bytes_out))),
                    line(
                        "left at the source",
                        "left",
                        over(|sample| sample.remaining),
                    ),
                ],
            ),
            (
                "Ratio",
                Unit::Ratio,
                vec![line("bytes before for each after", "in", ratios.collect())],
            ),
        ];
        for (title, unit, lines) in plots {
            let marks = &marks;
            let plot = Plot {
                title,
                unit,
                lines,
                until,
                marks,
            };
            plot.draw(page);
        }
        page.element("p", &[("class", &"small")], |page| {
            page.text("Before and after: bytes that came to this relay, and that it passed on.");
            let rounds = samples.last().map_or(0, |last| last.rounds);
            if rounds > 0 {
                page.text(format_args!(
                    " Vertical lines: ends of rounds, {rounds} in all."
                ));
            }
        });
    }

    /// Time by cause of waiting, for each channel.
    fn waits(&self, page: &mut Markup) {
        let channels = &self.record.channels;
        let is_told = channels
            .iter()
            .any(|told| told.waits.total() > Duration::ZERO);
        if !is_told {
            return;
        }
        page.words("h2", &[], "What each channel waited for");
        page.element("p", &[("class", &"keys")], |page| {
            let all = channels
                .iter()
                .fold(Waits::default(), |all, told| all.plus(&told.waits));
            let is_limited = |cause| cause != "--max-rate" || all.rate_limit > Duration::ZERO;
            for (cause, _) in parts(&all)
                .into_iter()
                .filter(|(cause, _)| is_limited(*cause))
            {
                let class = format!("key {}", class_of(cause));
                page.words("span", &[("class", &class)], cause);
            }
        });
        let one = |page: &mut Markup, name: &dyn Display, waits: &Waits| {
            let all = waits.total().as_secs_f64();
            if all <= 0.0 {
                return;
            }
            page.element("div", &[("class", &"channel")], |page| {
                page.words("b", &[], name);
                let parts = parts(waits).map(|(cause, time)| (cause, time.as_secs_f64()));
                bar(page, &parts.map(|(cause, time)| (class_of(cause), time)));
                let told = parts.iter().filter(|(_, time)| time / all >= 0.005);
                let told = told.map(|(cause, time)| format!("{cause} {:.0} %", time / all * 100.0));
                let told: Vec<_> = told.collect();
                let told = format!("{:.1} s: {}", all, told.join(", "));
                page.words("span", &[("class", &"small")], told);
            });
        };
        if channels.len() > 2 {
            one(page, &"all channels with pages", &pace::sum(channels));
        }
        for told in channels {
            one(page, &told.channel, &told.waits);
        }
        page.words(
            "p",
            &[("class", &"small")],
            "Source: reading from it, and waiting for it and the network before this relay. Codec: \
             computing here. --max-rate: the limit of this relay. Network: bytes wait to be sent, and others are on their way. \
             Destination: bytes wait because the other end does not read. Other channels: waiting at \
             the end of a round. Network and destination are told apart ten times in a second.",
        );
    }

    /// The backend, and the pages of each effort.
    fn paths(&self, page: &mut Markup) {
        if self.paths.is_empty() && self.efforts.is_empty() {
            return;
        }
        page.words("h2", &[], "What computed");
        for (what, words, ways) in &self.paths {
            page.element("div", &[("class", &"channel")], |page| {
                page.words("b", &[], format_args!("{what}: {words}"));
                let names = ["hardware", "software", "raw"];
                let classes = ["source", "codec", "network"];
                let parts = classes.iter().zip(ways);
                let parts: Vec<_> = parts
                    .map(|(class, pages)| (*class, *pages as f64))
                    .collect();
                bar(page, &parts);
                page.element("span", &[("class", &"keys")], |page| {
                    for ((name, class), pages) in names.iter().zip(classes).zip(ways) {
                        let class = format!("key {class}");
                        let text = format_args!("{name} {pages} pages");
                        page.words("span", &[("class", &class)], text);
                    }
                });
            });
        }
        let all: u64 = self.efforts.iter().map(|(_, bytes)| bytes).sum();
        if all > 0 {
            page.words("h3", &[], "Bytes of pages by effort");
            page.element("table", &[], |page| {
                for (effort, bytes) in &self.efforts {
                    let part = *bytes as f64 / all as f64 * 100.0;
                    row(
                        page,
                        effort,
                        &format!("{} ({part:.1} %)", say::size(*bytes)),
                    );
                }
            });
        }
    }

    fn notes(&self, page: &mut Markup) {
        let Record {
            notes, more_notes, ..
        } = &self.record;
        if notes.is_empty() && self.remarks.is_empty() {
            return;
        }
        page.words("h2", &[], "Notes");
        page.element("ul", &[], |page| {
            for (at, note) in notes {
                let at = at.as_secs_f64();
                page.words("li", &[], format_args!("{at:.1} s: {note}"));
            }
            if *more_notes > 0 {
                page.words("li", &[], format_args!("{more_notes} more notes"));
            }
            for remark in &self.remarks {
                page.words("li", &[], remark);
            }
        });
    }
}

fn row(page: &mut Markup, name: &str, value: &str) {
    page.element("tr", &[], |page| {
        page.words("th", &[], name);
        page.words("td", &[], value);
    });
}

fn parts(waits: &Waits) -> [(&'static str, Duration); 6] {
    [
        ("source", waits.source),
        ("codec", waits.codec),
        ("--max-rate", waits.rate_limit),
        ("network", waits.network),
        ("destination", waits.destination),
        ("other channels", waits.channels),
    ]
}

/// In the style sheet.
fn class_of(cause: &'static str) -> &'static str {
    match cause {
        "other channels" => "others",
        "--max-rate" => "max-rate",
        cause => cause,
    }
}

/// A moment in UTC. One that is in no calendar is shown as the beginning of 1970.
fn in_utc(time: SystemTime) -> OffsetDateTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).ok();
    let known = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    known.unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// A moment as people write it.
fn in_words(moment: OffsetDateTime) -> String {
    let (hour, minute, second) = moment.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", moment.date())
}

/// Without `<` and `&`, so that it is the same in HTML and XML.
const STYLE: &str = "\
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#57606a;--line:#d0d7de;--good:#1a7f37;--bad:#b42318;\
--a:#1f6fb2;--b:#b35900;--c:#a4265e;--d:#2b7a4b;--e:#7a6f00;--f:#5a4fa3}
@media (prefers-color-scheme:dark){:root{--back:#14171b;--text:#e6e9ed;--soft:#a0a9b4;--line:#3a424c;--good:#5bd075;\
--bad:#ff8a80;--a:#6cb6ff;--b:#ffa657;--c:#ff8fb8;--d:#6fd39b;--e:#d8c84f;--f:#b9a7ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:56rem;padding:1rem;background:var(--back);color:var(--text);\
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4rem;margin:.3rem 0}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
p{margin:.4rem 0}
.ending{display:inline-block;padding:0 .6rem;border:2px solid var(--soft);border-radius:.4rem;font-weight:600}
.good{border-color:var(--good);color:var(--good)}
.bad{border-color:var(--bad);color:var(--bad)}
.small,footer{color:var(--soft);font-size:.85rem}
footer{margin-top:2rem}
figure{margin:1.2rem 0 0}
.key{display:inline-block;margin-left:1rem;font-size:.85rem}
.keys .key{margin:0 1rem 0 0}
.key::before{content:'';display:inline-block;width:.9rem;height:.6rem;margin-right:.4rem;background:var(--key)}
.plot{position:relative;height:12rem;margin:1.4rem 1.2rem 1.8rem 5.6rem}
svg{display:block;width:100%;height:100%;overflow:visible}
path{fill:none;stroke:var(--key);stroke-width:2;vector-effect:non-scaling-stroke}
.grid{--key:var(--line);stroke-width:1}
.mark{--key:var(--soft);stroke-width:1;stroke-dasharray:2 4}
.out{stroke-dasharray:7 3}
.left{stroke-dasharray:2 3}
.x,.y,.round{position:absolute;color:var(--soft);font-size:.8rem;line-height:1;white-space:nowrap}
.y{right:100%;transform:translateY(50%);padding-right:.5rem}
.x{top:100%;transform:translateX(-50%);padding-top:.4rem}
.round{bottom:100%;transform:translateX(-50%);padding-bottom:.2rem}
.in,.source{--key:var(--a)}
.out,.codec{--key:var(--b)}
.left,.network{--key:var(--c)}
.destination{--key:var(--d)}
.others{--key:var(--e)}
.max-rate{--key:var(--f)}
.channel{margin:.7rem 0}
.bar{height:1rem;margin:.15rem 0}
.bar path{fill:var(--key);stroke:none}
table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .5rem .25rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{width:11rem;font-weight:400;color:var(--soft)}
@media (max-width:30rem){body{padding:.75rem}.plot{margin-left:4.9rem;margin-right:.8rem}th{width:7.5rem}}
";

#[cfg(test)]
mod tests {
    use multifd_transport::failure::Channel;

    use super::markup::tests::well_formed;
    use super::*;

    fn traffic(bytes_in: u64, rounds: u64) -> Traffic {
        let mut traffic = Traffic::default();
        (traffic.bytes_in, traffic.bytes_out) = (bytes_in, bytes_in / 3);
        (traffic.rounds, traffic.memory) = (rounds, 1 << 30);
        traffic
    }

    fn record() -> Record {
        let mut record = Record::new();
        for half in 1..=40_u32 {
            let at = Duration::from_millis(500) * half;
            record.progress(
                at,
                &traffic(u64::from(half) << 24, u64::from(half) / 10),
                None,
            );
        }
        record
    }

    fn page(record: Record) -> Page {
        let words = "one\n<script>alert(1)</script> & \"two\"".to_owned();
        let mut page = Page::new("Guest <vm>".to_owned(), Ending::Failed, words, record);
        page.traffic(&traffic(5, 0), Duration::from_secs(1));
        page
    }

    #[test]
    fn a_recorded_migration_becomes_a_sound_page_that_needs_nothing_else() {
        let mut record = record();
        record.note(Duration::from_secs(2), "QEMU says <b>no</b>");
        let html = page(record).html();
        let words = well_formed(&html);
        for word in ["Guest <vm>", "Rates", "Ratio", "failed", "4"] {
            assert!(words.contains(&word.to_owned()), "{word}: {words:?}");
        }
        assert!(html.contains("ends of rounds, 4 in all"), "{html}");
        assert_eq!(html.matches("class=\"mark\"").count(), 3 * 4);
        for foreign in [
            "<script", "<b>no", "http", "src=", "url(", "@import", "href", "NaN",
        ] {
            assert!(!html.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_page_without_a_beginning_has_no_plots() {
        let html = page(Record::new()).html();
        well_formed(&html);
        assert!(!html.contains("<svg"), "{html}");
    }

    #[test]
    fn notes_are_bounded_and_counted() {
        let mut record = Record::new();
        for number in 0..MOST_NOTES + 5 {
            record.note(Duration::ZERO, format_args!("note {number}"));
        }
        let html = page(record).html();
        assert!(
            html.contains("5 more notes") && !html.contains("note 101"),
            "{html}"
        );
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, told) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            let moment = in_utc(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(in_words(moment), told);
        }
    }

    #[test]
    fn a_page_in_a_folder_has_a_name_of_its_own_there() {
        let mut record = Record::new();
        record.began = UNIX_EPOCH + Duration::from_secs(951_782_400);
        let path = |guest| record.path_in(Path::new("/r"), guest, 7);
        assert_eq!(
            path(Some("vm.1")),
            Path::new("/r/20000229T000000Z-vm.1-7.html")
        );
        assert_eq!(path(Some("../x")), Path::new("/r/20000229T000000Z-7.html"));
        assert_eq!(path(None), Path::new("/r/20000229T000000Z-7.html"));
    }

    #[test]
    fn channels_are_told_with_the_parts_of_their_time() {
        let mut report = page(record());
        let mut waits = Waits::default();
        waits.network = Duration::from_secs(3);
        waits.codec = Duration::from_secs(1);
        report.record.channels = vec![ChannelWaits::new(Channel::Multifd(0), waits)];
        let html = report.html();
        let words = well_formed(&html);
        assert!(
            words.contains(&"4.0 s: codec 25 %, network 75 %".to_owned()),
            "{words:?}"
        );
    }
}
