//! `podwright check`: what this host has and lacks, and what degrades.

mod host;
mod kernel;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::Result;
use crate::cli::print;
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The configuration to check the host for [default: /etc/podwright/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How well a thing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    /// Pods run, but something is slower, refused or ignored: the text says what.
    Degraded,
    /// No pod can run.
    Missing,
}

/// One line of the answer.
#[derive(Debug)]
struct Finding {
    state: State,
    what: &'static str,
    text: String,
}

impl Finding {
    fn ok(what: &'static str, text: impl Into<String>) -> Self {
        Self { state: State::Ok, what, text: text.into() }
    }

    fn degraded(what: &'static str, text: impl Into<String>) -> Self {
        Self { state: State::Degraded, what, text: text.into() }
    }

    fn missing(what: &'static str, text: impl Into<String>) -> Self {
        Self { state: State::Missing, what, text: text.into() }
    }
}

impl Check {
    /// Exit code 1 where something essential is missing.
    pub(super) fn run(self) -> Result<ExitCode> {
        let config = Config::load(self.config.as_deref())?;
        config.validate()?;
        let mut findings = kernel::findings();
        findings.extend(host::findings(&config));
        print(render(&findings))?;
        let broken = findings.iter().any(|finding| finding.state == State::Missing);
        Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { state, what, text: detail } in findings {
        let state = match state {
            State::Ok => "ok      ",
            State::Degraded => "degraded",
            State::Missing => "MISSING ",
        };
        text += &format!("{state}  {what:<width$}  {detail}\n");
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let (degraded, missing) = (count(State::Degraded), count(State::Missing));
    text += &match missing {
        0 => format!("\nPods run here; {degraded} things degrade.\n"),
        _ => format!("\nPods cannot run here: {missing} essential things are missing.\n"),
    };
    text
}

/// A small file's text without the space around it; None where it cannot be read.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_essential_fails() {
        let fine = [Finding::ok("a", "x"), Finding::degraded("bcd", "y")];
        assert_eq!(render(&fine), "ok        a    x\ndegraded  bcd  y\n\nPods run here; 1 things degrade.\n");
        assert!(render(&[Finding::missing("a", "x")]).contains("cannot run"));
    }

    #[test]
    fn every_probe_answers() {
        let mut findings = kernel::findings();
        findings.extend(host::findings(&Config::default()));
        assert!(findings.len() > 20);
        assert!(findings.iter().all(|finding| !finding.text.is_empty()));
        if rustix::process::geteuid().is_root() {
            // The keeper is beside the program, not beside this test.
            let missing = findings.iter().filter(|f| f.state == State::Missing && f.what != "keeper");
            let missing: Vec<_> = missing.collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }
}
