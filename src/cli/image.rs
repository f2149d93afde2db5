//! `podwright image ls|import|check|gc`

mod archive;
mod check;
mod gc;
mod import;
mod pulling;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::Result;
pub(super) use pulling::Bars;

#[derive(Debug, Args)]
pub(super) struct Image {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List images, or the pulls under way
    Ls(pulling::Ls),
    /// Take in the images of an archive or an OCI layout
    Import(import::Import),
    /// Compare the image store with what it should hold
    Check(check::Check),
    /// Remove the images that no container uses
    Gc(gc::Gc),
}

impl Image {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.verb {
            Verb::Ls(verb) => verb.run(),
            Verb::Import(verb) => verb.run(),
            Verb::Check(verb) => verb.run(),
            Verb::Gc(verb) => verb.run(),
        }
    }
}
