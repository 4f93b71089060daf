//! Chooses the search that suits the effort and the data.

use std::ops::Range;

use super::coder::{Coder, Measure};
use super::counts::{Counts, Tally};
use super::effort::{Effort, WindowSize};
use super::format::{FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS};
use super::item::Item;
use super::lengths::Lengths;
use super::machine::Machine;
use super::parse::UNIT_ITEMS;
use super::search::{ALWAYS, One, Search, Two};
use super::window::{SPAN, UNIT, Unit, WindowBytes};

// The numbers of bytes, table sizes and patience were tried on pages of two machines, of three
// processes' heaps, of a library and of source texts. Doubling or halving any of them loses more in
// size or speed than it gains in the other.

/// For speed: longer matches, and where nothing is found, soon only a few of the hashes.
type Quick = One<6, 12, 4096, 6, false>;
/// The usual choice.
type Five = One<5, 13, 8192, 64, false>;
/// For records that repeat at changing distances: logs and tables of databases.
type Words = One<5, 13, 8192, 64, true>;
/// The usual choice for the near window. Fewer short matches are within its reach, and searching
/// for them costs more time than their bytes are worth.
type Six = One<6, 12, 4096, 32, false>;
/// For programs and other data full of short matches, with the near window.
type Four = One<4, 12, 4096, ALWAYS, false>;
/// For memory full of words that resemble their neighbours: fewer and longer matches.
type Seven = One<7, 12, 4096, 8, false>;

/// The search of one encoder.
pub(super) enum Choice {
    Quick(Box<Quick>),
    Either(Box<Either>),
    Two(Box<Two>),
}

/// Several searches; the habit selects one.
pub(super) struct Either {
    thorough: Reach<Four, Words>,
    short: Reach<Six, Five>,
    long: Seven,
    habit: Habit,
}

impl Either {
    /// Moves the positions of the habit's search down. The others are cleared before use.
    fn slide(&mut self, by: usize) {
        match self.habit.0 {
            Matches::Thorough => self.thorough.slide(by),
            Matches::Short => self.short.slide(by),
            Matches::Long => self.long.slide(by),
        }
    }

    fn set_habit(&mut self, habit: Habit) {
        if self.habit != habit {
            self.habit = habit;
            self.slide(SPAN);
        }
    }
}

/// A search, by window.
enum Reach<N, F> {
    Near(N),
    Far(F),
}

impl<N: Search, F: Search> Reach<N, F> {
    fn new(window: WindowSize) -> Self {
        match window {
            WindowSize::FourKiB => Self::Near(N::new()),
            WindowSize::ThirtyTwoKiB => Self::Far(F::new()),
        }
    }

    fn slide(&mut self, by: usize) {
        match self {
            Self::Near(near) => near.slide(by),
            Self::Far(far) => far.slide(by),
        }
    }

    /// See [`super::parse::parse`].
    fn parse(
        &mut self,
        machine: Machine,
        window: &WindowBytes,
        unit: Unit,
        window_bytes: usize,
        items: &mut [Item; UNIT_ITEMS],
    ) -> Option<usize> {
        match self {
            Self::Near(near) => machine.parse(near, window, unit, window_bytes, items),
            Self::Far(far) => machine.parse(far, window, unit, window_bytes, items),
        }
    }
}

/// The lengths of matches that the encoder of [`Effort::Balanced`] looks for.
/// [`Deflater::survey`](crate::Deflater::survey) chooses a habit for the pages. Other efforts
/// ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habit(pub(super) Matches);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Matches {
    /// More time for a smaller size. With the near window: matches of four bytes and more. With the
    /// far one: long matches before short ones.
    Thorough,
    /// The usual lengths.
    #[default]
    Short,
    /// Longer matches.
    Long,
}

impl Choice {
    pub(super) fn new(effort: Effort, window: WindowSize) -> Self {
        match effort {
            Effort::Fast => Self::Quick(Box::new(Quick::new())),
            Effort::Balanced => Self::Either(Box::new(Either {
                thorough: Reach::new(window),
                short: Reach::new(window),
                long: Seven::new(),
                habit: Habit::default(),
            })),
            Effort::Dense => Self::Two(Box::new(Two::new())),
        }
    }

    pub(super) fn set_habit(&mut self, habit: Habit) {
        if let Self::Either(either) = self {
            either.set_habit(habit);
        }
    }

    /// Moves all positions down.
    pub(super) fn slide(&mut self, by: usize) {
        match self {
            Self::Quick(quick) => quick.slide(by),
            Self::Either(either) => either.slide(by),
            Self::Two(two) => two.slide(by),
        }
    }

    /// See [`super::parse::parse`].
    pub(super) fn parse(
        &mut self,
        machine: Machine,
        window: &WindowBytes,
        unit: Unit,
        window_bytes: usize,
        items: &mut [Item; UNIT_ITEMS],
    ) -> Option<usize> {
        match self {
            Self::Quick(quick) => machine.parse(&mut **quick, window, unit, window_bytes, items),
            Self::Two(two) => machine.parse(&mut **two, window, unit, window_bytes, items),
            Self::Either(either) => match either.habit.0 {
                Matches::Thorough => {
                    either
                        .thorough
                        .parse(machine, window, unit, window_bytes, items)
                }
                Matches::Short => either
                    .short
                    .parse(machine, window, unit, window_bytes, items),
                Matches::Long => machine.parse(&mut either.long, window, unit, window_bytes, items),
            },
        }
    }
}

/// Finds out which search suits the data.
pub(super) struct Survey {
    reach: WindowSize,
    thorough: Reach<Four, Words>,
    short: Reach<Six, Five>,
    long: Seven,
    /// The items that each search makes of the units.
    items: [Vec<Item>; 3],
    unit_items: [Item; UNIT_ITEMS],
    coder: Box<Coder>,
}

impl Survey {
    /// Units in a survey. The first one only fills the tables.
    pub(super) const UNITS: usize = 9;

    /// Returns `None` if the effort leaves no choice.
    pub(super) fn new(effort: Effort, reach: WindowSize) -> Option<Box<Self>> {
        (effort == Effort::Balanced).then(|| {
            let items = || Vec::with_capacity(Self::UNITS * UNIT_ITEMS);
            Box::new(Self {
                reach,
                thorough: Reach::new(reach),
                short: Reach::new(reach),
                long: Seven::new(),
                items: [items(), items(), items()],
                unit_items: [0; UNIT_ITEMS],
                coder: Coder::new(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS),
            })
        })
    }

    /// Surveys a range of a window and ignores the bytes before it.
    pub(super) fn look(
        &mut self,
        machine: Machine,
        window: &WindowBytes,
        range: Range<usize>,
    ) -> Habit {
        let Range { start, end } = range;
        let window_bytes = self.reach.bytes();
        self.thorough = Reach::new(self.reach);
        self.short = Reach::new(self.reach);
        self.long = Seven::new();
        self.items.iter_mut().for_each(Vec::clear);
        let [for_thorough, for_short, for_long] = &mut self.items;
        for from in (start..end).step_by(UNIT) {
            let unit = Unit {
                history: start,
                start: from,
                end: end.min(from + UNIT),
            };
            let items = &mut self.unit_items;
            let keep = |kept: &mut Vec<Item>, items: &[Item]| {
                if from > start {
                    kept.extend_from_slice(items);
                }
            };
            let thorough = &mut self.thorough;
            let count = thorough.parse(machine, window, unit, window_bytes, items);
            keep(for_thorough, &items[..count.unwrap_or(0)]);
            let count = self.short.parse(machine, window, unit, window_bytes, items);
            keep(for_short, &items[..count.unwrap_or(0)]);
            let count = machine.parse(&mut self.long, window, unit, window_bytes, items);
            keep(for_long, &items[..count.unwrap_or(0)]);
        }
        Habit(self.judge())
    }

    fn judge(&mut self) -> Matches {
        let mut tally = Tally::new();
        self.items.iter().for_each(|items| tally.count(items));
        let mut counts = Counts::one_each();
        counts.add(&tally);
        let lengths = Lengths::new(&counts);
        self.coder.set(&lengths.litlen, &lengths.distance);
        let [thorough, short, long] = self.items.each_ref().map(|items| self.coder.measure(items));
        let gained = short.bits.saturating_sub(thorough.bits);
        if gained * bits_for_one_saved(self.reach) > short.bits {
            return Matches::Thorough;
        }
        // Larger output is accepted if its share of the size is below a fifth of the share of time
        // saved. Longer matches can also make the output smaller, or take more time.
        let share = |of_short: usize, of_long: usize| {
            let (of_short, of_long) = (of_short as f64, of_long as f64);
            (of_long - of_short) / of_short.max(1.0)
        };
        let lost = share(short.bits, long.bits);
        let saved = -share(time(&short), time(&long));
        if lost * 5.0 < saved {
            Matches::Long
        } else {
            Matches::Short
        }
    }
}

/// `Thorough` takes a quarter more time with the near window, and 3 % with the far one. It
/// pays when it saves one bit in this many.
const fn bits_for_one_saved(reach: WindowSize) -> usize {
    match reach {
        WindowSize::FourKiB => 25,
        WindowSize::ThirtyTwoKiB => 110,
    }
}

fn time(measure: &Measure) -> usize {
    Survey::UNITS * UNIT_CYCLES + measure.matches * MATCH_CYCLES + measure.literals * LITERAL_CYCLES
}

// Approximate parsing cost of a unit, a match and a literal.
const UNIT_CYCLES: usize = 4000;
const MATCH_CYCLES: usize = 40;
const LITERAL_CYCLES: usize = 4;
