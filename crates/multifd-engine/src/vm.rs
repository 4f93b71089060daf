//! The operations that an engine needs from a VM, besides its memory.

use std::error::Error;

/// A VM that is moved away, or one that is being filled.
///
/// An engine calls these one at a time, from a thread of its own choice. An error ends the
/// migration; at a source, the VM is resumed.
///
/// # Who may change guest memory, and when
///
/// | at the source | guest memory may be changed by |
/// | --- | --- |
/// | until `pause` returns | virtual CPUs, devices, the VMM |
/// | until `save_device_state` returns | the code that saves the state: the VMM, a vhost-user back end that is drained |
/// | until `resume` is called, or for good | nothing |
///
/// A change is a write in any way, or a page that is discarded. Every change up to the return of
/// `save_device_state` must be in the next fetch of the [`DirtyLog`](crate::dirty::DirtyLog), or
/// marked: the last round of memory is sent after that. What comes later is lost, or with
/// [`Parameters::digest`](crate::Parameters::digest) may end the migration.
///
/// At the destination, the engine alone writes memory until it calls `load_device_state`; from then
/// on the VM may.
pub trait VmHandle: Send {
    /// Stops the VM. After this returns, neither its CPUs nor its devices run, and only
    /// [`save_device_state`](Self::save_device_state) may write guest memory.
    ///
    /// # Errors
    ///
    /// When it cannot be stopped. It is resumed then, as after any other failure.
    fn pause(&mut self) -> Result<(), VmError>;

    /// Runs the VM. A source calls this after a failed migration; the VM may run already. Devices
    /// that were stopped to save the state must run again too. A destination calls this once.
    ///
    /// # Errors
    ///
    /// When it cannot run. At a destination no part of it may run then: the source gets the failure
    /// and resumes its own VM.
    fn resume(&mut self) -> Result<(), VmError>;

    /// The state of everything but memory, in whatever form the destination's
    /// [`load_device_state`](Self::load_device_state) reads. The VM is paused. This may still write
    /// guest memory; when it returns, nothing does any more.
    ///
    /// # Errors
    ///
    /// When the state cannot be saved.
    fn save_device_state(&mut self) -> Result<Vec<u8>, VmError>;

    /// Takes what the source's [`save_device_state`](Self::save_device_state) gave. All memory is
    /// in place by then. The bytes come from a peer: they are whole, but not to be trusted further.
    /// The VM must not run yet: the source has not given it away.
    ///
    /// # Errors
    ///
    /// When this is no state for this VM. The source's VM runs on.
    fn load_device_state(&mut self, state: &[u8]) -> Result<(), VmError>;
}

/// Why a VM does not do what it should, in its own words.
pub type VmError = Box<dyn Error + Send + Sync>;
