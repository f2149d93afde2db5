//! CreateContainer.

use crate::container::spec::{ContainerName, ContainerSpec};
use crate::cri::decode::{Host, given, id, image, mount, resources, security, signal, text};
use crate::cri::wire;
use crate::error::{Error, Result};

/// The pod's ID and the container to be made in it.
pub(in crate::cri) fn create(
    request: wire::CreateContainerRequest,
    host: &Host,
) -> Result<(String, ContainerSpec)> {
    let pod_id = id("pod_sandbox_id", &request.pod_sandbox_id)?.to_owned();
    let spec = config(given("config", request.config)?, host)?;
    if spec.security.privileged && request.sandbox_config.is_some_and(|pod| !is_privileged(&pod)) {
        return Err(Error::invalid("a privileged container needs a privileged pod"));
    }
    Ok((pod_id, spec))
}

fn is_privileged(pod: &wire::PodSandboxConfig) -> bool {
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.is_some_and(|context| context.privileged)
}

fn config(wire: wire::ContainerConfig, host: &Host) -> Result<ContainerSpec> {
    if !wire.cdi_devices.is_empty() {
        return Err(Error::unimplemented("config.CDI_devices"));
    }
    let linux = wire.linux.unwrap_or_default();
    Ok(ContainerSpec {
        name: name(wire.metadata)?,
        image: image::spec(wire.image)?,
        command: text::each("config.command", wire.command, text::plain)?,
        args: text::each("config.args", wire.args, text::plain)?,
        working_dir: working_dir(wire.working_dir)?,
        envs: text::each("config.envs", wire.envs, env)?,
        mounts: text::each("config.mounts", wire.mounts, mount::mount)?,
        devices: text::each("config.devices", wire.devices, mount::device)?,
        labels: wire.labels,
        annotations: wire.annotations,
        log_path: log_path(wire.log_path)?,
        stdin: wire.stdin,
        stdin_once: wire.stdin_once,
        tty: wire.tty,
        stop_signal: signal::stop_signal("config.stop_signal", wire.stop_signal)?,
        resources: resources::resources("config.linux.resources", linux.resources)?,
        security: security::container("config.linux.security_context", linux.security_context, host)?,
    })
}

fn name(metadata: Option<wire::ContainerMetadata>) -> Result<ContainerName> {
    let metadata = given("config.metadata", metadata)?;
    let name = text::word("config.metadata.name", metadata.name)?;
    match name.is_empty() {
        true => Err(Error::invalid("config.metadata.name is empty")),
        false => Ok(ContainerName { name, attempt: metadata.attempt }),
    }
}

/// Empty: the image's.
fn working_dir(path: String) -> Result<String> {
    match path.is_empty() {
        true => Ok(path),
        false => text::clean("config.working_dir", path),
    }
}

/// The name ends at the first `=` for every reader of an environment, so it must not have one.
fn env(field: &str, wire: wire::KeyValue) -> Result<(String, Vec<u8>)> {
    if wire.key.is_empty() || wire.key.contains(['=', '\0']) {
        return Err(Error::invalid(format!("{field} has the name {:?}", wire.key)));
    }
    if wire.value.contains(&0) {
        return Err(Error::invalid(format!("{field} ({}) has a value with a NUL byte", wire.key)));
    }
    Ok((wire.key, wire.value))
}

/// Below the pod's log directory.
fn log_path(path: String) -> Result<String> {
    let path = text::downward("config.log_path", path)?;
    match path.starts_with('/') {
        true => Err(Error::invalid(format!("config.log_path is not relative: {path:?}"))),
        false => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn minimal() -> wire::CreateContainerRequest {
        wire::CreateContainerRequest {
            pod_sandbox_id: "p1".into(),
            config: Some(wire::ContainerConfig {
                metadata: Some(wire::ContainerMetadata { name: "c".into(), attempt: 2 }),
                image: Some(wire::ImageSpec { image: "busybox".into(), ..Default::default() }),
                ..Default::default()
            }),
            sandbox_config: None,
        }
    }

    fn decode(change: impl Fn(&mut wire::ContainerConfig)) -> Result<ContainerSpec> {
        let mut request = minimal();
        change(request.config.as_mut().unwrap());
        create(request, &Host::default()).map(|(_, spec)| spec)
    }

    fn invalid(change: impl Fn(&mut wire::ContainerConfig), name: &str) {
        let error = decode(change).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.message.contains(name), "{error}");
    }

    #[test]
    fn the_least_that_makes_a_container() {
        let (pod, spec) = create(minimal(), &Host::default()).unwrap();
        assert_eq!((pod.as_str(), spec.name.name.as_str(), spec.name.attempt), ("p1", "c", 2));
        assert_eq!(spec.image.image, "busybox");
        invalid(|c| c.metadata = None, "metadata");
        invalid(|c| c.metadata = Some(Default::default()), "metadata.name");
        invalid(|c| c.image = None, "config.image");
        invalid(|c| c.image = Some(Default::default()), "config.image.image");
        assert!(
            create(wire::CreateContainerRequest { config: None, ..minimal() }, &Host::default()).is_err()
        );
    }

    #[test]
    fn behaviour_19_environment_values_are_bytes() {
        let env = |key: &str, value: &[u8]| wire::KeyValue { key: key.into(), value: value.into() };
        let spec = decode(|c| c.envs = vec![env("A", b"\xff\xfe="), env("A", b"")]).unwrap();
        assert_eq!(spec.envs, [("A".to_owned(), b"\xff\xfe=".to_vec()), ("A".to_owned(), vec![])]);
        invalid(|c| c.envs = vec![env("A", b""), env("A=B", b"")], "envs[1]");
        invalid(|c| c.envs = vec![env("", b"x")], "envs[0]");
        invalid(|c| c.envs = vec![env("A\0", b"x")], "envs[0]");
        invalid(|c| c.envs = vec![env("A", b"x\0y")], "envs[0] (A)");
    }

    #[test]
    fn no_string_carries_a_nul_byte_to_the_kernel() {
        invalid(|c| c.command = vec!["a".into(), "b\0".into()], "command[1]");
        invalid(|c| c.args = vec!["\0".into()], "args[0]");
        invalid(|c| c.working_dir = "/a\0".into(), "working_dir");
        invalid(|c| c.log_path = "a\0".into(), "log_path");
    }

    #[test]
    fn the_log_stays_in_the_pods_directory() {
        assert_eq!(decode(|c| c.log_path = "c/0.log".into()).unwrap().log_path, "c/0.log");
        assert_eq!(decode(|c| c.log_path = "c/..0.log".into()).unwrap().log_path, "c/..0.log");
        for path in ["../x", "c/../../x", "/etc/x", "c/.."] {
            invalid(|c| c.log_path = path.into(), "log_path");
        }
    }

    #[test]
    fn a_working_directory_is_absolute() {
        assert_eq!(decode(|_| ()).unwrap().working_dir, "");
        assert_eq!(decode(|c| c.working_dir = "/a/".into()).unwrap().working_dir, "/a");
        invalid(|c| c.working_dir = "a".into(), "working_dir");
    }

    #[test]
    fn cdi_devices_are_refused_by_name() {
        let error = decode(|c| c.cdi_devices = vec![Default::default()]).unwrap_err();
        assert_eq!(error.kind, Kind::Unimplemented);
        assert!(error.message.contains("CDI_devices"), "{error}");
    }

    #[test]
    fn windows_fields_mean_nothing_here() {
        assert_eq!(decode(|c| c.windows = Some(Default::default())).unwrap(), decode(|_| ()).unwrap());
    }

    #[test]
    fn a_privileged_container_needs_a_privileged_pod() {
        let with_pod = |privileged: bool| {
            let mut request = minimal();
            let context = wire::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
            request.config.as_mut().unwrap().linux =
                Some(wire::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
            let context = wire::LinuxSandboxSecurityContext { privileged, ..Default::default() };
            request.sandbox_config = Some(wire::PodSandboxConfig {
                linux: Some(wire::LinuxPodSandboxConfig {
                    security_context: Some(context),
                    ..Default::default()
                }),
                ..Default::default()
            });
            create(request, &Host::default())
        };
        assert!(with_pod(true).unwrap().1.security.privileged);
        assert_eq!(with_pod(false).unwrap_err().kind, Kind::InvalidArgument);
    }
}
