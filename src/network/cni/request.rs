//! What plugins are told: CNI_ARGS, and the `runtimeConfig` of the capabilities that they declare.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::config::PluginConfig;
use crate::Error;
use crate::error::Result;
use crate::network::PodNetwork;
use crate::pod::spec::{PortMapping, Protocol};

/// What the pod's link is called in the pod (CNI_IFNAME).
pub const IN_POD: &str = "eth0";

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits per second: what Kubernetes lets through.
const BANDWIDTHS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// A token bucket that is as good as none, in bits, as kubelet asked for.
const BURST: u64 = i32::MAX as u64;

/// {key, value} pairs for CNI_ARGS.
///
/// # Errors
/// INVALID_ARGUMENT where a name could not be told from the next pair.
pub fn arguments(pod: &PodNetwork) -> Result<Vec<(String, String)>> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", pod.name.namespace.as_str()),
        ("K8S_POD_NAME", &pod.name.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.pod_id),
        ("K8S_POD_UID", &pod.name.uid),
    ];
    if let Some((key, value)) = pairs.iter().find(|(_, v)| v.contains([';', '=', '\0'])) {
        return Err(Error::invalid(format!(
            "{key} {value:?} has a character that CNI arguments cannot carry"
        )));
    }
    Ok(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

/// Everything that a plugin with the capability could be given, by capability.
///
/// # Errors
/// INVALID_ARGUMENT for a bandwidth annotation that is no bandwidth.
pub fn capabilities(pod: &PodNetwork, pod_cidr: &str) -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    let ports: Vec<_> = pod.port_mappings.iter().filter(|p| p.host_port != 0).map(port).collect();
    if !ports.is_empty() {
        all.insert("portMappings".to_owned(), Value::Array(ports));
    }
    let ranges: Vec<_> = pod_cidr
        .split(',')
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .map(|c| json!([{"subnet": c}]))
        .collect();
    if !ranges.is_empty() {
        all.insert("ipRanges".to_owned(), Value::Array(ranges));
    }
    let mut bandwidth = Map::new();
    for (annotation, rate, burst) in
        [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")]
    {
        if let Some(text) = pod.annotations.get(annotation) {
            let bits = quantity(text).filter(|bits| BANDWIDTHS.contains(bits)).ok_or_else(|| {
                Error::invalid(format!("annotation {annotation}: {text:?} is not a bandwidth from 1k to 1P"))
            })?;
            bandwidth.insert(rate.to_owned(), bits.into());
            bandwidth.insert(burst.to_owned(), BURST.into());
        }
    }
    if !bandwidth.is_empty() {
        all.insert("bandwidth".to_owned(), Value::Object(bandwidth));
    }
    all.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(pod.annotations));
    Ok(all)
}

fn port(mapping: &PortMapping) -> Value {
    let protocol = match mapping.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let mut port = json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": protocol,
    });
    if let (Some(ip), Some(keys)) = (mapping.host_ip, port.as_object_mut()) {
        keys.insert("hostIP".to_owned(), ip.to_string().into());
    }
    port
}

/// A whole Kubernetes quantity: digits, perhaps with a decimal or binary suffix.
fn quantity(text: &str) -> Option<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, suffix) = text.split_at(at);
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A plugin's stdin: its own keys, the network's name and version, what it can do for this pod,
/// and the result of the plugins before it.
pub fn stdin(
    plugin: &PluginConfig,
    network: &str,
    version: &str,
    capabilities: &BTreeMap<String, Value>,
    previous: Option<&Value>,
) -> Value {
    let mut keys = plugin.keys.clone();
    keys.insert("name".to_owned(), network.into());
    keys.insert("cniVersion".to_owned(), version.into());
    let wanted: Map<_, _> = capabilities
        .iter()
        .filter(|(capability, _)| plugin.capabilities.contains(*capability))
        .map(|(capability, value)| (capability.clone(), value.clone()))
        .collect();
    if !wanted.is_empty() {
        keys.insert("runtimeConfig".to_owned(), Value::Object(wanted));
    }
    if let Some(previous) = previous {
        keys.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodNetwork {
        let mut pod = PodNetwork { pod_id: "id".into(), ..PodNetwork::default() };
        pod.name.name = "web".into();
        pod.name.namespace = "default".into();
        pod.port_mappings = vec![
            PortMapping {
                protocol: Protocol::Udp,
                container_port: 53,
                host_port: 5353,
                host_ip: "::1".parse().ok(),
            },
            PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 0, host_ip: None },
        ];
        pod
    }

    #[test]
    fn arguments_cannot_be_smuggled_in() {
        let args = arguments(&pod()).unwrap();
        assert!(args.contains(&("K8S_POD_NAME".into(), "web".into())));
        let mut bad = pod();
        bad.name.uid = "u;K8S_POD_NAME=other".into();
        assert!(arguments(&bad).unwrap_err().message.contains("K8S_POD_UID"));
    }

    #[test]
    fn a_plugin_gets_what_it_declares() {
        let mut pod = pod();
        pod.annotations.insert(INGRESS.into(), "10M".into());
        let all = capabilities(&pod, "10.1.0.0/24, fd00::/64").unwrap();
        assert_eq!(
            all["portMappings"],
            json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "::1"}])
        );
        assert_eq!(all["ipRanges"], json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]));
        assert_eq!(all["bandwidth"], json!({"ingressRate": 10_000_000, "ingressBurst": 2_147_483_647_u32}));
        let plugin = PluginConfig {
            kind: "p".into(),
            capabilities: ["bandwidth".to_owned()].into(),
            keys: Map::from_iter([("mtu".to_owned(), json!(1))]),
        };
        let stdin = stdin(&plugin, "n", "1.0.0", &all, Some(&json!({"ips": []})));
        assert_eq!(
            stdin,
            json!({
                "mtu": 1, "name": "n", "cniVersion": "1.0.0", "prevResult": {"ips": []},
                "runtimeConfig": {"bandwidth": all["bandwidth"]},
            })
        );
    }

    #[test]
    fn a_bandwidth_is_a_quantity() {
        assert_eq!((quantity("1k"), quantity("8Mi"), quantity("5")), (Some(1000), Some(8 << 20), Some(5)));
        assert_eq!((quantity("x"), quantity("1.5M"), quantity("99999999999999999999")), (None, None, None));
        let mut pod = pod();
        pod.annotations.insert(EGRESS.into(), "10".into());
        assert!(capabilities(&pod, "").unwrap_err().message.contains(EGRESS));
    }
}
