//! Image volumes: an image's content as a read-only mount.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::container::rootfs;
use crate::container::spec::{ContainerSpec, ImageVolume, Mount};
use crate::container::volumes::Volume;
use crate::error::Step;
use crate::image::Resolved;
use crate::node::Node;
use crate::sys::mount::{MOUNT_ATTR_NODEV, MOUNT_ATTR_RDONLY, MountAttr, set_attributes};
use crate::{Error, Result};

pub fn image_id(node: &Node, name: &str) -> Result<String> {
    let found = node.images.list(Some(name))?.into_iter().next();
    found.map(|image| image.id).ok_or_else(|| Error::not_found(format!("image {name:?} is not present")))
}

/// The images that are mounted, in order; each stays as long as the container.
pub fn hold(node: &Node, container: &str, spec: &ContainerSpec) -> Result<Vec<Resolved>> {
    let volumes = spec.mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)));
    let hold = |(at, (mount, volume)): (usize, (&Mount, &ImageVolume))| {
        let id = image_id(node, &volume.image.image);
        let held = id.and_then(|id| node.images.hold_volume(&id, container, at));
        held.step(|| format!("volume {}", mount.container_path))
    };
    volumes.enumerate().map(hold).collect()
}

/// An image's layers, or a part of them, as a read-only tree without usable device nodes.
/// INVALID_ARGUMENT where the image has no such part.
pub fn open(mount: &Mount, layers: &[PathBuf]) -> Result<Volume> {
    let sub_path = mount.image.as_ref().map(|volume| volume.sub_path.as_str()).unwrap_or_default();
    let name = mount.image.as_ref().map(|volume| volume.image.image.as_str()).unwrap_or_default();
    let label = format!("volume {} (image {name})", mount.container_path);
    let step = || format!("mounting {label}");
    let whole = rootfs::read_only(layers).step(step)?;
    let tree = match sub_path {
        "" => whole,
        // By the kernel, inside the image: no symbolic link leads out of it.
        path => {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let part = rootfs::part(whole, |whole| {
                openat2(whole, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(|e| {
                    match e {
                        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                            Error::invalid(format!("the image has no {path:?}"))
                        }
                        e => Error::io(format!("opening {path:?}"), e),
                    }
                })
            });
            part.step(step)?
        }
    };
    let stat = fstat(&tree).step(step)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let attributes = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    set_attributes(tree.as_fd(), true, attributes).step(step)?;
    Ok(Volume { mount: tree, directory, label })
}
