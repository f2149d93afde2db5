#![no_main]

podwright_fuzz::target!(www_authenticate);
