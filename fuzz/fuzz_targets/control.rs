//! See `multifd_fuzz::control`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::control(data));
