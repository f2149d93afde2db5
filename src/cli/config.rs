//! `podwright config default|validate`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::Result;
use crate::cli::print;
use crate::config::{self, DEFAULT_PATH};

#[derive(Debug, Args)]
pub(super) struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print every key with its default
    Default,
    /// Check a file and its drop-ins (FILE.d/*.toml)
    Validate {
        #[arg(default_value = DEFAULT_PATH)]
        file: PathBuf,
    },
}

impl Config {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.verb {
            Verb::Default => print(config::DEFAULT)?,
            Verb::Validate { file } => {
                let validate = |c: config::Config| c.validate();
                let during = |e: crate::Error| e.during(file.display());
                config::Config::load(Some(&file)).and_then(|c| validate(c).map_err(during))?;
                print(format!("{}: ok\n", file.display()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
