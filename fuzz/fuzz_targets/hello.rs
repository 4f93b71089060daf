//! See `multifd_fuzz::hello`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::hello(data));
