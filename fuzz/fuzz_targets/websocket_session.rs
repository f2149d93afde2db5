#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::fuzz::websocket_session(data));
