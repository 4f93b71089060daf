//! See `multifd_fuzz::deflate`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::deflate(data));
