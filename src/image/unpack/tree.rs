//! The file tree that a layer is unpacked into, changed only through directory fds.
//!
//! Every path of an archive is resolved by openat2 with the tree's root as `/`, so that neither
//! `..` nor a symbolic link of the archive's own making leads outside; what a path's last
//! component names is made or removed relative to its parent's fd and never followed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::archive::Entry;
use super::record::{Log, Meta, Record};
use super::{Applied, Limits, NAME, attributes, metadata, refused};
use crate::image::Usage;

/// Parent directories kept open: archives are written directory by directory.
const CACHED_PARENTS: usize = 16;
/// What a file or directory is counted with, in bytes: the usual block of a filesystem.
const BLOCK: u64 = 4096;
const OPAQUE: &str = "trusted.overlay.opaque";
pub const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub struct Tree {
    root: Rc<Directory>,
    /// The host's path of the root.
    host_path: Vec<u8>,
    /// By the path that the archive has.
    parents: VecDeque<(Vec<u8>, Rc<Directory>)>,
    log: Log,
    /// Directories that the archive has no entry for.
    implied: BTreeSet<Vec<u8>>,
    /// A directory has a default access control list: files have attributes that no entry speaks of.
    inherits: bool,
    /// Set at the end, since making entries in a directory changes its own.
    directory_times: HashMap<Vec<u8>, (i64, u32)>,
    pub usage: Usage,
    limits: Limits,
    entries: u64,
    /// Bytes of all paths.
    names: u64,
}

struct Directory {
    fd: OwnedFd,
    /// From the root, free of symbolic links; empty: the root itself.
    path: Vec<u8>,
}

/// Where an entry is: its parent, and its name there.
pub struct Place<'a> {
    parent: Rc<Directory>,
    name: &'a [u8],
}

impl Place<'_> {
    fn fd(&self) -> &OwnedFd {
        &self.parent.fd
    }

    /// From the root, free of symbolic links.
    fn path(&self) -> Vec<u8> {
        join(&self.parent.path, self.name)
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent {
        b"" => name.to_vec(),
        parent => [parent, b"/", name].concat(),
    }
}

impl Tree {
    /// `log` gets what is made.
    pub fn new(root: OwnedFd, log: Log, limits: Limits) -> io::Result<Self> {
        let usage = Usage { bytes: BLOCK, inodes: 1 };
        let host_path = path_of(&root)?;
        let inherits = !attributes::read(root.as_fd(), b".")?.is_empty();
        let root = Rc::new(Directory { fd: root, path: Vec::new() });
        let (parents, directory_times) = (VecDeque::new(), HashMap::new());
        let implied = BTreeSet::new();
        let (entries, names) = (0, 0);
        let mut tree = Self {
            root,
            host_path,
            parents,
            log,
            implied,
            inherits,
            directory_times,
            usage,
            limits,
            entries,
            names,
        };
        if inherits {
            let root = Rc::clone(&tree.root);
            tree.note_attributes(root.fd.as_fd(), b".", Vec::new())?;
        }
        Ok(tree)
    }

    /// One more entry, of the archive or implied.
    pub fn count(&mut self, path: &[u8]) -> io::Result<()> {
        let most = self.limits.entries;
        self.entries += 1;
        self.names += path.len() as u64;
        if self.entries > most {
            return Err(refused(format!("the layer has more than {most} entries")));
        }
        let most = most.saturating_mul(NAME);
        if self.names > most {
            return Err(refused(format!("the paths of its entries have more than {most} bytes together")));
        }
        Ok(())
    }

    /// The place of `path` (clean: no empty, `.` or `..` component; not empty), its parents made
    /// where the archive has no entry for them.
    pub fn place<'a>(&mut self, path: &'a [u8]) -> io::Result<Place<'a>> {
        let (parent, name) = split(path);
        Ok(Place { parent: self.directory(parent, true)?, name })
    }

    /// The same without making anything.
    pub fn existing<'a>(&mut self, path: &'a [u8]) -> io::Result<Place<'a>> {
        let (parent, name) = split(path);
        Ok(Place { parent: self.directory(parent, false)?, name })
    }

    /// Makes an empty file; fill it by [`write_at`], then call [`Tree::finish_file`].
    pub fn file(&mut self, place: &Place<'_>) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = self.make(place, |p| rustix::fs::openat(p.fd(), p.name, flags, mode))?;
        self.usage.inodes += 1;
        Ok(File::from(fd))
    }

    /// `data` bytes were written, with this checksum; the rest of `entry.size` is holes.
    pub fn finish_file(
        &mut self,
        place: &Place<'_>,
        file: &File,
        entry: &Entry,
        (data, checksum): (u64, u32),
    ) -> io::Result<()> {
        if entry.sparse.is_some() {
            file.set_len(entry.size)?;
        }
        self.usage.bytes += data.next_multiple_of(BLOCK);
        metadata::set(file.as_fd(), entry)?;
        let checksum = entry.sparse.is_none().then_some(checksum);
        let meta = metadata::of(entry, FileType::RegularFile);
        self.log.add(&Record::File { path: place.path(), meta, size: entry.size, checksum })?;
        self.note_any_attributes(place, entry)?;
        let times = metadata::timestamps(entry.mtime);
        Ok(rustix::fs::futimens(file, &times)?)
    }

    /// Makes the directory, or gives the one that is there the entry's metadata.
    pub fn make_directory(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        self.bare_directory(place, Mode::from_raw_mode(0o700))?;
        let fd = rustix::fs::openat(place.fd(), place.name, DIRECTORY, Mode::empty())?;
        metadata::set(fd.as_fd(), entry)?;
        self.directory_times.insert(place.path(), entry.mtime);
        self.implied.remove(&place.path());
        self.log
            .add(&Record::Directory { path: place.path(), meta: metadata::of(entry, FileType::Directory) })?;
        self.note_any_attributes(place, entry)
    }

    /// The metadata of the tree's root: the archive's entry `./`.
    pub fn set_root(&mut self, entry: &Entry) -> io::Result<()> {
        let fd = rustix::fs::openat(&self.root.fd, ".", DIRECTORY, Mode::empty())?;
        metadata::set(fd.as_fd(), entry)?;
        self.directory_times.insert(Vec::new(), entry.mtime);
        self.log
            .add(&Record::Directory { path: Vec::new(), meta: metadata::of(entry, FileType::Directory) })?;
        let place = Place { parent: Rc::clone(&self.root), name: b"" };
        self.note_any_attributes(&place, entry)
    }

    pub fn symlink(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        self.make(place, |p| rustix::fs::symlinkat(entry.link.as_slice(), p.fd(), p.name))?;
        self.usage.inodes += 1;
        metadata::set_at(place.fd().as_fd(), place.name, entry, false)?;
        let meta =
            Meta { mode: FileType::Symlink.as_raw_mode() | 0o777, ..metadata::of(entry, FileType::Symlink) };
        self.log.add(&Record::Symlink { path: place.path(), meta, target: entry.link.clone() })?;
        self.note_any_attributes(place, entry)
    }

    /// Makes a device or a FIFO.
    pub fn node(&mut self, place: &Place<'_>, entry: &Entry, kind: FileType) -> io::Result<()> {
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(0o600);
        self.make(place, |p| rustix::fs::mknodat(p.fd(), p.name, kind, mode, device))?;
        self.usage.inodes += 1;
        metadata::set_at(place.fd().as_fd(), place.name, entry, true)?;
        self.log.add(&Record::Node { path: place.path(), meta: metadata::of(entry, kind), device })?;
        self.note_any_attributes(place, entry)
    }

    pub fn hard_link(&mut self, target: &Place<'_>, place: &Place<'_>) -> io::Result<()> {
        let source = stat(target)?.ok_or(Errno::NOENT)?;
        if stat(place)?.is_some_and(|there| (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino)) {
            return Ok(());
        }
        let link =
            |p: &Place<'_>| rustix::fs::linkat(target.fd(), target.name, p.fd(), p.name, AtFlags::empty());
        self.make(place, link)?;
        self.log.add(&Record::HardLink { path: place.path(), to: target.path() })
    }

    /// Hides what lower layers have at `place`. What this layer has there already stays (OCI
    /// image spec, layer.md: a whiteout applies to lower layers only).
    pub fn whiteout(&mut self, place: &Place<'_>) -> io::Result<()> {
        match stat(place)? {
            Some(there) if is_directory(&there) => self.opaque(&place.path()),
            Some(_) => Ok(()),
            None => {
                let mode = Mode::empty();
                rustix::fs::mknodat(place.fd(), place.name, FileType::CharacterDevice, mode, 0)?;
                self.usage.inodes += 1;
                let meta = Meta { mode: FileType::CharacterDevice.as_raw_mode(), uid: 0, gid: 0 };
                self.log.add(&Record::Node { path: place.path(), meta, device: 0 })
            }
        }
    }

    /// Hides everything that lower layers have in the directory `path`.
    pub fn opaque(&mut self, path: &[u8]) -> io::Result<()> {
        let directory = self.directory(path, true)?;
        let fd = rustix::fs::openat(&directory.fd, ".", DIRECTORY, Mode::empty())?;
        rustix::fs::fsetxattr(&fd, OPAQUE, b"y", XattrFlags::empty())?;
        self.note_attributes(directory.fd.as_fd(), b".", directory.path.clone())
    }

    /// Gives the directories their times.
    pub fn finish(mut self) -> io::Result<Applied> {
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            match self.resolve(&path) {
                Ok(fd) => rustix::fs::utimensat(&fd, ".", &metadata::timestamps(mtime), AtFlags::empty())?,
                // A later entry of the archive took its place.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.log.finish()?;
        Ok(Applied { usage: self.usage, implied: self.implied.into_iter().collect() })
    }

    fn directory(&mut self, path: &[u8], make: bool) -> io::Result<Rc<Directory>> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((_, fd)) = self.parents.iter().find(|(cached, _)| cached == path) {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.resolve(path) {
            Err(Errno::NOENT | Errno::NOTDIR) if make => {
                self.make_missing(path)?;
                self.resolve(path)?
            }
            other => other?,
        };
        let real = path_of(&fd)?;
        let real = real.strip_prefix(self.host_path.as_slice()).unwrap_or_default();
        let real = real.strip_prefix(b"/").unwrap_or(real).to_vec();
        // Names through symbolic links are shorter than the way they go, and whoever removes or checks the
        // tree goes all of it, with a directory open for each step.
        if real.iter().filter(|b| **b == b'/').count() >= self.limits.depth {
            return Err(refused(format!("the path leads deeper than {} directories", self.limits.depth)));
        }
        let directory = Rc::new(Directory { fd, path: real });
        if self.parents.len() == CACHED_PARENTS {
            self.parents.pop_front();
        }
        self.parents.push_back((path.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let path = if path.is_empty() { b"." } else { path };
        loop {
            // EAGAIN: a rename elsewhere on the host while the kernel walked over a `..`.
            match rustix::fs::openat2(&self.root.fd, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Makes the directories on the way to `path` that are not there: 0755, root's.
    fn make_missing(&mut self, path: &[u8]) -> io::Result<()> {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let path = &path[..end];
            match self.resolve(path) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
            self.count(path)?;
            let place = self.existing(path)?;
            match stat(&place)? {
                Some(there) if !is_whiteout(&there) => return Err(Errno::NOTDIR.into()),
                _ => self.bare_directory(&place, Mode::from_raw_mode(0o755))?,
            }
            rustix::fs::chmodat(place.fd(), place.name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
            self.implied.insert(place.path());
            self.log.add(&Record::Implied { path: place.path() })?;
            if self.inherits {
                self.note_attributes(place.fd().as_fd(), place.name, place.path())?;
            }
        }
        Ok(())
    }

    /// A directory over a whiteout of this same layer hides what is below it: it becomes opaque.
    fn bare_directory(&mut self, place: &Place<'_>, mode: Mode) -> io::Result<()> {
        let there = stat(place)?;
        if there.as_ref().is_some_and(is_directory) {
            return Ok(());
        }
        self.make(place, |p| rustix::fs::mkdirat(p.fd(), p.name, mode))?;
        self.usage.inodes += 1;
        self.usage.bytes += BLOCK;
        if there.as_ref().is_some_and(is_whiteout) {
            let fd = rustix::fs::openat(place.fd(), place.name, DIRECTORY, Mode::empty())?;
            rustix::fs::fsetxattr(&fd, OPAQUE, b"y", XattrFlags::empty())?;
            self.note_attributes(fd.as_fd(), b".", place.path())?;
        }
        Ok(())
    }

    /// Notes what the entry's file has, where it may have something.
    fn note_any_attributes(&mut self, place: &Place<'_>, entry: &Entry) -> io::Result<()> {
        self.inherits |= metadata::kept_xattrs(entry).any(|(name, _)| name == b"system.posix_acl_default");
        if !self.inherits && metadata::kept_xattrs(entry).next().is_none() {
            return Ok(());
        }
        let name = if place.name.is_empty() { b"." } else { place.name };
        self.note_attributes(place.fd().as_fd(), name, place.path())
    }

    fn note_attributes(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: Vec<u8>) -> io::Result<()> {
        let attributes = attributes::read(parent, name)?;
        self.log.add(&Record::Attributes { path, attributes })
    }

    /// Runs `make`; what an earlier entry put there gives way.
    fn make<T>(
        &mut self,
        place: &Place<'_>,
        make: impl Fn(&Place<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match make(place) {
            Err(Errno::EXIST) => {
                self.remove(place)?;
                Ok(make(place)?)
            }
            other => Ok(other?),
        }
    }

    fn remove(&mut self, place: &Place<'_>) -> io::Result<()> {
        // Cached parents may lead through what goes now.
        self.parents.clear();
        let gone = place.path();
        let below = [&gone[..], b"/"].concat();
        if is_directory(&stat(place)?.ok_or(Errno::NOENT)?) {
            self.directory_times.retain(|path, _| *path != gone && !path.starts_with(&below));
            self.implied.retain(|path| *path != gone && !path.starts_with(&below));
        }
        self.remove_at(place.fd().as_fd(), place.name)?;
        self.log.add(&Record::Removed { path: gone })
    }

    /// Depth is bounded by the limit on paths.
    fn remove_at(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is_directory(&there) {
            if there.st_nlink == 1 {
                self.uncount(if is_file(&there) { (there.st_blocks as u64) * 512 } else { 0 });
            }
            return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
        }
        let fd = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
        for child in Dir::read_from(&fd)? {
            let child = child?;
            let name = child.file_name().to_bytes();
            if name != b"." && name != b".." {
                self.remove_at(fd.as_fd(), name)?;
            }
        }
        self.uncount(BLOCK);
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    fn uncount(&mut self, bytes: u64) {
        self.usage.bytes = self.usage.bytes.saturating_sub(bytes);
        self.usage.inodes = self.usage.inodes.saturating_sub(1);
    }
}

pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn stat(place: &Place<'_>) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(place.fd(), place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The host's path of what `fd` has open.
fn path_of(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::readlink(link, Vec::new())?.into_bytes())
}

/// Opens a directory of ours by its path on the host.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?)
}
