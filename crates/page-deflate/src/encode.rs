//! The stream encoder.

use super::bits::BitWriter;
use super::choice::{Choice, Habit, Survey};
use super::coder::Coder;
use super::counts::{Counts, Tally};
use super::effort::{Effort, WindowSize};
use super::format::{FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS, MAX_STORED, MAX_WINDOW, STORED};
use super::item::Item;
use super::lengths::Lengths;
use super::machine::{Machine, prefetch};
use super::parse::{UNIT_ITEMS, is_noise};
use super::window::{UNIT, Unit, Window};

/// Compresses pages to runs of deflate blocks; each run continues the one before.
///
/// A run ends on a byte boundary with an empty stored block, as after `Z_SYNC_FLUSH`, and has no
/// final block. The runs in order are a deflate stream without end; with
/// [`WindowSize::zlib_header`] before the first they are a zlib stream. Page boundaries leave no
/// trace in it.
///
/// Only the output allocates after construction.
pub struct Deflater {
    machine: Machine,
    window: Window,
    window_bytes: usize,
    effort: Effort,
    choice: Choice,
    survey: Option<Box<Survey>>,
    /// Units until the next survey.
    survey_in: usize,
    coder: Box<Coder>,
    items: Vec<Item>,
    /// The units of one block, in order.
    units: Vec<Parsed>,
    /// The number of consecutive units of noise so far.
    noise: usize,
}

/// A parsed unit: a range of the items, or of the block's bytes if they are stored.
#[derive(Clone, Copy)]
struct Parsed {
    is_raw: bool,
    from: usize,
    to: usize,
}

impl Deflater {
    /// An encoder at the start of a stream.
    #[must_use]
    pub fn new(window: WindowSize, effort: Effort) -> Self {
        Self::on(Machine::best(), window, effort)
    }

    fn on(machine: Machine, window: WindowSize, effort: Effort) -> Self {
        let units = effort.blocks().units;
        Self {
            machine,
            window: Window::new(),
            window_bytes: window.bytes(),
            effort,
            choice: Choice::new(effort, window),
            survey: Survey::new(effort, window),
            survey_in: units,
            coder: Coder::new(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS),
            items: vec![0; units * UNIT_ITEMS],
            units: Vec::with_capacity(units),
            noise: 0,
        }
    }

    /// Appends the run of the next pages to `out`. Its matches may refer to the runs before it.
    ///
    /// `pages` can have any length; whole pages of 4 KiB suit best. Existing content of `out`
    /// stays.
    pub fn compress(&mut self, pages: &[u8], out: &mut Vec<u8>) {
        let mut bits = BitWriter::new(out);
        for block in pages.chunks(self.effort.blocks().units * UNIT) {
            self.parse_block(block);
            self.write_block(block, &mut bits);
            self.survey_some();
        }
        bits.put(STORED << 1, 3);
        bits.stored(&[]);
    }

    /// Appends a run that refers to no earlier data to `out`.
    ///
    /// The run depends only on its pages, the habit, and the encoder's window and effort. Several
    /// encoders can therefore write the runs of one stream in parallel, and
    /// [`RunInflater`](crate::RunInflater)s can read them in parallel. A plain zlib, which cannot
    /// find the boundaries, reads the runs in sequence.
    ///
    /// The next run also refers to no earlier data, whichever method writes it.
    /// [`Deflater::compress`] uses this habit from then on.
    ///
    /// ```
    /// use page_deflate::{Deflater, Effort, RunInflater, StreamInflater, WindowSize};
    ///
    /// let pages = b"memory repeats ".repeat(2000);
    /// let (one, two) = pages.split_at(4 * 4096);
    /// let window = WindowSize::default();
    /// let deflater = || Deflater::new(window, Effort::Balanced);
    ///
    /// // One encoder surveys the pages, and all runs are written for its result.
    /// let habit = deflater().survey(&pages);
    /// let (mut first, mut second) = (Vec::new(), Vec::new());
    /// deflater().compress_alone(one, habit, &mut first);
    /// deflater().compress_alone(two, habit, &mut second);
    ///
    /// // Each run can be read by itself, ...
    /// let mut arrived = vec![0; two.len()];
    /// RunInflater::new().inflate(&second, &mut arrived)?;
    /// assert_eq!(arrived, two);
    ///
    /// // ... and all of them are one stream.
    /// let stream = [&window.zlib_header()[..], &first, &second].concat();
    /// let mut arrived = vec![0; pages.len()];
    /// StreamInflater::new().inflate(&stream, &mut arrived)?;
    /// assert_eq!(arrived, pages);
    /// # Ok::<(), page_deflate::InflateError>(())
    /// ```
    pub fn compress_alone(&mut self, pages: &[u8], habit: Habit, out: &mut Vec<u8>) {
        self.window.forget();
        self.noise = 0;
        self.choice.set_habit(habit);
        self.survey_in = usize::MAX;
        self.compress(pages, out);
        // Runs of other encoders may precede this encoder's next run.
        self.window.forget();
    }

    /// Forgets the runs before: the next run refers to no earlier data. For a stream whose other
    /// runs come from other encoders.
    pub fn forget(&mut self) {
        self.window.forget();
        self.noise = 0;
    }

    /// Looks at some of the pages and returns the habit that suits them, for
    /// [`Deflater::compress_alone`].
    ///
    /// A survey takes as long as compressing some 27 pages. The encoder forgets its earlier
    /// runs: the next run refers to no earlier data. The surveys inside [`Deflater::compress`] keep
    /// the history.
    pub fn survey(&mut self, pages: &[u8]) -> Habit {
        self.window.forget();
        for unit in pages.chunks(UNIT).take(Survey::UNITS) {
            self.push(unit);
        }
        let range = self.window.history()..self.window.end();
        // These pages belong to no run.
        self.window.forget();
        let Some(survey) = &mut self.survey else {
            return Habit::default();
        };
        survey.look(self.machine, self.window.bytes(), range)
    }

    /// Surveys the latest units at intervals.
    fn survey_some(&mut self) {
        let Some(survey) = &mut self.survey else {
            return;
        };
        self.survey_in = self.survey_in.saturating_sub(self.units.len());
        let end = self.window.end();
        let start = end.saturating_sub(Survey::UNITS * UNIT);
        if self.survey_in == 0 && self.window.history() <= start {
            let habit = survey.look(self.machine, self.window.bytes(), start..end);
            self.choice.set_habit(habit);
            self.survey_in = UNITS_BETWEEN_SURVEYS;
        }
    }

    /// Copies a unit into the window.
    fn push(&mut self, unit: &[u8]) -> Unit {
        let shift = self.window.make_room(unit.len());
        if shift > 0 {
            self.choice.slide(shift);
        }
        self.window.push(unit)
    }

    fn parse_block(&mut self, block: &[u8]) {
        self.units.clear();
        let mut from = 0;
        let mut units = block.chunks(UNIT).enumerate().peekable();
        while let Some((index, bytes)) = units.next() {
            if let Some((_, next)) = units.peek() {
                prefetch(next);
            }
            let as_it_is = Parsed {
                is_raw: true,
                from: index * UNIT,
                to: index * UNIT + bytes.len(),
            };
            // Further noise skips the copy into the window, which would take most of the time.
            if self.noise >= NOISY && bytes.len() == UNIT && is_noise(bytes) {
                self.units.push(as_it_is);
                continue;
            }
            let unit = self.push(bytes);
            // Every unit of a block has room.
            let Some(items) = self.items[from..].first_chunk_mut() else {
                self.units.push(as_it_is);
                continue;
            };
            let window = self.window.bytes();
            match self
                .choice
                .parse(self.machine, window, unit, self.window_bytes, items)
            {
                Some(count) => {
                    let to = from + count;
                    self.units.push(Parsed {
                        is_raw: false,
                        from,
                        to,
                    });
                    from = to;
                    self.noise = 0;
                }
                None => {
                    self.units.push(as_it_is);
                    self.noise += 1;
                    // Units that bypass the window may follow this one, so no later unit may refer
                    // to it.
                    if self.noise >= NOISY {
                        self.window.forget();
                    }
                }
            }
        }
    }

    /// Writes the parsed units under one code. Stored units interrupt it.
    fn write_block(&mut self, block: &[u8], bits: &mut BitWriter<'_>) {
        let mut code = None;
        for run in self.units.chunk_by(|a, b| a.is_raw == b.is_raw) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            if first.is_raw {
                for bytes in block[first.from..last.to].chunks(MAX_STORED) {
                    bits.put(STORED << 1, 3);
                    bits.stored(bytes);
                }
                continue;
            }
            let lengths = match &code {
                Some(lengths) => lengths,
                None => {
                    let lengths = self.lengths();
                    self.coder.set(&lengths.litlen, &lengths.distance);
                    code.insert(lengths)
                }
            };
            lengths.write_header(false, bits);
            let items = &self.items[first.from..last.to];
            self.machine.write(&self.coder, items, bits);
        }
    }

    /// The code lengths for the parsed units.
    fn lengths(&self) -> Lengths {
        let coded = || self.units.iter().filter(|unit| !unit.is_raw);
        let mut tally = Tally::new();
        // With few units, codes for absent symbols cost more than counting every unit.
        let step = self.effort.blocks().step;
        let is_complete = coded().count() < 2 * step;
        for (index, unit) in coded().enumerate() {
            let items = &self.items[unit.from..unit.to];
            if is_complete {
                tally.count(items);
                continue;
            }
            // The first stripe counted varies, as pages begin alike.
            for stripe in items.chunks(STRIPE).skip(index % step).step_by(step) {
                tally.count(stripe);
            }
        }
        let mut counts = if is_complete {
            Counts::none()
        } else {
            Counts::one_each()
        };
        counts.add(&tally);
        counts.add_ends(1);
        Lengths::new(&counts)
    }
}

/// Appends a run of stored blocks to `out`: the pages as they are, and five bytes for each 65,535
/// of them or fewer, and for the end of the run.
///
/// An encoder that writes further runs of the stream has to [forget](Deflater::forget) those
/// before.
pub fn store(pages: &[u8], out: &mut Vec<u8>) {
    let mut bits = BitWriter::new(out);
    for block in pages.chunks(MAX_STORED).chain([&[][..]]) {
        bits.put(STORED << 1, 3);
        bits.stored(block);
    }
}

/// The sampling of a block's codes, by effort.
struct Blocks {
    /// Most units under one code.
    units: usize,
    /// One in this many items is counted, in stripes.
    step: usize,
}

impl Effort {
    const fn blocks(self) -> Blocks {
        match self {
            Self::Fast => Blocks {
                units: 128,
                step: 8,
            },
            Self::Balanced => Blocks { units: 64, step: 4 },
            Self::Dense => Blocks { units: 32, step: 2 },
        }
    }
}

/// Items that are counted in a row. Every unit has some of them: pages differ too much for a sample
/// of whole units.
const STRIPE: usize = 32;
/// After this many consecutive units of noise, no match can reach anything else.
const NOISY: usize = MAX_WINDOW / UNIT;
/// A survey takes about as long as compressing 27 units.
const UNITS_BETWEEN_SURVEYS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Matches;
    use crate::stream::StreamInflater;
    use testkit::oracle::{Ending, Oracle};
    use testkit::pages::{Random, packet};

    #[test]
    fn every_machine_writes_the_same() {
        let pages = packet(&mut Random::new(20), if cfg!(miri) { 2 } else { 200 }, UNIT);
        let both = WindowSize::ALL.into_iter();
        for (window, effort) in both.flat_map(|window| Effort::ALL.map(|effort| (window, effort))) {
            let stream = |machine| {
                let mut deflater = Deflater::on(machine, window, effort);
                let mut inflater = StreamInflater::new();
                let mut out = window.zlib_header().to_vec();
                let mut start = 0;
                for packet in pages.chunks(37 * UNIT + 11) {
                    deflater.compress(packet, &mut out);
                    let mut decoded = vec![0; packet.len()];
                    inflater.inflate(&out[start..], &mut decoded).unwrap();
                    assert!(decoded == packet);
                    start = out.len();
                }
                out
            };
            let plain = stream(Machine::all().next().unwrap());
            for machine in Machine::all() {
                assert!(stream(machine) == plain, "{machine:?} {window} {effort}");
            }
        }
    }

    #[test]
    fn what_is_compressed_alone_depends_on_nothing_else() {
        for window in WindowSize::ALL {
            let mut random = Random::new(21);
            let mut used = Effort::ALL.map(|effort| Deflater::new(window, effort));
            for round in 0..if cfg!(miri) { 1 } else { 40 } {
                let pages = packet(&mut random, 1 + round % 23, UNIT);
                for used in &mut used {
                    let mut fresh = Deflater::new(window, used.effort);
                    let habit = fresh.survey(&pages);
                    assert_eq!(used.survey(&pages), habit);
                    for habit in [habit, Habit(Matches::Long)] {
                        let mut fresh = Deflater::new(window, used.effort);
                        let mut runs = [Vec::new(), Vec::new()];
                        used.compress_alone(&pages, habit, &mut runs[0]);
                        fresh.compress_alone(&pages, habit, &mut runs[1]);
                        assert!(runs[0] == runs[1], "{window} {} {habit:?}", used.effort);
                        let oracle = Oracle::new(window.bytes(), Ending::SyncFlush);
                        assert!(oracle.decode(&runs[0], pages.len()).unwrap().output == pages);
                    }
                }
            }
        }
    }

    #[test]
    fn runs_of_all_kinds_make_one_stream() {
        let mut random = Random::new(23);
        let window = WindowSize::default();
        for effort in Effort::ALL {
            let mut deflater = Deflater::new(window, effort);
            let mut inflater = StreamInflater::new();
            let mut out = window.zlib_header().to_vec();
            for round in 0..if cfg!(miri) { 4 } else { 60 } {
                let pages = packet(&mut random, 1 + round % 7, UNIT);
                match random.below(4) {
                    0 => {
                        // Pages outside any run; a match into them would be wrong.
                        let habit = deflater.survey(&pages);
                        deflater.compress_alone(&pages, habit, &mut out);
                    }
                    1 => {
                        deflater.survey(&pages);
                        deflater.compress(&pages, &mut out);
                    }
                    2 => {
                        // A run for another stream.
                        deflater.compress_alone(&pages, Habit(Matches::Short), &mut Vec::new());
                        deflater.compress(&pages, &mut out);
                    }
                    _ => deflater.compress(&pages, &mut out),
                }
                let mut decoded = vec![0; pages.len()];
                inflater.inflate(&out, &mut decoded).unwrap();
                assert!(decoded == pages, "{effort}, round {round}");
                out.clear();
            }
        }
    }

    #[test]
    fn noise_behind_a_header_is_stored() {
        let mut random = Random::new(24);
        for header in [16, 64, 128, 180] {
            let mut page: Vec<u8> = (0..UNIT).map(|_| random.byte()).collect();
            page[..header].fill(7);
            for effort in Effort::ALL {
                let mut deflater = Deflater::new(WindowSize::default(), effort);
                let mut out = Vec::new();
                deflater.compress(&page, &mut out);
                assert!(deflater.units[0].is_raw, "{header} {effort}");
                // Pages that end or begin as noise does, but get smaller.
                for half in [0..UNIT / 2, UNIT / 2..UNIT] {
                    let mut page = page.clone();
                    page[half].fill(7);
                    deflater.compress(&page, &mut out);
                    assert!(!deflater.units[0].is_raw, "{header} {effort}");
                }
            }
        }
    }

    #[test]
    fn a_unit_that_interrupts_noise_and_is_stored_is_not_referred_to() {
        let mut random = Random::new(25);
        let mut pages: Vec<u8> = (0..NOISY * UNIT).map(|_| random.byte()).collect();
        // A unit that is counted as noise only without its header.
        let mut unit: Vec<u8> = (0..UNIT).map(|_| random.byte()).collect();
        unit[..128].fill(7);
        assert!(!is_noise(&unit) && is_noise(&unit[128..]));
        pages.extend_from_slice(&unit);
        pages.extend((0..3 * UNIT).map(|_| random.byte()));
        pages.extend(b"words of a page, ".repeat(UNIT / 17));
        pages.extend_from_slice(&unit[140..500]);
        pages.extend(b"words of a page, ".repeat(UNIT / 17));
        for window in WindowSize::ALL {
            for effort in Effort::ALL {
                let mut stream = Vec::new();
                Deflater::new(window, effort).compress(&pages, &mut stream);
                let oracle = Oracle::new(window.bytes(), Ending::SyncFlush);
                let decoded = oracle.decode(&stream, pages.len()).unwrap();
                assert!(decoded.output == pages, "{window} {effort}");
            }
        }
    }

    #[test]
    fn what_follows_noise_does_not_look_back_into_it() {
        let mut random = Random::new(22);
        let mut pages: Vec<u8> = Vec::new();
        let mut noise = 0;
        for run in [1, NOISY - 1, NOISY, NOISY + 1, 3 * NOISY, 2, NOISY + 3] {
            // The start of the last unit that entered the window and that the parser has seen.
            let start = pages.len() + (run.min(NOISY) - 1) * UNIT;
            pages.extend((0..run * UNIT).map(|_| random.byte()));
            noise += run;
            // The last unit again, then twice a part of it inside other data.
            let last = pages[pages.len() - UNIT..].to_vec();
            pages.extend_from_slice(&last);
            for _ in 0..2 {
                let mut page = b"words of a page, ".repeat(UNIT / 16);
                page.truncate(UNIT);
                page[1000..1800].copy_from_slice(&pages[start..start + 800]);
                pages.extend_from_slice(&page);
            }
        }
        // A partial unit at the end.
        pages.extend((0..NOISY * UNIT + 100).map(|_| random.byte()));
        noise += NOISY;
        let packets = || pages.chunks(if cfg!(miri) { usize::MAX } else { 29 * UNIT });
        for window in WindowSize::ALL {
            for effort in Effort::ALL {
                let mut deflater = Deflater::new(window, effort);
                let mut inflater = StreamInflater::new();
                let mut stream = window.zlib_header().to_vec();
                let header = stream.len();
                let mut start = 0;
                for packet in packets() {
                    deflater.compress(packet, &mut stream);
                    let mut decoded = vec![0; packet.len()];
                    inflater.inflate(&stream[start..], &mut decoded).unwrap();
                    assert!(decoded == packet, "{window} {effort}");
                    start = stream.len();
                }
                let oracle = Oracle::new(window.bytes(), Ending::SyncFlush);
                let decoded = oracle.decode(&stream[header..], pages.len()).unwrap();
                assert!(decoded.output == pages, "{window} {effort}");
                // The bound allows for the repeated unit and the noise inside the pages of words,
                // and for little else.
                let most = (noise + 7) * UNIT + 14 * 1000;
                assert!((noise * UNIT..most).contains(&stream.len()));
            }
        }
    }
}
