//! Configuration: TOML with drop-ins, then flags.
//!
//! ```text
//! defaults ◀ config.toml ◀ config.toml.d/10-a.toml ◀ config.toml.d/20-b.toml ◀ flags
//! ```
//!
//! Tables merge key by key and the later wins; an array is replaced as a whole.

pub mod advertise;
mod load;
mod message;
mod validate;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup::Driver;
use crate::image;
use crate::network::Mode;

/// Everything that can be set. `podwright config default` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The CRI socket.
    pub listen: PathBuf,
    /// What outlives a boot: images, pods' and containers' records and writable layers.
    pub root: PathBuf,
    /// What is of this boot: the keeper's socket, FIFOs, notes.
    pub state: PathBuf,
    /// Where pods' network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// trace, debug, info, warn, error or off; or tracing's directives, as in `warn,podwright=debug`.
    pub log_level: String,
    /// The keeper's executable; empty: `podwright-keeper` beside this one.
    pub keeper: PathBuf,
    pub cgroup: CgroupConfig,
    pub network: NetworkConfig,
    pub image: ImageConfig,
    pub container: ContainerConfig,
    pub streaming: StreamingConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CgroupConfig {
    pub driver: Driver,
    /// The parent of all cgroups of ours, and of pods without a cgroup_parent.
    pub root: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// None: CNI where it is configured, else builtin.
    pub mode: Option<Mode>,
    /// Of the builtin network; made when it is first used.
    pub bridge: String,
    /// IPv4, of the builtin network; its first address is the bridge's.
    pub subnet: String,
    /// Of the pods' interfaces; None: that of the node's default route.
    pub mtu: Option<u32>,
    pub cni_conf_dir: PathBuf,
    /// Searched in this order.
    pub cni_bin_dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// host[:port] of registries that are spoken to without TLS. Loopback ones always are.
    pub insecure_registries: Vec<String>,
    /// Searched for HOST/hosts.toml in this order.
    pub certs_dirs: Vec<PathBuf>,
    /// containers' registries.conf; empty: none.
    pub registries_conf: PathBuf,
    /// Docker's config.json or containers' auth.json, for pulls without a credential.
    pub auth_files: Vec<PathBuf>,
    /// Names with `*`: never collected.
    pub pinned: Vec<String>,
    /// Seconds without a byte after which a registry counts as stalled.
    pub stall_timeout: u64,
    /// Of one layer: bytes unpacked, entries, components of a path.
    pub layer_bytes: u64,
    pub layer_entries: u64,
    pub layer_depth: usize,
    pub proxy: ProxyConfig,
}

/// All empty: as the environment says (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    pub http: String,
    pub https: String,
    /// Hosts, domains, addresses and networks that are reached without one, with commas between.
    pub except: String,
}

impl ImageConfig {
    /// The image service's own form of it; `root` is the store's.
    pub fn service(&self, root: PathBuf) -> image::Config {
        let ProxyConfig { http, https, except } = self.proxy.clone();
        image::Config {
            root,
            registries: image::Settings {
                certs_dirs: self.certs_dirs.clone(),
                registries_conf: (!self.registries_conf.as_os_str().is_empty())
                    .then(|| self.registries_conf.clone()),
                auth_files: self.auth_files.clone(),
                insecure: self.insecure_registries.clone(),
                proxy: (self.proxy != ProxyConfig::default()).then_some(image::Proxy { http, https, except }),
                stall: Duration::from_secs(self.stall_timeout),
            },
            limits: image::Limits {
                bytes: self.layer_bytes,
                entries: self.layer_entries,
                depth: self.layer_depth,
            },
            pinned: self.pinned.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerConfig {
    /// RLIMIT_NOFILE of containers, soft and hard; not the daemon's own (BEHAVIOUR 23).
    pub nofile: (u64, u64),
    /// Seconds that touching what a container has mounted may take before CreateContainer, or an exec that
    /// needs a terminal, fails.
    pub volume_timeout: u64,
}

/// The server of exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamingConfig {
    /// address:port that it listens on; port 0: one that is free.
    pub address: String,
    /// host or host:port that clients are told; empty: where it listens.
    pub advertise: String,
    /// Seconds without a byte either way after which a session ends.
    pub idle_timeout: u64,
    pub tls: StreamingTls,
    /// PEM, of the server and whoever signed it; reread when it changes.
    pub tls_certificate: PathBuf,
    pub tls_key: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamingTls {
    #[default]
    Off,
    /// A certificate that is made at each start.
    SelfSigned,
    Files,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".into(),
            advertise: String::new(),
            idle_timeout: 4 * 60 * 60,
            tls: StreamingTls::Off,
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "/run/podwright/podwright.sock".into(),
            root: "/var/lib/podwright".into(),
            state: "/run/podwright".into(),
            netns_dir: "/run/netns".into(),
            log_level: "info".into(),
            keeper: PathBuf::new(),
            cgroup: CgroupConfig::default(),
            network: NetworkConfig::default(),
            image: ImageConfig::default(),
            container: ContainerConfig::default(),
            streaming: StreamingConfig::default(),
        }
    }
}

impl Default for CgroupConfig {
    fn default() -> Self {
        Self { driver: Driver::Cgroupfs, root: "/podwright".into() }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mode: None,
            bridge: "podwright0".into(),
            subnet: "10.88.0.0/16".into(),
            mtu: None,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        }
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        let image::Limits { bytes, entries, depth } = image::Limits::default();
        Self {
            insecure_registries: Vec::new(),
            certs_dirs: vec![
                "/etc/podwright/certs.d".into(),
                "/etc/containerd/certs.d".into(),
                "/etc/docker/certs.d".into(),
            ],
            registries_conf: PathBuf::new(),
            auth_files: vec!["/etc/podwright/auth.json".into()],
            pinned: Vec::new(),
            stall_timeout: 30,
            layer_bytes: bytes,
            layer_entries: entries,
            layer_depth: depth,
            proxy: ProxyConfig::default(),
        }
    }
}

impl Default for ContainerConfig {
    fn default() -> Self {
        Self { nofile: (1 << 16, 1 << 20), volume_timeout: 20 }
    }
}

/// What `podwright config default` prints, and `manifests/config.toml` holds.
pub const DEFAULT: &str = include_str!("../manifests/config.toml");

/// Where the configuration is when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/podwright/config.toml";
