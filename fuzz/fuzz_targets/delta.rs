//! See `multifd_fuzz::delta`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::delta(data));
