//! See `multifd_fuzz::return_path`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::return_path(data));
