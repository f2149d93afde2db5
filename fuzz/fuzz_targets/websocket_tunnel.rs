#![no_main]

podwright_fuzz::target!(websocket_tunnel);
