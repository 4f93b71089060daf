//! Which search suits the effort and the data.

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
use super::window::{UNIT, Unit, WindowBytes};

// Numbers of bytes, table sizes and patience were tried on pages of two machines, of three
// processes' heaps, of a library and of source texts. What is twice or half of them costs more size
// than it saves time, or the other way round.

/// Fast: longer matches, and soon only a few of the hashes where nothing is found.
type Quick = One<6, 12, 4096, 6>;
/// The usual choice.
type Five = One<5, 12, 4096, 64>;
/// The usual choice where matches do not reach far. Fewer of the short ones are within reach then:
/// to look for them takes more time than their bytes are worth.
type Six = One<6, 12, 4096, 32>;
/// For programs, and whatever else is full of short matches.
type Four = One<4, 12, 4096, ALWAYS>;
/// For memory full of words whose neighbours resemble them: fewer and longer matches.
type Seven = One<7, 12, 4096, 8>;

/// The search of one encoder.
pub(super) enum Choice {
    Quick(Box<Quick>),
    Either(Box<Either>),
    Two(Box<Two>),
}

/// Searches of which one is used.
pub(super) struct Either {
    shortest: Four,
    short: Short,
    long: Seven,
    habit: Habit,
}

/// The search for shorter matches, by how far they reach.
enum Short {
    Near(Six),
    Far(Five),
}

impl Short {
    fn new(window: WindowSize) -> Self {
        match window {
            WindowSize::FourKiB => Self::Near(Six::new()),
            WindowSize::ThirtyTwoKiB => Self::Far(Five::new()),
        }
    }

    /// To look for still shorter matches takes a tenth more time, or a quarter where they do not
    /// reach far. It pays when it saves one bit of so many.
    const fn bits_for_one_saved(&self) -> usize {
        match self {
            Self::Near(_) => 25,
            Self::Far(_) => 80,
        }
    }

    fn slide(&mut self, by: usize) {
        match self {
            Self::Near(six) => six.slide(by),
            Self::Far(five) => five.slide(by),
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
            Self::Near(six) => machine.parse(six, window, unit, window_bytes, items),
            Self::Far(five) => machine.parse(five, window, unit, window_bytes, items),
        }
    }
}

/// Which matches the encoder of [`Effort::Balanced`] looks for.
/// [`Deflater::survey`](crate::Deflater::survey) chooses one for the pages. Other efforts ignore
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Habit {
    /// Four bytes and more.
    Shortest,
    /// The usual.
    #[default]
    Short,
    /// Longer ones.
    Long,
}

impl Choice {
    pub(super) fn new(effort: Effort, window: WindowSize) -> Self {
        match effort {
            Effort::Fast => Self::Quick(Box::new(Quick::new())),
            Effort::Balanced => Self::Either(Box::new(Either {
                shortest: Four::new(),
                short: Short::new(window),
                long: Seven::new(),
                habit: Habit::default(),
            })),
            Effort::Dense => Self::Two(Box::new(Two::new())),
        }
    }

    pub(super) fn set_habit(&mut self, habit: Habit) {
        if let Self::Either(either) = self {
            either.habit = habit;
        }
    }

    /// Moves all positions down.
    pub(super) fn slide(&mut self, by: usize) {
        match self {
            Self::Quick(quick) => quick.slide(by),
            Self::Either(either) => {
                either.shortest.slide(by);
                either.short.slide(by);
                either.long.slide(by);
            }
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
            Self::Either(either) => match either.habit {
                Habit::Shortest => {
                    machine.parse(&mut either.shortest, window, unit, window_bytes, items)
                }
                Habit::Short => either
                    .short
                    .parse(machine, window, unit, window_bytes, items),
                Habit::Long => machine.parse(&mut either.long, window, unit, window_bytes, items),
            },
        }
    }
}

/// Finds out which search suits the data.
pub(super) struct Survey {
    reach: WindowSize,
    shortest: Four,
    short: Short,
    long: Seven,
    /// What each makes of the units.
    items: [Vec<Item>; 3],
    unit_items: [Item; UNIT_ITEMS],
    coder: Box<Coder>,
}

impl Survey {
    /// Units that a survey looks at. The first only fills the tables.
    pub(super) const UNITS: usize = 5;

    /// Nothing where there is no choice.
    pub(super) fn new(effort: Effort, reach: WindowSize) -> Option<Box<Self>> {
        (effort == Effort::Balanced).then(|| {
            let items = || Vec::with_capacity(Self::UNITS * UNIT_ITEMS);
            Box::new(Self {
                reach,
                shortest: Four::new(),
                short: Short::new(reach),
                long: Seven::new(),
                items: [items(), items(), items()],
                unit_items: [0; UNIT_ITEMS],
                coder: Coder::new(&FIXED_LITLEN_LENGTHS, &FIXED_DISTANCE_LENGTHS),
            })
        })
    }

    /// Looks at a range of a window, without regard to what comes before it.
    pub(super) fn look(
        &mut self,
        machine: Machine,
        window: &WindowBytes,
        range: Range<usize>,
    ) -> Habit {
        let Range { start, end } = range;
        let window_bytes = self.reach.bytes();
        self.shortest = Four::new();
        self.short = Short::new(self.reach);
        self.long = Seven::new();
        self.items.iter_mut().for_each(Vec::clear);
        let [for_shortest, for_short, for_long] = &mut self.items;
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
            let shortest = &mut self.shortest;
            let count = machine.parse(shortest, window, unit, window_bytes, items);
            keep(for_shortest, &items[..count.unwrap_or(0)]);
            let count = self.short.parse(machine, window, unit, window_bytes, items);
            keep(for_short, &items[..count.unwrap_or(0)]);
            let count = machine.parse(&mut self.long, window, unit, window_bytes, items);
            keep(for_long, &items[..count.unwrap_or(0)]);
        }
        self.judge()
    }

    fn judge(&mut self) -> Habit {
        let mut tally = Tally::new();
        self.items.iter().for_each(|items| tally.count(items));
        let mut counts = Counts::one_each();
        counts.add(&tally);
        let lengths = Lengths::new(&counts);
        self.coder.set(&lengths.litlen, &lengths.distance);
        let [shortest, short, long] = self.items.each_ref().map(|items| self.coder.measure(items));
        let time = |measure: &Measure| {
            Self::UNITS * UNIT_CYCLES
                + measure.matches * MATCH_CYCLES
                + measure.literals * LITERAL_CYCLES
        };
        // A bit more may be written for a fifth of the time that this saves.
        let gained = short.bits.saturating_sub(shortest.bits);
        if gained * self.short.bits_for_one_saved() > short.bits {
            return Habit::Shortest;
        }
        let saved = time(&short).saturating_sub(time(&long));
        let lost = long.bits.saturating_sub(short.bits);
        if lost * 5 * time(&short) >= short.bits * saved {
            Habit::Short
        } else {
            Habit::Long
        }
    }
}

// What parsing takes, about: for a unit, a match and a literal.
const UNIT_CYCLES: usize = 4000;
const MATCH_CYCLES: usize = 40;
const LITERAL_CYCLES: usize = 4;
