//! The faults of a peer's control messages.

use multifd_wire::Fault;

/// How a control connection breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFault {
    /// It breaks a rule that QEMU's streams have, too: a magic number, an early end, a list of RAM
    /// blocks.
    #[error(transparent)]
    Wire(#[from] Fault),
    /// A message of a kind that its version does not have.
    #[error("control message of kind {found}")]
    Kind {
        /// The kind.
        found: u16,
    },
    /// A message is longer than its kind may be.
    #[error("control message of kind {kind} with {found} bytes, {allowed} are allowed")]
    Length {
        /// The kind.
        kind: u16,
        /// The length stated.
        found: usize,
        /// The longest allowed.
        allowed: usize,
    },
    /// A message's body does not fit its kind.
    #[error("the body of a control message of kind {kind} is malformed")]
    Body {
        /// The kind.
        kind: u16,
    },
    /// A message states a page size that this crate does not have.
    #[error("pages of {found} bytes")]
    PageBytes {
        /// Bytes stated.
        found: u32,
    },
    /// A message states no channel, or more than there can be.
    #[error("{found} channels, 1 to {allowed} are allowed")]
    Channels {
        /// Number stated.
        found: u16,
        /// Most allowed.
        allowed: u16,
    },
}
