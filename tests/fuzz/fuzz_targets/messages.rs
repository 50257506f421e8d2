//! Any vhost-user messages to a session with a real port.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tandem_fuzz::messages::run(data));
