//! What an engine needs of a VM beside its memory.

use std::error::Error;

/// A VM that is moved away, or one that is being filled.
///
/// An engine calls these one at a time, from a thread of its own choice. An error ends the migration; at a
/// source, the VM is resumed.
pub trait VmHandle: Send {
    /// Stops the VM. When this returns, nothing writes its memory any more: neither its CPUs nor its devices.
    ///
    /// # Errors
    ///
    /// When it cannot be stopped. It is resumed then, as after any other failure.
    fn pause(&mut self) -> Result<(), VmError>;

    /// Lets the VM run: again at a source, for the first time at a destination. At a source it may be running already.
    ///
    /// # Errors
    ///
    /// When it cannot run.
    fn resume(&mut self) -> Result<(), VmError>;

    /// The state of everything but memory, in whatever form the destination's
    /// [`load_device_state`](Self::load_device_state) reads. The VM is paused.
    ///
    /// # Errors
    ///
    /// When it cannot be told.
    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError>;

    /// Takes what the source's [`save_device_state`](Self::save_device_state) gave. All memory is in place by then. The
    /// bytes come from a peer: they are whole, but not to be trusted further.
    ///
    /// # Errors
    ///
    /// When this is no state for this VM. The source's VM runs on.
    fn load_device_state(&mut self, state: &[u8]) -> Result<(), VmError>;
}

/// Why a VM does not do what it should, in its own words.
pub type VmError = Box<dyn Error + Send + Sync>;
