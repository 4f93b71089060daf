//! The state of a migration, as both directions of its main channel show it; and the meaning of a
//! failure in this state.

use std::io;
use std::sync::{Mutex, PoisonError};

use super::Remark;
use crate::failure::Cause;

/// The state that both directions have shown so far.
#[derive(Debug, Default)]
pub(super) struct Outline(Mutex<Seen>);

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The source waits for the destination's word.
    pub(super) return_path: bool,
    /// The ping that the destination answers as soon as it loads.
    pub(super) pinged: bool,
    /// The set-up has a multifd flush mark.
    pub(super) has_flush: bool,
    /// The set-up of the memory has been read.
    pub(super) set_up: bool,
    /// Something after the set-up was read, or the stream cannot be followed.
    pub(super) goes_on: bool,
    /// All memory has been read.
    pub(super) ram_ended: bool,
    /// Everything that makes the guest has been read. At most the device description is to come.
    pub(super) complete: bool,
    /// The bytes so far may end with the whole guest: they are a device's state, after all memory.
    pub(super) hides_end: bool,
    /// Postcopy has begun: the guest is at both ends.
    pub(super) postcopy: bool,
    /// The destination has said that it has the guest, and the migration had not failed before.
    pub(super) confirmed: bool,
    /// The migration has failed. From now on the source never gets the word that the destination
    /// has the guest.
    pub(super) failed: bool,
    /// The rest of main cannot be followed, so its completeness cannot be seen here.
    pub(super) lost: bool,
    /// The state of a device has come on a channel. It may follow the last SYNC, so no mark shows
    /// that all of it was passed on.
    pub(super) device_state: bool,
    /// It goes on with a postcopy migration that was interrupted: all of it came before.
    pub(super) recovers: bool,
    /// The parts that could not be followed, and were passed on. It was passed on all the same.
    pub(super) remarks: Vec<Remark>,
    /// The source's end was read and passed on.
    pub(super) ended: bool,
}

impl Seen {
    fn guest_has_arrived(&self) -> bool {
        self.confirmed && (self.complete || self.ram_ended || self.lost)
    }

    /// Whether a destination may say that it has the guest: all of its memory was read here, or
    /// follows the guest.
    pub(super) fn may_have_arrived(&self) -> bool {
        self.complete || self.ram_ended || self.lost || self.postcopy || self.recovers
    }

    /// Whether the source has sent everything and waits for no word: it may have given its guest
    /// up.
    pub(super) fn is_given_up(&self) -> bool {
        !self.return_path && self.complete
    }

    /// Whether the destination may have got everything that makes the guest, whatever was seen of
    /// the end.
    pub(super) fn may_be_whole(&self) -> bool {
        self.complete || self.hides_end || self.lost
    }
}

impl Outline {
    /// Whether a destination may close before a packet. QEMU does so when it has the guest: QEMU
    /// 8.2 and earlier send an empty packet after the last useful one.
    pub(super) fn needs_no_more(&self, packet_has_pages: bool) -> bool {
        self.look(|seen| seen.confirmed || seen.complete || !packet_has_pages)
    }

    /// Whether the destination has said that it has the guest, after all memory. No later event
    /// turns that into a failure.
    pub(super) fn guest_has_arrived(&self) -> bool {
        self.look(Seen::guest_has_arrived)
    }

    /// Fails the migration, unless the destination has said that it has the guest: the source gets
    /// that word, and it is final. After a failure the source never gets it. Returns whether the
    /// migration has failed.
    pub(super) fn fails(&self) -> bool {
        self.see(|seen| {
            seen.failed |= !seen.guest_has_arrived();
            seen.failed
        })
    }

    /// A cancel or a failed channel asks to end the migration. Returns `false` if the destination
    /// may have the whole guest and has not said so: it may start the guest at any moment, so wait
    /// for its word. Otherwise returns `true`, and fails the migration unless its guest has
    /// arrived. `source_is_done`: the source waits for no word and has closed, so it may have given
    /// its guest up.
    pub(super) fn may_end(&self, source_is_done: bool) -> bool {
        self.see(|seen| {
            let may_be_whole = seen.may_be_whole() || source_is_done;
            let is_due = may_be_whole && !seen.confirmed && !seen.failed;
            seen.failed |= !is_due && !seen.guest_has_arrived();
            !is_due
        })
    }

    /// Notes that everything that makes the guest has been read. Returns `false` if the migration
    /// has failed: the last element is then not passed on.
    pub(super) fn completes(&self) -> bool {
        self.see(|seen| {
            seen.complete = !seen.failed;
            seen.complete
        })
    }

    /// More is to be passed on, which may hide the end of main or not. `false` if the migration has
    /// failed.
    pub(super) fn goes_behind(&self, may_hide_end: bool) -> bool {
        self.see(|seen| {
            seen.hides_end = may_hide_end && seen.ram_ended && !seen.failed;
            !seen.failed
        })
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.lock())
    }

    pub(super) fn see<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.lock())
    }

    pub(super) fn remark(&self, remark: Remark) {
        self.see(|seen| {
            if !seen.remarks.contains(&remark) {
                seen.remarks.push(remark);
            }
        });
    }

    /// The set-up of the memory has been read.
    pub(super) fn set_up(&self) {
        self.see(|seen| seen.set_up = true);
    }

    /// Notes that the source has begun its first round, or that it does not show this.
    pub(super) fn goes_on(&self) {
        self.see(|seen| seen.goes_on = true);
    }

    /// Whether a source that has closed, or may have, has taken its guest back: it waited for a
    /// word that did not come.
    pub(super) fn is_taken_back(&self) -> bool {
        self.look(|seen| seen.return_path && !seen.confirmed)
    }

    /// The failure of a source that has taken its guest back. If not everything that makes the
    /// guest was read, no destination can have it.
    pub(super) fn taken_back(&self) -> Cause {
        self.look(|seen| match () {
            () if seen.postcopy => Cause::PostcopyBroke,
            // A stream that could not be followed may have been complete.
            () if seen.may_be_whole() || !seen.remarks.is_empty() => Cause::TakenBack,
            () => Cause::Incomplete,
        })
    }

    /// The failure if the other relay has gone.
    pub(super) fn relay_gone(&self) -> Cause {
        self.look(|seen| match seen.return_path {
            _ if seen.postcopy => Cause::PostcopyBroke,
            true => Cause::RelayGone,
            // Without everything that makes a guest no destination can have it.
            false if seen.may_be_whole() || seen.ended || !seen.remarks.is_empty() => {
                Cause::Unknown
            }
            false => io::Error::from(io::ErrorKind::ConnectionReset).into(),
        })
    }

    /// Every change is one assignment, so a thread that panicked has left nothing half done.
    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_ends_without_need_only_before_its_destination_has_everything() {
        let outline = Outline::default();
        assert!(outline.completes());
        assert!(!outline.may_end(false));
        // What forces it does so.
        assert!(outline.fails());
        assert!(outline.may_end(false));
        let outline = Outline::default();
        assert!(outline.may_end(false));
        assert!(!outline.completes(), "the rest goes nowhere");
    }

    /// The end of main may have gone unseen, or wait in a buffer of this host.
    #[test]
    fn a_destination_may_have_everything_though_no_end_of_main_was_seen() {
        for is_lost in [true, false] {
            let outline = Outline::default();
            outline.see(|seen| (seen.lost, seen.ram_ended) = (is_lost, true));
            assert!(outline.goes_behind(!is_lost));
            assert!(!outline.may_end(false));
            outline.see(|seen| seen.confirmed = true);
            assert!(outline.guest_has_arrived() && !outline.fails());
        }
        assert!(!Outline::default().may_end(true));
        // Between two elements nothing is hidden.
        let outline = Outline::default();
        outline.see(|seen| seen.ram_ended = true);
        assert!(outline.goes_behind(true) && outline.goes_behind(false));
        assert!(outline.may_end(false));
        assert!(!outline.goes_behind(true), "the rest goes nowhere");
    }
}
