//! `podwright pods`

use std::process::ExitCode;

use clap::Args;

use crate::Result;
use crate::cli::client::table::{Table, age, now, short};
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::{PodSandbox, PodSandboxState};

#[derive(Debug, Args)]
pub(super) struct Pods {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Print whole IDs only
    #[arg(short, long)]
    quiet: bool,
}

impl Pods {
    pub(super) fn run(self) -> Result<ExitCode> {
        let quiet = self.quiet;
        self.endpoint.run(|client| list(client, quiet))
    }
}

async fn list(mut client: Client, quiet: bool) -> Result<ExitCode> {
    let mut pods = client.all_pods().await?;
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    if quiet {
        print(pods.iter().map(|pod| format!("{}\n", pod.id)).collect::<String>())?;
    } else {
        print(table(&pods, now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(pods: &[PodSandbox], now: i64) -> String {
    let mut table = Table::new(&["POD", "NAME", "NAMESPACE", "STATE", "CREATED"]);
    for pod in pods {
        let state = match pod.state() {
            PodSandboxState::SandboxReady => "ready",
            PodSandboxState::SandboxNotready => "not ready",
        };
        let metadata = pod.metadata.clone().unwrap_or_default();
        let created = age(pod.created_at, now);
        table.row([short(&pod.id), metadata.name, metadata.namespace, state.into(), created]);
    }
    table.render()
}
