//! Paths below a root: resolved by the kernel so that they cannot leave it, made where missing.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// As the kernel has it for one path.
const MAX_LINKS: usize = 40;
/// A rename somewhere during the resolution gives EAGAIN.
const MAX_RETRIES: usize = 128;
const PATH_MAX: usize = libc::PATH_MAX as usize;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
}

/// An O_PATH descriptor of `path` as a process whose root is `root` would see it. Links are
/// followed, but not those of procfs that lead anywhere ("magic").
pub fn resolve(root: BorrowedFd<'_>, path: &CStr, more: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    for _ in 0..MAX_RETRIES {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The directory of `path`, made if missing, and its last component. EINVAL for the root itself.
pub fn parent<'p>(root: BorrowedFd<'_>, path: &'p CStr) -> Result<(OwnedFd, &'p CStr)> {
    let bytes = path.to_bytes_with_nul();
    let slash = bytes.iter().rposition(|b| *b == b'/').ok_or(Errno::INVAL)?;
    let name = CStr::from_bytes_with_nul(&bytes[slash + 1..]).map_err(|_| Errno::INVAL)?;
    if matches!(name.to_bytes(), b"" | b"..") {
        return Err(Errno::INVAL);
    }
    let mut buffer = Buffer::new(&bytes[..slash])?;
    Ok((make(root, buffer.whole()?, Kind::Directory)?, name))
}

/// [`resolve`], after making what is missing: directories (0755), and a file or a directory at the
/// end. A link that leads nowhere is followed to where it leads inside the root.
pub fn make(root: BorrowedFd<'_>, path: &CStr, kind: Kind) -> Result<OwnedFd> {
    match resolve(root, path, OFlags::empty()) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mut buffer = Buffer::new(path.to_bytes())?;
    for _ in 0..MAX_LINKS {
        if make_components(root, &mut buffer, kind)? {
            return resolve(root, buffer.whole()?, OFlags::empty());
        }
    }
    Err(Errno::LOOP)
}

/// Makes each component that is missing. False: one was a dangling link, and is replaced in the
/// path by what it says.
fn make_components(root: BorrowedFd<'_>, path: &mut Buffer, kind: Kind) -> Result<bool> {
    let (mut start, mut directory) = deepest(root, path)?;
    while start < path.length {
        // A component is the slash and the name behind it.
        let end = path.next_slash(start + 1);
        let mut name = Buffer::new(&path.bytes[start + 1..end])?;
        let name = name.whole()?;
        let made = if end == path.length && kind == Kind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        } else {
            rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))
        };
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let mut target = [0u8; PATH_MAX];
                match rustix::fs::readlinkat_raw(&directory, name, &mut target[..]) {
                    Ok(length) => {
                        path.substitute(start, end, &target[..length])?;
                        return Ok(false);
                    }
                    // Somebody else has made it meanwhile.
                    Err(Errno::INVAL) => {}
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
        start = end;
        if start < path.length {
            directory = resolve(root, path.prefix(start)?, OFlags::DIRECTORY)?;
        }
    }
    Ok(true)
}

/// The longest beginning of the path, short of all of it, that is there: its length and directory.
/// Most often only the last component is missing.
fn deepest(root: BorrowedFd<'_>, path: &mut Buffer) -> Result<(usize, OwnedFd)> {
    let mut end = path.last_slash(path.length);
    loop {
        match resolve(root, path.prefix(end)?, OFlags::DIRECTORY) {
            Err(Errno::NOENT) if end > 0 => end = path.last_slash(end),
            Err(e) => return Err(e),
            Ok(directory) => return Ok((end, directory)),
        }
    }
}

/// A path on the stack, and room for its prefixes as C strings.
struct Buffer {
    bytes: [u8; PATH_MAX],
    length: usize,
    prefix: [u8; PATH_MAX],
}

impl Buffer {
    fn new(path: &[u8]) -> Result<Self> {
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut bytes = [0; PATH_MAX];
        bytes[..path.len()].copy_from_slice(path);
        Ok(Self { bytes, length: path.len(), prefix: [0; PATH_MAX] })
    }

    /// The path; "/" where it is empty.
    fn whole(&mut self) -> Result<&CStr> {
        self.prefix(self.length)
    }

    /// Its first `end` bytes; "/" where there are none.
    fn prefix(&mut self, end: usize) -> Result<&CStr> {
        if end == 0 {
            return Ok(c"/");
        }
        self.prefix[..end].copy_from_slice(&self.bytes[..end]);
        self.prefix[end] = 0;
        CStr::from_bytes_until_nul(&self.prefix).map_err(|_| Errno::INVAL)
    }

    /// The last one before `end`; 0 where there is none.
    fn last_slash(&self, end: usize) -> usize {
        self.bytes[..end].iter().rposition(|b| *b == b'/').unwrap_or(0)
    }

    fn next_slash(&self, from: usize) -> usize {
        let rest = &self.bytes[from.min(self.length)..self.length];
        rest.iter().position(|b| *b == b'/').map_or(self.length, |at| from + at)
    }

    /// Puts a link's text in place of the component between `start` (a slash) and `end`.
    fn substitute(&mut self, start: usize, end: usize, link: &[u8]) -> Result<()> {
        let absolute = link.first() == Some(&b'/');
        let head = if absolute { 0 } else { start + 1 };
        let tail = self.length - end;
        let length = head + link.len() + tail;
        if length >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes.copy_within(end..self.length, head + link.len());
        self.bytes[head..head + link.len()].copy_from_slice(link);
        self.length = length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn is_directory(fd: &OwnedFd) -> bool {
        rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd).unwrap().st_mode).is_dir()
    }

    #[test]
    fn what_is_missing_is_made_inside_the_root_whatever_links_say() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), at("escape")).unwrap();
        std::os::unix::fs::symlink("../../../../run/x/resolv.conf", at("resolv.conf")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        let root = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let root = root.as_fd();

        assert!(is_directory(&make(root, c"/a/b/c", Kind::Directory).unwrap()));
        assert!(!is_directory(&make(root, c"/a/d/file", Kind::File).unwrap()));
        assert!(at("a/d/file").is_file() && at("a/b/c").is_dir());

        // The link's target is made, below the root.
        assert!(!is_directory(&make(root, c"/resolv.conf", Kind::File).unwrap()));
        assert!(at("run/x/resolv.conf").is_file());

        // An absolute link to a place outside leads to a place of that name inside.
        make(root, c"/escape/y", Kind::Directory).unwrap();
        assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
        assert!(at(outside.path().strip_prefix("/").unwrap().to_str().unwrap()).join("y").is_dir());

        assert_eq!(make(root, c"/loop", Kind::File).unwrap_err(), Errno::LOOP);
        assert_eq!(make(root, c"/a/d/file/x", Kind::File).unwrap_err(), Errno::NOTDIR);
        let (directory, name) = parent(root, c"/new/dir/name").unwrap();
        assert!(is_directory(&directory) && at("new/dir").is_dir() && name == c"name");
        assert_eq!(parent(root, c"/").unwrap_err(), Errno::INVAL);
    }
}
