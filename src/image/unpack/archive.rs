//! The entries of a tar archive, as a stream: PAX and GNU extensions applied, bodies not yet read.
//!
//! Input is hostile: nothing here allocates by a size that the archive states without a limit.

use std::io::{self, BufRead};

use super::header::{self, BLOCK, Header};
use super::pax::{self, Pax};

/// Bytes that an extended header or a long name may have.
const MAX_EXTENSION: u64 = 1 << 20;
/// Segments that a sparse file may have.
const MAX_SEGMENTS: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// As written in the archive.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a file, with its holes.
    pub size: u64,
    /// Where the body's bytes go, in order, where the file has holes.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Whether an entry may begin with this block: an empty archive has none.
pub fn is_header(block: &[u8; BLOCK]) -> bool {
    Header::parse(block).is_ok()
}

pub struct Archive<R> {
    input: R,
    /// Bytes of the present entry's body not yet read, and of the padding behind it.
    body: u64,
    padding: u64,
}

/// What precedes an entry's own header.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

fn malformed(cause: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause.into())
}

impl<R: BufRead> Archive<R> {
    pub fn new(input: R) -> Self {
        Self { input, body: 0, padding: 0 }
    }

    /// Skips what is left of the present entry and reads the next one's headers. None at the end,
    /// which is a block of zeros or the end of the input.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_body()?;
            let Some(block) = self.block()? else { return Ok(None) };
            if block.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            let header = Header::parse(&block).map_err(malformed)?;
            let size = u64::try_from(header.size().map_err(malformed)?)
                .map_err(|_| malformed("the header's size is negative"))?;
            match header.kind() {
                b'x' => extensions.pax = Pax::parse(&self.extension(size)?).map_err(malformed)?,
                b'g' => self.expect_body(size),
                b'L' => extensions.long_name = Some(header::text(&self.extension(size)?).to_vec()),
                b'K' => extensions.long_link = Some(header::text(&self.extension(size)?).to_vec()),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// The next bytes of the present entry's body; empty at its end. [`Self::consume`] them.
    pub fn fill_body(&mut self) -> io::Result<&[u8]> {
        if self.body == 0 {
            return Ok(&[]);
        }
        let bytes = self.input.fill_buf()?;
        if bytes.is_empty() {
            return Err(truncated());
        }
        let len = usize::try_from(self.body).unwrap_or(usize::MAX).min(bytes.len());
        Ok(&bytes[..len])
    }

    pub fn consume(&mut self, len: usize) {
        self.input.consume(len);
        self.body = self.body.saturating_sub(len as u64);
    }

    /// Reads and drops everything behind the archive's end.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(drop)
    }

    fn entry(&mut self, header: &Header<'_>, size: u64, extensions: Extensions) -> io::Result<Entry> {
        let Extensions { pax, long_name, long_link } = extensions;
        let path = pax.path.or(long_name).unwrap_or_else(|| header.path());
        let link = pax.link.or(long_link).unwrap_or_else(|| header.link());
        let kind = match header.kind() {
            // Before ustar a directory was a file whose name ends in a slash.
            b'0' | b'7' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'7' | b'S' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(malformed(format!("entries of type {:?} are not supported", char::from(other))));
            }
        };
        // The other kinds have no body, whatever size they state (as Go's reader sees it).
        let size = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        let mut entry = Entry {
            path,
            link,
            kind,
            mode: (header.mode().map_err(malformed)? & 0o7777) as u32,
            uid: id("uid", pax.uid.map_or_else(|| header.uid().map(i128::from), |id| Ok(i128::from(id))))?,
            gid: id("gid", pax.gid.map_or_else(|| header.gid().map(i128::from), |id| Ok(i128::from(id))))?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (header.mtime().map_err(malformed)?, 0),
            },
            device: (0, 0),
            xattrs: pax.xattrs,
            size,
            sparse: None,
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            entry.device = device(header.device().map_err(malformed)?)?;
        }
        if header.kind() == b'S' {
            let (segments, real_size) = self.gnu_sparse(header)?;
            self.expect_body(size);
            self.set_sparse(&mut entry, segments, real_size)?;
        } else if kind == Kind::File && pax.sparse.present {
            self.expect_body(size);
            if let Some(name) = pax.sparse.name {
                entry.path = name;
            }
            let real_size =
                pax.sparse.real_size.ok_or_else(|| malformed("a sparse file without its size"))?;
            let segments =
                if pax.sparse.map_in_data { self.sparse_map_in_data()? } else { pax.sparse.segments };
            self.set_sparse(&mut entry, segments, real_size)?;
        } else {
            self.expect_body(size);
        }
        Ok(entry)
    }

    /// The segments must be in order, apart, inside the file, and as long as the body.
    fn set_sparse(&mut self, entry: &mut Entry, segments: Vec<(u64, u64)>, size: u64) -> io::Result<()> {
        let mut end = 0_u64;
        let mut data = 0_u64;
        for &(offset, len) in &segments {
            let next = offset.checked_add(len).filter(|&next| offset >= end && next <= size);
            end = next.ok_or_else(|| malformed("a sparse segment lies outside its file"))?;
            data += len;
        }
        if segments.len() > MAX_SEGMENTS || data != self.body {
            return Err(malformed("a sparse file's segments do not fit its body"));
        }
        entry.size = size;
        entry.sparse = Some(segments);
        Ok(())
    }

    fn gnu_sparse(&mut self, header: &Header<'_>) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let (mut raw, mut more) = header.sparse().map_err(malformed)?;
        while more {
            let block = self.block()?.ok_or_else(truncated)?;
            let (next, again) = header::sparse_extension(&block).map_err(malformed)?;
            raw.extend(next);
            more = again;
            if raw.len() > MAX_SEGMENTS {
                return Err(malformed("a sparse file has too many segments"));
            }
        }
        let unsigned =
            |number: i64| u64::try_from(number).map_err(|_| malformed("a sparse file's number is negative"));
        let segments = raw
            .into_iter()
            .map(|(offset, len)| Ok((unsigned(offset)?, unsigned(len)?)))
            .collect::<io::Result<_>>();
        Ok((segments?, unsigned(header.real_size().map_err(malformed)?)?))
    }

    /// Version 1.0: a count, then offsets and lengths, one decimal number per line, in whole blocks.
    fn sparse_map_in_data(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut line: Vec<u8> = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            if self.body < BLOCK as u64 {
                return Err(malformed("a sparse file's map is cut off"));
            }
            let block = self.block()?.ok_or_else(truncated)?;
            self.body -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(malformed("a sparse file's map is malformed"));
                    }
                    continue;
                }
                let number =
                    pax::integer(&line).ok_or_else(|| malformed("a sparse file's map is malformed"))?;
                line.clear();
                if numbers.is_empty() {
                    let count = usize::try_from(number).ok().filter(|&count| count <= MAX_SEGMENTS);
                    wanted += 2 * count.ok_or_else(|| malformed("a sparse file has too many segments"))?;
                }
                numbers.push(number);
                if numbers.len() == wanted {
                    break;
                }
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn expect_body(&mut self, size: u64) {
        self.body = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(malformed(format!("an extended header of {size} bytes is too long")));
        }
        self.expect_body(size);
        let mut bytes = Vec::new();
        while self.body > 0 {
            let part = self.fill_body()?;
            let len = part.len();
            bytes.extend_from_slice(part);
            self.consume(len);
        }
        Ok(bytes)
    }

    fn skip_body(&mut self) -> io::Result<()> {
        while self.body > 0 {
            let len = self.fill_body()?.len();
            self.consume(len);
        }
        while self.padding > 0 {
            let len = self.input.fill_buf()?.len().min(self.padding as usize);
            if len == 0 {
                // `umoci insert` ends its layers behind the last file's bytes, and Go's reader takes that.
                break;
            }
            self.input.consume(len);
            self.padding -= len as u64;
        }
        Ok(())
    }

    /// None at the end of the input; an error inside a block.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                len => filled += len,
            }
        }
        Ok(Some(block))
    }
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside an entry")
}

/// (uid_t)-1 means "leave it" to chown, which would make it root's.
fn id(name: &str, value: Result<i128, String>) -> io::Result<u32> {
    let value = value.map_err(malformed)?;
    let id = u32::try_from(value).ok().filter(|&id| id != u32::MAX);
    id.ok_or_else(|| malformed(format!("{name} {value} is out of range")))
}

/// Linux has 12 bits for the major and 20 for the minor number.
fn device((major, minor): (i64, i64)) -> io::Result<(u32, u32)> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
        _ => Err(malformed(format!("device {major}:{minor} is out of range"))),
    }
}
