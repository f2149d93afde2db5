//! `podwright image check`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::Result;
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::store::{CheckRequest, CheckResponse};

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Withdraw what is wrong: its images are pulled anew, containers that use it keep it
    #[arg(long)]
    repair: bool,
    /// The store of a daemon that does not run: ROOT/image of its root directory
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl Check {
    /// Exit code 1: something is wrong, or was.
    pub(super) fn run(self) -> Result<ExitCode> {
        let repair = self.repair;
        if let Some(store) = self.store {
            let report = crate::image::check_offline(&store, repair)?;
            return told(&report.into());
        }
        self.endpoint.run(async |mut client: Client| {
            let report = client.store.check(CheckRequest { repair }).await?.into_inner();
            told(&report)
        })
    }
}

fn told(report: &CheckResponse) -> Result<ExitCode> {
    print(text(report))?;
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(report: &CheckResponse) -> String {
    let mut text = String::new();
    for fault in &report.faults {
        text += &format!("{}\n", fault.what);
        fault.found.iter().for_each(|found| text += &format!("  {found}\n"));
        if !fault.images.is_empty() {
            text += &format!("  images: {}\n", fault.images.join(", "));
        }
        let done = if report.repaired { "done" } else { "--repair would" };
        text += &format!("  {done}: {}\n", fault.remedy);
    }
    let unverified = match report.unverified {
        0 => String::new(),
        count => format!(", {count} of them without a manifest to compare with"),
    };
    text + &format!("{} layers{unverified}; {} faults\n", report.layers, report.faults.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::wire::store::Fault;

    #[test]
    fn a_report_says_what_is_wrong_and_what_follows() {
        let fault = Fault {
            what: "layer sha256:1".into(),
            found: vec!["\"bin/sh\" has other content".into()],
            images: vec!["a.b/c:d".into()],
            remedy: "withdraw it".into(),
        };
        let report = CheckResponse { layers: 3, unverified: 1, repaired: false, faults: vec![fault] };
        let expected = "layer sha256:1\n  \"bin/sh\" has other content\n  images: a.b/c:d\n  --repair would: withdraw it\n\
                        3 layers, 1 of them without a manifest to compare with; 1 faults\n";
        assert_eq!(text(&report), expected);
    }
}
