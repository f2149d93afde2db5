//! Extended attributes, as a layer's manifest has them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// CRC-32 of the values, by name.
pub type Attributes = BTreeMap<Vec<u8>, u32>;

/// Of `name` in the directory `parent`; of a symbolic link its own. The kernel's words for it count,
/// not the archive's: an access control list, for one, is not kept as it was written.
pub fn read(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Attributes> {
    // There is no llistxattr relative to an fd before Linux 6.13.
    let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat();
    let mut attributes = Attributes::new();
    let path = path.as_slice();
    let list = |buffer: &mut [u8]| rustix::fs::llistxattr(path, buffer);
    let names = match whole(|| rustix::fs::llistxattr_query(path), list) {
        Err(Errno::OPNOTSUPP) => return Ok(attributes),
        names => names?,
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_the_images(name)) {
        let get = |buffer: &mut [u8]| rustix::fs::lgetxattr(path, name, buffer);
        match whole(|| rustix::fs::lgetxattr_query(path, name), get) {
            Ok(value) => drop(attributes.insert(name.to_vec(), crc32fast::hash(&value))),
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(attributes)
}

/// Labels and measurements are the node's policy, and may come at any time.
fn is_the_images(name: &[u8]) -> bool {
    !name.starts_with(b"security.") || name == b"security.capability"
}

/// What `call` writes, which `query` knows the length of.
fn whole(
    query: impl Fn() -> rustix::io::Result<usize>,
    call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    loop {
        let mut bytes = vec![0; query()?];
        match call(&mut bytes) {
            // It grew meanwhile.
            Err(Errno::RANGE) => {}
            Err(e) => return Err(e),
            Ok(len) => {
                bytes.truncate(len);
                return Ok(bytes);
            }
        }
    }
}

/// The first difference in words without a subject, such as "has no security.capability".
pub fn differ(wanted: &Attributes, found: &Attributes) -> Option<String> {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    for (name, value) in wanted {
        match found.get(name) {
            None => return Some(format!("has no attribute {}", shown(name))),
            Some(other) if other != value => return Some(format!("has another attribute {}", shown(name))),
            Some(_) => {}
        }
    }
    let foreign = found.keys().find(|name| !wanted.contains_key(*name))?;
    Some(format!("has the foreign attribute {}", shown(foreign)))
}
