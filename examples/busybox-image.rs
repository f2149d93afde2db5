//! `cargo run --example busybox-image -- BUSYBOX DIRECTORY`: a small image, as an OCI layout, of a
//! static busybox. For hack/quickstart and for trying things without a network.

#[path = "../tests/node/layout.rs"]
mod layout;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [busybox, directory] = arguments.as_slice() else {
        eprintln!("usage: busybox-image BUSYBOX DIRECTORY");
        return ExitCode::FAILURE;
    };
    layout::write(Path::new(directory), Path::new(busybox));
    ExitCode::SUCCESS
}
