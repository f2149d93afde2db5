//! Applies a layer: reads an uncompressed tar stream and makes its entries under a directory.
//!
//! One directory per layer; overlay stacks them. A removed name becomes a character device 0:0 and
//! a directory that hides what lies below it gets `trusted.overlay.opaque=y` (overlayfs.rst,
//! "whiteouts and opaque directories").

pub mod archive;
mod attributes;
mod header;
mod metadata;
mod pax;
mod record;
#[cfg(test)]
mod tests;
mod tree;
mod verify;
mod writeback;

use std::io::{self, BufRead};
use std::path::Path;

use archive::{Archive, Entry, Kind};
pub use metadata::inherit;
use rustix::fs::FileType;
use tree::Tree;
pub use verify::verify;
use writeback::Writeback;

use super::Usage;
use crate::{Error, Result};

const WHITEOUT: &[u8] = b".wh.";
/// AUFS's own: only the opaque marker among them means something to others.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const NAME: u64 = 128;
/// Of a big file so many bytes go on their way to the disk at once.
const WRITEBACK: usize = 4 << 20;

/// What one layer may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files' data together, and of one file with its holes.
    pub bytes: u64,
    /// Of the archive, and directories that it implies. Their paths may have [`NAME`] bytes each on the
    /// average: whoever checks the layer has them all in memory.
    pub entries: u64,
    /// Components of a path.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 256 << 30, entries: 4_000_000, depth: 256 }
    }
}

/// What an applied layer has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    pub usage: Usage,
    /// Directories that its archive has no entry for, by their paths: what they look like depends
    /// on the layers below, see [`inherit`].
    pub implied: Vec<Vec<u8>>,
}

/// Unpacks `input` into the empty directory `root` and reads it to its end. Returns what it made,
/// and notes that in the file `manifest`.
pub fn apply(input: impl BufRead, root: &Path, manifest: Option<&Path>, limits: Limits) -> Result<Applied> {
    let opening = |e| Error::io(format!("opening {}", root.display()), e);
    let failed = |step: &str, error: io::Error| failed(step, root, error);
    let log = record::Log::create(manifest).map_err(|e| failed("making the layer's manifest", e))?;
    let tree = tree::open_root(root).and_then(|fd| Tree::new(fd, log, limits)).map_err(opening)?;
    let writeback = Writeback::start();
    let mut layer = Layer { archive: Archive::new(input), tree, writeback, limits, bytes: 0 };
    while let Some(entry) =
        layer.archive.next_entry().map_err(|e| failed("reading the layer's archive", e))?
    {
        let made = layer.make(&entry);
        made.map_err(|e| failed(&format!("unpacking {:?}", String::from_utf8_lossy(&entry.path)), e))?;
    }
    layer.archive.drain().map_err(|e| failed("reading the layer's end", e))?;
    layer.tree.finish().map_err(|e| failed("finishing the layer", e))
}

/// What an archive's names can lead to. Every other errno has its cause on this host.
const OF_NAMES: [i32; 5] = [libc::ENAMETOOLONG, libc::ELOOP, libc::ENOTDIR, libc::EISDIR, libc::EMLINK];

/// INVALID_ARGUMENT where the archive is at fault; else the error names the place. One of our own that
/// came up through a reader keeps its kind and words.
fn failed(step: &str, place: &Path, error: io::Error) -> Error {
    if let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return cause.clone();
    }
    let malformed = match error.raw_os_error() {
        Some(errno) => OF_NAMES.contains(&errno),
        None => matches!(
            error.kind(),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof
        ),
    };
    match malformed {
        true => Error::invalid(Error::io(step, error).message),
        false => Error::io(format!("{step} in {}", place.display()), error),
    }
}

struct Layer<R> {
    archive: Archive<R>,
    tree: Tree,
    writeback: Writeback,
    limits: Limits,
    bytes: u64,
}

impl<R: BufRead> Layer<R> {
    fn make(&mut self, entry: &Entry) -> io::Result<()> {
        let path = clean(&entry.path, self.limits.depth)?;
        self.tree.count(&path)?;
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        let parent = &path[..path.len().saturating_sub(name.len() + 1)];
        if path.split(|b| *b == b'/').any(|component| component.starts_with(AUFS)) {
            return if name == OPAQUE { self.tree.opaque(parent) } else { Ok(()) };
        }
        if parent.split(|b| *b == b'/').any(|component| component.starts_with(WHITEOUT)) {
            return Err(refused("a directory of its path is a whiteout"));
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let target = [parent, if parent.is_empty() { b"" } else { b"/" }, hidden].concat();
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refused("a whiteout of no file's name"));
            }
            let place = self.tree.place(&target)?;
            return self.tree.whiteout(&place);
        }
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => self.tree.set_root(entry),
                _ => Err(refused("the layer's root is not a directory")),
            };
        }
        self.make_at(&path, entry)
    }

    fn make_at(&mut self, path: &[u8], entry: &Entry) -> io::Result<()> {
        let place = self.tree.place(path)?;
        match entry.kind {
            Kind::Directory => self.tree.make_directory(&place, entry),
            Kind::File => {
                let file = self.tree.file(&place)?;
                let data = self.write(&file, entry)?;
                self.tree.finish_file(&place, &file, entry, data)?;
                self.writeback.add(&file);
                Ok(())
            }
            Kind::Symlink => self.tree.symlink(&place, entry),
            Kind::HardLink => {
                let target = clean(&entry.link, self.limits.depth)?;
                let missing = || {
                    let target = String::from_utf8_lossy(&target);
                    refused(format!("it is a hard link to {target:?}, which is not in this layer"))
                };
                if target.is_empty() {
                    return Err(refused("it is a hard link to the layer's root"));
                }
                let result = self.tree.existing(&target).and_then(|t| self.tree.hard_link(&t, &place));
                result.map_err(|e| if e.kind() == io::ErrorKind::NotFound { missing() } else { e })
            }
            Kind::CharDevice => self.tree.node(&place, entry, FileType::CharacterDevice),
            Kind::BlockDevice => self.tree.node(&place, entry, FileType::BlockDevice),
            Kind::Fifo => self.tree.node(&place, entry, FileType::Fifo),
        }
    }

    /// Returns how many bytes were written, holes not counted, and their checksum.
    fn write(&mut self, file: &std::fs::File, entry: &Entry) -> io::Result<(u64, u32)> {
        let mut checksum = crc32fast::Hasher::new();
        let whole = [(0, entry.size)];
        let segments = entry.sparse.as_deref().unwrap_or(&whole);
        let mut data = 0_u64;
        let mut unwritten = 0;
        let too_large = || Err(refused(format!("the layer is larger than {} bytes", self.limits.bytes)));
        // One that is nothing but a hole has no segment.
        if entry.size > self.limits.bytes {
            return too_large();
        }
        for &(offset, len) in segments {
            data += len;
            if self.bytes + data > self.limits.bytes {
                return too_large();
            }
            let mut written = 0;
            while written < len {
                let bytes = self.archive.fill_body()?;
                let part = bytes.len().min(usize::try_from(len - written).unwrap_or(usize::MAX));
                tree::write_at(file, &bytes[..part], offset + written)?;
                checksum.update(&bytes[..part]);
                self.archive.consume(part);
                written += part as u64;
                unwritten += part;
                if unwritten >= WRITEBACK {
                    unwritten = 0;
                    self.writeback.add(file);
                }
            }
        }
        self.bytes += data;
        Ok((data, checksum.finalize()))
    }
}

fn refused(cause: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause.into())
}

/// The components joined by single slashes, without `.`; an absolute path is one from the layer's
/// root. `..` is refused: no tool that makes layers writes it.
fn clean(path: &[u8], depth: usize) -> io::Result<Vec<u8>> {
    if path.contains(&0) {
        return Err(refused("the path has a NUL in it"));
    }
    if path.len() >= 4096 {
        return Err(refused("the path is longer than 4095 bytes"));
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut components = 0;
    for component in path.split(|b| *b == b'/').filter(|c| !matches!(*c, b"" | b".")) {
        if component == b".." {
            return Err(refused("the path has a \"..\" in it"));
        }
        components += 1;
        if components > depth {
            return Err(refused(format!("the path is deeper than {depth} directories")));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}
