//! Destinations that take one migration at a time.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::RelayConfig;
use super::main_channel::failed;
use crate::failure::{Failure, Leg, Other};
use crate::leg::Introduction;

/// The addresses of named destinations that migrations of this process occupy.
static TAKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// One migration's claim on a destination. Dropping it frees the destination.
pub(super) struct Taken(String);

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&self.0);
    }
}

/// Claims the destination of a name. A QEMU that waits for a guest would take a second migration's
/// connections for the first one's, and fail.
pub(super) fn take(introduction: &Introduction, config: &RelayConfig) -> Result<Taken, Failure> {
    let address = config.connect.of(introduction.name.as_ref());
    let address = address.map_err(|error| failed(Leg::Source, error.into()))?;
    let text = address.to_string();
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    match taken.insert(text.clone()) {
        true => Ok(Taken(text)),
        false => Err(failed(Leg::Destination, Other::Taken { address }.into())),
    }
}
