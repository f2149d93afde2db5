//! `podwright run`: a pod with one container, as a short way to try a runtime.

mod request;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::cli::client::{Client, Endpoint};
use crate::cli::exec::exit_code;
use crate::cli::logs::Show;
use crate::cli::print;
use crate::cri::wire::{
    CreateContainerRequest, PodSandbox, PodSandboxConfig, RunPodSandboxRequest, StartContainerRequest,
};
use crate::error::Step;
use crate::{Error, Result};

/// The annotation by which `rm` finds what `run` made for a pod's logs.
pub(super) const LOG_DIRECTORY: &str = "podwright.run/log-directory";

#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Of pod and container [default: run-XXXXXXXX]
    #[arg(long)]
    name: Option<String>,
    /// Print the log until the container ends, remove the pod, and exit with the container's code
    #[arg(long)]
    rm: bool,
    /// Use the node's network
    #[arg(long)]
    host_network: bool,
    /// KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// HOST:CONTAINER[:ro], absolute paths
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<String>,
    /// Where logs go
    #[arg(long, value_name = "DIR", default_value = "/var/log/podwright")]
    log_dir: PathBuf,
    image: String,
    /// Instead of the image's own command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A pod that runs.
struct Up {
    pod: PodSandbox,
    container_id: String,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode> {
        let uid = random_hex()?;
        let name = self.name.clone().unwrap_or_else(|| format!("run-{}", &uid[..8]));
        let pod = request::pod(&self, &name, &uid);
        let container = request::container(&self, &name)?;
        self.endpoint.run(async |mut client: Client| {
            client.ensure_image(&self.image).await?;
            let dir = &pod.log_directory;
            std::fs::create_dir_all(dir).step(|| format!("making {dir}"))?;
            let create = CreateContainerRequest {
                config: Some(container),
                sandbox_config: Some(pod.clone()),
                ..Default::default()
            };
            let up = client.bring_up(pod, create).await?;
            if !self.rm {
                print(format!("pod        {}\ncontainer  {}\n", up.pod.id, up.container_id))?;
                return Ok(ExitCode::SUCCESS);
            }
            let ended = tokio::select! {
                ended = client.wait_for(&up.container_id) => ended,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.step(|| "waiting for an interrupt").map(|()| 130)
                }
            };
            client.remove_pod(&up.pod, Vec::new(), 0).await?;
            ended.map(exit_code)
        })
    }
}

impl Client {
    /// Takes the pod away again when its container does not start.
    async fn bring_up(&mut self, config: PodSandboxConfig, create: CreateContainerRequest) -> Result<Up> {
        let annotations = config.annotations.clone();
        let run = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let running = self.runtime.run_pod_sandbox(run).await;
        let id = running.map_err(|e| Error::from(e).during("running the pod"))?.into_inner().pod_sandbox_id;
        let pod = PodSandbox { id, annotations, ..Default::default() };
        match self.start_in(&pod.id, create).await {
            Ok(container_id) => Ok(Up { pod, container_id }),
            Err(error) => {
                if let Err(leftover) = self.remove_pod(&pod, Vec::new(), 0).await {
                    return Err(error.during(format!("pod {} is left behind ({leftover})", pod.id)));
                }
                Err(error)
            }
        }
    }

    async fn start_in(&mut self, pod: &str, create: CreateContainerRequest) -> Result<String> {
        let create = CreateContainerRequest { pod_sandbox_id: pod.into(), ..create };
        let created = self.runtime.create_container(create).await;
        let container_id =
            created.map_err(|e| Error::from(e).during("creating the container"))?.into_inner().container_id;
        let start = StartContainerRequest { container_id: container_id.clone() };
        let started = self.runtime.start_container(start).await;
        started.map_err(|e| Error::from(e).during("starting the container"))?;
        Ok(container_id)
    }

    /// Prints the log to its end. The container's exit code.
    async fn wait_for(&mut self, id: &str) -> Result<i32> {
        self.show_log(id, Show { follow: true, ..Show::default() }).await?;
        Ok(self.container_status(id).await?.exit_code)
    }
}

/// 128 bits, as a pod's UID has.
fn random_hex() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal(format!("making a random ID: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
