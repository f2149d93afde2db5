//! The calls that are measured, as kubelet would make them.

use hyper_util::rt::TokioIo;
use podwright::cri::wire as cri;
use tonic::transport::{Channel, Endpoint, Uri};

pub type Failure = Box<dyn std::error::Error>;

#[derive(Clone)]
pub struct Client {
    runtime: cri::runtime_service_client::RuntimeServiceClient<Channel>,
    image: String,
    seccomp: bool,
    logs: String,
}

/// A pod and the configuration that its containers have to repeat.
pub struct Pod {
    pub id: String,
    config: cri::PodSandboxConfig,
}

impl Client {
    pub async fn connect(endpoint: &str, image: &str, seccomp: bool) -> Result<Self, Failure> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint).to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        let runtime = cri::runtime_service_client::RuntimeServiceClient::new(channel);
        let logs = std::env::temp_dir().join(format!("cri-bench-{}", std::process::id()));
        Ok(Self {
            runtime: runtime.max_decoding_message_size(64 << 20),
            image: image.to_owned(),
            seccomp,
            logs: logs.to_string_lossy().into_owned(),
        })
    }

    pub fn logs(&self) -> &str {
        &self.logs
    }

    pub async fn run_pod(&self, name: &str) -> Result<Pod, Failure> {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-{}", std::process::id()),
                namespace: "bench".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: format!("{}/{name}", self.logs),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(own_pid()),
                    seccomp: self.profile(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        std::fs::create_dir_all(&config.log_directory)?;
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    fn profile(&self) -> Option<cri::SecurityProfile> {
        // RuntimeDefault is zero.
        self.seccomp.then(cri::SecurityProfile::default)
    }

    pub async fn create(&self, pod: &Pod, script: &str) -> Result<String, Failure> {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: "main.log".into(),
            linux: Some(cri::LinuxContainerConfig {
                security_context: Some(cri::LinuxContainerSecurityContext {
                    namespace_options: Some(own_pid()),
                    seccomp: self.profile(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, container: &str) -> Result<(), Failure> {
        let request = cri::StartContainerRequest { container_id: container.into() };
        self.runtime.clone().start_container(request).await?;
        Ok(())
    }

    pub async fn exec_true(&self, container: &str) -> Result<(), Failure> {
        let request =
            cri::ExecSyncRequest { container_id: container.into(), cmd: vec!["true".into()], timeout: 10 };
        let answer = self.runtime.clone().exec_sync(request).await?.into_inner();
        if answer.exit_code == 0 {
            Ok(())
        } else {
            Err(format!("true exited with {}", answer.exit_code).into())
        }
    }

    pub async fn end(&self, container: &str) -> Result<(), Failure> {
        let stop = cri::StopContainerRequest { container_id: container.into(), timeout: 0 };
        self.runtime.clone().stop_container(stop).await?;
        let remove = cri::RemoveContainerRequest { container_id: container.into() };
        self.runtime.clone().remove_container(remove).await?;
        Ok(())
    }

    pub async fn end_pod(&self, pod: &Pod) -> Result<(), Failure> {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.clone().stop_pod_sandbox(stop).await?;
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.runtime.clone().remove_pod_sandbox(remove).await?;
        Ok(())
    }

    pub async fn stats(&self) -> Result<usize, Failure> {
        let request = cri::ListContainerStatsRequest::default();
        Ok(self.runtime.clone().list_container_stats(request).await?.into_inner().stats.len())
    }

    pub async fn exited(&self, container: &str) -> Result<bool, Failure> {
        let request = cri::ContainerStatusRequest { container_id: container.into(), verbose: false };
        let status = self.runtime.clone().container_status(request).await?.into_inner().status;
        Ok(status.is_some_and(|s| s.state == cri::ContainerState::ContainerExited as i32))
    }
}

fn own_pid() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container as i32, ..Default::default() }
}
