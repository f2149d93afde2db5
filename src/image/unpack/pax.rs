//! The records of a PAX extended header (POSIX.1-2001, pax): `LEN KEY=VALUE\n`.

/// What a PAX header says about the entry that follows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds, rounded down, and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// GNU tar's sparse files in PAX archives, versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PaxSparse {
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// The map precedes the data (version 1.0).
    pub map_in_data: bool,
    /// Offset and length; a 0.0 archive gives them one by one.
    pub segments: Vec<(u64, u64)>,
    pub present: bool,
    offset: Option<u64>,
}

impl Pax {
    pub fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("a PAX record is malformed")?;
            pax.take(key, value)
                .ok_or_else(|| format!("PAX record {:?} is malformed", String::from_utf8_lossy(key)))?;
            bytes = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            b"size" => self.size = Some(integer(value)?),
            b"uid" => self.uid = Some(integer(value)?),
            b"gid" => self.gid = Some(integer(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name(attribute)?, value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
            }
        }
        Some(())
    }
}

impl PaxSparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        self.present = true;
        match key {
            b"name" => self.name = Some(name(value)?),
            b"size" | b"realsize" => self.real_size = Some(integer(value)?),
            b"major" => self.map_in_data = integer(value)? == 1,
            b"offset" => self.offset = Some(integer(value)?),
            b"numbytes" => self.segments.push((self.offset.take()?, integer(value)?)),
            b"map" => {
                let numbers = value.split(|b| *b == b',').map(integer).collect::<Option<Vec<_>>>()?;
                let pairs = numbers.chunks_exact(2);
                if !pairs.remainder().is_empty() {
                    return None;
                }
                self.segments = pairs.map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {}
        }
        Some(())
    }
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(integer(&bytes[..space])?).ok()?;
    let text = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|b| *b == b'=')?;
    Some((&text[..equals], &text[equals + 1..], &bytes[len..]))
}

/// Names with NUL cannot be meant: the kernel would see another name than we checked.
fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

pub fn integer(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(integer(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
        }
    }
    match (negative, nanos) {
        (false, nanos) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, nanos) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record_of(key: &str, value: &[u8]) -> Vec<u8> {
        let payload = key.len() + value.len() + 3;
        let mut len = payload + 1;
        while len.to_string().len() + payload != len {
            len = len.to_string().len() + payload;
        }
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_are_read() {
        let bytes = [
            record_of("path", b"a/\nb=c"),
            record_of("mtime", b"-1.25"),
            record_of("uid", b"4294967294"),
            record_of("SCHILY.xattr.user.x", b"\0\n="),
            record_of("comment", b"ignored"),
        ]
        .concat();
        let pax = Pax::parse(&bytes).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/\nb=c"[..]));
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert_eq!(pax.uid, Some(4_294_967_294));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"\0\n=".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"3 a\n",
            b"0 a=b\n",
            b"18446744073709551616 a=b\n",
            b"-6 a=b\n",
        ] {
            assert!(Pax::parse(bytes).is_err(), "{bytes:?}");
        }
        assert!(Pax::parse(&record_of("path", b"a\0b")).is_err());
        assert!(Pax::parse(&record_of("size", b"-1")).is_err());
        assert!(Pax::parse(&record_of("size", b"99999999999999999999")).is_err());
        assert!(Pax::parse(&record_of("GNU.sparse.map", b"1,2,3")).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::parse(&bytes);
        }
    }
}
