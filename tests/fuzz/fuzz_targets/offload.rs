//! Any vnet header in front of any frame.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tandem_fuzz::offload::run(data));
