//! See `multifd_fuzz::recording`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::recording(data));
