//! One 512-byte header block of a tar archive, read field by field (POSIX.1-1988 ustar, GNU tar).

/// A tar archive is a sequence of blocks of this size.
pub const BLOCK: usize = 512;

/// The offset and length of each field of a header block.
mod field {
    pub const NAME: (usize, usize) = (0, 100);
    pub const MODE: (usize, usize) = (100, 8);
    pub const UID: (usize, usize) = (108, 8);
    pub const GID: (usize, usize) = (116, 8);
    pub const SIZE: (usize, usize) = (124, 12);
    pub const MTIME: (usize, usize) = (136, 12);
    pub const CHECKSUM: (usize, usize) = (148, 8);
    pub const KIND: usize = 156;
    pub const LINK: (usize, usize) = (157, 100);
    pub const MAGIC: (usize, usize) = (257, 6);
    pub const MAJOR: (usize, usize) = (329, 8);
    pub const MINOR: (usize, usize) = (337, 8);
    pub const PREFIX: (usize, usize) = (345, 155);
    pub const GNU_SPARSE: usize = 386;
    pub const GNU_EXTENDED: usize = 482;
    pub const GNU_REAL_SIZE: (usize, usize) = (483, 12);
}

/// A block whose checksum is right.
pub struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    pub fn parse(block: &'a [u8; BLOCK]) -> Result<Self, String> {
        let header = Self(block);
        let stated = header.number("checksum", field::CHECKSUM)?;
        let (start, len) = field::CHECKSUM;
        let byte = |at: usize| if (start..start + len).contains(&at) { b' ' } else { block[at] };
        // Historic tars summed signed characters.
        let unsigned: i64 = (0..BLOCK).map(|at| i64::from(byte(at))).sum();
        let signed: i64 = (0..BLOCK).map(|at| i64::from(byte(at) as i8)).sum();
        if stated != unsigned && stated != signed {
            return Err("the header's checksum is wrong".into());
        }
        Ok(header)
    }

    pub fn kind(&self) -> u8 {
        self.0[field::KIND]
    }

    /// The name, with ustar's prefix; GNU headers use that place for other things.
    pub fn path(&self) -> Vec<u8> {
        let name = text(self.bytes(field::NAME));
        let prefix = text(self.bytes(field::PREFIX));
        if self.bytes(field::MAGIC) == b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    pub fn link(&self) -> Vec<u8> {
        text(self.bytes(field::LINK)).to_vec()
    }

    pub fn mode(&self) -> Result<i64, String> {
        self.number("mode", field::MODE)
    }

    pub fn uid(&self) -> Result<i64, String> {
        self.number("uid", field::UID)
    }

    pub fn gid(&self) -> Result<i64, String> {
        self.number("gid", field::GID)
    }

    pub fn size(&self) -> Result<i64, String> {
        self.number("size", field::SIZE)
    }

    pub fn mtime(&self) -> Result<i64, String> {
        self.number("mtime", field::MTIME)
    }

    pub fn device(&self) -> Result<(i64, i64), String> {
        Ok((self.number("device major", field::MAJOR)?, self.number("device minor", field::MINOR)?))
    }

    /// The size of a GNU sparse file with its holes.
    pub fn real_size(&self) -> Result<i64, String> {
        self.number("real size", field::GNU_REAL_SIZE)
    }

    /// The first segments of a GNU sparse file, and whether a block with more of them follows.
    pub fn sparse(&self) -> Result<(Vec<(i64, i64)>, bool), String> {
        Ok((segments(&self.0[field::GNU_SPARSE..], 4)?, self.0[field::GNU_EXTENDED] != 0))
    }

    fn bytes(&self, (start, len): (usize, usize)) -> &[u8] {
        &self.0[start..start + len]
    }

    fn number(&self, name: &str, place: (usize, usize)) -> Result<i64, String> {
        number(self.bytes(place)).ok_or_else(|| format!("the header's {name} is not a number"))
    }
}

/// The segments in an extension block of a GNU sparse file, and whether another one follows.
pub fn sparse_extension(block: &[u8; BLOCK]) -> Result<(Vec<(i64, i64)>, bool), String> {
    Ok((segments(block, 21)?, block[504] != 0))
}

/// Offset and length, 12 bytes each; an empty field ends the list.
fn segments(bytes: &[u8], count: usize) -> Result<Vec<(i64, i64)>, String> {
    let mut list = Vec::new();
    for pair in bytes.chunks_exact(24).take(count) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        let wrong = || "a sparse segment is not a number".to_owned();
        list.push((number(&pair[..12]).ok_or_else(wrong)?, number(&pair[12..]).ok_or_else(wrong)?));
    }
    Ok(list)
}

/// Up to the first NUL.
pub fn text(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

/// Octal digits between blanks, or GNU's base-256 with the top bit set (two's complement).
fn number(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        for (at, byte) in bytes.iter().enumerate() {
            let byte = if at == 0 && first & 0x40 == 0 { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let is_blank = |b: &u8| matches!(b, b' ' | 0);
    let start = bytes.iter().position(|b| !is_blank(b)).unwrap_or(bytes.len());
    let digits = &bytes[start..];
    let digits = &digits[..digits.iter().position(is_blank).unwrap_or(digits.len())];
    digits.iter().try_fold(0_i64, |value, digit| {
        let digit = matches!(digit, b'0'..=b'7').then(|| i64::from(digit - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000684\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(b"777777777777"), Some(0o777777777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Some(0xffff_ffff));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
