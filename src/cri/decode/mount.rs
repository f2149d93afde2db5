//! Volumes and devices of a container.

use crate::container::spec::{Device, Mount, Propagation};
use crate::cri::decode::{known, text};
use crate::cri::wire;
use crate::error::{Error, Result};

pub(super) fn mount(field: &str, wire: wire::Mount) -> Result<Mount> {
    let at = |name: &str| format!("{field}.{name}");
    if !wire.uid_mappings.is_empty() || !wire.gid_mappings.is_empty() {
        return Err(Error::unimplemented(format!("{} and gidMappings", at("uidMappings"))));
    }
    if wire.image.is_some_and(|image| !image.image.is_empty()) {
        return Err(Error::unimplemented(at("image")));
    }
    if !wire.image_sub_path.is_empty() {
        return Err(Error::unimplemented(at("image_sub_path")));
    }
    if !wire.mount_options.is_empty() {
        return Err(Error::unimplemented(at("mount_options")));
    }
    let propagation = propagation(&at("propagation"), wire.propagation)?;
    // A read-only mount below which new ones may appear is not recursively read-only.
    if wire.recursive_read_only && !(wire.readonly && propagation == Propagation::Private) {
        let field = at("recursive_read_only");
        return Err(Error::invalid(format!("{field} demands readonly and private propagation")));
    }
    let container_path = text::clean(&at("container_path"), wire.container_path)?;
    if container_path == "/" {
        return Err(Error::invalid(format!("{} is the root of the container", at("container_path"))));
    }
    Ok(Mount {
        container_path,
        host_path: text::absolute(&at("host_path"), wire.host_path)?,
        readonly: wire.readonly,
        recursive_read_only: wire.recursive_read_only,
        propagation,
        selinux_relabel: wire.selinux_relabel,
    })
}

fn propagation(field: &str, value: i32) -> Result<Propagation> {
    Ok(match known(field, value)? {
        wire::MountPropagation::PropagationPrivate => Propagation::Private,
        wire::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        wire::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    })
}

pub(super) fn device(field: &str, wire: wire::Device) -> Result<Device> {
    let permissions = wire.permissions;
    let known = !permissions.is_empty() && permissions.bytes().all(|b| b"rwm".contains(&b));
    if !known {
        return Err(Error::invalid(format!("{field}.permissions is not of r, w and m: {permissions:?}")));
    }
    Ok(Device {
        container_path: text::clean(&format!("{field}.container_path"), wire.container_path)?,
        host_path: text::absolute(&format!("{field}.host_path"), wire.host_path)?,
        permissions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn decode(change: impl Fn(&mut wire::Mount)) -> Result<Mount> {
        let mut wire =
            wire::Mount { container_path: "/data".into(), host_path: "/srv/x".into(), ..Default::default() };
        change(&mut wire);
        mount("config.mounts[3]", wire)
    }

    #[test]
    fn behaviour_27_recursive_read_only_demands_its_company() {
        let rro = |readonly, propagation| {
            decode(|m| {
                m.recursive_read_only = true;
                m.readonly = readonly;
                m.propagation = propagation;
            })
        };
        assert!(rro(true, 0).unwrap().recursive_read_only);
        for wrong in [rro(false, 0), rro(true, 1), rro(true, 2)] {
            assert_eq!(wrong.unwrap_err().kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let refused = |change: fn(&mut wire::Mount), name: &str| {
            let error = decode(change).unwrap_err();
            assert_eq!(error.kind, Kind::Unimplemented);
            assert!(error.message.starts_with(&format!("config.mounts[3].{name}")), "{error}");
        };
        refused(|m| m.uid_mappings.push(Default::default()), "uidMappings");
        refused(|m| m.gid_mappings.push(Default::default()), "uidMappings and gidMappings");
        refused(|m| m.image = Some(wire::ImageSpec { image: "x".into(), ..Default::default() }), "image");
        refused(|m| m.image_sub_path = "a".into(), "image_sub_path");
        refused(|m| m.mount_options.push("noexec".into()), "mount_options");
        // An empty one is neutral (BEHAVIOUR 38).
        assert!(decode(|m| m.image = Some(Default::default())).is_ok());
    }

    #[test]
    fn paths_are_absolute_and_not_the_root() {
        assert_eq!(decode(|m| m.container_path = "/a//b/..".into()).unwrap().container_path, "/a");
        for path in ["", "data", "/", "/a/..", "/a\0"] {
            assert!(decode(|m| m.container_path = path.into()).is_err(), "{path:?}");
        }
        // On the node `..` may follow a symbolic link, so it stays for the kernel.
        assert_eq!(decode(|m| m.host_path = "/a/../b".into()).unwrap().host_path, "/a/../b");
        assert!(decode(|m| m.host_path = "".into()).is_err());
        assert!(decode(|m| m.propagation = 3).is_err());
    }

    #[test]
    fn devices_have_permissions() {
        let with = |permissions: &str| {
            let path = "/dev/null".to_owned();
            let permissions = permissions.to_owned();
            device("d", wire::Device { container_path: path.clone(), host_path: path, permissions })
        };
        assert_eq!(with("rwm").unwrap().permissions, "rwm");
        assert!(with("").is_err() && with("rx").is_err());
    }
}
