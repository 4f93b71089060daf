//! The state of a migration, as both directions of its main channel show it; and the meaning of a
//! failure in this state.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Remark;
use crate::failure::{Cause, Unheard};

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
    /// The rest of the return path cannot be followed, so the destination's word may go unseen.
    pub(super) return_path_lost: bool,
    /// The source's host has acknowledged that word.
    pub(super) told: bool,
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
    /// This relay has closed the source, which waits for no word, so the end of its bytes is no
    /// clean end.
    pub(super) halted: bool,
}

const UNSEEN: Cause = Cause::Unheard {
    why: Unheard::NotFollowed,
};

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

    /// Whether the source may have been told that its destination has the guest, and this was not
    /// seen here.
    fn hides_word(&self) -> bool {
        self.return_path_lost && !self.confirmed && self.may_have_arrived()
    }

    /// Whether the source, which waits for no word, may have given up a guest that the destination
    /// does not certainly have. Bytes of a source that this relay has closed may have been on their
    /// way; behind all memory these may have been the last ones.
    pub(super) fn may_be_given_up(&self) -> bool {
        let may_be_done = self.may_be_whole() || (self.halted || self.ended) && self.ram_ended;
        (self.set_up || self.lost) && !self.return_path && !self.postcopy && may_be_done
    }

    /// Whether the stream cannot be followed, and has not switched to postcopy before.
    pub(super) fn is_lost_before_postcopy(&self) -> bool {
        self.lost && !self.postcopy
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
            // A destination in postcopy may have the guest, and without all of what it starts with
            // neither end could go on.
            let may_be_whole = seen.may_be_whole() || source_is_done || seen.postcopy;
            let is_due = may_be_whole && !seen.confirmed && !seen.failed;
            seen.failed |= !is_due && !seen.guest_has_arrived();
            !is_due
        })
    }

    /// Notes that postcopy begins. Returns `false` if the migration has failed: nothing of it is
    /// then passed on, and the source has the guest.
    pub(super) fn begins_postcopy(&self) -> bool {
        self.see(|seen| {
            seen.postcopy |= !seen.failed;
            seen.goes_on = true;
            seen.postcopy
        })
    }

    /// The failure of a destination whose word was waited for in vain.
    pub(super) fn no_word(&self, within: Duration) -> Cause {
        match self.look(|seen| seen.postcopy) {
            true => Cause::PostcopyBroke,
            false => Cause::NoWord { within },
        }
    }

    /// This relay is about to close a source that waits for no word. `false` if it waits for one,
    /// or has not said so yet: then it keeps its guest, and needs no such care.
    pub(super) fn halts(&self) -> bool {
        self.see(|seen| {
            seen.halted |= seen.set_up && !seen.return_path && !seen.postcopy;
            seen.halted
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
            () if seen.hides_word() => UNSEEN,
            // A stream that could not be followed may have been complete.
            () if seen.may_be_whole() || !seen.remarks.is_empty() => Cause::TakenBack,
            () => Cause::Incomplete,
        })
    }

    /// The failure of a destination that has closed, and has said no word to a source that waits
    /// for one.
    pub(super) fn unconfirmed(&self) -> Cause {
        self.look(|seen| match () {
            () if seen.postcopy => Cause::PostcopyBroke,
            () if seen.hides_word() => UNSEEN,
            () => Cause::Unconfirmed,
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

    /// A source that closes may have been told, and a destination that closes may have said it.
    #[test]
    fn behind_a_return_path_that_cannot_be_followed_nobody_knows() {
        for (ram_ended, is_known) in [(false, true), (true, false)] {
            let outline = Outline::default();
            outline.see(|seen| {
                (seen.return_path, seen.return_path_lost) = (true, true);
                seen.ram_ended = ram_ended;
            });
            let [gone, closed] = [outline.taken_back(), outline.unconfirmed()];
            assert_eq!(matches!(gone, Cause::Unheard { .. }), !is_known, "{gone}");
            assert_eq!(
                matches!(closed, Cause::Unheard { .. }),
                !is_known,
                "{closed}"
            );
        }
    }

    #[test]
    fn either_a_wish_is_first_or_postcopy() {
        let outline = Outline::default();
        assert!(outline.begins_postcopy());
        assert!(
            !outline.may_end(false),
            "its destination may have the guest"
        );
        assert!(matches!(
            outline.no_word(Duration::ZERO),
            Cause::PostcopyBroke
        ));
        let outline = Outline::default();
        assert!(outline.may_end(false));
        assert!(!outline.begins_postcopy(), "nothing of it goes anywhere");
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

    /// A source with a return path keeps its guest until it has the word.
    #[test]
    fn a_source_that_waits_for_no_word_may_have_given_its_guest_up() {
        let seen = |change: fn(&mut Seen)| {
            let outline = Outline::default();
            outline.set_up();
            outline.see(change);
            (outline.halts(), outline.look(Seen::may_be_given_up))
        };
        assert_eq!(seen(|_| ()), (true, false));
        assert_eq!(seen(|seen| seen.ram_ended = true), (true, true));
        assert_eq!(seen(|seen| seen.complete = true), (true, true));
        let asks = |seen: &mut Seen| (seen.complete, seen.return_path) = (true, true);
        assert_eq!(seen(asks), (false, false));
        let outline = Outline::default();
        assert!(!outline.halts(), "it may ask for a word in its set-up");
        // The relay has not closed the source, which was in its state of devices.
        outline.see(|seen| (seen.set_up, seen.ram_ended) = (true, true));
        assert!(!outline.look(Seen::may_be_given_up));
    }
}
