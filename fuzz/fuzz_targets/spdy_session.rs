#![no_main]

podwright_fuzz::target!(spdy_session);
