#![no_main]

podwright_fuzz::target!(hosts_toml);
