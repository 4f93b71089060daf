//! See `multifd_fuzz::lengths`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::lengths(data));
