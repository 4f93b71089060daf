//! See `multifd_fuzz::packet`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::packet(data));
