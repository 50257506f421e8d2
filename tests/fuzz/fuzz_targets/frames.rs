//! Any frames through the parsers and a switch.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tandem_fuzz::frames::run(data));
