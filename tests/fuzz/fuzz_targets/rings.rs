//! Virtqueues in the memory of a hostile guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tandem_fuzz::rings::run(data));
