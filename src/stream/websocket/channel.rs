//! Channels in messages: the first byte of a message says what the rest of it belongs to.
//!
//! ```text
//!  0 stdin   1 stdout   2 stderr   3 error   4 resize   255 (v5) the channel that follows is closed
//! ```
//!
//! In the base64 variants messages are text: the channel is a digit, the rest is encoded.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Buf, Bytes};

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
/// Of exec and attach.
pub const COUNT: usize = 5;
const CLOSE: u8 = 255;

/// What the client chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    pub name: &'static str,
    pub base64: bool,
    /// The status comes as JSON; before, an error was text and success was silence.
    pub status: bool,
    /// A channel can be closed.
    pub closes: bool,
}

const fn protocol(name: &'static str, base64: bool, status: bool, closes: bool) -> Protocol {
    Protocol { name, base64, status, closes }
}

/// Without a name: what a client gets that asks for nothing.
pub const PROTOCOLS: [Protocol; 6] = [
    protocol("v5.channel.k8s.io", false, true, true),
    protocol("v4.channel.k8s.io", false, true, false),
    protocol("v4.base64.channel.k8s.io", true, true, false),
    protocol("channel.k8s.io", false, false, false),
    protocol("base64.channel.k8s.io", true, false, false),
    protocol("", false, false, false),
];

/// The first of the client's list that is known.
pub fn choose<'a>(wanted: impl Iterator<Item = &'a str>) -> Option<Protocol> {
    choose_among(&PROTOCOLS.map(|protocol| protocol.name), wanted)
}

/// The first of the client's list that is among these.
pub fn choose_among<'a>(ours: &[&str], mut wanted: impl Iterator<Item = &'a str>) -> Option<Protocol> {
    let first = wanted.next().unwrap_or("");
    let name = std::iter::once(first).chain(wanted).find(|name| ours.contains(name))?;
    PROTOCOLS.iter().find(|protocol| protocol.name == name).copied()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    Data { channel: u8, content: Bytes },
    Closed { channel: u8 },
    Nothing,
}

/// The session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// What a message says, in a session with so many channels.
pub fn read(protocol: Protocol, count: usize, mut message: Bytes) -> Result<Incoming, Broken> {
    if message.is_empty() {
        return Ok(Incoming::Nothing);
    }
    let first = message.get_u8();
    if protocol.closes && first == CLOSE {
        return match message[..] {
            [channel] if usize::from(channel) < count => Ok(Incoming::Closed { channel }),
            _ => Err(Broken("a close signal that does not name one channel")),
        };
    }
    let channel = if protocol.base64 { first.wrapping_sub(b'0') } else { first };
    if usize::from(channel) >= count || message.is_empty() {
        // As the peers have it: what belongs to no channel is dropped.
        return Ok(Incoming::Nothing);
    }
    let content = match protocol.base64 {
        false => message,
        true => match BASE64_STANDARD.decode(&message) {
            Ok(content) => content.into(),
            Err(_) => return Err(Broken("a message that is not base64")),
        },
    };
    Ok(Incoming::Data { channel, content })
}

/// The content of a message in a base64 protocol.
pub fn encode(channel: u8, content: &[u8]) -> Vec<u8> {
    let mut text = String::with_capacity(1 + content.len().div_ceil(3) * 4);
    text.push(char::from(b'0' + channel));
    BASE64_STANDARD.encode_string(content, &mut text);
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> Protocol {
        choose([name].into_iter()).unwrap()
    }

    #[test]
    fn the_first_known_protocol_of_the_client_is_taken() {
        let name = |list: &[&'static str]| choose(list.iter().copied()).map(|p| p.name);
        assert_eq!(
            name(&["v9.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some("v4.channel.k8s.io")
        );
        assert_eq!(name(&[]), Some(""));
        assert_eq!(name(&["chat"]), None);
    }

    #[test]
    fn close_signals_are_of_v5_only() {
        let message = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        let (v4, v5) = (named("v4.channel.k8s.io"), named("v5.channel.k8s.io"));
        assert_eq!(read(v5, COUNT, message(&[255, 0])), Ok(Incoming::Closed { channel: 0 }));
        assert_eq!(read(v4, COUNT, message(&[255, 0])), Ok(Incoming::Nothing));
        for bad in [&[255][..], &[255, 5], &[255, 0, 0]] {
            assert!(read(v5, COUNT, message(bad)).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for protocol in PROTOCOLS {
                if let Ok(Incoming::Data { channel, content }) = read(protocol, COUNT, Bytes::from(bytes.clone())) {
                    prop_assert!(channel <= RESIZE && content.len() < bytes.len());
                }
            }
        }

        #[test]
        fn base64_goes_both_ways(channel in 0u8..5, content in prop::collection::vec(any::<u8>(), 1..200)) {
            let text = encode(channel, &content);
            prop_assert!(text.is_ascii());
            let read = read(named("v4.base64.channel.k8s.io"), COUNT, text.into());
            prop_assert_eq!(read, Ok(Incoming::Data { channel, content: content.into() }));
        }
    }
}
