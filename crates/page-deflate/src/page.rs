//! Pages by themselves: each a complete stream, or the body of a block under a code that is known
//! elsewhere.

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

/// Makes a deflate stream of one block out of each page, for readers that know nothing but this
/// page.
///
/// No match reaches back by more than 4 KiB or to before its page, whatever the page size, so
/// Intel's IAA can read it. What does not make a page smaller is not written.
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
    /// An encoder of pages.
    #[must_use]
    pub fn new(effort: Effort) -> Self {
        let fixed = || Coder::new(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS);
        Self {
            machine: Machine::best(),
            window: Window::new(),
            choice: Choice::new(effort, WindowSize::FourKiB),
            fixed: fixed(),
            coder: fixed(),
            items: Vec::new(),
        }
    }

    /// Appends a complete raw deflate stream under the format's fixed code. If this would not be
    /// shorter than the page, `out` stays as it is and the answer is false.
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
    /// than the page, `out` stays as it is and the answer is false.
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

    /// Appends the body of a block under a code that the reader has already
    /// ([`SharedInflater`](super::SharedInflater)): symbols, and the one that ends the block. If
    /// this would not be shorter than the page, `out` stays as it is and the answer is false.
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

    /// Counts the symbols that the page would be written in. Pages that would not get smaller do
    /// not count.
    pub fn count(&mut self, page: &[u8], histogram: &mut Histogram) {
        if let Some(count) = self.parse(page) {
            histogram.add_page(&self.items[..count]);
        }
    }

    /// Cuts a page into items and returns how many; nothing if it looks like noise.
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
                // The rest of a larger page may get smaller all the same.
                None if page.len() > UNIT => literals(bytes, items),
                parsed => parsed?,
            };
        }
        Some(count)
    }
}

/// Appends what is written if it is shorter than the page.
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
