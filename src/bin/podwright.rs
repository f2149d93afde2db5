//! The daemon and its command line: see `podwright::cli`.

fn main() -> std::process::ExitCode {
    podwright::cli::main()
}
