//! The device's access to the memory of the program.
//!
//! The device and the program only share an address space: a descriptor names addresses, and the
//! submitter keeps the memory there until the completion record. This module turns that one promise
//! into safe functions.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, Ordering};

use crate::descriptor::{Descriptor, LEN, Record};

/// A submitted descriptor whose buffers the device may use.
pub(crate) struct Work(Descriptor);

impl Work {
    /// # Safety
    ///
    /// The descriptor was submitted to the device: until [`Work::complete`], or for ever if that is
    /// never called, the addresses in it lead to memory of the lengths in it. The source and the
    /// AECS to be read are readable; the destination, the AECS to be written and the completion
    /// record are writable.
    pub(crate) unsafe fn submitted(descriptor: Descriptor) -> Work {
        Work(descriptor)
    }

    pub(crate) fn descriptor(&self) -> &Descriptor {
        &self.0
    }

    /// A copy of the input.
    pub(crate) fn source(&self) -> Vec<u8> {
        self.fetch(self.0.source_address(), self.0.source_len())
    }

    /// A copy of the AECS.
    pub(crate) fn aecs(&self) -> Vec<u8> {
        self.fetch(self.0.aecs_to_read(), self.0.aecs_len())
    }

    /// Writes output, up to the destination's length.
    pub(crate) fn write_destination(&self, bytes: &[u8]) {
        self.store(
            self.0.destination_address(),
            self.0.destination_len(),
            bytes,
        );
    }

    /// Writes the AECS, up to its length.
    pub(crate) fn write_aecs(&self, bytes: &[u8]) {
        self.store(self.0.aecs_to_write(), self.0.aecs_len(), bytes);
    }

    /// Writes the completion record, which returns all memory to the submitter.
    pub(crate) fn complete(self, record: Record) {
        let bytes = record.to_bytes();
        let address: *mut u8 =
            std::ptr::with_exposed_provenance_mut(address(self.0.completion_address()));
        let after_status = address.wrapping_add(1);
        // SAFETY: by the promise of `submitted` the record's 64 bytes are writable until byte 0 is
        // written. The ranges do not overlap: `bytes` is our own.
        unsafe { after_status.copy_from_nonoverlapping(bytes[1..].as_ptr(), LEN - 1) };
        // SAFETY: as above, and the submitter reads this byte, which we write concurrently, as one
        // load.
        let status = unsafe { AtomicU8::from_ptr(address) };
        status.store(bytes[0], Ordering::Release);
    }

    fn fetch(&self, from: u64, len: u32) -> Vec<u8> {
        let len = len as usize;
        let mut bytes = Vec::with_capacity(len);
        if len > 0 {
            let from: *const u8 = std::ptr::with_exposed_provenance(address(from));
            // SAFETY: by the promise of `submitted` `len` bytes are readable at `from`. A guest may
            // be changing them; like a device we then read some mixture and check it byte by byte.
            // `bytes` has room for them and does not overlap them.
            unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
            // SAFETY: the copy has just filled the first `len` bytes of the capacity.
            unsafe { bytes.set_len(len) };
        }
        bytes
    }

    fn store(&self, to: u64, room: u32, bytes: &[u8]) {
        let len = bytes.len().min(room as usize);
        if len > 0 {
            let to: *mut u8 = std::ptr::with_exposed_provenance_mut(address(to));
            // SAFETY: by the promise of `submitted` `room` bytes are writable at `to`, and `bytes`
            // is the engine's own copy, so they do not overlap.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), len) };
        }
    }
}

fn address(address: u64) -> usize {
    // The crate is for x86-64, where both have 64 bits.
    address as usize
}
