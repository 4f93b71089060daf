//! Whether the destination can be reached, and the failure if not.

use std::io;

use multifd_transport::{Cancel, Target, is_ours};

use super::RelayConfig;
use crate::failure::{Cause, Channel, Failure, Leg};
use crate::leg::{LegAddress, Protocol};

/// Looks whether another relay listens at `connect`, and begins no migration there. Does nothing if
/// the destination is a QEMU, which takes the first connection for its migration's.
///
/// # Errors
/// When no relay listens, or `cancel` ends the look.
pub fn look_for_relay(config: &RelayConfig, cancel: &Cancel) -> Result<(), Failure> {
    if config.connect.protocol != Protocol::Trunk {
        return Ok(());
    }
    let to = config.connect.of(config.name.as_ref());
    let to = to.map_err(|error| Failure::here(error.into()))?;
    let given_up = || cancel.is_cancelled();
    Target::resolve(&to.address, &given_up)
        .and_then(|target| target.dial(config.dial_timeout, &given_up))
        .map(drop)
        .map_err(|error| unreached(error, &to, Channel::Main))
}

/// The failure of a channel that did not reach the destination. A host without descriptors or
/// memory has itself to blame.
pub(super) fn unreached(
    error: impl Into<io::Error>,
    address: &LegAddress,
    channel: Channel,
) -> Failure {
    let source = error.into();
    let leg = match is_ours(&source) {
        true => Leg::Here,
        false => Leg::Destination,
    };
    let address = address.clone();
    Failure {
        channel,
        leg,
        block: None,
        cause: Cause::Dial { address, source },
    }
}
