//! See `multifd_fuzz::canned`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::canned(data));
