//! Records: small JSON files, written whole by rename, or by appending their next state as a line.
//! The last line that is whole counts.
//!
//! A record is not synced to disk: a power cut ends what it describes, and a torn one is told apart
//! by its parse error and costs one pod a NOTREADY, not the daemon its start.
//!
//! ext4 writes out a file that is renamed over another before the rename returns (mount option
//! auto_da_alloc): 0.4 ms where an append takes 10 µs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Step;
use crate::{Error, Result};

/// A record that has grown to so many bytes is written anew.
const LONGEST: u64 = 64 << 10;

/// Replaces the record at `path`.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    replace(path, &encode(path, record)?)
}

/// Adds the next state to the record at `path`, which is made if it is missing: for what changes
/// several times in its life.
pub fn append<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let mut text = encode(path, record)?;
    let step = || format!("writing record {}", path.display());
    let mut file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).step(step)?;
    if file.metadata().step(step)?.len() > LONGEST {
        return replace(path, &text);
    }
    // One write: a line is there whole, or nothing of it, but for a full disk or a power cut; so it
    // begins with the end of whatever such a line there may be.
    text.insert(0, b'\n');
    file.write_all(&text).step(step)
}

fn encode<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(record)
        .map_err(|e| Error::internal(format!("encoding record {}: {e}", path.display())))?;
    text.push(b'\n');
    Ok(text)
}

fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let next = path.with_extension("next");
    write_private(&next, text).step(|| format!("writing record {}", next.display()))?;
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
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).rev();
    let mut damage = "it is empty".to_owned();
    for line in lines {
        match serde_json::from_slice(line) {
            Ok(record) => return Ok(Some(record)),
            Err(e) => damage = e.to_string(),
        }
    }
    Err(Error::internal(format!("record {} is damaged: {damage}", path.display())))
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
        fs::write(&path, b"").unwrap();
        assert!(read::<Vec<u32>>(&path).unwrap_err().message.contains("damaged"));
    }

    #[test]
    fn the_last_state_that_was_written_whole_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        append(&path, &"first").unwrap();
        append(&path, &"second").unwrap();
        assert_eq!(read::<String>(&path).unwrap().as_deref(), Some("second"));
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(b"\"thi");
        fs::write(&path, &torn).unwrap();
        assert_eq!(read::<String>(&path).unwrap().as_deref(), Some("second"));
        append(&path, &"third").unwrap();
        assert_eq!(read::<String>(&path).unwrap().as_deref(), Some("third"), "behind a torn line");
        append(&path, &"x".repeat(LONGEST as usize)).unwrap();
        append(&path, &"last").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\"last\"\n", "a long one starts anew");
        assert_eq!(read::<String>(&path).unwrap().as_deref(), Some("last"));
    }
}
