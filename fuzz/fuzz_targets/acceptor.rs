//! See `multifd_fuzz::acceptor`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| multifd_fuzz::acceptor(data));
