//! Refuses values that can never work, by key, before anything is made of them.

use std::path::{Component, Path};

use crate::config::{Config, StreamingTls, advertise};
use crate::{Error, Result};

/// sockaddr_un's path without the final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// IFNAMSIZ without the final zero.
const INTERFACE_MAX: usize = 15;
/// What IPv4 demands of a link (RFC 791), and the largest that the kernel lets a veth have.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
/// fs.nr_open, beyond which no process may go, is at most this.
const NOFILE_MAX: u64 = 1 << 30;

impl Config {
    /// # Errors
    /// INVALID_ARGUMENT that names the key, the value and what is wrong with it.
    pub fn validate(&self) -> Result<()> {
        self.validate_paths()?;
        level(&self.log_level)?;
        cgroup_root(&self.cgroup.root)?;
        bridge(&self.network.bridge)?;
        crate::network::check_subnet(&self.network.subnet).map_err(|e| e.during("network.subnet"))?;
        if let Some(mtu) = self.network.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(refuse("network.mtu", mtu, "must be from 68 to 65535"));
        }
        let (soft, hard) = self.container.nofile;
        if soft == 0 || soft > hard || hard > NOFILE_MAX {
            return Err(refuse(
                "container.nofile",
                format!("[{soft}, {hard}]"),
                "must be a soft limit above 0 and a hard one not below it",
            ));
        }
        if self.container.volume_timeout == 0 {
            return Err(refuse("container.volume_timeout", 0, "must be at least 1 second"));
        }
        self.validate_streaming()?;
        self.validate_image()
    }

    fn validate_image(&self) -> Result<()> {
        let image = &self.image;
        image.certs_dirs.iter().try_for_each(|dir| absolute_path("image.certs_dirs", dir))?;
        image.auth_files.iter().try_for_each(|file| absolute_path("image.auth_files", file))?;
        if !image.registries_conf.as_os_str().is_empty() {
            absolute_path("image.registries_conf", &image.registries_conf)?;
        }
        let numbers = [
            ("image.stall_timeout", image.stall_timeout),
            ("image.layer_bytes", image.layer_bytes),
            ("image.layer_entries", image.layer_entries),
            ("image.layer_depth", image.layer_depth as u64),
        ];
        if let Some((key, _)) = numbers.into_iter().find(|(_, number)| *number == 0) {
            return Err(refuse(key, 0, "must be at least 1"));
        }
        for (key, proxy) in
            [("image.proxy.http", &image.proxy.http), ("image.proxy.https", &image.proxy.https)]
        {
            let known = ["http://", "https://", "socks5://", "socks5h://"];
            if !proxy.is_empty() && !known.iter().any(|scheme| proxy.starts_with(scheme)) {
                // It may have a password in it.
                return Err(refuse(key, "its value", "is not a URL of http, https or socks5"));
            }
        }
        image.insecure_registries.iter().try_for_each(|registry| registry_name(registry))
    }

    fn validate_streaming(&self) -> Result<()> {
        let streaming = &self.streaming;
        if streaming.address.parse::<std::net::SocketAddr>().is_err() {
            let why = "is not an address:port (127.0.0.1:0, [::1]:10010)";
            return Err(refuse("streaming.address", format!("{:?}", streaming.address), why));
        }
        if !streaming.advertise.is_empty() && advertise::host_and_port(&streaming.advertise).is_none() {
            let why = "is not a host or host:port, in ASCII (a name in another script in its xn-- form)";
            return Err(refuse("streaming.advertise", format!("{:?}", streaming.advertise), why));
        }
        if streaming.idle_timeout == 0 {
            return Err(refuse("streaming.idle_timeout", 0, "must be at least 1 second"));
        }
        if streaming.tls == StreamingTls::Files {
            absolute_path("streaming.tls_certificate", &streaming.tls_certificate)?;
            absolute_path("streaming.tls_key", &streaming.tls_key)?;
        }
        Ok(())
    }

    fn validate_paths(&self) -> Result<()> {
        let absolute = [
            ("listen", &self.listen),
            ("root", &self.root),
            ("state", &self.state),
            ("netns_dir", &self.netns_dir),
            ("network.cni_conf_dir", &self.network.cni_conf_dir),
        ];
        absolute.into_iter().try_for_each(|(key, path)| absolute_path(key, path))?;
        self.network.cni_bin_dirs.iter().try_for_each(|dir| absolute_path("network.cni_bin_dirs", dir))?;
        if !self.keeper.as_os_str().is_empty() {
            absolute_path("keeper", &self.keeper)?;
        }
        socket("listen", &self.listen)?;
        socket("state", &self.state.join("keeper.sock"))?;
        if self.root == self.state {
            return Err(refuse("state", self.state.display(), "must be another directory than root"));
        }
        Ok(())
    }
}

fn refuse(key: &str, value: impl std::fmt::Display, why: &str) -> Error {
    Error::invalid(format!("{key}: {value} {why}"))
}

fn absolute_path(key: &str, path: &Path) -> Result<()> {
    if !path.is_absolute() {
        return Err(refuse(key, format!("{:?}", path.display().to_string()), "is not an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(refuse(key, path.display(), "has a .. in it"));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(refuse(key, format!("{path:?}"), "has a zero byte in it"));
    }
    Ok(())
}

fn socket(key: &str, path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let why = format!("is {length} bytes long; the path of a socket has at most {SOCKET_PATH_MAX}");
        return Err(refuse(key, path.display(), &why));
    }
    Ok(())
}

/// What the kernel's dev_valid_name takes, and less: names that no tool misreads.
fn bridge(name: &str) -> Result<()> {
    let why = if name.is_empty() || name.len() > INTERFACE_MAX {
        "must have 1 to 15 bytes"
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        "may have letters, digits, - _ and . only"
    } else if !name.as_bytes()[0].is_ascii_alphanumeric() {
        "must begin with a letter or a digit"
    } else {
        return Ok(());
    };
    Err(refuse("network.bridge", format!("{name:?}"), why))
}

fn cgroup_root(root: &str) -> Result<()> {
    let why = if !root.starts_with('/') {
        "is not an absolute path below the root of the hierarchies"
    } else if root.trim_matches('/').is_empty() {
        "must not be the root of the hierarchies itself"
    } else if root.split('/').any(|part| part == ".." || part == ".") {
        "has a . or .. in it"
    } else if root.contains(['\n', '\0']) {
        "has a control character in it"
    } else {
        return Ok(());
    };
    Err(refuse("cgroup.root", format!("{root:?}"), why))
}

fn level(level: &str) -> Result<()> {
    let known = ["trace", "debug", "info", "warn", "error", "off"];
    let directives = level.contains('=') && level.parse::<tracing_subscriber::filter::Targets>().is_ok();
    if known.contains(&level) || directives {
        return Ok(());
    }
    let why = "is neither a level (trace, debug, info, warn, error, off) nor a list of target=level";
    Err(refuse("log_level", format!("{level:?}"), why))
}

fn registry_name(name: &str) -> Result<()> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '@';
    if name.is_empty() || name.contains(bad) {
        let why = "is not a host[:port] (no scheme, no path)";
        return Err(refuse("image.insecure_registries", format!("{name:?}"), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(key: &str, change: impl FnOnce(&mut Config)) {
        let mut config = Config::default();
        change(&mut config);
        let error = config.validate().unwrap_err();
        assert!(error.message.starts_with(key), "{error}");
    }

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused_by_key() {
        refused("listen: ", |c| c.listen = "run/x.sock".into());
        refused("listen: ", |c| c.listen = format!("/{}", "x".repeat(107)).into());
        refused("state: ", |c| c.state = format!("/{}", "x".repeat(100)).into());
        refused("state: ", |c| c.state = c.root.clone());
        refused("root: ", |c| c.root = "/a/../b".into());
        refused("netns_dir: ", |c| c.netns_dir = "".into());
        refused("keeper: ", |c| c.keeper = "keeper".into());
        refused("log_level: ", |c| c.log_level = "loud".into());
        refused("log_level: ", |c| c.log_level = "podwright=loud".into());
        refused("cgroup.root: ", |c| c.cgroup.root = "podwright".into());
        refused("cgroup.root: ", |c| c.cgroup.root = "//".into());
        refused("cgroup.root: ", |c| c.cgroup.root = "/a/../..".into());
        refused("network.bridge: ", |c| c.network.bridge = "sixteen-bytes-xx".into());
        refused("network.bridge: ", |c| c.network.bridge = "a/b".into());
        refused("network.bridge: ", |c| c.network.bridge = "..".into());
        refused("network.subnet: ", |c| c.network.subnet = "10.0.0.1".into());
        refused("network.subnet: ", |c| c.network.subnet = "10.0.0.0/31".into());
        refused("network.mtu: ", |c| c.network.mtu = Some(10));
        refused("network.cni_bin_dirs: ", |c| c.network.cni_bin_dirs = vec!["bin".into()]);
        refused("container.nofile: ", |c| c.container.nofile = (20, 10));
        refused("container.volume_timeout: ", |c| c.container.volume_timeout = 0);
        refused("streaming.address: ", |c| c.streaming.address = "localhost".into());
        refused("streaming.advertise: ", |c| c.streaming.advertise = "http://x".into());
        refused("streaming.advertise: ", |c| c.streaming.advertise = "büro.lan".into());
        refused("streaming.idle_timeout: ", |c| c.streaming.idle_timeout = 0);
        refused("streaming.tls_certificate: ", |c| c.streaming.tls = StreamingTls::Files);
        refused("image.certs_dirs: ", |c| c.image.certs_dirs = vec!["certs.d".into()]);
        refused("image.registries_conf: ", |c| c.image.registries_conf = "x".into());
        refused("image.stall_timeout: ", |c| c.image.stall_timeout = 0);
        refused("image.proxy.https: ", |c| c.image.proxy.https = "proxy:3128".into());
        refused("image.insecure_registries: ", |c| {
            c.image.insecure_registries = vec!["http://x".into()];
        });
    }

    #[test]
    fn what_works_is_taken() {
        let mut config = Config {
            listen: format!("/{}", "x".repeat(106)).into(),
            log_level: "warn,podwright::network=debug".into(),
            ..Config::default()
        };
        config.network.bridge = "br-1.2_3".into();
        config.cgroup.root = "/system.slice/podwright.service/pods".into();
        config.image.insecure_registries = vec!["[::1]:5000".into(), "registry.lan".into()];
        config.validate().unwrap();
    }
}
