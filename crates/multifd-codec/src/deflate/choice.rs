//! Which search suits the effort and the data.

use std::ops::Range;

use super::coder::Measure;
use super::counts::{Counts, Tally};
use super::effort::Effort;
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

    /// Whether habits make a difference.
    pub(super) fn has_habits(&self) -> bool {
        matches!(self, Self::Either(_))
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

/// Units that a survey looks at. The first only fills the tables.
pub(super) const SURVEY_UNITS: usize = 5;

/// Finds out which search suits some units of a window, without regard to what came before them.
pub(super) fn survey(
    machine: Machine,
    window: &WindowBytes,
    units: Range<usize>,
    window_bytes: usize,
) -> Habit {
    let Range { start, end } = units;
    let units = || {
        (start..end).step_by(UNIT).map(|from| Unit {
            history: start,
            start: from,
            end: end.min(from + UNIT),
        })
    };
    let mut tally = Tally::new();
    let mut trial = |search: &mut dyn FnMut(Unit, &mut [Item; UNIT_ITEMS]) -> Option<usize>| {
        let mut all = Vec::with_capacity(SURVEY_UNITS * UNIT_ITEMS);
        let mut items = [0; UNIT_ITEMS];
        for (index, unit) in units().enumerate() {
            let count = search(unit, &mut items).unwrap_or(0);
            if index > 0 {
                all.extend_from_slice(&items[..count]);
            }
        }
        tally.count(&all);
        all
    };
    let (mut five, mut eight) = (Box::new(Five::new()), Box::new(Eight::new()));
    let five =
        trial(&mut |unit, items| machine.parse(&mut *five, window, unit, window_bytes, items));
    let eight =
        trial(&mut |unit, items| machine.parse(&mut *eight, window, unit, window_bytes, items));

    let mut counts = Counts::one_each();
    counts.add(&tally);
    let coder = Lengths::new(&counts).coder();
    let [five, eight] = [five, eight].map(|items| coder.measure(&items));
    let time = |measure: &Measure| {
        SURVEY_UNITS * UNIT_CYCLES
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

// What parsing takes, about: for a unit, a match and a literal.
const UNIT_CYCLES: usize = 4000;
const MATCH_CYCLES: usize = 40;
const LITERAL_CYCLES: usize = 4;
