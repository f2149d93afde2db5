//! The files of /etc that a pod's containers share: hosts, hostname, resolv.conf (BEHAVIOUR 26).

use std::fs;
use std::path::Path;

use crate::Result;
use crate::error::Step;
use crate::pod::spec::{Dns, PodSpec};

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Writes all three into `directory`. `hostname` is what the pod is called.
pub fn write(directory: &Path, spec: &PodSpec, hostname: &str) -> Result<()> {
    fs::create_dir_all(directory).step(|| format!("making directory {}", directory.display()))?;
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).step(|| format!("writing {}", path.display()))
    };
    put("hostname", &format!("{hostname}\n"))?;
    put("hosts", &hosts(hostname))?;
    let host = match spec.dns {
        Some(_) => String::new(),
        None => read_host(HOST_RESOLV_CONF)?,
    };
    put("resolv.conf", &resolv_conf(spec.dns.as_ref(), &host))
}

/// A missing resolv.conf of the host is an empty one.
fn read_host(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.step(|| format!("reading {path}")),
    }
}

/// kubelet mounts its own; this one serves whoever does not.
fn hosts(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
}

/// None copies the host's; present but empty means empty.
fn resolv_conf(dns: Option<&Dns>, host: &str) -> String {
    let Some(dns) = dns else { return host.to_owned() };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_26_nil_dns_copies_the_host_and_empty_dns_is_empty() {
        assert_eq!(resolv_conf(None, "nameserver 1.1.1.1\n"), "nameserver 1.1.1.1\n");
        assert_eq!(resolv_conf(Some(&Dns::default()), "nameserver 1.1.1.1\n"), "");
        let dns = Dns {
            servers: vec!["10.0.0.1".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(Some(&dns), ""), "search a.b c\nnameserver 10.0.0.1\noptions ndots:5\n");
    }
}
