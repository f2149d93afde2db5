//! Header blocks: name and value pairs in a zlib stream that goes on through a session's frames and
//! starts with a dictionary (section 2.6.10).
//!
//! ```text
//!  pairs u32   { length u32, name in lower case   length u32, value [\0 value]… }…
//! ```

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

use super::dictionary::{CHECKSUM, DICTIONARY};
use super::frame::Broken;

/// Of an inflated block. Ours have three or four short headers; the peers' clients add none.
const MAX_BLOCK: usize = 16 << 10;
const MAX_PAIRS: usize = 64;
/// What is inflated in one step.
const ROOM: usize = 512;
/// How far back a distance reaches (RFC 1951).
const WINDOW: usize = 32 << 10;

/// The headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(other, _)| other == name)?;
        value.split('\0').next()
    }

    /// Those of these names: the others' memory goes.
    pub fn only(self, names: &[&str]) -> Self {
        Self(self.0.into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect())
    }
}

/// Inflates the blocks of one session, in the order of their frames. It keeps what later blocks may refer
/// to and no more, where zlib's inflaters have 32 KiB from the beginning: most sessions have five headers.
pub struct Reader {
    /// Within a deflated block alone: its tables have 10 KiB.
    inflater: Option<Box<DecompressorOxide>>,
    between: BlockBoundaryState,
    /// What was inflated, the dictionary first, as far as a distance reaches.
    history: Vec<u8>,
    begun: bool,
}

impl Reader {
    pub fn new() -> Self {
        Self { inflater: None, between: BlockBoundaryState::default(), history: Vec::new(), begun: false }
    }

    /// After an error the stream is lost, and with it the session.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Broken> {
        let deflated = if self.begun { block } else { self.begin(block)? };
        let start = self.history.len();
        self.inflate(deflated)?;
        let headers = parse(&self.history[start..]);
        self.forget();
        headers
    }

    /// Takes the stream's header (RFC 1950) off its first block.
    fn begin<'a>(&mut self, block: &'a [u8]) -> Result<&'a [u8], Broken> {
        const WRONG: Broken = Broken("a header block that is not compressed as it should be");
        let (header, rest) = block.split_first_chunk::<2>().ok_or(WRONG)?;
        let [method, flags] = *header;
        if method & 15 != 8 || method >> 4 > 7 || !u16::from_be_bytes(*header).is_multiple_of(31) {
            return Err(WRONG);
        }
        self.begun = true;
        if flags & 0x20 == 0 {
            return Ok(rest);
        }
        let (checksum, rest) = rest.split_first_chunk::<4>().ok_or(WRONG)?;
        if u32::from_be_bytes(*checksum) != CHECKSUM {
            return Err(WRONG);
        }
        self.history.extend_from_slice(DICTIONARY);
        Ok(rest)
    }

    /// Appends what the block has to the history.
    fn inflate(&mut self, mut block: &[u8]) -> Result<(), Broken> {
        const FLAGS: u32 = TINFL_FLAG_HAS_MORE_INPUT
            | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY
            | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let resumed = || Box::new(DecompressorOxide::from_block_boundary_state(&self.between));
        let mut inflater = self.inflater.take().unwrap_or_else(resumed);
        let most = self.history.len() + MAX_BLOCK;
        loop {
            let at = self.history.len();
            if at > most {
                return Err(Broken("a header block that is too long"));
            }
            self.history.resize(at + ROOM, 0);
            let (status, used, written) = decompress(&mut inflater, block, &mut self.history, at, FLAGS);
            self.history.truncate(at + written);
            block = &block[used..];
            match status {
                // Where clients flush.
                TINFLStatus::BlockBoundary if block.is_empty() => {
                    self.between = inflater.block_boundary_state().unwrap_or_default();
                    return Ok(());
                }
                TINFLStatus::NeedsMoreInput if block.is_empty() => {
                    self.inflater = Some(inflater);
                    return Ok(());
                }
                TINFLStatus::BlockBoundary | TINFLStatus::HasMoreOutput => {}
                TINFLStatus::Done => return Err(Broken("the end of the header stream")),
                _ => return Err(Broken("a header block that cannot be inflated")),
            }
        }
    }

    /// Drops what no distance reaches any more, now and then.
    fn forget(&mut self) {
        if self.history.len() > 2 * WINDOW {
            self.history.drain(..self.history.len() - WINDOW);
        }
    }
}

/// Names are lower case, not empty and come once; the block holds them and nothing else.
pub fn parse(mut block: &[u8]) -> Result<Headers, Broken> {
    let count = number(&mut block)?;
    if count > MAX_PAIRS {
        return Err(Broken("too many headers"));
    }
    let mut headers: Vec<(String, String)> = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, value) = (text(&mut block)?, text(&mut block)?);
        if name.is_empty() || name.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(Broken("a header whose name is empty or not in lower case"));
        }
        if headers.iter().any(|(other, _)| *other == name) {
            return Err(Broken("a header that comes twice"));
        }
        headers.push((name, value));
    }
    if !block.is_empty() {
        return Err(Broken("bytes after the headers"));
    }
    Ok(Headers(headers))
}

fn number(block: &mut &[u8]) -> Result<usize, Broken> {
    let (number, rest) = block.split_first_chunk::<4>().ok_or(Broken("a header block that is too short"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn text(block: &mut &[u8]) -> Result<String, Broken> {
    let length = number(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Broken("a header block that is too short"))?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| Broken("a header that is not UTF-8"))
}

/// A block without a header, as every reply of ours has it. It is stored, not compressed: what is
/// all zeros in four bytes needs no compressor's quarter of a megabyte. `first` of the session:
/// with the zlib header that names the dictionary.
pub fn empty_block(first: bool) -> Vec<u8> {
    // RFC 1950: 32 KiB window, with a dictionary. RFC 1951: stored, not final, 4 bytes; then none,
    // which is where an inflater that wants to see the next block before it gives these away stops.
    const ZLIB: [u8; 2] = [0x78, 0xbb];
    const STORED: [u8; 5] = [0, 4, 0, 0xfb, 0xff];
    const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];
    let mut block = Vec::with_capacity(20);
    if first {
        block.extend_from_slice(&ZLIB);
        block.extend_from_slice(&CHECKSUM.to_be_bytes());
    }
    block.extend_from_slice(&STORED);
    block.extend_from_slice(&[0; 4]);
    block.extend_from_slice(&FLUSH);
    block
}

/// What a client does; for tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub mod client {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    pub struct Writer(Compress);

    impl Writer {
        pub fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            zlib.set_dictionary(DICTIONARY).unwrap();
            Self(zlib)
        }

        pub fn write(&mut self, pairs: &[(&str, &str)]) -> Vec<u8> {
            let mut block = (pairs.len() as u32).to_be_bytes().to_vec();
            for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
                block.extend((text.len() as u32).to_be_bytes());
                block.extend(text.as_bytes());
            }
            self.deflate(&block)
        }

        pub fn deflate(&mut self, block: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(block.len() + 1000);
            self.0.compress_vec(block, &mut out, FlushCompress::Sync).unwrap();
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_standard_one() {
        let (a, b) = DICTIONARY.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, CHECKSUM));
    }

    #[test]
    fn blocks_share_one_stream() {
        let (mut writer, mut reader) = (client::Writer::new(), Reader::new());
        for i in 0..50 {
            let port = i.to_string();
            let pairs = [("streamtype", "data"), ("port", &port), ("requestid", "7\0seven")];
            let headers = reader.read(&writer.write(&pairs)).unwrap();
            assert_eq!((headers.get("port"), headers.get("requestid")), (Some(&*port), Some("7")));
            assert_eq!(headers.get("Port"), None);
        }
    }

    /// A session holds little for its headers, however many there have been.
    #[test]
    fn memory_is_what_later_blocks_may_refer_to() {
        let (mut writer, mut reader) = (client::Writer::new(), Reader::new());
        for kind in ["error", "stdin", "stdout", "stderr", "resize"] {
            reader.read(&writer.write(&[("streamtype", kind)])).unwrap();
        }
        assert!(reader.inflater.is_none() && reader.history.capacity() < 4 << 10);
        let mut random = 1u64;
        for number in 0..3000 {
            let text: String = std::iter::repeat_with(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b'a' + (random >> 33) as u8 % 26)
            })
            .take(100)
            .collect();
            let number = number.to_string();
            let headers = reader.read(&writer.write(&[("port", &number), ("text", &text)])).unwrap();
            assert_eq!((headers.get("port"), headers.get("text")), (Some(&*number), Some(&*text)));
            assert!(reader.history.len() <= 2 * WINDOW + MAX_BLOCK);
        }
    }

    #[test]
    fn replies_can_be_read_with_the_dictionary() {
        let mut reader = Reader::new();
        assert_eq!(reader.read(&empty_block(true)), Ok(Headers::default()));
        assert_eq!(reader.read(&empty_block(false)), Ok(Headers::default()));
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_inflated() {
        let mut writer = client::Writer::new();
        let mut pair = 1u32.to_be_bytes().to_vec();
        pair.extend(3u32.to_be_bytes());
        pair.extend(b"big");
        pair.extend((8u32 << 20).to_be_bytes());
        pair.resize(8 << 20, 0);
        let block = writer.deflate(&pair);
        assert!(block.len() <= super::super::frame::MAX_CONTROL, "{}", block.len());
        assert_eq!(Reader::new().read(&block), Err(Broken("a header block that is too long")));
    }

    #[test]
    fn what_is_not_a_block_is_refused() {
        let good = [0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 1, b'b'];
        assert_eq!(parse(&good).unwrap().get("a"), Some("b"));
        let mut upper = good;
        upper[8] = b'A';
        let mut long = good;
        long[7] = 200;
        let mut many = good;
        many[0] = 0xff;
        let twice = [&[0, 0, 0, 2], &good[4..], &good[4..]].concat();
        let rest = [&good[..], &[0]].concat();
        for bad in
            [&upper[..], &long, &many, &twice, &rest, &good[..12], &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        // Another dictionary, none at all, and no zlib.
        for bad in [&[0x78, 0xbb, 1, 2, 3, 4, 0][..], b"GET / HTTP/1.1", &[0xff; 30]] {
            assert!(Reader::new().read(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_block_takes_more_than_its_limit(block in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut reader = Reader::new();
            let _ = reader.read(&block);
            let mut behind = empty_block(true);
            behind.extend(&block);
            let mut reader = Reader::new();
            let _ = reader.read(&behind);
            prop_assert!(reader.history.len() <= DICTIONARY.len() + MAX_BLOCK + ROOM);
            let _ = parse(&block);
        }

        #[test]
        fn headers_go_through(pairs in prop::collection::btree_map("[a-z-]{1,20}", "\\PC{0,200}", 0..9)) {
            let list: Vec<(&str, &str)> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let headers = Reader::new().read(&client::Writer::new().write(&list)).unwrap();
            for (name, value) in list {
                prop_assert_eq!(headers.get(name), Some(value));
            }
        }
    }
}
