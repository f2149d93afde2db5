//! `podwright rm`

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::cli::client::find::one;
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cli::run::LOG_DIRECTORY;
use crate::cri::wire::{
    Container, PodSandbox, RemoveContainerRequest, RemovePodSandboxRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use crate::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Seconds that containers get to end by themselves
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(i64).range(0..))]
    timeout: i64,
    /// IDs, their beginnings, or names; of pods first, else of containers
    #[arg(required = true, value_name = "POD|CONTAINER")]
    names: Vec<String>,
}

impl Rm {
    pub(super) fn run(self) -> Result<ExitCode> {
        self.endpoint.run(async |mut client: Client| {
            for name in &self.names {
                let id = client.remove(name, self.timeout).await.map_err(|e| e.during(name))?;
                print(format!("{id}\n"))?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Client {
    async fn remove(&mut self, name: &str, timeout: i64) -> Result<String> {
        let pods = self.all_pods().await?;
        let containers = self.all_containers().await?;
        if let Some(pod) = one(&pods, name)? {
            let inside = containers.into_iter().filter(|c| c.pod_sandbox_id == pod.id);
            self.remove_pod(pod, inside.collect(), timeout).await?;
            return Ok(pod.id.clone());
        }
        let Some(container) = one(&containers, name)? else {
            return Err(Error::not_found("no pod and no container is called so"));
        };
        let container_id = container.id.clone();
        self.stop_container(&container_id, timeout).await?;
        self.runtime.remove_container(RemoveContainerRequest { container_id }).await?;
        Ok(container.id.clone())
    }

    /// Stops all its containers at once, then removes the pod with what `run` made for its logs.
    pub async fn remove_pod(
        &mut self,
        pod: &PodSandbox,
        containers: Vec<Container>,
        timeout: i64,
    ) -> Result<()> {
        let stops = containers.into_iter().map(|container| {
            let mut client = self.clone();
            async move { client.stop_container(&container.id, timeout).await }
        });
        for stopped in futures_util::future::join_all(stops).await {
            stopped?;
        }
        let pod_sandbox_id = pod.id.clone();
        let stop = StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.runtime.stop_pod_sandbox(stop).await?;
        self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        if let Some(dir) = pod.annotations.get(LOG_DIRECTORY) {
            remove_logs(Path::new(dir));
        }
        Ok(())
    }

    pub async fn stop_container(&mut self, id: &str, timeout: i64) -> Result<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        self.runtime.stop_container(request).await?;
        Ok(())
    }
}

/// Only files that are directly in it, which are logs: an annotation is no reason to delete a tree.
fn remove_logs(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|e| e == "log") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}
