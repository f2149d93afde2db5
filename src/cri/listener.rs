//! The unix socket that the server listens on.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, Step};

/// Root and its group may call; anybody who can is root on this node.
const MODE: u32 = 0o660;

/// A listening socket whose file goes when this is dropped, if it is still the same.
pub(super) struct Listener {
    path: PathBuf,
    inode: (u64, u64),
}

/// Listens on `path`, making its directory. A socket that nobody answers on is replaced; one that
/// somebody does, or a file that is no socket, is an error.
pub(super) fn listen(path: &Path) -> Result<(Listener, UnixListener)> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).step(|| format!("making the directory {}", dir.display()))?;
    }
    refuse_if_alive(path)?;
    // Bound under another name first: the socket appears with its mode, and takes the place of a
    // stale one without a moment in which there is none.
    // A short name, since a socket's path may have 107 bytes only.
    let fresh = path.with_file_name(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).step(|| format!("listening on {}", path.display()))?;
    let finish = || {
        fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE))?;
        listener.set_nonblocking(true)?;
        fs::rename(&fresh, path)?;
        fs::metadata(path)
    };
    let metadata = finish().inspect_err(|_| drop(fs::remove_file(&fresh)));
    let metadata = metadata.step(|| format!("listening on {}", path.display()))?;
    Ok((Listener { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) }, listener))
}

fn refuse_if_alive(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(format!("looking at {}", path.display()), e)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::precondition(format!("{} is in the way and is no socket", path.display())));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::precondition(format!("another server answers on {}", path.display()))),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(Error::io(format!("trying whether a server answers on {}", path.display()), e)),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let same = |m: fs::Metadata| (m.dev(), m.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/cri.sock");
        let (guard, first) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let refusal = listen(&path).err().unwrap();
        assert!(refusal.message.contains("another server answers"), "{refusal}");

        drop(first);
        let (new_guard, _second) = listen(&path).unwrap();
        drop(guard);
        assert!(path.exists(), "the old guard removed the new socket");
        drop(new_guard);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cri.sock");
        fs::write(&path, "x").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}
