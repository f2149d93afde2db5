//! What happens to pods when podwright's own processes, or its records, come to harm.

mod churn;
mod death;
mod extremes;
mod hang;
mod random;
mod record;

use std::path::{Path, PathBuf};
use std::time::Duration;

use podwright::cri::wire as cri;

use crate::harness::{Daemon, read_log, script};

/// A directory of the host that the test's containers see as /shared: how a test speaks to a
/// container while no daemon runs.
pub fn shared(daemon: &Daemon) -> PathBuf {
    let path = daemon.dir.path().join("shared");
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A container with /shared.
pub fn sharing(daemon: &Daemon, name: &str, text: &str) -> cri::ContainerConfig {
    let mut config = script(name, text);
    config.mounts = vec![cri::Mount {
        container_path: "/shared".into(),
        host_path: shared(daemon).to_string_lossy().into_owned(),
        ..Default::default()
    }];
    config
}

/// Logs numbered lines in bursts until /shared/NAME.go is there, then how many they were, and exits
/// with `code`.
pub fn counter(daemon: &Daemon, name: &str, code: i32) -> cri::ContainerConfig {
    let text = format!(
        "i=0; while [ ! -e /shared/{name}.go ]; do j=0; while [ $j -lt 200 ]; do i=$((i+1)); j=$((j+1)); \
         echo $i; done; sleep 0.02; done; echo end $i >&2; exit {code}"
    );
    sharing(daemon, name, &text)
}

pub fn go(daemon: &Daemon, name: &str) {
    std::fs::write(shared(daemon).join(format!("{name}.go")), "").unwrap();
}

/// The log of a [`counter`] that ended: every line once, in order.
pub fn assert_whole(path: &str) {
    let lines = read_log(Path::new(path));
    let text = |stream: &str| -> Vec<String> {
        lines.iter().filter(|(s, _)| s == stream).map(|(_, text)| text.clone()).collect()
    };
    let end = text("stderr");
    let numbers = text("stdout");
    let last = numbers.last();
    assert_eq!(end.len(), 1, "{path}: one last line, not {end:?}, behind {last:?}");
    let count: usize = end[0].strip_prefix("end ").unwrap().parse().unwrap();
    for (place, number) in numbers.iter().enumerate() {
        assert_eq!(*number, (place + 1).to_string(), "{path}: line {} of {count}", place + 1);
    }
    assert_eq!(numbers.len(), count, "{path} lacks its last lines");
}

/// The exit of a process whose parent is neither keeper nor daemon any more: the kernel tells its code
/// from Linux 6.15 on (BEHAVIOUR 41), and before that until its parent has reaped it.
pub fn assert_code_of_orphan(status: &cri::ContainerStatus, code: i32) {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    child.wait().unwrap();
    let told = podwright::sys::pidfd::ended(std::os::fd::AsFd::as_fd(&pidfd)).is_some();
    if told || status.reason != "ContainerStatusUnknown" {
        assert_eq!(status.exit_code, code, "{status:?}");
    }
}

/// Waits (up to 200 s, processors may be emulated) until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} does not come");
}

pub async fn until_logged(path: &str, text: &str) {
    let logged = || std::fs::read_to_string(path).is_ok_and(|log| log.lines().any(|l| l.ends_with(text)));
    until(&format!("{text:?} in {path}"), logged).await;
}

pub fn alive(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

impl Daemon {
    pub async fn pod_status(&self, id: &str) -> cri::PodSandboxStatus {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.runtime().pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn pod_ready(&self, id: &str) -> bool {
        self.pod_status(id).await.state == cri::PodSandboxState::SandboxReady as i32
    }

    /// The process of a container, on the host.
    pub async fn pid_of(&self, id: &str) -> i64 {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.runtime().container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        info["pid"].as_i64().unwrap()
    }

    pub async fn stop_container(&self, id: &str) {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout: 0 };
        self.runtime().stop_container(request).await.expect("stop container");
    }

    pub async fn remove_container(&self, id: &str) {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.runtime().remove_container(request).await.expect("remove container");
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), tonic::Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    /// An exec as kubelet's prober does it: one that met a keeper's death is tried again.
    pub async fn exec_again(&self, id: &str, argv: &[&str]) -> cri::ExecSyncResponse {
        for _ in 0..5000 {
            match self.exec(id, argv).await {
                Ok(output) => return output,
                Err(status) if status.code() == tonic::Code::Unavailable => {}
                Err(status) => panic!("exec {argv:?}: {status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no exec works in {id}");
    }

    pub async fn states(&self, ids: &[&str]) -> Vec<i32> {
        let mut states = Vec::new();
        for id in ids {
            states.push(self.status(id).await.state);
        }
        states
    }
}

pub const CREATED: i32 = cri::ContainerState::ContainerCreated as i32;
pub const RUNNING: i32 = cri::ContainerState::ContainerRunning as i32;
pub const EXITED: i32 = cri::ContainerState::ContainerExited as i32;
