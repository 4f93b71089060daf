//! Independent pages: each is a complete stream, or the body of a block under a code that both ends
//! know.

use super::bits::BitWriter;
use super::choice::Choice;
use super::coder::Coder;
use super::counts::{Counts, Tally};
use super::format::{FIXED, FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS};
use super::item::Item;
use super::lengths::Lengths;
use super::machine::Machine;
use super::parse::{UNIT_ITEMS, literals};
use super::shared::{Histogram, SharedCode};
use super::window::{UNIT, Window};
use super::{Effort, WindowSize};

/// Compresses each page to a deflate stream of one block, which a reader can decode by itself.
///
/// A match reaches back at most 4 KiB and never before its page, whatever the page size, so Intel's
/// IAA can read it. Output that is not smaller than its page is dropped.
///
/// ```
/// use page_deflate::{Effort, Histogram, PageDeflater, PageInflater, SharedCode, SharedInflater};
///
/// let page = b"memory repeats. ".repeat(256);
/// let mut deflater = PageDeflater::new(Effort::Balanced);
/// let mut arrived = vec![0; page.len()];
///
/// // A stream with a code of its own, ...
/// let mut stream = Vec::new();
/// assert!(deflater.dynamic_page(&page, &mut stream));
/// PageInflater::new().inflate(&stream, &mut arrived)?;
/// assert_eq!(arrived, page);
///
/// // ... or nothing but a body, under a code that was made from such pages and that both ends have.
/// let mut histogram = Histogram::new();
/// deflater.count(&page, &mut histogram);
/// let lengths = histogram.code_lengths();
/// let mut body = Vec::new();
/// assert!(deflater.body(&page, &SharedCode::new(&lengths), &mut body));
/// assert!(body.len() < stream.len());
/// SharedInflater::new(&lengths).inflate(&body, &mut arrived)?;
/// assert_eq!(arrived, page);
/// # Ok::<(), page_deflate::InflateError>(())
/// ```
pub struct PageDeflater {
    machine: Machine,
    window: Window,
    choice: Choice,
    fixed: Box<Coder>,
    coder: Box<Coder>,
    items: Vec<Item>,
}

impl PageDeflater {
    /// Makes an encoder of pages.
    #[must_use]
    pub fn new(effort: Effort) -> Self {
        let fixed = || Coder::new(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS);
        Self {
            machine: Machine::best(),
            window: Window::for_pages(),
            choice: Choice::new(effort, WindowSize::FourKiB),
            fixed: fixed(),
            coder: fixed(),
            items: Vec::new(),
        }
    }

    /// Appends a complete raw deflate stream under the format's fixed code. If this would not be
    /// shorter than the page, it returns false and leaves `out` unchanged.
    #[must_use]
    pub fn fixed_page(&mut self, page: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(count) = self.parse(page) else {
            return false;
        };
        let Self {
            machine,
            fixed,
            items,
            ..
        } = self;
        append(page, out, |bits| {
            bits.put(1 | FIXED << 1, 3);
            machine.write(fixed, &items[..count], bits);
        })
    }

    /// Appends a complete raw deflate stream with a code of its own. If this would not be shorter
    /// than the page, it returns false and leaves `out` unchanged.
    #[must_use]
    pub fn dynamic_page(&mut self, page: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(count) = self.parse(page) else {
            return false;
        };
        let Self {
            machine,
            coder,
            items,
            ..
        } = self;
        let items = &items[..count];
        let mut tally = Tally::new();
        tally.count(items);
        let mut counts = Counts::none();
        counts.add(&tally);
        counts.add_ends(1);
        let lengths = Lengths::new(&counts);
        coder.set(&lengths.litlen, &lengths.distance);
        append(page, out, |bits| {
            lengths.write_header(true, bits);
            machine.write(coder, items, bits);
        })
    }

    /// Appends the body of a block under a code that the reader already has
    /// ([`SharedInflater`](super::SharedInflater)): symbols, then the end of the block. If this
    /// would not be shorter than the page, it returns false and leaves `out` unchanged.
    #[must_use]
    pub fn body(&mut self, page: &[u8], code: &SharedCode, out: &mut Vec<u8>) -> bool {
        let Some(count) = self.parse(page) else {
            return false;
        };
        let Self { machine, items, .. } = self;
        append(page, out, |bits| {
            machine.write(&code.coder, &items[..count], bits)
        })
    }

    /// Counts the symbols of the compressed page. Pages that would not get smaller are skipped.
    pub fn count(&mut self, page: &[u8], histogram: &mut Histogram) {
        if let Some(count) = self.parse(page) {
            histogram.add_page(&self.items[..count]);
        }
    }

    /// Parses a page to items and returns their number, or `None` if it looks like noise.
    fn parse(&mut self, page: &[u8]) -> Option<usize> {
        self.window.forget();
        let units = page.len().div_ceil(UNIT);
        if self.items.len() < units * UNIT_ITEMS {
            self.items.resize(units * UNIT_ITEMS, 0);
        }
        let mut count = 0;
        for bytes in page.chunks(UNIT) {
            let shift = self.window.make_room(bytes.len());
            if shift > 0 {
                self.choice.slide(shift);
            }
            let unit = self.window.push(bytes);
            let items = self.items[count..].first_chunk_mut()?;
            let window = self.window.bytes();
            let parsed = self.choice.parse(self.machine, window, unit, UNIT, items);
            count += match parsed {
                // The rest of a larger page may still get smaller.
                None if page.len() > UNIT => literals(bytes, items),
                parsed => parsed?,
            };
        }
        Some(count)
    }
}

/// Appends the output of `write` if it is shorter than the page.
fn append(page: &[u8], out: &mut Vec<u8>, write: impl FnOnce(&mut BitWriter<'_>)) -> bool {
    let start = out.len();
    let mut bits = BitWriter::new(out);
    write(&mut bits);
    bits.align();
    let is_shorter = out.len() - start < page.len();
    if !is_shorter {
        out.truncate(start);
    }
    is_shorter
}
