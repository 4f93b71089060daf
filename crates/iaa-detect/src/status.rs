//! libqpl's status numbers that describe the machine.

/// The result of a libqpl function (C: `qpl_status`). Any number is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(pub(super) u32);

impl Status {
    /// The work queues are configured to refuse the operation.
    pub(super) const NOT_SUPPORTED_BY_WQ: Self = Self(8);
    /// A job is larger than the work queues allow.
    pub(super) const TRANSFER_SIZE_INVALID: Self = Self(319);
    /// No path to the device works.
    pub(super) const INIT_HW_NOT_SUPPORTED: Self = Self(500);
    /// libaccel-config is missing, or lacks a function.
    pub(super) const INIT_LIBACCEL_NOT_FOUND: Self = Self(501);
    /// There is no work queue that libqpl may use.
    pub(super) const INIT_WORK_QUEUES_NOT_AVAILABLE: Self = Self(503);
}
