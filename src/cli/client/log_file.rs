//! A container's log in the CRI's format, as its container wrote it.
//!
//! ```text
//! 2026-11-24T19:41:33.000000001Z stdout F text
//! ```
//!
//! `P` instead of `F`: the line goes on in the next record of the same stream.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::error::Step;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub time: &'a [u8],
    pub stream: Stream,
    /// The line ends here.
    pub full: bool,
    pub text: &'a [u8],
}

/// A line of the file without its newline. None: it is not in the format.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = fields.next().filter(|time| !time.is_empty())?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags may be followed by others after a colon; the first one is P or F.
    let full = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { time, stream, full, text: fields.next()? })
}

/// Reads records as they come, also over a rotation (rename and new file) of the log.
pub struct LogFile {
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl LogFile {
    pub fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).step(|| format!("opening the log {}", path.display()))?;
        Ok(Self { path, reader: BufReader::with_capacity(1 << 16, file), line: Vec::new() })
    }

    /// The next whole line of the file; None where there is none yet.
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        // What was read of an unfinished line stays for the next time.
        if self.line.ends_with(b"\n") {
            self.line.clear();
        }
        let read = self.reader.read_until(b'\n', &mut self.line);
        read.step(|| format!("reading the log {}", self.path.display()))?;
        Ok(self.line.strip_suffix(b"\n"))
    }

    /// Goes on with the file that is at the path now, if that is another one. Call this at the end
    /// of the old one. False: nothing has changed.
    pub fn follow_rotation(&mut self) -> Result<bool> {
        let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
        let step = || format!("looking at the log {}", self.path.display());
        let now = match std::fs::metadata(&self.path) {
            Ok(metadata) => identity(metadata),
            // Between a rename and the runtime's new file.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io(step(), e)),
        };
        if now == identity(self.reader.get_ref().metadata().step(step)?) {
            return Ok(false);
        }
        *self = Self::open(std::mem::take(&mut self.path))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_have_time_stream_tag_and_text() {
        let record = parse(b"2026-11-24T19:41:33.1Z stdout F a  b ").unwrap();
        assert_eq!((record.stream, record.full, record.text), (Stream::Stdout, true, &b"a  b "[..]));
        let record = parse(b"t stderr P:x ").unwrap();
        assert_eq!((record.stream, record.full, record.text), (Stream::Stderr, false, &b""[..]));
        for bad in [&b""[..], b"t", b"t stdin F x", b"t stdout G x", b"t stdout F", b" stdout F x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_unfinished_line_waits_for_its_end_and_rotation_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        let mut log = LogFile::open(path.clone()).unwrap();
        assert_eq!(log.next().unwrap(), Some(&b"one"[..]));
        assert_eq!(log.next().unwrap(), None);
        assert_eq!(log.next().unwrap(), None);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(log.next().unwrap(), Some(&b"two"[..]));
        assert!(!log.follow_rotation().unwrap());

        fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        assert!(!log.follow_rotation().unwrap());
        assert_eq!(log.next().unwrap(), Some(&b"three"[..]));
        fs::write(&path, "four\n").unwrap();
        assert!(log.follow_rotation().unwrap());
        assert_eq!(log.next().unwrap(), Some(&b"four"[..]));
        assert_eq!(log.next().unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in proptest::collection::vec(any::<u8>(), 0..80), full: bool) {
            let mut line = b"2026-11-24T19:41:33.1Z stderr ".to_vec();
            line.extend_from_slice(if full { b"F " } else { b"P " });
            line.extend_from_slice(&text);
            let record = parse(&line).unwrap();
            prop_assert_eq!((record.full, record.text), (full, &text[..]));
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }
    }
}
