//! Any state, frames and plan from another host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tandem_fuzz::handoff::run(data));
