//! The CRI's log format: bytes of a stream to lines of the log file. Pure.
//!
//! ```text
//! 2026-11-24T19:01:13.123456789Z stdout F text\n
//! ```
//!
//! - A newline ends a line: tag F. The text is kept as it is, a carriage return before the newline
//!   included.
//! - Text of more than [`LINE_LIMIT`] bytes is cut into pieces of exactly so many, tag P, and a last
//!   one with F; text of just the limit is one line with F. (containerd has the same bound, by its
//!   max_container_log_line_size; CRI-O cuts wherever one of its reads of 8 KiB ends.)
//! - The last bytes of a stream that ends without a newline get P, as containerd does it: a reader
//!   of the log (kubelet) drops the newline of a P line, so that it prints what the program wrote.
//!
//! A piece is cut only once a further byte of its line is known. So the format has no state: what
//! is left of a text can be put before the bytes that follow, and the result is that of the whole.

use super::note::Stream;
use crate::sys::wiping::Unforked;

/// Bytes of text in one line of the log at most.
pub const LINE_LIMIT: usize = 16 * 1024;

/// Formatting stops after the line that reaches this many bytes: 64 KiB of empty lines would
/// otherwise become 2.6 MiB.
const OUT_LIMIT: usize = 256 * 1024;
/// Room for that line, and for one that is split for want of a place to carry it.
pub const OUT_CAPACITY: usize = OUT_LIMIT + 2 * (LINE_LIMIT + PREFIX_LENGTH + 1);

const TIMESTAMP_LENGTH: usize = 30;
/// Timestamp, ` stdout `, tag, space.
const PREFIX_LENGTH: usize = TIMESTAMP_LENGTH + 10;

/// What stands before the text of each line of one batch.
pub struct Prefix {
    full: [u8; PREFIX_LENGTH],
    partial: [u8; PREFIX_LENGTH],
}

impl Prefix {
    /// `at` is in nanoseconds since the epoch.
    pub fn new(stream: Stream, at: i64) -> Self {
        let mut full = [0; PREFIX_LENGTH];
        full[..TIMESTAMP_LENGTH].copy_from_slice(&timestamp(at));
        full[TIMESTAMP_LENGTH..].copy_from_slice(match stream {
            Stream::Stdout => b" stdout F ",
            Stream::Stderr => b" stderr F ",
        });
        let mut partial = full;
        partial[PREFIX_LENGTH - 2] = b'P';
        Self { full, partial }
    }
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formatted {
    /// Bytes of it that are in the output.
    pub used: usize,
    /// The output is at its limit: there may be whole lines in the rest.
    pub full: bool,
}

/// Appends the lines of `text` to `out`. An unfinished line at the end is left, unless `flush`.
pub fn format(prefix: &Prefix, text: &[u8], flush: bool, out: &mut Unforked) -> Formatted {
    let mut used = 0;
    while out.len() < OUT_LIMIT {
        let rest = &text[used..];
        let window = &rest[..rest.len().min(LINE_LIMIT + 1)];
        let Some(end) = memchr::memchr(b'\n', window) else {
            let piece = match rest.len() {
                0 => return Formatted { used, full: false },
                length if length > LINE_LIMIT => LINE_LIMIT,
                length if flush => length,
                _ => return Formatted { used, full: false },
            };
            out.extend_from_slice(&prefix.partial);
            out.extend_from_slice(&rest[..piece]);
            out.push(b'\n');
            used += piece;
            continue;
        };
        out.extend_from_slice(&prefix.full);
        out.extend_from_slice(&rest[..=end]);
        used += end + 1;
    }
    Formatted { used, full: true }
}

/// RFC 3339 with nanoseconds in UTC, always 9 digits, as kubelet prints it. Years 1970 to 9999.
fn timestamp(at: i64) -> [u8; TIMESTAMP_LENGTH] {
    let at = at.max(0) as u64;
    let (seconds, nanos) = (at / 1_000_000_000, at % 1_000_000_000);
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], of_day / 3600);
    digits(&mut text[14..16], of_day / 60 % 60);
    digits(&mut text[17..19], of_day % 60);
    digits(&mut text[20..29], nanos);
    text
}

fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that
/// the leap day is the last, in eras of 400 years (146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: i64 = 1_795_546_873_000_000_007;

    fn one_go(text: &[u8], flush: bool) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        let mut used = 0;
        loop {
            let mut part = Unforked::with_capacity(OUT_CAPACITY).unwrap();
            let formatted = format(&Prefix::new(Stream::Stdout, AT), &text[used..], flush, &mut part);
            out.extend_from_slice(&part);
            used += formatted.used;
            if !formatted.full {
                return (out, used);
            }
        }
    }

    /// The tag and the text of each line.
    fn lines(out: &[u8]) -> Vec<(u8, &[u8])> {
        let mut lines = Vec::new();
        for line in out.split_inclusive(|b| *b == b'\n') {
            assert!(line.starts_with(b"2026-11-24T19:01:13.000000007Z stdout "), "{line:?}");
            lines.push((line[PREFIX_LENGTH - 2], &line[PREFIX_LENGTH..line.len() - 1]));
        }
        lines
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![
            8 => 0usize..200,
            1 => LINE_LIMIT - 2..LINE_LIMIT + 3,
            1 => 2 * LINE_LIMIT - 1..2 * LINE_LIMIT + 2,
        ];
        prop::collection::vec((length, any::<u8>()), 0..12).prop_map(|parts| {
            let mut text = Vec::new();
            for (length, byte) in parts {
                text.extend(std::iter::repeat_n(if byte == b'\n' { b'x' } else { byte }, length));
                text.push(b'\n');
            }
            text.pop();
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn text_split_anywhere_gives_the_same_lines(text in text(), cuts in prop::collection::vec(1usize..40_000, 1..40)) {
            let (expected, used) = one_go(&text, false);
            let (mut out, mut carry, mut at) = (Vec::new(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(text.len());
                carry.extend_from_slice(&text[at..end]);
                at = end;
                let (part, part_used) = one_go(&carry, false);
                out.extend(part);
                carry.drain(..part_used);
                prop_assert!(carry.len() <= LINE_LIMIT);
                if at == text.len() {
                    break;
                }
            }
            prop_assert_eq!(out, expected);
            prop_assert_eq!(carry.len(), text.len() - used);
        }

        #[test]
        fn a_reader_gets_the_very_bytes_back(text in text()) {
            let (out, used) = one_go(&text, true);
            prop_assert_eq!(used, text.len());
            let mut back = Vec::new();
            for (tag, line) in lines(&out) {
                prop_assert!(line.len() <= LINE_LIMIT);
                prop_assert!(tag == b'F' || !line.is_empty());
                back.extend_from_slice(line);
                if tag == b'F' {
                    back.push(b'\n');
                }
            }
            prop_assert_eq!(back, text);
        }
    }

    #[test]
    fn behaviour_17_lines_are_split_at_16_kib() {
        let text =
            [vec![b'a'; LINE_LIMIT], b"\n".to_vec(), vec![b'b'; LINE_LIMIT + 1], b"\r\n".to_vec()].concat();
        let (out, _) = one_go(&text, false);
        let shape: Vec<_> = lines(&out).iter().map(|(tag, line)| (*tag, line.len())).collect();
        assert_eq!(shape, [(b'F', LINE_LIMIT), (b'P', LINE_LIMIT), (b'F', 2)]);
        assert_eq!(lines(&out)[2].1, b"b\r");
    }

    #[test]
    fn a_flood_of_empty_lines_is_bounded() {
        let mut out = Unforked::with_capacity(OUT_CAPACITY).unwrap();
        let formatted = format(&Prefix::new(Stream::Stderr, AT), &[b'\n'; 65_536], false, &mut out);
        assert!(formatted.full && formatted.used < 65_536 && out.len() < OUT_LIMIT + 100);
    }

    #[test]
    fn timestamps_are_those_of_the_calendar() {
        let text = |at: i64| String::from_utf8(timestamp(at).to_vec()).unwrap();
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_399_999_999_999), "2000-02-28T23:59:59.999999999Z");
        assert_eq!(text(951_782_400_000_000_000), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(text(1_709_210_096_000_000_001), "2024-02-29T12:34:56.000000001Z");
        assert_eq!(text(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
    }
}
