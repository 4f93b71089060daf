//! See `multifd_fuzz::inlet`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::inlet(data));
