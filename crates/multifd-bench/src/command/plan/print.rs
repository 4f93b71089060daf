//! Prints a plan in words or in JSON.

use std::fmt;

use multifd_cli::say;
use serde_json::{Value, json};

use crate::plan::model::Limit;
use crate::plan::{Candidate, Plan, best};

/// A plan, its candidates and notes, to be printed.
pub(super) struct Report {
    plan: Plan,
    candidates: Vec<Candidate>,
    notes: Vec<String>,
}

impl Report {
    pub(super) const fn new(plan: Plan, candidates: Vec<Candidate>, notes: Vec<String>) -> Self {
        Self {
            plan,
            candidates,
            notes,
        }
    }

    pub(super) fn json(&self) -> Value {
        let guest = &self.plan.guest;
        let rows: Vec<Value> = self
            .candidates
            .iter()
            .map(|candidate| {
                json!({
                    "name": candidate.name,
                    "options": candidate.options,
                    "prediction": candidate.prediction,
                    "highest_dirty_rate": candidate.highest_dirty_rate,
                    "size": candidate.codec.size,
                    "encoding_s_per_byte": candidate.codec.encoding,
                    "decoding_s_per_byte": candidate.codec.decoding,
                })
            })
            .collect();
        json!({
            "memory_pages": guest.memory_pages,
            "used_pages": guest.used_pages,
            "dirty_rate": guest.dirty_rate,
            "working_set_pages": guest.working_set_pages,
            "channels": self.plan.conditions.channels,
            "processors": self.plan.conditions.processors,
            "link_payload_bytes_per_s": self.plan.conditions.link,
            "candidates": rows,
            "best": best(&self.candidates).map(|best| &best.name),
            "why": self.advice(),
            "notes": self.notes,
        })
    }

    /// The best way, and the reason.
    fn advice(&self) -> String {
        let Some(best) = best(&self.candidates) else {
            return "No method can be planned on this host: see the notes.".to_owned();
        };
        let how = match &best.options {
            None => "QEMU's multifd-compression none, without relays".to_owned(),
            Some(options) => format!("two relays with {options}"),
        };
        let seen = &best.prediction;
        let why = limited_by(seen.limit);
        if !seen.converges {
            let rate = best.highest_dirty_rate.unwrap_or(0.0);
            return format!(
                "No way converges. The nearest is {how}: it converges if the guest writes at most {rate:.0} pages a \
                 second, or if the downtime-limit is {:.0} ms. {why}",
                seen.downtime_s * 1e3
            );
        }
        let smaller = match best.codec.size {
            size if size < 0.98 => {
                format!(" A page takes {:.0} % of its bytes.", size * 100.0)
            }
            _ => " Pages are sent as they are.".to_owned(),
        };
        format!("Best: {how}. {why}{smaller}")
    }
}

fn limited_by(limit: Limit) -> &'static str {
    match limit {
        Limit::Link => "The link is the limit.",
        Limit::Channels => "The threads of the channels are the limit: more channels would help.",
        Limit::Source => "The processors of the source are the limit.",
        Limit::Destination => "The processors of the destination are the limit.",
        Limit::Host => "The processors that both ends share are the limit.",
        Limit::Device => "The accelerators are the limit.",
        Limit::MaxBandwidth => "QEMU's max-bandwidth is the limit: raise it.",
    }
}

const fn short(limit: Limit) -> &'static str {
    match limit {
        Limit::Link => "link",
        Limit::Channels => "channels",
        Limit::Source => "source",
        Limit::Destination => "destination",
        Limit::Host => "processors",
        Limit::Device => "devices",
        Limit::MaxBandwidth => "max-bandwidth",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guest = &self.plan.guest;
        let bytes = |pages: f64| say::size((pages * guest.page_bytes) as u64);
        writeln!(
            f,
            "A guest of {}, {} nonzero, that writes {:.0} pages a second within {}; {} channels.\n\n{HEADER}",
            bytes(guest.memory_pages),
            bytes(guest.used_pages),
            guest.dirty_rate,
            bytes(guest.working_set_pages),
            self.plan.conditions.channels,
        )?;
        for candidate in &self.candidates {
            writeln!(f, "{}", Row(candidate))?;
        }
        writeln!(f, "\n{}", self.advice())?;
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        Ok(())
    }
}

struct Row<'a>(&'a Candidate);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &self.0.prediction;
        let total = match seen.converges {
            true => format!("{:.1} s", seen.total_s),
            false => "never".to_owned(),
        };
        let highest = match self.0.highest_dirty_rate {
            Some(rate) => format!("{rate:.0}"),
            None => "any".to_owned(),
        };
        write!(
            f,
            "{:<32} {total:>9} {:>9.0} ms {:>6} {:>10} {:>6.0} MB/s {:<13} {highest:>10}",
            self.0.name,
            seen.downtime_s * 1e3,
            seen.rounds,
            say::size(seen.wire_bytes as u64),
            seen.pages_bytes_per_s / 1e6,
            short(seen.limit),
        )
    }
}

const HEADER: &str = "\
method                           total time   downtime   rounds     sent  pages, and their limit        most pages/s";
