#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::fuzz::spdy_frames(data));
