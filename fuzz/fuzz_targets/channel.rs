//! See `multifd_fuzz::channel`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::channel(data));
