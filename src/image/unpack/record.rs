//! What a layer was when it was unpacked: `layers/NUMBER/manifest`, written along with it, so that
//! a check can tell later what is missing, foreign, torn or changed.
//!
//! ```text
//! "podwright layer 2\n", then records: length (u32, little-endian), Record in postcard's encoding
//! ```
//!
//! The records are a log: a later one of the same path wins, and [`Record::Removed`] takes back
//! all that lies below its path. The last one says how many came before it. Version 1 was the same
//! without [`Record::Attributes`]: of its layers nobody knows which attributes they should have.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::attributes::Attributes;

const MAGIC: &[u8] = b"podwright layer 2\n";
const MAGIC_1: &[u8] = b"podwright layer 1\n";
/// A path and a link have at most 4 KiB each, the names of a file's attributes 64 KiB together.
const MAX_RECORD: u32 = 1 << 20;

/// One entry of a layer's directory. Paths are relative to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    File {
        path: Vec<u8>,
        meta: Meta,
        size: u64,
        /// CRC-32 of the content; None where the file has holes.
        checksum: Option<u32>,
    },
    Directory {
        path: Vec<u8>,
        meta: Meta,
    },
    /// A directory that the archive has no entry for: it looks like the one below it, if there is
    /// one.
    Implied {
        path: Vec<u8>,
    },
    Symlink {
        path: Vec<u8>,
        meta: Meta,
        target: Vec<u8>,
    },
    /// A device, a FIFO, or a whiteout (a character device 0:0).
    Node {
        path: Vec<u8>,
        meta: Meta,
        device: u64,
    },
    /// The same as what `to` is at this moment.
    HardLink {
        path: Vec<u8>,
        to: Vec<u8>,
    },
    Removed {
        path: Vec<u8>,
    },
    End {
        records: u64,
    },
    /// All that the file has; one without this record has none. It comes after the entry's own record, and
    /// a later one of those does not take it back.
    Attributes {
        path: Vec<u8>,
        attributes: Attributes,
    },
}

/// What a layer should have, by path.
#[derive(Debug, Default)]
pub struct Manifest {
    pub entries: BTreeMap<Vec<u8>, Record>,
    /// None: it does not say.
    pub attributes: Option<BTreeMap<Vec<u8>, Attributes>>,
}

/// What `stat` says, but times: overlay may update those of directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// With the file's type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Record {
    pub fn path(&self) -> &[u8] {
        match self {
            Self::File { path, .. }
            | Self::Directory { path, .. }
            | Self::Implied { path }
            | Self::Symlink { path, .. }
            | Self::Node { path, .. }
            | Self::HardLink { path, .. }
            | Self::Attributes { path, .. }
            | Self::Removed { path } => path,
            Self::End { .. } => b"",
        }
    }

    /// The same by another name.
    fn at(&self, name: &[u8]) -> Self {
        let mut record = self.clone();
        if let Self::File { path, .. }
        | Self::Directory { path, .. }
        | Self::Implied { path }
        | Self::Symlink { path, .. }
        | Self::Node { path, .. }
        | Self::HardLink { path, .. }
        | Self::Attributes { path, .. }
        | Self::Removed { path } = &mut record
        {
            *path = name.to_vec();
        }
        record
    }
}

/// Writes records, or drops them where nobody wants them.
pub struct Log {
    file: Option<BufWriter<File>>,
    records: u64,
}

impl Log {
    pub fn create(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(File::create).transpose()?;
        let mut file = file.map(BufWriter::new);
        if let Some(file) = &mut file {
            file.write_all(MAGIC)?;
        }
        Ok(Self { file, records: 0 })
    }

    pub fn add(&mut self, record: &Record) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let bytes = postcard::to_stdvec(record).map_err(io::Error::other)?;
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        file.write_all(&len.to_le_bytes())?;
        file.write_all(&bytes)?;
        self.records += 1;
        Ok(())
    }

    pub fn finish(mut self) -> io::Result<()> {
        let records = self.records;
        self.add(&Record::End { records })?;
        self.file.map_or(Ok(()), |mut file| file.flush())
    }
}

/// What a log ends up with. InvalidData for one that is torn or changed.
pub fn read(path: &Path) -> io::Result<Manifest> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "the layer's manifest is torn or changed");
    let mut input = BufReader::new(File::open(path)?);
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).map_err(|_| broken())?;
    let has_attributes = match &magic[..] {
        MAGIC => true,
        MAGIC_1 => false,
        _ => return Err(broken()),
    };
    let mut entries: BTreeMap<Vec<u8>, Record> = BTreeMap::new();
    let mut attributes: BTreeMap<Vec<u8>, Attributes> = BTreeMap::new();
    let mut count = 0;
    loop {
        let mut len = [0; 4];
        input.read_exact(&mut len).map_err(|_| broken())?;
        let len = u32::from_le_bytes(len);
        if len > MAX_RECORD {
            return Err(broken());
        }
        let mut bytes = vec![0; len as usize];
        input.read_exact(&mut bytes).map_err(|_| broken())?;
        match postcard::from_bytes(&bytes).map_err(|_| broken())? {
            Record::End { records } if records == count => {
                return Ok(Manifest { entries, attributes: has_attributes.then_some(attributes) });
            }
            Record::End { .. } => return Err(broken()),
            Record::Removed { path } => {
                let below = [&path[..], b"/"].concat();
                let doomed: Vec<_> = entries
                    .range(below.clone()..)
                    .map(|(path, _)| path.clone())
                    .take_while(|path| path.starts_with(&below))
                    .collect();
                for path in doomed.iter().chain([&path]) {
                    entries.remove(path);
                    attributes.remove(path);
                }
            }
            Record::Attributes { path, attributes: of_it } => drop(attributes.insert(path, of_it)),
            Record::HardLink { path, to } => {
                let record = entries.get(&to).ok_or_else(broken)?.at(&path);
                if let Some(of_it) = attributes.get(&to).cloned() {
                    attributes.insert(path.clone(), of_it);
                }
                entries.insert(path, record);
            }
            record => drop(entries.insert(record.path().to_vec(), record)),
        }
        count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: Meta = Meta { mode: 0o100644, uid: 1, gid: 2 };

    fn file(path: &str, size: u64) -> Record {
        Record::File { path: path.into(), meta: META, size, checksum: Some(7) }
    }

    fn written(records: &[Record]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifest");
        let mut log = Log::create(Some(&path)).unwrap();
        records.iter().for_each(|record| log.add(record).unwrap());
        log.finish().unwrap();
        (directory, path)
    }

    #[test]
    fn later_records_win_and_removals_take_all_below() {
        let removed = Record::Removed { path: b"a".to_vec() };
        let (_keep, path) = written(&[
            file("a/b", 1),
            file("a/c", 1),
            file("ab", 1),
            file("x", 1),
            removed,
            file("a", 2),
            file("x", 3),
        ]);
        let entries = read(&path).unwrap().entries;
        let found: Vec<_> = entries.values().cloned().collect();
        assert_eq!(found, [file("a", 2), file("ab", 1), file("x", 3)]);
    }

    #[test]
    fn attributes_go_with_their_file_and_the_first_version_has_none() {
        let attributes = Attributes::from([(b"user.a".to_vec(), 1)]);
        let of = |path: &str| Record::Attributes { path: path.into(), attributes: attributes.clone() };
        let link = Record::HardLink { path: b"z".to_vec(), to: b"a/b".to_vec() };
        let removed = Record::Removed { path: b"a".to_vec() };
        let (_keep, path) = written(&[file("a/b", 1), of("a/b"), link, removed, file("a", 1)]);
        let manifest = read(&path).unwrap();
        assert_eq!(manifest.attributes.unwrap(), BTreeMap::from([(b"z".to_vec(), attributes.clone())]));
        let mut old = std::fs::read(written(&[file("a", 1)]).0.path().join("manifest")).unwrap();
        old[..MAGIC_1.len()].copy_from_slice(MAGIC_1);
        std::fs::write(&path, old).unwrap();
        let manifest = read(&path).unwrap();
        assert_eq!((manifest.entries.len(), manifest.attributes), (1, None));
    }

    #[test]
    fn a_torn_manifest_is_noticed_wherever_it_is_cut() {
        let (_keep, path) = written(&[file("a", 1), file("b", 2)]);
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "{len}");
        }
    }
}
