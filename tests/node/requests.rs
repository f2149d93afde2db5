//! What the tests ask of a daemon, and how they read its answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use podwright::cri::wire as cri;

use crate::harness::Daemon;

/// A pod as kubelet would ask for one.
pub fn pod(name: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Container)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn namespaces(pid: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption { pid: pid as i32, ..Default::default() }
}

/// A container that runs a shell script.
pub fn script(name: &str, script: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: crate::seed::image_id().into(), ..Default::default() }),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Container)),
                // Else the default profile, where the kernel has AppArmor: it has tests of its own.
                apparmor: Some(cri::SecurityProfile {
                    profile_type: cri::security_profile::ProfileType::Unconfined as i32,
                    localhost_ref: String::new(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Daemon {
    /// Runs a pod whose logs are in the test's directory.
    pub async fn run_pod(&self, mut config: cri::PodSandboxConfig) -> (String, cri::PodSandboxConfig) {
        let name = config.metadata.as_ref().unwrap().name.clone();
        if config.log_directory.is_empty() {
            config.log_directory = self.dir.path().join("logs").join(&name).to_string_lossy().into_owned();
        }
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = self.runtime().run_pod_sandbox(request).await.expect("run pod").into_inner().pod_sandbox_id;
        (id, config)
    }

    pub async fn create(
        &self,
        pod: &(String, cri::PodSandboxConfig),
        config: cri::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.0.clone(),
            config: Some(config),
            sandbox_config: Some(pod.1.clone()),
        };
        Ok(self.runtime().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.runtime().start_container(request).await.map(drop)
    }

    /// Create and start.
    pub async fn run(&self, pod: &(String, cri::PodSandboxConfig), config: cri::ContainerConfig) -> String {
        let id = self.create(pod, config).await.expect("create container");
        self.start_container(&id).await.expect("start container");
        id
    }

    pub async fn status(&self, id: &str) -> cri::ContainerStatus {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime().container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> Result<(), tonic::Status> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout };
        self.runtime().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.runtime().remove_container(request).await.map(drop)
    }

    /// The log of a running container once it has this many lines (up to 200 s: emulated processors are slow).
    pub async fn lines_of(&self, id: &str, count: usize) -> Vec<(String, String)> {
        let path = self.status(id).await.log_path;
        for _ in 0..20_000 {
            let lines = read_log(Path::new(&path));
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the log does not get {count} lines: {:?}", read_log(Path::new(&path)));
    }

    /// Waits (up to 200 s, processors may be emulated) until a container has ended, and returns its status.
    pub async fn wait(&self, id: &str) -> cri::ContainerStatus {
        for _ in 0..20_000 {
            let status = self.status(id).await;
            if status.state == cri::ContainerState::ContainerExited as i32 {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("container {id} does not end: {:?}", self.status(id).await);
    }

    /// Runs a script to its end: its status and its log's lines (stream, text).
    pub async fn outcome(
        &self,
        pod: &(String, cri::PodSandboxConfig),
        config: cri::ContainerConfig,
    ) -> (cri::ContainerStatus, Vec<(String, String)>) {
        let id = self.run(pod, config).await;
        let status = self.wait(&id).await;
        let lines = read_log(Path::new(&status.log_path));
        (status, lines)
    }

    pub async fn exec(&self, id: &str, argv: &[&str]) -> Result<cri::ExecSyncResponse, tonic::Status> {
        let request = cri::ExecSyncRequest {
            container_id: id.into(),
            cmd: argv.iter().map(|a| (*a).to_owned()).collect(),
            // An emulated processor takes its time.
            timeout: 120,
        };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }
}

/// The security context of a container made by [`script`].
pub fn context(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

pub fn int(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

/// A pod whose containers may be privileged.
pub fn privileged_pod(name: &str) -> cri::PodSandboxConfig {
    let mut config = pod(name);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    config
}

/// Another name, and with it another log.
pub fn rename(config: &mut cri::ContainerConfig, name: &str) {
    config.metadata.as_mut().unwrap().name = name.into();
    config.log_path = format!("{name}.log");
}

/// The output of a command in the daemon's mount namespace, which must succeed.
pub fn nsenter(daemon: &Daemon, argv: &[&str]) -> String {
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", daemon.pid())).arg("--").args(argv);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What was written to standard output.
pub fn text(lines: &[(String, String)]) -> String {
    let lines = lines.iter().filter(|(stream, _)| stream == "stdout").map(|(_, line)| line.as_str());
    lines.collect::<Vec<_>>().join("\n")
}

/// The lines of a CRI log with their parts put together: (stream, text).
pub fn read_log(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut open: BTreeMap<String, String> = BTreeMap::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ');
        let (time, stream, tag) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        assert!(time.ends_with('Z') || time.contains('+'), "a timestamp: {line}");
        let text = parts.next().unwrap_or_default();
        open.entry(stream.into()).or_default().push_str(text);
        if tag == "F" {
            lines.push((stream.to_owned(), open.remove(stream).unwrap_or_default()));
        }
    }
    lines.extend(open);
    lines
}

pub async fn pod_status(daemon: &Daemon, id: &str) -> cri::PodSandboxStatusResponse {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
    daemon.runtime().pod_sandbox_status(request).await.unwrap().into_inner()
}

/// A volume of a container.
pub fn mount(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: host_path.to_str().unwrap().into(),
        ..Default::default()
    }
}

/// A program of programs/, at /NAME.
pub fn program(config: &mut cri::ContainerConfig, name: &str) {
    let volume = mount(&format!("/{name}"), &crate::programs::build(name));
    config.mounts.push(cri::Mount { readonly: true, ..volume });
}

pub fn add_capabilities(config: &mut cri::ContainerConfig, names: &[&str]) {
    let add_capabilities = names.iter().map(|name| (*name).to_owned()).collect();
    context(config).capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
}
