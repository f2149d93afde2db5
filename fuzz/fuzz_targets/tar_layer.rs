#![no_main]

podwright_fuzz::target!(tar_layer);
