#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright::fuzz::registries_conf(data));
