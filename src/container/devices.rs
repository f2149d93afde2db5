//! Device nodes of a container (BEHAVIOUR 24), and the rules that let it use them.

use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use oci_spec::runtime as oci;

use crate::cgroup::{DeviceRule, DeviceRules};
use crate::container::spec::Device;
use crate::error::Step;
use crate::{Error, Result};

/// (path, major, minor): what every container has.
const DEFAULT: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Symlinks that programs expect: (path, target).
pub const LINKS: &[(&str, &str)] = &[
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Not a device of the host but a mount or terminal of its own.
const NOT_FOR_CONTAINERS: &[&str] =
    &["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console", "/dev/.lxc", "/dev/.lxd-mounts"];

pub struct Devices {
    pub nodes: Vec<oci::LinuxDevice>,
    pub rules: DeviceRules,
}

/// The default nodes, and those of the request or, privileged, all of the host.
pub fn resolve(request: &[Device], privileged: bool) -> Result<Devices> {
    let mut nodes = Vec::new();
    for (path, major, minor) in DEFAULT {
        nodes.push(node(Path::new(path), false, *major, *minor, 0o666, 0, 0));
    }
    if privileged {
        walk(Path::new("/dev"), Path::new("/dev"), &mut nodes).step(|| "listing the host's devices")?;
    }
    let mut rules = Vec::new();
    for device in request {
        let step = || format!("device {} (host {})", device.container_path, device.host_path);
        if !device.permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(Error::invalid(format!(
                "{}: permissions {:?} are not of rwm",
                step(),
                device.permissions
            )));
        }
        let before = nodes.len();
        let target =
            if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        let source = match fs::canonicalize(&device.host_path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::invalid(format!("{}: no such file or directory", step())));
            }
            source => source.step(step)?,
        };
        walk(&source, Path::new(target), &mut nodes).step(step)?;
        if nodes.len() == before {
            return Err(Error::invalid(format!("{}: neither a device nor a directory with devices", step())));
        }
        let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        rules.extend(nodes[before..].iter().map(|n| rule(n, access)));
    }
    dedup(&mut nodes);
    let rules = if privileged { DeviceRules::All } else { DeviceRules::Listed(rules) };
    Ok(Devices { nodes, rules })
}

fn node(path: &Path, block: bool, major: u32, minor: u32, mode: u32, uid: u32, gid: u32) -> oci::LinuxDevice {
    let mut device = oci::LinuxDevice::default();
    device
        .set_path(path.to_owned())
        .set_typ(if block { oci::LinuxDeviceType::B } else { oci::LinuxDeviceType::C })
        .set_major(i64::from(major))
        .set_minor(i64::from(minor))
        .set_file_mode(Some(mode))
        .set_uid(Some(uid))
        .set_gid(Some(gid));
    device
}

fn rule(node: &oci::LinuxDevice, access: &str) -> DeviceRule {
    DeviceRule {
        block: node.typ() == oci::LinuxDeviceType::B,
        major: u32::try_from(node.major()).unwrap_or_default(),
        minor: u32::try_from(node.minor()).unwrap_or_default(),
        access: access.to_owned(),
    }
}

/// Adds the device at `source`, or every device below it, as `target` and below.
fn walk(source: &Path, target: &Path, nodes: &mut Vec<oci::LinuxDevice>) -> io::Result<()> {
    let meta = fs::symlink_metadata(source)?;
    let kind = meta.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        let (major, minor) = (libc::major(meta.st_rdev()), libc::minor(meta.st_rdev()));
        let mode = meta.st_mode() & 0o7777;
        nodes.push(node(target, kind.is_block_device(), major, minor, mode, meta.st_uid(), meta.st_gid()));
    } else if kind.is_dir() && !NOT_FOR_CONTAINERS.iter().any(|p| Path::new(p) == source) {
        for entry in fs::read_dir(source)? {
            let name = entry?.file_name();
            match walk(&source.join(&name), &target.join(&name), nodes) {
                // A device that went away while we looked is none.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The last one of a path stays: the request overrides the defaults.
fn dedup(nodes: &mut Vec<oci::LinuxDevice>) {
    let mut seen = std::collections::HashSet::<PathBuf>::new();
    nodes.reverse();
    nodes.retain(|n| {
        !NOT_FOR_CONTAINERS.iter().any(|p| Path::new(p) == n.path())
            && n.path() != Path::new("/dev/ptmx")
            && seen.insert(n.path().clone())
    });
    nodes.reverse();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_there_and_a_request_adds_its_rule() {
        let request = [Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }];
        let devices = resolve(&request, false).unwrap();
        assert_eq!(devices.nodes.len(), DEFAULT.len() + 1);
        let DeviceRules::Listed(rules) = devices.rules else { panic!("not privileged") };
        assert_eq!(rules, [DeviceRule { block: false, major: 1, minor: 3, access: "rw".into() }]);
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let device = |host: &str, permissions: &str| Device {
            container_path: "/dev/x".into(),
            host_path: host.into(),
            permissions: permissions.into(),
        };
        assert!(resolve(&[device("/etc/passwd", "rwm")], false).is_err());
        assert!(resolve(&[device("/dev/does-not-exist", "rwm")], false).is_err());
        assert!(resolve(&[device("/dev/null", "rwx")], false).is_err());
    }
}
