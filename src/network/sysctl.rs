//! Sysctls that a pod may set: those that live in one of its own namespaces, and no others (BEHAVIOUR
//! 24). This is the one place that decides: the request is held against it before anything is made.
//!
//! A name is what Kubernetes takes it for: parts joined by '.' or by '/', where the first of the
//! two that occurs is the separator, and the other one then stands for a literal '.' in a part
//! (`net.ipv4.conf.eth0/100.rp_filter` is link eth0.100's), as sysctl.d(5) has it.

use std::collections::BTreeMap;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Result, Step};
use crate::{Error, error};

/// A name and a value that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    name: String,
    /// Relative to /proc/sys.
    path: String,
    value: String,
}

/// The namespace that a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Net,
    Ipc,
    Uts,
}

/// Which namespaces a pod has for itself; with the node's, a value would be the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
}

/// Checks all of a pod's sysctls.
///
/// # Errors
/// INVALID_ARGUMENT names the first that is refused, and why.
pub fn check(sysctls: &BTreeMap<String, String>, own: Own) -> Result<Vec<Sysctl>> {
    let mut checked = Vec::with_capacity(sysctls.len());
    for (name, value) in sysctls {
        let path = path(name).ok_or_else(|| refuse(name, "is not the name of a sysctl"))?;
        let (owned, whose) = match owner(&path) {
            Some(Owner::Net) => (own.net, "network"),
            Some(Owner::Ipc) => (own.ipc, "IPC namespace"),
            Some(Owner::Uts) => (own.uts, "name"),
            // A field of its own: were it set here as well, one of the two would be lost.
            None if path == "kernel/hostname" => {
                return Err(refuse(name, "is set by the request's field hostname"));
            }
            None => return Err(refuse(name, "is not confined to a namespace and would change the node")),
        };
        if !owned {
            return Err(refuse(name, &format!("would change the node, whose {whose} the pod shares")));
        }
        if !value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) || value.len() > 4096 {
            return Err(refuse(name, "has a value with characters that no sysctl takes"));
        }
        checked.push(Sysctl { name: name.clone(), path, value: value.clone() });
    }
    Ok(checked)
}

/// Writes them for the namespaces of the calling thread.
pub fn write(sysctls: &[Sysctl]) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/proc/sys", flags, Mode::empty()).step(|| "opening /proc/sys")?;
    for Sysctl { name, path, value } in sysctls {
        // The checked name has no "..", and nothing in /proc/sys is a link; the kernel is told so.
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&root, path.as_str(), flags, Mode::empty(), resolve)
            .and_then(|file| rustix::io::write(&file, value.as_bytes()))
            .map_err(|errno| {
                let cause = error::errno_text(errno.raw_os_error());
                refuse(name, &format!("cannot be set to {value:?}: {cause}"))
            })?;
    }
    Ok(())
}

fn refuse(name: &str, why: &str) -> Error {
    Error::invalid(format!("sysctl {name:?} {why}"))
}

fn path(name: &str) -> Option<String> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let part = |part: &str| {
        let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
        // In a part the other separator is a dot; a slash there is never one.
        let part = if separator == '.' { part.replace('/', ".") } else { part.to_owned() };
        (plain && !part.is_empty() && part != "." && part != "..").then_some(part)
    };
    let parts: Option<Vec<String>> = name.split(separator).map(part).collect();
    parts.filter(|parts| parts.len() > 1).map(|parts| parts.join("/"))
}

/// ipc_namespaces(7), network_namespaces(7), uts_namespaces(7)
fn owner(path: &str) -> Option<Owner> {
    let is_ipc = |p: &str| {
        p.starts_with("kernel/shm")
            || p.starts_with("kernel/msg")
            || p == "kernel/sem"
            || p.starts_with("fs/mqueue/")
    };
    match path {
        p if p.starts_with("net/") => Some(Owner::Net),
        p if is_ipc(p) => Some(Owner::Ipc),
        "kernel/domainname" => Some(Owner::Uts),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Own = Own { net: true, ipc: true, uts: true };

    fn with(name: &str, value: &str, own: Own) -> Result<Vec<Sysctl>> {
        check(&BTreeMap::from([(name.to_owned(), value.to_owned())]), own)
    }

    fn one(name: &str, value: &str) -> Result<Vec<Sysctl>> {
        with(name, value, ALL)
    }

    #[test]
    fn both_separators_are_read() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/100.rp_filter").unwrap(), "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(path("net/ipv4/conf/eth0.100/rp_filter").unwrap(), "net/ipv4/conf/eth0.100/rp_filter");
    }

    #[test]
    fn behaviour_24_only_namespaced_ones_are_taken() {
        for name in [
            "kernel.shmmax",
            "kernel.shm_rmid_forced",
            "kernel.msgmnb",
            "kernel.sem",
            "kernel.domainname",
            "fs.mqueue.msg_max",
            "net.core.somaxconn",
        ] {
            one(name, "1").unwrap();
        }
        for name in [
            "kernel.core_pattern",
            "kernel.sem_next_id",
            "kernel.hostname",
            "vm.swappiness",
            "fs.file-max",
            "fs.mqueue",
            "net",
            "net.",
            "net..x",
            "/net.x",
            "net.\0",
            "",
            "net/../kernel/core_pattern",
            "net.//.kernel.core_pattern",
            "net....kernel",
            "/net/ipv4/ip_forward",
            "net.ipv4.ip_forward+kernel.core_pattern",
            "net.ipv4.x=1\nkernel.core_pattern",
        ] {
            let error = one(name, "1").expect_err(name);
            assert_eq!(error.kind, crate::error::Kind::InvalidArgument);
            assert!(error.message.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn cve_2022_0811_values_are_text_of_one_line() {
        // Harmless where no string is put together: it is a value like any other.
        one("kernel.shmmax", "1+kernel.core_pattern=|/x").unwrap();
        one("net.ipv4.ping_group_range", "0\t1000").unwrap();
        one("net.ipv4.ip_forward", "1\n").unwrap_err();
        one("net.ipv4.ip_forward", "1\0").unwrap_err();
        one("kernel.shmmax", "1\nkernel.core_pattern=|x").unwrap_err();
    }

    #[test]
    fn the_nodes_namespaces_are_left_alone() {
        for (name, shared) in [
            ("net.ipv4.ip_forward", Own { net: false, ..ALL }),
            ("kernel.shmmax", Own { ipc: false, ..ALL }),
            ("kernel.domainname", Own { uts: false, ..ALL }),
        ] {
            let error = with(name, "1", shared).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::InvalidArgument);
            assert!(error.message.contains(name) && error.message.contains("the pod shares"), "{error}");
            let not = Own { net: !shared.net, ipc: !shared.ipc, uts: !shared.uts };
            with(name, "1", not).unwrap();
        }
        assert!(one("kernel.hostname", "x").unwrap_err().message.contains("field hostname"));
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_directory(name in "(net|kernel)?[./a-z+ ]{0,20}") {
            if let Some(path) = path(&name) {
                prop_assert!(path.split('/').all(|p| !p.is_empty() && p != "." && p != ".."));
            }
        }
    }
}
