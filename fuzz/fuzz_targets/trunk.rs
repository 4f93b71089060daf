//! See `multifd_fuzz::trunk`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::trunk(data));
