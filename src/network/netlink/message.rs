//! The wire form of netlink (netlink(7)): a header of 16 bytes, a family's own header, then
//! attributes of {length u16, kind u16, value}, each padded to four bytes, host byte order.

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// The answer repeats the request's header only, not its attributes.
const NLM_F_CAPPED: u16 = 0x100;
/// The answer carries attributes that explain it.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_APPEND: u16 = 0x800;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_DUMP: u16 = 0x300;

/// What a request is for, in words, and whether the kernel will acknowledge it.
#[derive(Debug)]
pub struct Request {
    pub text: String,
    pub acknowledged: bool,
}

/// Requests to be sent together, in order.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    steps: Vec<Request>,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many requests, hence sequence numbers.
    pub fn count(&self) -> usize {
        self.steps.len()
    }

    /// Begins a request that is acknowledged; attributes follow. `step` says what it does.
    pub fn request(&mut self, step: impl Into<String>, kind: u16, flags: u16, header: &[u8]) -> &mut Self {
        self.begin(Request { text: step.into(), acknowledged: true }, kind, flags | NLM_F_ACK, header)
    }

    /// Begins a request that is answered with data, or not at all.
    pub fn unacknowledged(
        &mut self,
        step: impl Into<String>,
        kind: u16,
        flags: u16,
        header: &[u8],
    ) -> &mut Self {
        self.begin(Request { text: step.into(), acknowledged: false }, kind, flags, header)
    }

    fn begin(&mut self, step: Request, kind: u16, flags: u16, header: &[u8]) -> &mut Self {
        self.close();
        self.starts.push(self.bytes.len());
        self.steps.push(step);
        self.bytes.extend_from_slice(&0u32.to_ne_bytes()); // the length, once it is known
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]); // sequence, filled in by finish; port of ours: 0
        self.bytes.extend_from_slice(header);
        self.pad();
        self
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // No value of ours comes near 64 KiB; a longer one would be cut to a refused attribute.
        let length = u16::try_from(4 + value.len()).unwrap_or(0);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// nftables counts in network byte order.
    pub fn number_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(0);
        self.patch(start, &length.to_ne_bytes());
        self
    }

    /// A header inside an attribute, as a veth's peer has one.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// The bytes to send, numbered from `sequence` on, and what each request is for.
    pub fn finish(mut self, sequence: u32) -> (Vec<u8>, Vec<Request>) {
        self.close();
        for (i, start) in self.starts.clone().into_iter().enumerate() {
            let number = sequence.wrapping_add(u32::try_from(i).unwrap_or_default());
            self.patch(start + 8, &number.to_ne_bytes());
        }
        (self.bytes, self.steps)
    }

    /// Writes the last request's length into its header.
    fn close(&mut self) {
        if let Some(&start) = self.starts.last() {
            let length = u32::try_from(self.bytes.len() - start).unwrap_or_default();
            self.patch(start, &length.to_ne_bytes());
        }
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message of the kernel's.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The outcome of a request; errno 0 is success.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub errno: i32,
    pub hint: Option<String>,
}

impl<'a> Message<'a> {
    pub fn is_done(&self) -> bool {
        self.kind == NLMSG_DONE
    }

    /// The answer that this message is, or None if it carries data.
    pub fn error(&self) -> Option<Answer> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        let errno = i32::from_ne_bytes(*self.payload.first_chunk()?).wrapping_neg();
        let mut hint = None;
        if self.flags & NLM_F_ACK_TLVS != 0 {
            // After the errno comes the request, whole or as its header only.
            let request = if self.flags & NLM_F_CAPPED != 0 {
                HEADER
            } else {
                u32_at(self.payload, 4).map_or(HEADER, |n| (n as usize).next_multiple_of(4))
            };
            let rest = self.payload.get(4 + request..).unwrap_or_default();
            hint = attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG).map(|(_, v)| text(v));
        }
        Some(Answer { errno, hint })
    }

    /// The attributes after a family header of `header` bytes.
    pub fn attributes(&self, header: usize) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.payload.get(header..).unwrap_or_default())
    }
}

/// The whole messages in what was received; stops at the first that is torn.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// {kind, value} of each attribute; stops at the first that is torn.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A string attribute, with or without its final zero byte.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_reads_back_as_what_was_written() {
        let mut batch = Batch::new();
        batch.request("one", 16, NLM_F_CREATE, &[7; 16]).text(3, "eth0").nest(18, |b| {
            b.text(1, "veth").number(9, 5);
        });
        batch.unacknowledged("two", 18, 0, &[]);
        let (bytes, steps) = batch.finish(41);
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(16, 41), (18, 42)]);
        assert_eq!(read[0].flags, NLM_F_CREATE | NLM_F_ACK | NLM_F_REQUEST);
        let attrs: Vec<_> = read[0].attributes(16).collect();
        assert_eq!((attrs[0].0, text(attrs[0].1).as_str()), (3, "eth0"));
        let nested: Vec<_> = attributes(attrs[1].1).collect();
        assert_eq!(nested[1], (9, &5u32.to_ne_bytes()[..]));
        assert_eq!(steps.iter().map(|s| s.acknowledged).collect::<Vec<_>>(), [true, false]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for message in messages(&bytes) {
                let _ = message.error();
                prop_assert!(message.attributes(16).count() <= 64);
            }
        }
    }
}
