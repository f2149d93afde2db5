use std::io::{BufRead, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

const BLOCK: usize = 4 << 10;

/// Input that comes in pieces of `piece` bytes.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
    used: usize,
}

impl<'a> Pieces<'a> {
    fn new(rest: &'a [u8], piece: usize) -> Self {
        Self { rest, piece, used: 0 }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let end = self.rest.len().min(self.piece - self.used % self.piece);
        Ok(&self.rest[..end])
    }

    fn consume(&mut self, len: usize) {
        self.rest = &self.rest[len..];
        self.used += len;
    }
}

fn unzip(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    gunzip(&mut Pieces::new(bytes, piece), BLOCK, |block| {
        all.extend_from_slice(block.fresh());
        Ok(block.bytes)
    })?;
    Ok(all)
}

fn zip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One member around a DEFLATE stream.
fn member(deflate: &[u8]) -> Vec<u8> {
    [b"\x1f\x8b\x08\0\0\0\0\0\0\xff", deflate, &[0; 8]].concat()
}

/// Text with repetitions near and far, runs, and noise.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        (any::<u8>(), 0..3000_usize).prop_map(|(byte, len)| vec![byte; len]),
        (proptest::collection::vec(any::<u8>(), 1..40), 1..300_usize)
            .prop_map(|(word, times)| word.repeat(times)),
        proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b' ')], 0..4000),
    ];
    proptest::collection::vec(piece, 0..12)
        .prop_map(|pieces| [pieces.concat(), vec![7; 40_000], pieces.concat()].concat())
}

/// Literals, then a run, so placed that both lie around a block's end in every way.
#[test]
fn a_match_may_begin_wherever_a_block_is_full() {
    let mut random = 1_u32;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut byte = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'0' + (random >> 24) as u8 % 64
        };
        (0..len).map(|_| byte()).collect()
    };
    for before in BLOCK - 300..BLOCK + 8 {
        let bytes = [noise(before), vec![b'~'; 600], noise(400)].concat();
        for level in [1, 9] {
            assert!(unzip(&zip(&bytes, level), usize::MAX).unwrap() == bytes, "{before} before");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_compressed_comes_back(bytes in content(), level in 0..10_u32, piece in 1..5000_usize) {
        let zipped = zip(&bytes, level);
        prop_assert!(unzip(&zipped, piece).unwrap() == bytes);
        prop_assert!(unzip(&zipped, usize::MAX).unwrap() == bytes);
    }

    #[test]
    fn members_follow_each_other(first in content(), second in content(), piece in 1..5000_usize) {
        let zipped = [zip(&first, 6), zip(b"", 6), zip(&second, 1)].concat();
        prop_assert!(unzip(&zipped, piece).unwrap() == [first, second].concat());
    }

    /// Wherever a byte changes: either both take it, and agree, or both refuse. The trailer, which
    /// only zlib compares, is left alone, and an error that only it would find is let pass.
    #[test]
    fn a_changed_stream_means_what_zlib_says(
        bytes in content(), level in 0..10_u32, at in any::<prop::sample::Index>(), with in 1..=255_u8
    ) {
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), Compression::new(level));
        deflate.write_all(&bytes).unwrap();
        let mut deflate = deflate.finish().unwrap();
        *at.get_mut(&mut deflate) ^= with;
        let mut theirs = Vec::new();
        let mut decoder = flate2::bufread::DeflateDecoder::new(&deflate[..]);
        let read = decoder.read_to_end(&mut theirs);
        let rest = deflate.len() - decoder.total_in() as usize;
        match unzip(&member(&deflate), 1000) {
            Ok(ours) => {
                prop_assert!(read.is_ok());
                prop_assert!(ours == theirs);
            }
            // What is left over after the stream's end is no member.
            Err(error) => prop_assert!(read.is_err() || rest > 0, "{error}"),
        }
    }

    #[test]
    fn noise_is_refused_and_ends(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        let _ = unzip(&bytes, 100);
        let _ = unzip(&member(&bytes), 100);
    }
}

#[test]
fn cut_off_anywhere_is_an_error() {
    let text: Vec<u8> = (0..3000_u32).flat_map(|n| (n * n % 977).to_le_bytes()).collect();
    for level in [0, 1, 9] {
        let zipped = zip(&text, level);
        for len in 0..zipped.len() {
            let error = unzip(&zipped[..len], 64).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "level {level}, {len}: {error}");
        }
        assert_eq!(unzip(&zipped, 64).unwrap(), text);
    }
}

#[test]
fn all_fields_of_a_header_are_read_over() {
    let plain = zip(b"text", 6);
    let header = b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff\x05\0extraname\0a comment\0\x12\x34";
    assert_eq!(unzip(&[&header[..], &plain[10..]].concat(), 3).unwrap(), b"text");
    let unknown = [b"\x1f\x8b\x08\x20", &plain[4..]].concat();
    assert_eq!(unzip(&unknown, 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn streams_that_are_none_are_refused() {
    let refused = |deflate: &[u8]| unzip(&member(deflate), 5).unwrap_err().to_string();
    assert!(refused(&[7]).contains("type"));
    assert!(refused(&[1, 4, 0, 0, 0]).contains("length"));
    // A fixed block whose first symbol is a match.
    assert!(refused(&[0b011, 0b10]).contains("before the beginning"));
    // 30 of its distances, 287 of its lengths.
    assert!(refused(&[0b1111_0101, 0b1111, 0]).contains("too many"));
    assert!(unzip(b"no gzip at all", 5).unwrap_err().to_string().contains("not gzip"));
    let garbage = [&zip(b"a", 6)[..], b"garbage"].concat();
    assert!(unzip(&garbage, 5).is_err());
}

/// A member's matches do not reach into the one before it.
#[test]
fn history_ends_with_its_member() {
    let first = zip(&[b'a'; 100], 6);
    let second = member(&[0b011, 0b10, 0, 0]);
    let error = unzip(&[first, second].concat(), 1000).unwrap_err();
    assert!(error.to_string().contains("before the beginning"), "{error}");
}

#[test]
fn an_error_of_who_takes_the_blocks_comes_back() {
    let zipped = zip(&vec![1; 100_000], 6);
    let result = gunzip(&mut &zipped[..], BLOCK, |_| Err(io::Error::other("full")));
    assert_eq!(result.unwrap_err().to_string(), "full");
}
