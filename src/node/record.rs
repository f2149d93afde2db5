//! Records: small JSON files, written whole by rename.
//!
//! A record is not synced to disk: a power cut ends what it describes, and a torn one is told apart
//! by its parse error and costs one pod a NOTREADY, not the daemon its start.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Step;
use crate::{Error, Result};

/// Replaces the record at `path`.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let text = serde_json::to_vec(record)
        .map_err(|e| Error::internal(format!("encoding record {}: {e}", path.display())))?;
    let next = path.with_extension("next");
    write_private(&next, &text).step(|| format!("writing record {}", next.display()))?;
    fs::rename(&next, path).step(|| format!("renaming record {}", path.display()))
}

/// Root's alone: specs hold environments.
fn write_private(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text)
}

/// None if there is none; an error that names the path if it cannot be read or parsed.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("reading record {}", path.display()), e)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|e| Error::internal(format!("record {} is damaged: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_torn_one_names_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1, 2]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, b"[1,").unwrap();
        let error = read::<Vec<u32>>(&path).unwrap_err();
        assert!(error.message.contains("x.json is damaged"), "{error}");
    }
}
