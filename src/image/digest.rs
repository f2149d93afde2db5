//! Content digests: `sha256:` and 64 hexadecimal digits.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// A SHA-256 digest, the only algorithm that registries use in practice (OCI image spec,
/// descriptor.md: sha512 is optional; it is refused by name).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses `sha256:…`; lower case only, as the OCI spec demands.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(Error::invalid(format!("digest {text:?} has no algorithm")));
        };
        if algorithm != "sha256" {
            return Err(Error::invalid(format!("digest {text:?}: only sha256 is supported")));
        }
        let bytes = decode_hex(hex.as_bytes());
        bytes.map(Self).ok_or_else(|| Error::invalid(format!("digest {text:?} is not 64 hex digits")))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Only the 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        as_text(&self.digits()).to_owned()
    }

    /// In one piece: lists of many images are mostly digests.
    fn digits(&self) -> [u8; 64] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        digits
    }
}

fn as_text(digits: &[u8; 64]) -> &str {
    std::str::from_utf8(digits).unwrap_or_default()
}

fn decode_hex(text: &[u8]) -> Option<[u8; 32]> {
    fn nibble(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        f.write_str(as_text(&self.digits()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_parses() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty).unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").hex(), empty[7..]);
        assert!(Digest::parse(&empty.to_uppercase()).is_err());
        assert!(Digest::parse(&empty[..70]).is_err());
        assert!(
            Digest::parse(&format!("sha512:{}", "a".repeat(128))).unwrap_err().message.contains("sha256")
        );
    }
}
