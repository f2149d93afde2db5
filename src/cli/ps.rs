//! `podwright ps`

use std::process::ExitCode;

use clap::Args;

use crate::Result;
use crate::cli::client::table::{Table, age, now, short};
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::{Container, ContainerState};

#[derive(Debug, Args)]
pub(super) struct Ps {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Those that do not run too
    #[arg(short, long)]
    all: bool,
    /// Print whole IDs only
    #[arg(short, long)]
    quiet: bool,
}

impl Ps {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (all, quiet) = (self.all, self.quiet);
        self.endpoint.run(|client| list(client, all, quiet))
    }
}

async fn list(mut client: Client, all: bool, quiet: bool) -> Result<ExitCode> {
    let mut containers = client.all_containers().await?;
    containers.retain(|c| all || c.state() == ContainerState::ContainerRunning);
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    if quiet {
        print(containers.iter().map(|c| format!("{}\n", c.id)).collect::<String>())?;
    } else {
        print(table(&containers, now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(containers: &[Container], now: i64) -> String {
    let mut table = Table::new(&["CONTAINER", "NAME", "IMAGE", "STATE", "CREATED", "POD"]);
    for container in containers {
        let state = match container.state() {
            ContainerState::ContainerCreated => "created",
            ContainerState::ContainerRunning => "running",
            ContainerState::ContainerExited => "exited",
            ContainerState::ContainerUnknown => "unknown",
        };
        let image = container.image.clone().unwrap_or_default().image;
        let image = if image.starts_with("sha256:") { short(&image) } else { image };
        table.row([
            short(&container.id),
            container.metadata.clone().unwrap_or_default().name,
            image,
            state.into(),
            age(container.created_at, now),
            short(&container.pod_sandbox_id),
        ]);
    }
    table.render()
}
