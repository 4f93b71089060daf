//! Which search suits the effort and the data.

use std::ops::Range;

use super::coder::{Coder, Measure};
use super::counts::{Counts, Tally};
use super::effort::Effort;
use super::format::{FIXED_DISTANCE_LENGTHS, FIXED_LITLEN_LENGTHS};
use super::item::Item;
use super::lengths::Lengths;
use super::machine::Machine;
use super::parse::UNIT_ITEMS;
use super::search::{ALWAYS, One, Search, Two};
use super::window::{UNIT, Unit, WindowBytes};

/// Fast: a small table of long hashes, and less and less of them where nothing is found.
type Quick = One<8, 10, 1024, 64>;
/// The usual choice.
type Five = One<5, 12, 4096, ALWAYS>;
/// For memory full of words whose neighbours resemble them: fewer and longer matches, not so far away.
type Eight = One<8, 10, 1024, ALWAYS>;

/// The search of one encoder.
pub(super) enum Choice {
    Quick(Box<Quick>),
    Either(Box<Either>),
    Two(Box<Two>),
}

/// Two searches of which one is used.
pub(super) struct Either {
    five: Five,
    eight: Eight,
    habit: Habit,
}

/// What suited the data so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Shorter matches, which are found everywhere.
    #[default]
    Short,
    /// Longer ones.
    Long,
}

impl Choice {
    pub(super) fn new(effort: Effort) -> Self {
        match effort {
            Effort::Fast => Self::Quick(Box::new(Quick::new())),
            Effort::Balanced => Self::Either(Box::new(Either {
                five: Five::new(),
                eight: Eight::new(),
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
                either.five.slide(by);
                either.eight.slide(by);
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
                Habit::Short => machine.parse(&mut either.five, window, unit, window_bytes, items),
                Habit::Long => machine.parse(&mut either.eight, window, unit, window_bytes, items),
            },
        }
    }
}

/// Finds out which of two searches suits the data.
pub(super) struct Survey {
    five: Five,
    eight: Eight,
    /// What each makes of the units.
    items: [Vec<Item>; 2],
    unit_items: [Item; UNIT_ITEMS],
    coder: Box<Coder>,
}

impl Survey {
    /// Units that a survey looks at. The first only fills the tables.
    pub(super) const UNITS: usize = 5;

    /// Nothing where there is no choice.
    pub(super) fn new(effort: Effort) -> Option<Box<Self>> {
        (effort == Effort::Balanced).then(|| {
            let items = || Vec::with_capacity(Self::UNITS * UNIT_ITEMS);
            Box::new(Self {
                five: Five::new(),
                eight: Eight::new(),
                items: [items(), items()],
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
        window_bytes: usize,
    ) -> Habit {
        let Range { start, end } = range;
        self.five = Five::new();
        self.eight = Eight::new();
        self.items.iter_mut().for_each(Vec::clear);
        let [for_five, for_eight] = &mut self.items;
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
            let count = machine.parse(&mut self.five, window, unit, window_bytes, items);
            keep(for_five, &items[..count.unwrap_or(0)]);
            let count = machine.parse(&mut self.eight, window, unit, window_bytes, items);
            keep(for_eight, &items[..count.unwrap_or(0)]);
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
        let [five, eight] = self.items.each_ref().map(|items| self.coder.measure(items));
        let time = |measure: &Measure| {
            Self::UNITS * UNIT_CYCLES
                + measure.matches * MATCH_CYCLES
                + measure.literals * LITERAL_CYCLES
        };
        // A bit more may be written for a fifth of the time that this saves.
        let saved = time(&five).saturating_sub(time(&eight));
        let lost = eight.bits.saturating_sub(five.bits);
        if lost * 5 * time(&five) >= five.bits * saved {
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
