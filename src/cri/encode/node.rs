//! The node: version, status, configuration.

use std::collections::BTreeMap;

use serde_json::json;

use crate::cgroup::Driver;
use crate::config::Config;
use crate::cri::decode::{Host, RUNTIME_HANDLERS};
use crate::cri::wire;

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
    info: BTreeMap<String, String>,
) -> wire::StatusResponse {
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
    wire::StatusResponse {
        status: Some(wire::RuntimeStatus { conditions }),
        info,
        runtime_handlers: RUNTIME_HANDLERS.iter().map(handler).collect(),
        features: Some(wire::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    }
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

/// For `crictl info`, which shows each entry under its key.
pub(in crate::cri) fn info(config: &Config, host: &Host) -> BTreeMap<String, String> {
    let host = json!({ "appArmor": host.apparmor, "seLinux": host.selinux });
    let daemon = json!({ "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id() });
    [("config", json!(config)), ("host", host), ("daemon", daemon)]
        .map(|(key, value)| (key.to_owned(), value.to_string()))
        .into()
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
        let answer = status(Ok(()), Err("no CNI configuration in /etc/cni/net.d".into()), Default::default());
        let conditions = answer.status.unwrap().conditions;
        let [runtime, network] = conditions.as_slice() else { panic!("{conditions:?}") };
        assert_eq!((runtime.r#type.as_str(), runtime.status), ("RuntimeReady", true));
        assert_eq!((network.r#type.as_str(), network.status), ("NetworkReady", false));
        assert_eq!(network.reason, "NetworkPluginNotReady");
        assert!(network.message.contains("/etc/cni/net.d"));
    }

    #[test]
    fn behaviour_31_the_default_handler_has_the_empty_name() {
        let answer = status(Ok(()), Ok(()), Default::default());
        let default = answer.runtime_handlers.iter().find(|h| h.name.is_empty()).unwrap();
        let features = default.features.unwrap();
        assert!(features.recursive_read_only_mounts && !features.user_namespaces);
        assert!(answer.features.unwrap().supplemental_groups_policy);
    }

    #[test]
    fn verbose_information_is_json_under_keys() {
        let info = info(&Config::default(), &Host::default());
        let config: Config = serde_json::from_str(&info["config"]).unwrap();
        assert_eq!(config, Config::default());
        assert!(info["host"].contains("appArmor"));
    }

    #[test]
    fn the_driver_is_the_one_in_use() {
        let driver = |driver| runtime_config(driver).linux.unwrap().cgroup_driver();
        assert_eq!(driver(Driver::Systemd), wire::CgroupDriver::Systemd);
        assert_eq!(driver(Driver::Cgroupfs), wire::CgroupDriver::Cgroupfs);
    }
}
