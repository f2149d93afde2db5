//! RunPodSandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::cri::decode::{Host, RUNTIME_HANDLERS, given, known, resources, security, text};
use crate::cri::wire;
use crate::error::{Error, Result};
use crate::network::sysctl;
use crate::pod::spec::{Dns, NamespaceMode, Namespaces, PodName, PodSpec, PortMapping, Protocol};

/// Of utsname's nodename, see uname(2).
const MAX_HOSTNAME: usize = 64;

pub(in crate::cri) fn run(request: wire::RunPodSandboxRequest, host: &Host) -> Result<PodSpec> {
    let handler = request.runtime_handler;
    if !RUNTIME_HANDLERS.contains(&handler.as_str()) {
        return Err(Error::invalid(format!("runtime_handler {handler:?} is unknown to this node")));
    }
    let config = given("config", request.config)?;
    let linux = config.linux.unwrap_or_default();
    let security = security::pod("config.linux.security_context", linux.security_context, host)?;
    let limits = |name: &str, wire: Option<_>| {
        let field = format!("config.linux.{name}");
        wire.map(|wire| resources::resources(&field, Some(wire))).transpose()
    };
    Ok(PodSpec {
        name: name(given("config.metadata", config.metadata)?)?,
        hostname: hostname(config.hostname)?,
        log_directory: log_directory(config.log_directory)?,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: text::each("config.port_mappings", config.port_mappings, port_mapping)?,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        sysctls: sysctls(linux.sysctls, &security.namespaces)?,
        overhead: limits("overhead", linux.overhead)?,
        resources: limits("resources", linux.resources)?,
        security,
        runtime_handler: handler,
    })
}

/// As they were given: they are checked again, by the same rules, when the namespaces are made.
fn sysctls(sysctls: BTreeMap<String, String>, namespaces: &Namespaces) -> Result<BTreeMap<String, String>> {
    let net = namespaces.network == NamespaceMode::Pod;
    // The pod has a name of its own where it has a network of its own.
    let own = sysctl::Own { net, ipc: namespaces.ipc == NamespaceMode::Pod, uts: net };
    match sysctl::check(&sysctls, own) {
        Ok(_) => Ok(sysctls),
        Err(e) => Err(e.during("config.linux.sysctls")),
    }
}

/// They become CNI_ARGS (`K=V;K=V`) and parts of cgroups' and files' names.
fn name(metadata: wire::PodSandboxMetadata) -> Result<PodName> {
    let part = |name: &str, text: String| {
        let text = text::word(&format!("config.metadata.{name}"), text)?;
        match text.contains(['/', ';']) {
            true => Err(Error::invalid(format!("config.metadata.{name} contains \"/\" or \";\": {text:?}"))),
            false => Ok(text),
        }
    };
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name is empty"));
    }
    Ok(PodName {
        name: part("name", metadata.name)?,
        namespace: part("namespace", metadata.namespace)?,
        uid: part("uid", metadata.uid)?,
        attempt: metadata.attempt,
    })
}

fn hostname(name: String) -> Result<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if name.len() > MAX_HOSTNAME {
        return Err(Error::invalid(format!("config.hostname is longer than {MAX_HOSTNAME} bytes: {name:?}")));
    }
    match name.bytes().all(plain) {
        true => Ok(name),
        false => Err(Error::invalid(format!("config.hostname is no host name: {name:?}"))),
    }
}

fn log_directory(path: String) -> Result<String> {
    match path.is_empty() {
        true => Ok(path),
        false => text::absolute("config.log_directory", text::downward("config.log_directory", path)?),
    }
}

fn dns(wire: wire::DnsConfig) -> Result<Dns> {
    Ok(Dns {
        servers: text::words("config.dns_config.servers", wire.servers)?,
        searches: text::words("config.dns_config.searches", wire.searches)?,
        options: text::words("config.dns_config.options", wire.options)?,
    })
}

fn port_mapping(field: &str, wire: wire::PortMapping) -> Result<PortMapping> {
    let port = |name: &str, port: i32| {
        u16::try_from(port).map_err(|_| Error::invalid(format!("{field}.{name} is no port: {port}")))
    };
    let host_ip = match wire.host_ip.as_str() {
        "" => None,
        text => {
            let ip: IpAddr = text
                .parse()
                .map_err(|_| Error::invalid(format!("{field}.host_ip is no address: {text:?}")))?;
            Some(ip)
        }
    };
    let mapping = PortMapping {
        protocol: match known(&format!("{field}.protocol"), wire.protocol)? {
            wire::Protocol::Tcp => Protocol::Tcp,
            wire::Protocol::Udp => Protocol::Udp,
            wire::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: port("container_port", wire.container_port)?,
        host_port: port("host_port", wire.host_port)?,
        host_ip,
    };
    match mapping.host_port != 0 && mapping.container_port == 0 {
        true => Err(Error::invalid(format!("{field} has a host_port and no container_port"))),
        false => Ok(mapping),
    }
}

/// Absolute, however it was given; no way out of the hierarchy. Empty: the runtime's own.
fn cgroup_parent(path: String) -> Result<String> {
    if path.is_empty() {
        return Ok(path);
    }
    let path = text::downward("config.linux.cgroup_parent", path)?;
    text::clean("config.linux.cgroup_parent", format!("/{path}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Kind;

    fn decode(change: impl Fn(&mut wire::PodSandboxConfig)) -> Result<PodSpec> {
        let metadata = wire::PodSandboxMetadata {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            attempt: 1,
        };
        let mut config = wire::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        change(&mut config);
        run(wire::RunPodSandboxRequest { config: Some(config), ..Default::default() }, &Host::default())
    }

    fn invalid(change: impl Fn(&mut wire::PodSandboxConfig), name: &str) {
        let error = decode(change).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
        assert!(error.message.contains(name), "{error}");
    }

    #[test]
    fn the_least_that_makes_a_pod() {
        let spec = decode(|_| ()).unwrap();
        assert_eq!((spec.name.name.as_str(), spec.name.attempt), ("web", 1));
        assert_eq!(spec.cgroup_parent, "");
        assert!(run(Default::default(), &Host::default()).is_err());
        invalid(|c| c.metadata = None, "metadata");
        invalid(|c| c.metadata = Some(Default::default()), "metadata.name");
        invalid(|c| c.metadata.as_mut().unwrap().namespace = "a;K8S_POD_NAME=b".into(), "namespace");
        invalid(|c| c.metadata.as_mut().unwrap().uid = "../x".into(), "uid");
    }

    #[test]
    fn an_unknown_runtime_handler_is_refused() {
        let request = wire::RunPodSandboxRequest { runtime_handler: "kata".into(), ..Default::default() };
        let error = run(request, &Host::default()).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
        assert!(error.message.contains("\"kata\""), "{error}");
    }

    #[test]
    fn behaviour_26_empty_dns_is_not_the_same_as_none() {
        assert_eq!(decode(|_| ()).unwrap().dns, None);
        assert_eq!(decode(|c| c.dns_config = Some(Default::default())).unwrap().dns, Some(Dns::default()));
        let server = |text: &str| Some(wire::DnsConfig { servers: vec![text.into()], ..Default::default() });
        assert!(decode(|c| c.dns_config = server("fd00::10")).is_ok());
        invalid(|c| c.dns_config = server("10.0.0.1\nsearch evil"), "servers[0]");
    }

    #[test]
    fn host_names_fit_the_kernel() {
        assert!(decode(|c| c.hostname = "a".repeat(64)).is_ok());
        invalid(|c| c.hostname = "a".repeat(65), "hostname");
        invalid(|c| c.hostname = "a b".into(), "hostname");
        invalid(|c| c.hostname = "a\n127.0.0.1 x".into(), "hostname");
    }

    #[test]
    fn behaviour_28_cgroup_parents_stay_in_the_hierarchy() {
        let parent = |path: &str| {
            decode(|c| {
                c.linux =
                    Some(wire::LinuxPodSandboxConfig { cgroup_parent: path.into(), ..Default::default() });
            })
            .map(|spec| spec.cgroup_parent)
        };
        assert_eq!(parent("/kubepods/burstable/pod1").unwrap(), "/kubepods/burstable/pod1");
        assert_eq!(parent("kubepods-besteffort.slice").unwrap(), "/kubepods-besteffort.slice");
        assert_eq!(parent("/kubepods.slice/").unwrap(), "/kubepods.slice");
        assert!(parent("/kubepods/../system.slice").is_err() && parent("a\0").is_err());
    }

    #[test]
    fn log_directories_are_absolute() {
        assert!(decode(|c| c.log_directory = "/var/log/pods/x".into()).is_ok());
        invalid(|c| c.log_directory = "var/log".into(), "log_directory");
        invalid(|c| c.log_directory = "/var/log/../../etc".into(), "log_directory");
    }

    #[test]
    fn behaviour_24_a_pod_on_the_nodes_network_sets_no_sysctl_there() {
        let with = |sysctl: &str, network: wire::NamespaceMode| {
            decode(|c| {
                let options = wire::NamespaceOption { network: network.into(), ..Default::default() };
                c.linux = Some(wire::LinuxPodSandboxConfig {
                    sysctls: [(sysctl.to_owned(), "9".to_owned())].into(),
                    security_context: Some(wire::LinuxSandboxSecurityContext {
                        namespace_options: Some(options),
                        ..Default::default()
                    }),
                    ..Default::default()
                });
            })
        };
        for sysctl in ["net.core.somaxconn", "kernel.domainname"] {
            assert_eq!(with(sysctl, wire::NamespaceMode::Pod).unwrap().sysctls[sysctl], "9");
            let error = with(sysctl, wire::NamespaceMode::Node).unwrap_err();
            assert!(error.message.starts_with("config.linux.sysctls: sysctl \""), "{error}");
        }
    }

    #[test]
    fn behaviour_34_host_addresses_and_protocols() {
        let port = |host_ip: &str, protocol, container_port| wire::PortMapping {
            protocol,
            container_port,
            host_port: 8080,
            host_ip: host_ip.into(),
        };
        let spec = decode(|c| c.port_mappings = vec![port("127.0.0.1", 2, 80)]).unwrap();
        assert_eq!(spec.port_mappings[0].protocol, Protocol::Sctp);
        assert_eq!(spec.port_mappings[0].host_ip, Some("127.0.0.1".parse().unwrap()));
        invalid(
            |c| c.port_mappings = vec![port("", 0, 80), port("localhost", 0, 80)],
            "port_mappings[1].host_ip",
        );
        invalid(|c| c.port_mappings = vec![port("", 3, 80)], "protocol");
        invalid(|c| c.port_mappings = vec![port("", 0, 0)], "container_port");
    }

    proptest! {
        #[test]
        fn no_port_is_cut_to_another(number in any::<i32>()) {
            let mapping = wire::PortMapping { container_port: 80, host_port: number, ..Default::default() };
            match decode(|c| c.port_mappings = vec![mapping.clone()]) {
                Ok(spec) => prop_assert_eq!(i32::from(spec.port_mappings[0].host_port), number),
                Err(_) => prop_assert!(!(0..=65535).contains(&number)),
            }
        }
    }
}
