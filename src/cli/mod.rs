//! The command line: one file per verb.
//!
//! `serve` is the daemon; `check`, `config` and `keeper` are for those who run it; the rest are CRI
//! clients that work against any runtime's socket.

mod check;
mod client;
mod config;
mod exec;
mod image;
mod images;
mod keeper;
mod logs;
mod pods;
mod ps;
mod pull;
mod rm;
mod run;
mod serve;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Result;

/// A Kubernetes container runtime: one daemon, one keeper, no process per pod.
#[derive(Debug, Parser)]
#[command(name = "podwright", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon
    Serve(serve::Serve),
    /// Say what this host has and lacks
    Check(check::Check),
    /// Print or check a configuration
    Config(config::Config),
    /// Look at the keeper, or upgrade it in place
    Keeper(keeper::Keeper),
    /// Run an image in a pod of its own
    Run(run::Run),
    /// List pods
    Pods(pods::Pods),
    /// List containers
    Ps(ps::Ps),
    /// Print a container's log
    Logs(logs::Logs),
    /// Run a command in a container; its exit code becomes ours
    Exec(exec::Exec),
    /// List images
    Images(images::Images),
    /// Look after the image store: ls, import, check, gc
    Image(image::Image),
    /// Pull an image
    Pull(pull::Pull),
    /// Stop and remove pods or containers
    Rm(rm::Rm),
    /// What the daemon starts to open volumes that may hang
    #[command(hide = true)]
    OpenVolumes,
}

/// Runs the verb of this process's arguments. Errors are printed as `podwright: SENTENCE`.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Nobody to tell is no reason to panic.
            let _ = writeln!(std::io::stderr(), "podwright: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Serve(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Config(verb) => verb.run(),
        Verb::Keeper(verb) => verb.run(),
        Verb::Run(verb) => verb.run(),
        Verb::Pods(verb) => verb.run(),
        Verb::Ps(verb) => verb.run(),
        Verb::Logs(verb) => verb.run(),
        Verb::Exec(verb) => verb.run(),
        Verb::Images(verb) => verb.run(),
        Verb::Image(verb) => verb.run(),
        Verb::Pull(verb) => verb.run(),
        Verb::Rm(verb) => verb.run(),
        Verb::OpenVolumes => crate::container::volumes::serve(),
    }
}

/// Prints to standard output. A reader that has gone away (`| head`) ends the verb quietly, as it
/// ends other programs by SIGPIPE.
fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(crate::Error::io("writing to standard output", e)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
