//! The hot loop of decoding.

use std::io;

use super::table::{DIST_BITS, END, INVALID, LITERAL, LITLEN_BITS, LITLEN_SIZE, SPECIAL, value};
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
/// room is short, or to the block's end: true. All that it changes is in registers, since everything
/// below is inlined into it.
#[inline(always)]
pub fn run(
    tables: &Tables,
    input: &[u8],
    out: &mut [u8],
    room: (usize, usize),
    position: Position,
) -> (Position, io::Result<bool>) {
    let Position { read, bits, count, at } = position;
    let mut bits = Bits { input, read, bits, count };
    let mut out = Out { bytes: out, at };
    let ended = turns(tables, &mut bits, &mut out, room);
    (Position { read: bits.read, bits: bits.bits, count: bits.count, at: out.at }, ended.map_err(malformed))
}

struct Bits<'a> {
    input: &'a [u8],
    read: usize,
    bits: u64,
    count: u32,
}

impl Bits<'_> {
    /// They become 56 at least. Those above `count` come again with the next word: the same ones.
    /// False without 8 bytes of input, of which there is always so much, see AHEAD.
    #[inline(always)]
    fn refill(&mut self) -> bool {
        let Some(&[a, b, c, d, e, f, g, h]) = self.input.get(self.read..self.read + 8) else { return false };
        self.bits |= u64::from_le_bytes([a, b, c, d, e, f, g, h]) << (self.count & 63);
        self.read += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
        true
    }

    /// Drops the code that `entry` stands for.
    #[inline(always)]
    fn drop(&mut self, entry: u32) {
        self.bits >>= entry & 63;
        self.count = self.count.wrapping_sub(entry & 63);
    }

    #[inline(always)]
    fn next(&self, litlens: &[u32; LITLEN_SIZE]) -> u32 {
        litlens[(self.bits & ((1 << LITLEN_BITS) - 1)) as usize]
    }
}

struct Out<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Out<'_> {
    #[inline(always)]
    fn literal(&mut self, entry: u32) {
        self.bytes[self.at] = (entry >> 16) as u8;
        self.at += 1;
    }
}

/// What comes after literals.
enum Then {
    /// A length, whose code was looked up, not yet dropped.
    Length(u32),
    /// Another turn, for what was looked up after a refill.
    Turn(u32),
    End,
    Refused,
    /// The input is short.
    Short,
}

/// A turn is up to three literals, or up to two and a match.
#[inline(always)]
fn turns(
    tables: &Tables,
    bits: &mut Bits<'_>,
    out: &mut Out<'_>,
    (oldest, full): (usize, usize),
) -> Result<bool, &'static str> {
    let last = bits.input.len() - AHEAD;
    if !bits.refill() {
        return Ok(false);
    }
    // What comes next is looked up before this one is written.
    let mut entry = bits.next(&tables.litlen);
    loop {
        if bits.read > last || out.at >= full {
            return Ok(false);
        }
        let then = match literals(&tables.litlen, bits, out, entry) {
            Then::Length(entry) if entry & SPECIAL != 0 => special(&tables.litlen, bits, out, entry),
            then => then,
        };
        let len = match then {
            Then::Length(entry) => {
                let len = value(entry, bits.bits);
                bits.drop(entry);
                len
            }
            Then::Turn(next) => {
                entry = next;
                continue;
            }
            Then::End => return Ok(true),
            Then::Refused => return Err("a code is unknown"),
            Then::Short => return Ok(false),
        };
        if !bits.refill() {
            return Ok(false);
        }
        let distance = distance(tables, bits)?;
        if distance > out.at - oldest {
            return Err("a match refers to what is before the beginning");
        }
        if !bits.refill() {
            return Ok(false);
        }
        entry = bits.next(&tables.litlen);
        repeat(out.bytes, out.at, distance, len);
        out.at += len;
    }
}

/// 56 bits are three literals at most, or two and a length, whose distance has new ones.
#[inline(always)]
fn literals(litlens: &[u32; LITLEN_SIZE], bits: &mut Bits<'_>, out: &mut Out<'_>, mut entry: u32) -> Then {
    if entry & LITERAL == 0 {
        return Then::Length(entry);
    }
    bits.drop(entry);
    let literal = entry;
    entry = bits.next(litlens);
    out.literal(literal);
    if entry & LITERAL == 0 {
        return Then::Length(entry);
    }
    bits.drop(entry);
    let literal = entry;
    entry = bits.next(litlens);
    out.literal(literal);
    if entry & LITERAL == 0 {
        return Then::Length(entry);
    }
    last_literal(litlens, bits, out, entry)
}

#[inline(always)]
fn last_literal(litlens: &[u32; LITLEN_SIZE], bits: &mut Bits<'_>, out: &mut Out<'_>, entry: u32) -> Then {
    bits.drop(entry);
    out.literal(entry);
    if bits.refill() { Then::Turn(bits.next(litlens)) } else { Then::Short }
}

/// A code that is too long for the main table, the block's end, or none.
#[inline(always)]
fn special(litlens: &[u32; LITLEN_SIZE], bits: &mut Bits<'_>, out: &mut Out<'_>, mut entry: u32) -> Then {
    if entry & (END | INVALID) == 0 {
        bits.drop(entry);
        entry = litlens[subtable(entry, bits.bits)];
    }
    if entry & LITERAL != 0 {
        return last_literal(litlens, bits, out, entry);
    }
    if entry & SPECIAL == 0 {
        return Then::Length(entry);
    }
    bits.drop(entry);
    if entry & END != 0 { Then::End } else { Then::Refused }
}

#[inline(always)]
fn distance(tables: &Tables, bits: &mut Bits<'_>) -> Result<usize, &'static str> {
    let mut entry = tables.dist[(bits.bits & ((1 << DIST_BITS) - 1)) as usize];
    if entry & SPECIAL != 0 {
        if entry & INVALID == 0 {
            bits.drop(entry);
            entry = tables.dist[subtable(entry, bits.bits)];
        }
        if entry & SPECIAL != 0 {
            return Err("a distance's code is unknown");
        }
    }
    let distance = value(entry, bits.bits);
    bits.drop(entry);
    Ok(distance)
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
