#![no_main]

podwright_fuzz::target!(registries_conf);
