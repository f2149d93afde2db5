//! Compares a layer's directory with its manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::attributes::{self, Attributes};
use super::record::{self, Meta, Record};
use super::tree;

/// What differs, in words that begin with the path; at most `limit` of them. An error is one of
/// reading the manifest (InvalidData: torn), or of the disk.
pub fn verify(root: &Path, manifest: &Path, limit: usize) -> io::Result<Vec<String>> {
    let record::Manifest { entries: expected, attributes } = record::read(manifest)?;
    let mut walk = Walk { expected, attributes, found: Vec::new(), limit };
    let fd = tree::open_root(root)?;
    let stat = rustix::fs::fstat(&fd)?;
    let record = walk.expected.remove(&b""[..]).unwrap_or(Record::Implied { path: Vec::new() });
    walk.compare(fd.as_fd(), b".", &record, &stat)?;
    walk.directory(fd.as_fd(), b"")?;
    let missing: Vec<_> = walk.expected.keys().map(|path| shown(path) + " is missing").collect();
    walk.found.extend(missing);
    walk.found.truncate(limit);
    Ok(walk.found)
}

struct Walk {
    /// What was not found yet.
    expected: BTreeMap<Vec<u8>, Record>,
    attributes: Option<BTreeMap<Vec<u8>, Attributes>>,
    found: Vec<String>,
    limit: usize,
}

impl Walk {
    /// Depth is bounded by the limit on paths that the layer was unpacked with.
    fn directory(&mut self, fd: BorrowedFd<'_>, path: &[u8]) -> io::Result<()> {
        for child in Dir::read_from(fd)? {
            let child = child?;
            let name = child.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if self.found.len() >= self.limit {
                return Ok(());
            }
            let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let stat = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            match self.expected.remove(&path) {
                None => {
                    self.found.push(shown(&path) + " is foreign");
                    continue;
                }
                Some(record) => self.compare(fd, name, &record, &stat)?,
            }
            if is_directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = rustix::fs::openat(fd, name, flags, Mode::empty())?;
                self.directory(inner.as_fd(), &path)?;
            }
        }
        Ok(())
    }

    fn compare(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        record: &Record,
        stat: &Stat,
    ) -> io::Result<()> {
        let wrong = match record {
            Record::File { meta, size, checksum, .. } => match meta_differs(meta, stat) {
                None if *size != stat.st_size as u64 => {
                    Some(format!("has {} bytes, not {size}", stat.st_size))
                }
                None => content_differs(parent, name, *checksum)?,
                wrong => wrong,
            },
            Record::Directory { meta, .. } => meta_differs(meta, stat),
            Record::Implied { .. } => (FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
                .then(|| "is not a directory".to_owned()),
            Record::Symlink { meta, target, .. } => match meta_differs(meta, stat) {
                None => {
                    let is = rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes();
                    (is != *target).then(|| format!("leads to {}", shown(&is)))
                }
                wrong => wrong,
            },
            Record::Node { meta, device, .. } => meta_differs(meta, stat)
                .or_else(|| (stat.st_rdev != *device).then(|| "is another device".to_owned())),
            Record::HardLink { .. }
            | Record::Attributes { .. }
            | Record::Removed { .. }
            | Record::End { .. } => None,
        };
        let wrong = match (wrong, &self.attributes) {
            (None, Some(attributes)) => {
                let mut found = attributes::read(parent, name)?;
                // It got the mode of the one below it, which is a part of such a list.
                if matches!(record, Record::Implied { .. }) {
                    found.retain(|name, _| name != b"system.posix_acl_access");
                }
                attributes::differ(attributes.get(record.path()).unwrap_or(&Attributes::new()), &found)
            }
            (wrong, _) => wrong,
        };
        if let Some(wrong) = wrong {
            let path = if record.path().is_empty() { b"/" } else { record.path() };
            self.found.push(format!("{} {wrong}", shown(path)));
        }
        Ok(())
    }
}

fn meta_differs(meta: &Meta, stat: &Stat) -> Option<String> {
    if stat.st_mode != meta.mode {
        return Some(format!("has mode {:o}, not {:o}", stat.st_mode, meta.mode));
    }
    let owner = (stat.st_uid, stat.st_gid);
    let wanted = (meta.uid, meta.gid);
    (owner != wanted).then(|| format!("belongs to {}:{}, not {}:{}", owner.0, owner.1, wanted.0, wanted.1))
}

fn content_differs(parent: BorrowedFd<'_>, name: &[u8], checksum: Option<u32>) -> io::Result<Option<String>> {
    let Some(checksum) = checksum else { return Ok(None) };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?);
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    Ok((hasher.finalize() != checksum).then(|| "has other content".to_owned()))
}

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}
