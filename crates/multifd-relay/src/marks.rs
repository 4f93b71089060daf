//! The ends of rounds on the main channel.

use multifd_wire::main_stream::MainEvent;

/// Finds the marks that end a round.
///
/// A source of QEMU 8.1 or later, with a machine type as new, writes a flush mark where a round
/// ends, the first of them before the set-up of the RAM section ends. All others end a round
/// wherever a body of the RAM section ends.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    flush_seen: bool,
    /// Known from the end of the set-up on.
    per_section: Option<bool>,
}

impl Marks {
    /// Whether all marks are ends of rounds, but for one in the set-up.
    pub(crate) fn are_flushes(&self) -> bool {
        self.flush_seen
    }

    /// Takes note of `event`; whether it ends a round.
    pub(crate) fn ends_round(&mut self, event: &MainEvent) -> bool {
        match event {
            MainEvent::Flush => {
                self.flush_seen = true;
                true
            }
            MainEvent::RamEndOfSection => *self.per_section.get_or_insert(!self.flush_seen),
            _ => false,
        }
    }
}
