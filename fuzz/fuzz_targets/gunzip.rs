#![no_main]

podwright_fuzz::target!(gunzip);
