//! Volumes and devices of a container.

use crate::container::spec::{Device, ImageVolume, Mount, Propagation};
use crate::cri::decode::{known, text};
use crate::cri::wire;
use crate::error::{Error, Result};

pub(super) fn mount(field: &str, wire: wire::Mount) -> Result<Mount> {
    let at = |name: &str| format!("{field}.{name}");
    if !wire.uid_mappings.is_empty() || !wire.gid_mappings.is_empty() {
        return Err(Error::unimplemented(format!("{} and gidMappings", at("uidMappings"))));
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
    let wanted = wire.image.filter(|image| !image.image.is_empty());
    let image = wanted.map(|image| image_volume(field, image, wire.image_sub_path.clone())).transpose()?;
    if image.is_none() && !wire.image_sub_path.is_empty() {
        return Err(Error::invalid(format!("{} is given without an image", at("image_sub_path"))));
    }
    if image.is_some() && !wire.readonly {
        return Err(Error::invalid(format!("{} must be true: an image is never written to", at("readonly"))));
    }
    Ok(Mount {
        container_path,
        host_path: match &image {
            Some(_) => wire.host_path,
            None => text::absolute(&at("host_path"), wire.host_path)?,
        },
        image,
        readonly: wire.readonly,
        recursive_read_only: wire.recursive_read_only,
        propagation,
        selinux_relabel: wire.selinux_relabel,
    })
}

fn image_volume(field: &str, image: wire::ImageSpec, sub_path: String) -> Result<ImageVolume> {
    let name = format!("{field}.image_sub_path");
    let sub_path = text::plain(&name, sub_path)?;
    if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("{name} is not a path inside the image: {sub_path:?}")));
    }
    Ok(ImageVolume { image: super::image::spec_of(&format!("{field}.image"), image)?, sub_path })
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
        refused(|m| m.mount_options.push("noexec".into()), "mount_options");
        // An empty one is neutral (BEHAVIOUR 38).
        assert!(decode(|m| m.image = Some(Default::default())).is_ok());
    }

    #[test]
    fn an_image_is_mounted_read_only_and_within_itself() {
        let image = |readonly, sub_path: &str| {
            decode(|m| {
                m.image = Some(wire::ImageSpec { image: "a.b/c".into(), ..Default::default() });
                (m.host_path, m.readonly, m.image_sub_path) = (String::new(), readonly, sub_path.into());
            })
        };
        assert_eq!(image(true, "a/b").unwrap().image.unwrap().sub_path, "a/b");
        assert!(image(false, "").unwrap_err().message.starts_with("config.mounts[3].readonly"));
        for path in ["/etc", "../x", "a/../../x", "a\0"] {
            assert_eq!(image(true, path).unwrap_err().kind, Kind::InvalidArgument, "{path:?}");
        }
        assert_eq!(decode(|m| m.image_sub_path = "a".into()).unwrap_err().kind, Kind::InvalidArgument);
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
