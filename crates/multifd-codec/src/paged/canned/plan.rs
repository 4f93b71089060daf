//! Chooses the code of a packet's pages.
//!
//! Memory changes its texture from one place to the next, and a code costs about a hundred bytes
//! and some microseconds. So the choice is made for every packet: a sixteenth of its pages, spread
//! evenly, are parsed to symbols. If the best code for these pages saves more than it costs over
//! the whole packet, it is sent.
//!
//! The saving on the sampled pages is biased: the code fits their random variation too. As in all
//! such fits, the bias is about a bit per fitted number, which is subtracted before the sum is
//! extrapolated to all pages. The rest is still an estimate, so it has to be twice the length of
//! the description; this also keeps two codes of similar quality from alternating.

use std::convert::Infallible;

use page_deflate::{CodeLengths, Effort, Histogram, PageDeflater};

use crate::streams::{Crew, writers};
use crate::{Pages, Streams};

/// Makes plans for a channel's packets.
pub(super) struct Planner {
    crew: Crew<Scout, Sampled>,
    sampled: Sampled,
    description: Vec<u8>,
}

/// Parses pages and counts their symbols.
struct Scout {
    deflater: PageDeflater,
    sample: Histogram,
}

/// Copies of the sampled pages.
#[derive(Default)]
struct Sampled {
    pages: Vec<u8>,
    page_bytes: usize,
}

/// The best code for a packet, estimated from the sample.
pub(super) struct Plan<'p> {
    pub(super) lengths: CodeLengths,
    /// The serialised code.
    pub(super) description: &'p [u8],
    sample: Histogram,
    sampled: usize,
    pages: usize,
}

impl Planner {
    /// The number of scouts per packet is the number of its writers.
    pub(super) fn new(effort: Effort, streams: Streams) -> Self {
        let scout = || {
            Ok::<_, Infallible>(Scout {
                deflater: PageDeflater::new(effort),
                sample: Histogram::new(),
            })
        };
        let Ok(crew) = Crew::new(writers(streams), scout, Scout::look);
        Self {
            crew,
            sampled: Sampled::default(),
            description: Vec::new(),
        }
    }

    /// Samples some of the pages.
    pub(super) fn plan(&mut self, pages: &Pages<'_>) -> Plan<'_> {
        let sampled = pages.len().div_ceil(PAGES_PER_SAMPLE);
        let copies = &mut self.sampled;
        copies.pages.clear();
        copies.page_bytes = pages.page_size().bytes();
        for part in 0..sampled {
            // The middle page of its part of the packet.
            let page = (2 * part + 1) * pages.len() / (2 * sampled);
            pages.append_range(page..page + 1, &mut copies.pages);
        }
        self.crew.run(copies, sampled, sampled);
        let mut sample = Histogram::new();
        self.crew
            .each_tools(|scout| sample.append(&mut scout.sample));
        let lengths = sample.code_lengths();
        self.description.clear();
        lengths.write_header(&mut self.description);
        Plan {
            lengths,
            description: &self.description,
            sample,
            sampled,
            pages: pages.len(),
        }
    }
}

impl Scout {
    fn look(&mut self, sampled: &Sampled, number: usize) -> bool {
        let mut pages = sampled.pages.chunks_exact(sampled.page_bytes);
        if let Some(page) = pages.nth(number) {
            self.deflater.count(page, &mut self.sample);
        }
        true
    }
}

impl Plan<'_> {
    /// Returns whether sending this code pays compared with keeping the current one.
    pub(super) fn pays_over(&self, current: &CodeLengths) -> bool {
        let bits = |code| self.sample.code_bits(code);
        let saved = bits(current).saturating_sub(bits(&self.lengths) + CHANCE_BITS);
        let description_bits = 8 * self.description.len() as u64;
        saved * self.pages as u64 > 2 * description_bits * self.sampled as u64
    }
}

/// One page in this many is sampled.
const PAGES_PER_SAMPLE: usize = 16;

/// The biased part of a saving: a bit for each symbol.
const CHANCE_BITS: u64 = CodeLengths::BYTES as u64;
