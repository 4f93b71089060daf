//! Interprets a status of libqpl for a page.

use qpl_sys::Status;

/// The meaning of a status. Every number has one, also numbers that no header lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The work is done, as far as libqpl reports.
    Done,
    /// The result does not fit: a page that cannot be compressed, or a stream longer than its page.
    NoRoom,
    /// The queues are full for now.
    Busy,
    /// The input of a decompression is invalid for the device.
    Corrupt,
    /// The device met a missing page.
    Fault,
    /// The device made no progress although it has input.
    Stalled,
    /// The bus or the device failed.
    Device,
    /// The machine is not configured for this work. The next page would fail too.
    Config,
    /// Any other status. The page is done in software, and the next may succeed.
    Other,
}

impl Outcome {
    /// The only place that interprets numbers.
    pub(super) const fn of(status: Status) -> Self {
        match status.0 {
            0 => Self::Done,
            2 => Self::NoRoom,
            5 => Self::Busy,
            // The wrapper's header, the deflate stream. 3 is a stream that ends before it begins.
            3 | 104 | 105 | 201..=218 | 225 | 235 | 236 => Self::Corrupt,
            219 => Self::Stalled,
            // Reads and writes, by a descriptor or by a page request.
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
        for status in (1..512)
            .map(Status)
            .filter(|status| status.name().is_some())
        {
            assert_ne!(Outcome::of(status), Outcome::Done, "{status}");
        }
    }
}
