//! See `multifd_fuzz::inflate`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::inflate(data));
