//! A directory as a tar stream (ustar), for OCI layouts: files alone, read piece by piece. The short
//! ones come first, so that who reads it knows which layers are wanted before the first one comes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::Step;
use crate::{Error, Result};

const BLOCK: usize = 512;
/// ustar's name field. A layout's longest name is that of a blob, 77 bytes.
const MAX_NAME: usize = 100;

/// Reads as the archive of a directory.
pub(super) struct Directory {
    /// What is still to come, the next one last.
    files: Vec<(Vec<u8>, PathBuf)>,
    now: Box<dyn Read + Send>,
    ended: bool,
}

impl Directory {
    pub(super) fn open(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        list(root, root, &mut files)?;
        files.sort_by_cached_key(|(name, path)| {
            let size = path.metadata().map_or(0, |meta| meta.len());
            std::cmp::Reverse((size, name.clone()))
        });
        Ok(Self { files, now: Box::new(io::empty()), ended: false })
    }

    /// The next file with its header and padding; at the end two blocks of zeros.
    fn next(&mut self) -> io::Result<bool> {
        let Some((name, path)) = self.files.pop() else {
            let first = !std::mem::replace(&mut self.ended, true);
            self.now = Box::new(io::repeat(0).take(2 * BLOCK as u64));
            return Ok(first);
        };
        let file = File::open(&path)?;
        let size = file.metadata()?.len();
        let padding = size.wrapping_neg() % BLOCK as u64;
        let header = io::Cursor::new(header(&name, size).to_vec());
        self.now = Box::new(header.chain(file.take(size)).chain(io::repeat(0).take(padding)));
        Ok(true)
    }
}

impl Read for Directory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.now.read(buffer)? {
                0 if !buffer.is_empty() => {
                    if self.ended || !self.next()? {
                        return Ok(0);
                    }
                }
                len => return Ok(len),
            }
        }
    }
}

fn list(root: &Path, directory: &Path, files: &mut Vec<(Vec<u8>, PathBuf)>) -> Result<()> {
    let step = || format!("reading {}", directory.display());
    for entry in std::fs::read_dir(directory).step(step)? {
        let entry = entry.step(step)?;
        let (path, kind) = (entry.path(), entry.file_type().step(step)?);
        if kind.is_dir() {
            list(root, &path, files)?;
        } else if kind.is_file() {
            let name = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes().to_vec();
            if name.len() > MAX_NAME {
                return Err(Error::invalid(format!("{}: an image layout has no such name", path.display())));
            }
            files.push((name, path));
        }
    }
    Ok(())
}

fn header(name: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match size < 1 << 33 {
        true => put(124, format!("{size:011o}\0").as_bytes()),
        // GNU's base-256.
        false => put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat()),
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_reads_what_is_written() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("in/blobs/sha256")).unwrap();
        std::fs::write(root.path().join("in/oci-layout"), "{}").unwrap();
        std::fs::write(root.path().join("in/empty"), "").unwrap();
        std::fs::write(root.path().join("in/blobs/sha256/ab"), vec![b'x'; 5000]).unwrap();
        let mut archive = Vec::new();
        Directory::open(&root.path().join("in")).unwrap().read_to_end(&mut archive).unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        std::fs::write(root.path().join("a.tar"), archive).unwrap();
        let listed =
            std::process::Command::new("tar").arg("-tf").arg(root.path().join("a.tar")).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        assert_eq!(listed.stdout, b"empty\noci-layout\nblobs/sha256/ab\n");
    }
}
