//! The node: version, status, configuration.

use serde_json::json;

use crate::cgroup::Driver;
use crate::cri::decode::{Host, RUNTIME_HANDLERS};
use crate::cri::wire;
use crate::error::Result;
use crate::node::Node;

pub(in crate::cri) fn version() -> wire::VersionResponse {
    wire::VersionResponse {
        // Of kubelet's side of the interface, and not of ours: it has been this ever since.
        version: "0.1.0".into(),
        runtime_name: "podwright".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

/// `runtime` and `network`: why it is not ready, if it is not.
pub(in crate::cri) fn status(
    runtime: Result<(), String>,
    network: Result<(), String>,
    info: Option<serde_json::Value>,
) -> Result<wire::StatusResponse> {
    let conditions = vec![
        condition("RuntimeReady", "RuntimeNotReady", runtime),
        condition("NetworkReady", "NetworkPluginNotReady", network),
    ];
    let handler = |name: &&str| wire::RuntimeHandler {
        name: (*name).to_owned(),
        features: Some(wire::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: false,
        }),
    };
    Ok(wire::StatusResponse {
        status: Some(wire::RuntimeStatus { conditions }),
        info: info.as_ref().map(super::info).transpose()?.unwrap_or_default(),
        runtime_handlers: RUNTIME_HANDLERS.iter().map(handler).collect(),
        features: Some(wire::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    })
}

fn condition(kind: &str, reason: &str, state: Result<(), String>) -> wire::RuntimeCondition {
    let (reason, message) = match &state {
        Ok(()) => ("", ""),
        Err(why) => (reason, why.as_str()),
    };
    wire::RuntimeCondition {
        r#type: kind.into(),
        status: state.is_ok(),
        reason: reason.into(),
        message: message.into(),
    }
}

/// For `crictl info`.
pub(in crate::cri) fn info(node: &Node, host: &Host) -> serde_json::Value {
    json!({
        "config": node.config,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "appArmor": host.apparmor,
        "seLinux": host.selinux,
    })
}

pub(in crate::cri) fn runtime_config(driver: Driver) -> wire::RuntimeConfigResponse {
    let cgroup_driver = match driver {
        Driver::Systemd => wire::CgroupDriver::Systemd,
        Driver::Cgroupfs => wire::CgroupDriver::Cgroupfs,
    };
    wire::RuntimeConfigResponse {
        linux: Some(wire::LinuxRuntimeConfiguration { cgroup_driver: cgroup_driver.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_31_both_conditions_are_there_with_the_reason() {
        let answer = status(Ok(()), Err("no CNI configuration in /etc/cni/net.d".into()), None).unwrap();
        let conditions = answer.status.unwrap().conditions;
        let [runtime, network] = conditions.as_slice() else { panic!("{conditions:?}") };
        assert_eq!((runtime.r#type.as_str(), runtime.status), ("RuntimeReady", true));
        assert_eq!((network.r#type.as_str(), network.status), ("NetworkReady", false));
        assert_eq!(network.reason, "NetworkPluginNotReady");
        assert!(network.message.contains("/etc/cni/net.d"));
    }

    #[test]
    fn behaviour_31_the_default_handler_has_the_empty_name() {
        let answer = status(Ok(()), Ok(()), None).unwrap();
        let default = answer.runtime_handlers.iter().find(|h| h.name.is_empty()).unwrap();
        let features = default.features.unwrap();
        assert!(features.recursive_read_only_mounts && !features.user_namespaces);
        assert!(answer.features.unwrap().supplemental_groups_policy);
    }

    #[test]
    fn the_driver_is_the_one_in_use() {
        let driver = |driver| runtime_config(driver).linux.unwrap().cgroup_driver();
        assert_eq!(driver(Driver::Systemd), wire::CgroupDriver::Systemd);
        assert_eq!(driver(Driver::Cgroupfs), wire::CgroupDriver::Cgroupfs);
    }
}
