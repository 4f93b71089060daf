//! The shared object's own C functions, besides those of libaccel-config.

#![allow(unsafe_code)]

use crate::counters::Counters;
use crate::machine::MACHINE;

/// Replaces the settings by those in the text and resets the counters. Returns whether the text was
/// valid.
///
/// # Safety
///
/// `len` bytes are readable at `text`.
// SAFETY: the prefix is this library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iaa_sim_configure(text: *const u8, len: usize) -> bool {
    // SAFETY: by this function's contract.
    let text = unsafe { std::slice::from_raw_parts(text, len) };
    let settings = String::from_utf8_lossy(text).parse();
    settings.map(|settings| MACHINE.configure(settings)).is_ok()
}

/// Writes the counters.
///
/// # Safety
///
/// `counters` is writable.
// SAFETY: the prefix is this library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iaa_sim_counters(counters: *mut Counters) {
    // SAFETY: by this function's contract.
    unsafe { counters.write(MACHINE.counters()) };
}
