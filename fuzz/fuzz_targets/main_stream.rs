//! See `multifd_fuzz::main_stream`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::main_stream(data));
