//! Sysctls of a pod: only those of namespaces that the pod has for itself (BEHAVIOUR 24).

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::pod::spec::{NamespaceMode, Namespaces};

/// Names with dots come back as they were given.
pub(super) fn sysctls(
    field: &str,
    sysctls: BTreeMap<String, String>,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>> {
    for (name, value) in &sysctls {
        let refuse = |why: &str| Err(Error::invalid(format!("{field}: {name:?} {why}")));
        // The name becomes a path below /proc/sys, and the value a line in a file there.
        let part =
            |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(char::is_control);
        if !name.split(['.', '/']).all(part) {
            return refuse("is no name of a sysctl");
        }
        if value.contains(['\0', '\n']) {
            return refuse("has a value of more than one line");
        }
        match namespace(name) {
            None => return refuse("is not part of a pod's namespaces and would change the node"),
            Some(Namespace::Network) if namespaces.network == NamespaceMode::Node => {
                return refuse("would change the node, whose network the pod shares");
            }
            Some(Namespace::Ipc) if namespaces.ipc == NamespaceMode::Node => {
                return refuse("would change the node, whose IPC namespace the pod shares");
            }
            Some(Namespace::Uts) if namespaces.network == NamespaceMode::Node => {
                return refuse("would change the node, whose name the pod shares");
            }
            Some(_) => {}
        }
    }
    Ok(sysctls)
}

enum Namespace {
    Network,
    Ipc,
    Uts,
}

/// Which namespace a sysctl belongs to: ipc_namespaces(7), network_namespaces(7), uts_namespaces(7).
fn namespace(name: &str) -> Option<Namespace> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
        "kernel.shm_next_id",
    ];
    let dotted = name.replace('/', ".");
    if dotted.starts_with("net.") {
        return Some(Namespace::Network);
    }
    if dotted.starts_with("fs.mqueue.") || IPC.contains(&dotted.as_str()) {
        return Some(Namespace::Ipc);
    }
    // The host name is a field of its own in the request.
    (dotted == "kernel.domainname").then_some(Namespace::Uts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(name: &str, value: &str, namespaces: &Namespaces) -> Result<BTreeMap<String, String>> {
        sysctls("sysctls", BTreeMap::from([(name.into(), value.into())]), namespaces)
    }

    #[test]
    fn behaviour_24_only_namespaced_sysctls_pass() {
        let own = Namespaces::default();
        for name in ["net.ipv4.ip_unprivileged_port_start", "kernel.shm_rmid_forced", "fs.mqueue.msg_max"] {
            assert!(decode(name, "1", &own).is_ok(), "{name}");
        }
        for name in ["kernel.core_pattern", "vm.swappiness", "fs.file-max", "kernel.hostname", "", "net."] {
            assert!(decode(name, "1", &own).is_err(), "{name}");
        }
    }

    #[test]
    fn the_node_is_not_changed_through_a_shared_namespace() {
        let network = Namespaces { network: NamespaceMode::Node, ..Default::default() };
        assert!(decode("net.core.somaxconn", "1", &network).is_err());
        assert!(decode("kernel.domainname", "x", &network).is_err());
        assert!(decode("kernel.shmmax", "1", &network).is_ok());
        let ipc = Namespaces { ipc: NamespaceMode::Node, ..Default::default() };
        assert!(decode("kernel.shmmax", "1", &ipc).is_err());
        assert!(decode("net.core.somaxconn", "1", &ipc).is_ok());
    }

    #[test]
    fn cve_2022_0811_names_and_values_cannot_carry_more() {
        let own = Namespaces::default();
        for name in ["net/../kernel/core_pattern", "net.ipv4\n.x", "net..x", "/net.x", "net.\0"] {
            assert!(decode(name, "1", &own).is_err(), "{name:?}");
        }
        assert!(decode("kernel.shmmax", "1\nkernel.core_pattern=|x", &own).is_err());
        // Harmless where no string is put together: it is a value like any other.
        assert!(decode("kernel.shm_rmid_forced", "1+kernel.core_pattern=|x", &own).is_ok());
    }
}
