//! SPDY/3.1 frames as bytes: a parser that takes what has come so far, and an encoder.
//!
//! ```text
//!  control  1 version:15  type:16  flags:8 length:24  payload
//!  data     0 stream:31            flags:8 length:24  payload
//! ```
//!
//! A data frame's payload is handed on as it comes, so that its length, up to 16 MiB, costs no
//! memory; a control frame is held until it is whole, and is limited.

use bytes::{Buf, Bytes, BytesMut};

pub const HEADER: usize = 8;
/// Of a control frame's payload. A header block of a stream of ours has some hundred bytes.
pub const MAX_CONTROL: usize = 16 << 10;
/// The largest window (section 2.6.8).
pub const MAX_WINDOW: i64 = (1 << 31) - 1;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const SETTINGS_INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream is reset (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    ProtocolError = 1,
    InvalidStream = 2,
    RefusedStream = 3,
    Cancel = 5,
    FlowControlError = 7,
    StreamAlreadyClosed = 9,
}

/// Why a session ends (section 2.6.6): it is broken. One that is not ends with its connection.
const GOAWAY_PROTOCOL_ERROR: u32 = 1;

/// A control frame, or a part of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    SynReply {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        stream: u32,
    },
    /// The initial window, if it was among the settings.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Headers {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// `fin` with the last part of a frame that has it.
    Data {
        stream: u32,
        fin: bool,
        part: Bytes,
    },
}

/// The session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// What of a frame has been read.
#[derive(Debug, Default)]
pub struct Parser {
    data: Option<Data>,
}

#[derive(Debug)]
struct Data {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Parser {
    /// The next frame in `buffer`, which is taken out of it. None: more bytes are needed.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(data) = &mut self.data {
                if buffer.is_empty() && data.left > 0 {
                    return Ok(None);
                }
                let part = buffer.split_to(data.left.min(buffer.len())).freeze();
                data.left -= part.len();
                let ended = data.left == 0;
                let frame = Frame::Data { stream: data.stream, fin: data.fin && ended, part };
                if ended {
                    self.data = None;
                }
                return Ok(Some(frame));
            }
            let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
            let word = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let flags = header[4];
            let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
            if word >> 31 == 0 {
                buffer.advance(HEADER);
                self.data = Some(Data { stream: word, fin: flags & FLAG_FIN != 0, left: length });
                continue;
            }
            let (version, kind) = ((word >> 16) as u16 & 0x7fff, word as u16);
            if version != VERSION {
                return Err(Broken("a frame of another version"));
            }
            if length > MAX_CONTROL {
                return Err(Broken("a control frame that is too long"));
            }
            if buffer.len() < HEADER + length {
                return Ok(None);
            }
            buffer.advance(HEADER);
            let payload = buffer.split_to(length).freeze();
            // Unknown types are ignored (section 2.2.1).
            if let Some(frame) = control(kind, flags, payload)? {
                return Ok(Some(frame));
            }
        }
    }
}

fn control(kind: u16, flags: u8, mut payload: Bytes) -> Result<Option<Frame>, Broken> {
    let fin = flags & FLAG_FIN != 0;
    let mut word = || payload.try_get_u32().map_err(|_| Broken("a control frame that is too short"));
    Ok(Some(match kind {
        SYN_STREAM => {
            let stream = id(word()?);
            // The stream it belongs to; then priority and slot.
            word()?;
            if payload.len() < 2 {
                return Err(Broken("a SYN_STREAM that is too short"));
            }
            payload.advance(2);
            Frame::SynStream { stream, fin, block: payload }
        }
        SYN_REPLY => Frame::SynReply { stream: id(word()?), fin, block: payload },
        RST_STREAM => Frame::RstStream { stream: id(word()?) },
        SETTINGS => Frame::Settings { initial_window: initial_window(payload)? },
        PING => Frame::Ping { id: word()? },
        GOAWAY => Frame::GoAway,
        HEADERS => Frame::Headers { stream: id(word()?), fin, block: payload },
        WINDOW_UPDATE => Frame::WindowUpdate { stream: id(word()?), delta: id(word()?) },
        _ => return Ok(None),
    }))
}

/// The upper bit of a stream's ID, and of a window's delta, is reserved.
fn id(word: u32) -> u32 {
    word & 0x7fff_ffff
}

fn initial_window(mut payload: Bytes) -> Result<Option<u32>, Broken> {
    let short = |_| Broken("a SETTINGS frame that is too short");
    let count = payload.try_get_u32().map_err(short)? as usize;
    if payload.len() != count.saturating_mul(8) {
        return Err(Broken("a SETTINGS frame whose length is not that of its entries"));
    }
    let mut window = None;
    for _ in 0..count {
        let key = payload.try_get_u32().map_err(short)? & 0x00ff_ffff;
        let value = payload.try_get_u32().map_err(short)?;
        if key == SETTINGS_INITIAL_WINDOW_SIZE {
            window = Some(value);
        }
    }
    Ok(window)
}

/// The header of a data frame; `length` is below 2^24.
pub fn data_header(stream: u32, fin: bool, length: usize) -> [u8; HEADER] {
    header(stream, u8::from(fin), length)
}

fn header(word: u32, flags: u8, length: usize) -> [u8; HEADER] {
    let ([a, b, c, d], [_, x, y, z]) = (word.to_be_bytes(), (length as u32).to_be_bytes());
    [a, b, c, d, flags, x, y, z]
}

fn encode(kind: u16, words: &[u32], rest: &[u8]) -> Vec<u8> {
    let length = words.len() * 4 + rest.len();
    let mut frame = Vec::with_capacity(HEADER + length);
    let word = 1 << 31 | u32::from(VERSION) << 16 | u32::from(kind);
    frame.extend_from_slice(&header(word, 0, length));
    words.iter().for_each(|word| frame.extend_from_slice(&word.to_be_bytes()));
    frame.extend_from_slice(rest);
    frame
}

pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    encode(SYN_REPLY, &[stream], block)
}

pub fn rst_stream(stream: u32, reason: Reset) -> Vec<u8> {
    encode(RST_STREAM, &[stream, reason as u32], &[])
}

pub fn ping(id: u32) -> Vec<u8> {
    encode(PING, &[id], &[])
}

pub fn go_away(last_stream: u32) -> Vec<u8> {
    encode(GOAWAY, &[last_stream, GOAWAY_PROTOCOL_ERROR], &[])
}

pub fn window_update(stream: u32, delta: u32) -> Vec<u8> {
    encode(WINDOW_UPDATE, &[stream, delta], &[])
}

/// What a client sends; for tests and fuzzing.
#[cfg(any(test, fuzzing))]
pub mod client {
    use super::*;

    pub fn syn_stream(stream: u32, fin: bool, block: &[u8]) -> Vec<u8> {
        let mut frame = encode(SYN_STREAM, &[stream, 0], &[&[0, 0], block].concat());
        frame[4] = u8::from(fin);
        frame
    }

    pub fn settings(key: u32, value: u32) -> Vec<u8> {
        encode(SETTINGS, &[1, key, value], &[])
    }

    pub fn data(stream: u32, fin: bool, content: &[u8]) -> Vec<u8> {
        [&data_header(stream, fin, content.len())[..], content].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::fuzz::{joined, parse};

    #[test]
    fn what_is_encoded_is_read() {
        let block = Bytes::from_static(b"block");
        let cases = [
            (syn_reply(7, &block), Frame::SynReply { stream: 7, fin: false, block: block.clone() }),
            (client::syn_stream(9, true, &block), Frame::SynStream { stream: 9, fin: true, block }),
            (rst_stream(3, Reset::RefusedStream), Frame::RstStream { stream: 3 }),
            (ping(u32::MAX), Frame::Ping { id: u32::MAX }),
            (go_away(5), Frame::GoAway),
            (window_update(0, 65536), Frame::WindowUpdate { stream: 0, delta: 65536 }),
            (client::settings(7, 1 << 20), Frame::Settings { initial_window: Some(1 << 20) }),
            (client::settings(4, 100), Frame::Settings { initial_window: None }),
            (client::data(1, true, b""), Frame::Data { stream: 1, fin: true, part: Bytes::new() }),
        ];
        for (bytes, frame) in cases {
            assert_eq!(parse(&bytes, &[3]), (vec![frame], None));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut other_version = ping(1);
        other_version[1] = 2;
        let mut long = ping(1);
        long[5] = 1;
        let lying = encode(SETTINGS, &[1 << 29, 7, 7], &[]);
        let short = [
            encode(SYN_STREAM, &[1, 0], &[0]),
            encode(RST_STREAM, &[], &[1]),
            encode(WINDOW_UPDATE, &[1], &[]),
            encode(SETTINGS, &[], &[]),
        ];
        for bytes in short.iter().chain([&other_version, &long, &lying]) {
            assert!(parse(bytes, &[100]).1.is_some(), "{bytes:?}");
        }
    }

    #[test]
    fn unknown_frames_are_passed_over() {
        let bytes = [encode(77, &[1, 2, 3], b"xyz"), ping(2)].concat();
        assert_eq!(parse(&bytes, &[5]), (vec![Frame::Ping { id: 2 }], None));
    }

    #[test]
    fn a_data_frame_costs_no_more_than_what_has_come() {
        let mut parser = Parser::default();
        let mut buffer = BytesMut::from(&data_header(1, true, 0xff_ffff)[..]);
        assert_eq!(parser.next(&mut buffer), Ok(None));
        buffer.extend_from_slice(b"some");
        let part = Bytes::from_static(b"some");
        assert_eq!(parser.next(&mut buffer), Ok(Some(Frame::Data { stream: 1, fin: false, part })));
        assert!(buffer.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_or_a_refusal(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            sizes in prop::collection::vec(1usize..40, 1..8),
        ) {
            let (at_once, broken) = parse(&bytes, &[usize::MAX]);
            let (in_parts, broken_too) = parse(&bytes, &sizes);
            prop_assert_eq!(broken, broken_too);
            prop_assert_eq!(joined(at_once), joined(in_parts));
        }

        #[test]
        fn frames_come_out_in_order_whatever_the_parts(
            contents in prop::collection::vec((1u32..9, any::<bool>(), prop::collection::vec(any::<u8>(), 1..90)), 1..9),
            sizes in prop::collection::vec(1usize..40, 1..8),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (number, (stream, fin, content)) in contents.iter().enumerate() {
                bytes.extend(client::data(*stream, *fin, content));
                bytes.extend(ping(number as u32));
                expected.push(Frame::Data { stream: *stream, fin: *fin, part: content.clone().into() });
                expected.push(Frame::Ping { id: number as u32 });
            }
            let (frames, broken) = parse(&bytes, &sizes);
            prop_assert_eq!((joined(frames), broken), (expected, None));
        }
    }
}
