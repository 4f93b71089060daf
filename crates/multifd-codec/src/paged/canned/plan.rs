//! Which code a packet's pages are written in.
//!
//! Memory changes its texture from one place to the next, and a code costs about a hundred bytes
//! and some microseconds. So every packet is asked anew: a sixteenth of its pages, spread evenly,
//! are cut into symbols, and if the code that is best for these pages saves more than it costs over
//! the packet at hand, it is sent.
//!
//! What a code saves on the pages it was made of is flattered: it follows what is chance in them.
//! As in all such fits that comes to about a bit for each number that was fitted, which is
//! subtracted before the sum is extrapolated to all pages. What remains has to be twice the length
//! of the description, as an estimate is none the less; this also keeps two codes that are almost
//! as good from taking turns.

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

/// Looks at pages, and has seen some.
struct Scout {
    deflater: PageDeflater,
    sample: Histogram,
}

/// Copies of the pages that are looked at.
#[derive(Default)]
struct Sampled {
    pages: Vec<u8>,
    page_bytes: usize,
}

/// The best code for a packet, as far as can be told.
pub(super) struct Plan<'p> {
    pub(super) lengths: CodeLengths,
    /// The code as it is written down.
    pub(super) description: &'p [u8],
    sample: Histogram,
    sampled: usize,
    pages: usize,
}

impl Planner {
    /// As many look at a packet as write its streams.
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

    /// Looks at some of the pages.
    pub(super) fn plan(&mut self, pages: &Pages<'_>) -> Plan<'_> {
        let sampled = pages.len().div_ceil(PAGES_PER_SAMPLE);
        let copies = &mut self.sampled;
        copies.pages.clear();
        copies.page_bytes = pages.page_size().bytes();
        for part in 0..sampled {
            // In the middle of its part of the packet.
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
    /// Whether it pays to send this code and not to go on with the other.
    pub(super) fn pays_over(&self, current: &CodeLengths) -> bool {
        let bits = |code| self.sample.code_bits(code);
        let saved = bits(current).saturating_sub(bits(&self.lengths) + CHANCE_BITS);
        let description_bits = 8 * self.description.len() as u64;
        saved * self.pages as u64 > 2 * description_bits * self.sampled as u64
    }
}

/// One page of so many is looked at.
const PAGES_PER_SAMPLE: usize = 16;

/// What of a saving is chance: a bit for each symbol.
const CHANCE_BITS: u64 = CodeLengths::BYTES as u64;
