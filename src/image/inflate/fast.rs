//! The hot loop of decoding.

use std::io;

use super::table::{DIST_BITS, END, INVALID, LITERAL, LITLEN_BITS, SPECIAL, value};
use super::{AHEAD, OVERRUN, Tables, malformed};

/// Where the subtable has the entry of what `bits` go on with.
#[inline(always)]
pub fn subtable(entry: u32, bits: u64) -> usize {
    (entry >> 16 & 0x7fff) as usize + (bits & ((1 << (entry >> 8 & 15)) - 1)) as usize
}

/// What the hot loop begins with and ends with.
#[derive(Clone, Copy)]
pub struct Position {
    /// Bytes of the input taken.
    pub read: usize,
    pub bits: u64,
    pub count: u32,
    /// Where the next byte of the output goes.
    pub at: usize,
}

/// The hot loop, on input (AHEAD bytes at least) and output that are at hand: runs until input or
/// room is short, or to the block's end: true. All that it changes is in registers.
#[inline(always)]
pub fn run(
    tables: &Tables,
    input: &[u8],
    out: &mut [u8],
    (oldest, full): (usize, usize),
    position: Position,
) -> (Position, io::Result<bool>) {
    let Position { mut read, mut bits, mut count, mut at } = position;
    let litlens = &*tables.litlen;
    // Bits become 56 at least. Those above `count` come again with the next word: the same ones.
    macro_rules! refill {
        ($end:lifetime) => {
            // There is always so much, see AHEAD.
            let Some(word) = input.get(read..read + 8) else { break $end Ok(false) };
            bits |= u64::from_le_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ]) << (count & 63);
            read += ((63 - count) >> 3) as usize;
            count |= 56;
        };
    }
    macro_rules! drop_code {
        ($entry:expr) => {
            bits >>= $entry & 63;
            count = count.wrapping_sub($entry & 63);
        };
    }
    macro_rules! literal {
        ($entry:expr) => {
            out[at] = ($entry >> 16) as u8;
            at += 1;
        };
    }
    macro_rules! look_up {
        () => {
            litlens[(bits & ((1 << LITLEN_BITS) - 1)) as usize]
        };
    }
    let last = input.len() - AHEAD;
    let ended = 'run: {
        refill!('run);
        // What comes next is looked up before this one is written.
        let mut entry = look_up!();
        loop {
            if read > last || at >= full {
                break 'run Ok(false);
            }
            // 56 bits are three literals at most, or two and a length, whose distance has new ones.
            if entry & LITERAL != 0 {
                drop_code!(entry);
                let literal = entry;
                entry = look_up!();
                literal!(literal);
                if entry & LITERAL != 0 {
                    drop_code!(entry);
                    let literal = entry;
                    entry = look_up!();
                    literal!(literal);
                    if entry & LITERAL != 0 {
                        drop_code!(entry);
                        literal!(entry);
                        refill!('run);
                        entry = look_up!();
                        continue;
                    }
                }
            }
            if entry & SPECIAL != 0 {
                if entry & (END | INVALID) == 0 {
                    drop_code!(entry);
                    entry = litlens[subtable(entry, bits)];
                }
                if entry & LITERAL != 0 {
                    drop_code!(entry);
                    literal!(entry);
                    refill!('run);
                    entry = look_up!();
                    continue;
                }
                if entry & SPECIAL != 0 {
                    drop_code!(entry);
                    break 'run if entry & END != 0 { Ok(true) } else { Err(malformed("a code is unknown")) };
                }
            }
            let len = value(entry, bits);
            drop_code!(entry);
            refill!('run);
            entry = tables.dist[(bits & ((1 << DIST_BITS) - 1)) as usize];
            if entry & SPECIAL != 0 {
                if entry & INVALID == 0 {
                    drop_code!(entry);
                    entry = tables.dist[subtable(entry, bits)];
                }
                if entry & SPECIAL != 0 {
                    break 'run Err(malformed("a distance's code is unknown"));
                }
            }
            let distance = value(entry, bits);
            drop_code!(entry);
            if distance > at - oldest {
                break 'run Err(malformed("a match refers to what is before the beginning"));
            }
            refill!('run);
            entry = look_up!();
            repeat(out, at, distance, len);
            at += len;
        }
    };
    (Position { read, bits, count, at }, ended)
}

/// Writes `len` bytes at `at` that repeat what is `distance` before; up to OVERRUN more may change.
#[inline(always)]
pub fn repeat(out: &mut [u8], at: usize, distance: usize, len: usize) {
    let from = at - distance;
    let out = &mut out[from..at + len + OVERRUN];
    if distance >= 16 {
        let mut done = 0;
        while done < len {
            let (before, after) = out.split_at_mut(done + distance);
            if let (Some(from), Some(to)) =
                (before[done..].first_chunk::<16>(), after.first_chunk_mut::<16>())
            {
                *to = *from;
            }
            done += 16;
        }
    } else if distance == 1 {
        let byte = out[0];
        out[1..][..len].fill(byte);
    } else {
        for step in 0..len {
            out[distance + step] = out[step];
        }
    }
}
