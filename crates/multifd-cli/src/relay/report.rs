//! The reports on a migration through a relay.

use std::{fmt, io};

use multifd_codec::auto;
use multifd_codec::delta::Counts;
use multifd_relay::Failure;
use multifd_relay::failure::Cause;
use multifd_relay::leg::Protocol;
use multifd_relay::relay::{MigrationReport, Traffic, Work};
use multifd_transport::failure::{Cause as TransportCause, Leg};
use multifd_wire::Method;
use serde::Serialize;

use super::Migration;
use crate::pace::Left;
use crate::say;

/// Possible causes of a failure. A QEMU that is sent what it does not expect closes the channel,
/// and says why at its own end only.
pub(crate) fn advice(
    method: Method,
    connect: Option<Protocol>,
    failure: &Failure,
) -> Option<&'static str> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match &failure.cause {
        Cause::Unconfirmed => {}
        Cause::Transport(TransportCause::Io(error))
            if failure.leg == Leg::Destination
                && matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {}
        _ => return None,
    }
    if connect == Some(Protocol::Trunk) {
        return Some("see what the relay there says");
    }
    Some(match method {
        Method::None => {
            "if the destination is a QEMU: does it have multifd on, as many multifd-channels as the \
             source, and multifd-compression none? If it is a relay, see what that says"
        }
        Method::Canned => "canned is read by another multifd only, and by no QEMU",
        _ => {
            "if the destination is a QEMU: does it have multifd on, as many multifd-channels as the \
             source, and the multifd-compression of this relay? If it is a relay, see what that says"
        }
    })
}

/// The report on a delivered migration.
#[derive(Serialize)]
pub(crate) struct Summary {
    route: Option<String>,
    /// The guest's name, if a trunk gives it.
    name: Option<String>,
    /// The VM's, if it has one and a channel or the set-up has named it.
    uuid: Option<String>,
    peer: String,
    /// The destination has said that it has the guest; `null` where it could not say so.
    confirmed: Option<bool>,
    channels: usize,
    pages: u64,
    zero_pages: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Bytes that came in for each byte that went out.
    ratio: f64,
    seconds: f64,
    decoded: Option<Done>,
    encoded: Option<Done>,
    /// The pages that both relays had alike; `null` where they did not compare.
    verified: Option<Same>,
    differences: Option<Differences>,
    /// The pages of each effort, with `auto`.
    auto: Option<Efforts>,
    pub remarks: Vec<String>,
}

/// Pages that went to another relay as differences.
#[derive(Serialize)]
pub(crate) struct Differences {
    /// Pages that went as differences; those that had not changed are among them.
    pages: u64,
    unchanged: u64,
    /// Bytes of these pages, and of their differences before compression.
    page_bytes: u64,
    difference_bytes: u64,
    /// Pages that went whole, by reason.
    first: u64,
    lost: u64,
    changed: u64,
    skipped: u64,
    overtaken: u64,
    foreign: u64,
    /// Slots for pages at both relays, and those in use at the end.
    slots: u64,
    slots_in_use: u64,
}

impl From<Counts> for Differences {
    fn from(counts: Counts) -> Self {
        Self {
            pages: counts.differences,
            unchanged: counts.same,
            page_bytes: counts.difference_page_bytes,
            difference_bytes: counts.area_bytes,
            first: counts.misses.new,
            lost: counts.misses.lost,
            changed: counts.misses.changed,
            skipped: counts.misses.skipped,
            overtaken: counts.misses.overtaken,
            foreign: counts.misses.foreign,
            slots: counts.slots,
            slots_in_use: counts.slots_in_use,
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "as differences {} pages ({} bytes for {}), whole {} first, {} not kept, {} changed too much",
            self.pages, self.difference_bytes, self.page_bytes, self.first, self.lost, self.changed
        )
    }
}

/// The pages of each effort.
#[derive(Serialize)]
pub(crate) struct Efforts {
    efforts: Vec<Effort>,
    changes: Vec<Change>,
    /// Changes behind the last one that is listed.
    more_changes: u64,
}

#[derive(Serialize)]
struct Effort {
    effort: String,
    packets: u64,
    page_bytes: u64,
    payload_bytes: u64,
}

/// A change of effort, and the figures that led to it.
#[derive(Serialize)]
struct Change {
    /// Seconds from the migration's start.
    at: f64,
    from: String,
    to: String,
    /// Bytes a second that one connection passes on, if it was the limit.
    link_bytes_per_second: Option<f64>,
    /// Bytes of pages a second on one channel that were expected, with the effort before and after.
    expected_bytes_per_second: [f64; 2],
}

impl From<&auto::Summary> for Efforts {
    fn from(summary: &auto::Summary) -> Self {
        let efforts = summary.steps.iter().map(|(step, totals)| Effort {
            effort: step.to_string(),
            packets: totals.packets,
            page_bytes: totals.page_bytes,
            payload_bytes: totals.payload_bytes,
        });
        let changes = summary.changes.iter().map(|change| Change {
            at: say::seconds(change.at),
            from: change.from.to_string(),
            to: change.to.to_string(),
            link_bytes_per_second: change.link.map(f64::round),
            expected_bytes_per_second: change.expected.map(f64::round),
        });
        Self {
            efforts: efforts.collect(),
            changes: changes.collect(),
            more_changes: summary.more_changes,
        }
    }
}

impl fmt::Display for Efforts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.efforts.iter().map(|effort| effort.page_bytes).sum();
        f.write_str("effort")?;
        for effort in &self.efforts {
            let part = effort.page_bytes as f64 / all.max(1) as f64 * 100.0;
            if part >= 0.5 {
                write!(f, " {} {part:.0} %", effort.effort)?;
            }
        }
        let changes = self.changes.len() as u64 + self.more_changes;
        write!(f, " ({changes} changes)")
    }
}

/// Pages that both relays of a trunk had alike.
#[derive(Serialize)]
struct Same {
    pages: u64,
    rounds: u64,
}

/// The work of one direction's codecs.
#[derive(Serialize)]
struct Done {
    method: &'static str,
    backend: String,
    hardware: u64,
    software: u64,
    raw: u64,
}

impl From<Work> for Done {
    fn from(work: Work) -> Self {
        Self {
            method: work.method.as_str(),
            backend: work.backend.to_string(),
            hardware: work.pages.hardware,
            software: work.pages.software,
            raw: work.pages.raw,
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} by {}: hardware {}, software {}, raw {}",
            self.method, self.backend, self.hardware, self.software, self.raw
        )
    }
}

impl Summary {
    pub(crate) fn new(report: MigrationReport, migration: Option<&Migration>) -> Self {
        let Traffic {
            pages,
            zero_pages,
            bytes_in,
            bytes_out,
            ..
        } = report.totals;
        Self {
            route: migration.map(|migration| migration.route.to_string()),
            name: migration.and_then(|migration| migration.name.clone()),
            uuid: migration.and_then(|migration| migration.vm.text()),
            peer: report.peer,
            confirmed: report.confirmed,
            channels: report.channels,
            pages,
            zero_pages,
            bytes_in,
            bytes_out,
            ratio: ratio(bytes_in, bytes_out),
            seconds: say::seconds(report.duration),
            decoded: report.decoded.map(Done::from),
            encoded: report.encoded.map(Done::from),
            differences: report.differences.map(Differences::from),
            auto: report.auto.as_ref().map(Efforts::from),
            verified: report.verified.map(|verified| Same {
                pages: verified.pages,
                rounds: verified.rounds,
            }),
            remarks: report.remarks.iter().map(ToString::to_string).collect(),
        }
    }

    /// All pages came in the method of the outgoing leg, and none was encoded.
    pub(crate) fn was_passed_on(&self) -> bool {
        self.pages > 0 && self.encoded.is_none() && self.differences.is_none()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "guest {name}: ")?;
        }
        f.write_str(match self.confirmed {
            Some(true) => "the destination has the guest",
            _ => "not confirmed: no return path, so only the destination can say that it has the guest",
        })?;
        write!(
            f,
            "; channels {}, pages {}, zero pages {}, bytes in {}, bytes out {}, ratio {:.3}, seconds {:.3}",
            self.channels,
            self.pages,
            self.zero_pages,
            self.bytes_in,
            self.bytes_out,
            self.ratio,
            self.seconds
        )?;
        if let Some(done) = &self.decoded {
            write!(f, ", decoded {done}")?;
        }
        if let Some(done) = &self.encoded {
            write!(f, ", encoded {done}")?;
        }
        if let Some(differences) = &self.differences {
            write!(f, ", {differences}")?;
        }
        if let Some(auto) = &self.auto {
            write!(f, ", {auto}")?;
        }
        if let Some(Same { pages, rounds }) = &self.verified {
            write!(f, ", verified: {pages} pages in {rounds} rounds")?;
        }
        Ok(())
    }
}

/// The report on a failed migration.
#[derive(Serialize)]
pub(crate) struct Failed {
    route: Option<String>,
    name: Option<String>,
    uuid: Option<String>,
    peer: Option<String>,
    /// `null` where nobody can know here.
    confirmed: Option<bool>,
    error: String,
    advice: Option<&'static str>,
    pages: u64,
    zero_pages: u64,
    bytes_in: u64,
    bytes_out: u64,
    seconds: f64,
}

impl Failed {
    pub(crate) fn new(
        error: String,
        advice: Option<&'static str>,
        confirmed: Option<bool>,
        migration: Option<&Migration>,
    ) -> Self {
        let totals = migration
            .map(|migration| migration.totals)
            .unwrap_or_default();
        Self {
            route: migration.map(|migration| migration.route.to_string()),
            name: migration.and_then(|migration| migration.name.clone()),
            uuid: migration.and_then(|migration| migration.vm.text()),
            peer: migration.map(|migration| migration.peer.clone()),
            confirmed,
            error,
            advice,
            pages: totals.pages,
            zero_pages: totals.zero_pages,
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            seconds: migration.map_or(0.0, |migration| say::seconds(migration.begun.elapsed())),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        match self.advice {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

/// Migrations under way.
pub(super) struct Running<'a>(pub(super) &'a [Migration]);

impl fmt::Display for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [migration] = self.0 {
            return Live(migration).fmt(f);
        }
        let sum = |count: fn(&Traffic) -> u64| {
            let all = self.0.iter().map(|migration| count(&migration.totals));
            all.fold(0, u64::saturating_add)
        };
        write!(
            f,
            "{} migrations, {} pages, {} zero pages, {} in, {} out",
            self.0.len(),
            sum(|totals| totals.pages),
            sum(|totals| totals.zero_pages),
            say::size(sum(|totals| totals.bytes_in)),
            say::size(sum(|totals| totals.bytes_out))
        )
    }
}

/// One migration under way.
pub(super) struct Live<'a>(pub(super) &'a Migration);

impl fmt::Display for Live<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Migration {
            begun,
            totals,
            pace,
            ..
        } = self.0;
        write!(f, "{:.1} s: ", begun.elapsed().as_secs_f64())?;
        match pace.first_pass() {
            Some((percent, left)) => {
                write!(f, "{percent:.0} % of the first round, ")?;
                if let Some(left) = left {
                    write!(f, "{}, ", Left(left))?;
                }
            }
            // A relay cannot know how much the source will send again.
            None if totals.rounds > 0 => write!(f, "{} rounds, ", totals.rounds)?,
            None => {}
        }
        let rates = pace.rates().map(|rates| rates.map(|rate| rate as u64));
        let amount = |f: &mut fmt::Formatter<'_>, bytes, rate: Option<u64>, way| {
            write!(f, "{} {way}", say::size(bytes))?;
            match rate {
                Some(rate) => write!(f, " ({}/s), ", say::size(rate)),
                None => f.write_str(", "),
            }
        };
        amount(f, totals.bytes_in, rates.map(|[came, _]| came), "in")?;
        amount(f, totals.bytes_out, rates.map(|[_, went]| went), "out")?;
        write!(f, "{:.1}:1", ratio(totals.bytes_in, totals.bytes_out))?;
        match pace.limit() {
            Some(limit) => write!(f, ", limit: {}", limit.as_str()),
            None => Ok(()),
        }
    }
}

pub(crate) fn ratio(bytes_in: u64, bytes_out: u64) -> f64 {
    say::rounded(bytes_in as f64 / bytes_out.max(1) as f64, 3)
}
