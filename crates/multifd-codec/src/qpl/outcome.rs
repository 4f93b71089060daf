//! What a status of libqpl's means for a page.

use qpl_sys::Status;

/// What to do about a status. Every status is one of these, those that no header lists included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The work is done, as far as libqpl tells.
    Done,
    /// The result does not fit. A page that cannot be compressed, or a stream that is longer than
    /// its page.
    NoRoom,
    /// The queues are full for now.
    Busy,
    /// The input of a decompression is not what the device reads.
    Corrupt,
    /// The device met a missing page.
    Fault,
    /// The device made no progress although there is input.
    Stalled,
    /// The bus or the device failed.
    Device,
    /// The machine is not configured for this work. It will not do better with the next page.
    Config,
    /// Anything else. The page is done in software, and the next may do better.
    Other,
}

impl Outcome {
    /// The one place where numbers become meanings.
    pub(super) const fn of(status: Status) -> Self {
        match status.0 {
            0 => Self::Done,
            2 => Self::NoRoom,
            5 => Self::Busy,
            // The wrapper's header, the deflate stream. 3 is a stream that ends before it begins.
            3 | 104 | 105 | 201..=218 | 225 | 235 | 236 => Self::Corrupt,
            219 => Self::Stalled,
            // Read and write, by a descriptor or by a page request.
            303 | 304 | 326 | 431 | 432 | 454 => Self::Fault,
            330..=336 => Self::Device,
            // The queue's op_config, its largest transfer (58 before 1.9), privilege, address
            // space, domains; no device.
            8 | 58 | 319 | 329 | 340..=346 | 500..=503 => Self::Config,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_meanings() {
        let cases = [
            (Status::OK, Outcome::Done),
            (Status::MORE_OUTPUT_NEEDED, Outcome::NoRoom),
            (Status::QUEUES_ARE_BUSY, Outcome::Busy),
            (Status::BAD_EOF, Outcome::Corrupt),
            (Status::BAD_DIST, Outcome::Corrupt),
            (Status::TOO_MANY_D_CODES, Outcome::Corrupt),
            (Status::TIMEOUT, Outcome::Stalled),
            (Status::INTL_PAGE_FAULT, Outcome::Fault),
            (Status::INTL_W_PAGE_FAULT, Outcome::Fault),
            (Status::INTL_W_TRANSLATION_PF, Outcome::Fault),
            (Status::INTL_HARDWARE_TIMEOUT, Outcome::Device),
            (Status::TRANSFER_SIZE_INVALID, Outcome::Config),
            (Status::NOT_SUPPORTED_BY_WQ, Outcome::Config),
            (Status::INIT_WORK_QUEUES_NOT_AVAILABLE, Outcome::Config),
            (Status::INTL_OUTPUT_OVERFLOW, Outcome::Other),
            (Status::INTL_VERIFY, Outcome::Other),
            (Status::SIZE, Outcome::Other),
            (Status(9999), Outcome::Other),
        ];
        for (status, outcome) in cases {
            assert_eq!(Outcome::of(status), outcome, "{status}");
        }
    }

    #[test]
    fn a_status_that_is_not_success_is_never_taken_for_it() {
        for &status in Status::LISTED.iter().filter(|status| status.0 != 0) {
            assert_ne!(Outcome::of(status), Outcome::Done, "{status}");
        }
    }
}
