//! The requests of `run`, with the defaults that kubelet would send for a plain pod.

use std::path::Path;

use crate::cli::pull;
use crate::cli::run::{LOG_DIRECTORY, Run};
use crate::cri::wire::{
    ContainerConfig, ContainerMetadata, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};
use crate::{Error, Result};

/// Kubernetes' defaults for procMount: Default.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(super) fn pod(run: &Run, name: &str, uid: &str) -> PodSandboxConfig {
    let log_directory = run.log_dir.join(format!("{name}_{uid}")).display().to_string();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            namespace: "default".into(),
            uid: uid.into(),
            attempt: 0,
        }),
        hostname: if run.host_network { String::new() } else { name.into() },
        log_directory: log_directory.clone(),
        annotations: [(LOG_DIRECTORY.to_owned(), log_directory)].into(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(run)),
                seccomp: Some(runtime_default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn container(run: &Run, name: &str) -> Result<ContainerConfig> {
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(pull::spec(&run.image)),
        command: run.command.clone(),
        envs: run.env.iter().map(|text| variable(text)).collect::<Result<_>>()?,
        mounts: run.volume.iter().map(|text| mount(text)).collect::<Result<_>>()?,
        log_path: "0.log".into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(run)),
                seccomp: Some(runtime_default()),
                masked_paths: MASKED.map(Into::into).into(),
                readonly_paths: READONLY.map(Into::into).into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn namespaces(run: &Run) -> NamespaceOption {
    NamespaceOption {
        network: if run.host_network { NamespaceMode::Node } else { NamespaceMode::Pod }.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() }
}

fn variable(text: &str) -> Result<KeyValue> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(KeyValue { key: key.into(), value: value.as_bytes().into() })
        }
        _ => Err(Error::invalid(format!("--env {text}: is not KEY=VALUE"))),
    }
}

fn mount(text: &str) -> Result<Mount> {
    let refuse = |why: &str| Error::invalid(format!("--volume {text}: {why}"));
    let (paths, readonly) = match text.strip_suffix(":ro") {
        Some(paths) => (paths, true),
        None => (text, false),
    };
    let (host, container) = paths.split_once(':').ok_or_else(|| refuse("is not HOST:CONTAINER[:ro]"))?;
    if ![host, container].iter().all(|path| Path::new(path).is_absolute()) {
        return Err(refuse("both paths must be absolute"));
    }
    Ok(Mount { host_path: host.into(), container_path: container.into(), readonly, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_volumes_are_read() {
        let variable = variable("A=b=c").unwrap();
        assert_eq!((variable.key.as_str(), &variable.value[..]), ("A", &b"b=c"[..]));
        assert!(super::variable("A").is_err() && super::variable("=b").is_err());
        let volume = mount("/a:/b:ro").unwrap();
        assert_eq!((volume.host_path.as_str(), volume.container_path.as_str()), ("/a", "/b"));
        assert!(volume.readonly && !mount("/a:/b").unwrap().readonly);
        assert!(mount("a:/b").is_err() && mount("/a").is_err());
    }
}
