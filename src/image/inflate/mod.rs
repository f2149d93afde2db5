//! Decompresses gzip: members (RFC 1952) of DEFLATE blocks (RFC 1951), as a stream.
//!
//! Inflating is most of what a pull costs. zlib-rs does 290 MB/s of output where a loop that looks at
//! 64 bits of input at once does 450; libdeflate, with 520, wants a whole layer in memory.
//! Each block of output begins with the 32 KiB that came before it, since matches refer to them.
//!
//! A member's CRC-32 and length are read over, not compared: the digest of what goes in and that of
//! what comes out are, by those who call this.

mod fast;
mod table;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead};

use crate::sys::cpu;
use fast::{Position, repeat, run, subtable};
use table::{DIST_BITS, END, INVALID, LITERAL, LITLEN_BITS, PRECODE_BITS, SPECIAL, value};

/// How far back a match may refer.
pub const HISTORY: usize = 32 << 10;
/// What a match may have, and how much further a copy of it may write.
const MAX_MATCH: usize = 258;
const OVERRUN: usize = 32;
/// What a buffer has beyond what is a full block: a turn of the fast loop that begins one byte short of
/// that writes two literals and a match.
const SLACK: usize = 2 + MAX_MATCH + OVERRUN;
/// Input that must be there for a turn of the fast loop: three loads of 8 bytes.
const AHEAD: usize = 32;
/// Bits that any literal, length or distance has at most, with its extra bits.
const MAX_SYMBOL: u32 = 28;

/// One block of output: what is new are the bytes from `from` on.
pub struct Block {
    pub bytes: Vec<u8>,
    pub from: usize,
}

impl Block {
    pub fn fresh(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

/// Decompresses `input`, all members, up to its end. `put` takes a block of about `size` bytes and
/// returns a buffer for the next. InvalidData for what is not gzip, UnexpectedEof where it is cut off.
pub fn gunzip<R: BufRead>(
    input: &mut R,
    size: usize,
    put: impl FnMut(Block) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    let input = Bits { input, bits: 0, count: 0 };
    let tables = Tables {
        litlen: Box::new([0; table::LITLEN_SIZE]),
        dist: [0; table::DIST_SIZE],
        precode: [0; table::PRECODE_SIZE],
    };
    let full = HISTORY + size;
    let output =
        Output { bytes: vec![0; full + SLACK], at: HISTORY, from: HISTORY, oldest: HISTORY, full, put };
    let mut stream = Stream { input, tables, output };
    loop {
        stream.member()?;
        if stream.input.is_at_end()? {
            break;
        }
    }
    stream.output.last()
}

fn malformed(cause: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the gzip stream is cut off")
}

/// The input, bit by bit. Bits of `bits` above `count` are zero or what the input goes on with.
struct Bits<'a, R> {
    input: &'a mut R,
    bits: u64,
    count: u32,
}

impl<R: BufRead> Bits<'_, R> {
    /// Sees to it that there are `count` bits (56 at most), or all that the input has.
    fn want(&mut self, count: u32) -> io::Result<()> {
        while self.count < count {
            let buffer = self.input.fill_buf()?;
            if let Some(word) = buffer.first_chunk::<8>() {
                let taken = (63 - self.count) >> 3;
                self.bits |= u64::from_le_bytes(*word) << self.count;
                self.count += taken * 8;
                self.input.consume(taken as usize);
                continue;
            }
            let Some(&byte) = buffer.first() else { break };
            self.bits |= u64::from(byte) << self.count;
            self.count += 8;
            self.input.consume(1);
        }
        Ok(())
    }

    fn drop(&mut self, count: u32) -> io::Result<()> {
        self.count = self.count.checked_sub(count).ok_or_else(cut_off)?;
        self.bits >>= count;
        Ok(())
    }

    fn take(&mut self, count: u32) -> io::Result<u32> {
        self.want(count)?;
        let value = self.bits & ((1 << count) - 1);
        self.drop(count)?;
        Ok(value as u32)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(8)? as u8)
    }

    fn align(&mut self) -> io::Result<()> {
        self.drop(self.count & 7)
    }

    fn skip_text(&mut self) -> io::Result<()> {
        while self.byte()? != 0 {}
        Ok(())
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        self.want(8)?;
        Ok(self.count == 0)
    }
}

struct Tables {
    litlen: Box<[u32; table::LITLEN_SIZE]>,
    dist: [u32; table::DIST_SIZE],
    precode: [u32; table::PRECODE_SIZE],
}

struct Output<P> {
    /// As long as `full`, and room for what a match may write beyond that.
    bytes: Vec<u8>,
    at: usize,
    /// Where what was not put yet begins.
    from: usize,
    /// Where the present member begins: nothing refers to what is before that.
    oldest: usize,
    full: usize,
    put: P,
}

impl<P: FnMut(Block) -> io::Result<Vec<u8>>> Output<P> {
    /// Puts the block, and goes on in another buffer with the history.
    fn flush(&mut self) -> io::Result<()> {
        let mut history = [0; HISTORY];
        let start = self.at - HISTORY;
        history.copy_from_slice(&self.bytes[start..self.at]);
        self.last()?;
        self.bytes.resize(self.full + SLACK, 0);
        self.bytes[..HISTORY].copy_from_slice(&history);
        self.oldest = self.oldest.saturating_sub(start);
        (self.at, self.from) = (HISTORY, HISTORY);
        Ok(())
    }

    fn last(&mut self) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(self.at);
        if self.at > self.from {
            self.bytes = (self.put)(Block { bytes, from: self.from })?;
        }
        Ok(())
    }

    /// There is always room for one more match.
    fn copy(&mut self, distance: usize, len: usize) -> io::Result<()> {
        if distance > self.at - self.oldest {
            return Err(malformed("a match refers to what is before the beginning"));
        }
        repeat(&mut self.bytes, self.at, distance, len);
        self.at += len;
        if self.at >= self.full { self.flush() } else { Ok(()) }
    }
}

struct Stream<'a, R, P> {
    input: Bits<'a, R>,
    tables: Tables,
    output: Output<P>,
}

impl<R: BufRead, P: FnMut(Block) -> io::Result<Vec<u8>>> Stream<'_, R, P> {
    fn member(&mut self) -> io::Result<()> {
        const CRC: u8 = 2;
        const EXTRA: u8 = 4;
        const NAME: u8 = 8;
        const COMMENT: u8 = 16;
        let input = &mut self.input;
        if (input.byte()?, input.byte()?, input.byte()?) != (0x1f, 0x8b, 8) {
            return Err(malformed("it is not gzip"));
        }
        let flags = input.byte()?;
        if flags & 0xe0 != 0 {
            return Err(malformed("its gzip header has unknown flags"));
        }
        // Time, level, system.
        for _ in 0..6 {
            input.byte()?;
        }
        if flags & EXTRA != 0 {
            for _ in 0..input.take(16)? {
                input.byte()?;
            }
        }
        for field in [NAME, COMMENT] {
            if flags & field != 0 {
                input.skip_text()?;
            }
        }
        if flags & CRC != 0 {
            input.take(16)?;
        }
        self.output.oldest = self.output.at;
        while !self.block()? {}
        self.input.align()?;
        self.input.take(32)?;
        self.input.take(32)?;
        Ok(())
    }

    /// True for a member's last block.
    fn block(&mut self) -> io::Result<bool> {
        let last = self.input.take(1)? == 1;
        match self.input.take(2)? {
            0 => self.stored()?,
            1 => {
                self.fixed_tables()?;
                self.compressed()?;
            }
            2 => {
                self.dynamic_tables()?;
                self.compressed()?;
            }
            _ => return Err(malformed("a block's type is unknown")),
        }
        Ok(last)
    }

    fn stored(&mut self) -> io::Result<()> {
        self.input.align()?;
        let (len, complement) = (self.input.take(16)?, self.input.take(16)?);
        if len != !complement & 0xffff {
            return Err(malformed("a stored block's length is wrong"));
        }
        let mut left = len as usize;
        while left > 0 && self.input.count > 0 {
            self.output.bytes[self.output.at] = self.input.byte()?;
            self.output.at += 1;
            left -= 1;
        }
        // What follows is not read by way of the bits.
        if self.input.count == 0 {
            self.input.bits = 0;
        }
        while left > 0 {
            if self.output.at >= self.output.full {
                self.output.flush()?;
            }
            let buffer = self.input.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(cut_off());
            }
            let part = left.min(buffer.len()).min(self.output.full - self.output.at);
            self.output.bytes[self.output.at..][..part].copy_from_slice(&buffer[..part]);
            self.input.input.consume(part);
            self.output.at += part;
            left -= part;
        }
        if self.output.at >= self.output.full { self.output.flush() } else { Ok(()) }
    }

    fn fixed_tables(&mut self) -> io::Result<()> {
        let mut lengths = [8; table::LITLEN_SYMBOLS];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.build(&lengths, &[5; table::DIST_SYMBOLS])
    }

    fn dynamic_tables(&mut self) -> io::Result<()> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let input = &mut self.input;
        let litlens = input.take(5)? as usize + 257;
        let dists = input.take(5)? as usize + 1;
        let precodes = input.take(4)? as usize + 4;
        if litlens > 286 || dists > 30 {
            return Err(malformed("a block has too many codes"));
        }
        let mut lengths = [0; 19];
        for &symbol in &ORDER[..precodes] {
            lengths[symbol] = input.take(3)? as u8;
        }
        table::build(&mut self.tables.precode, PRECODE_BITS, &lengths, table::precode)
            .ok_or_else(|| malformed("a code of code lengths is none"))?;
        let mut lengths = [0_u8; table::LITLEN_SYMBOLS + table::DIST_SYMBOLS];
        let mut at = 0;
        while at < litlens + dists {
            input.want(14)?;
            let entry = self.tables.precode[(input.bits & ((1 << PRECODE_BITS) - 1)) as usize];
            if entry & SPECIAL != 0 {
                return Err(malformed("a code length's code is unknown"));
            }
            let symbol = (entry >> 16) as u8;
            input.drop(entry & 0xff)?;
            let (len, times) = match symbol {
                16 if at == 0 => return Err(malformed("the first code length repeats another")),
                16 => (lengths[at - 1], 3 + input.take(2)?),
                17 => (0, 3 + input.take(3)?),
                18 => (0, 11 + input.take(7)?),
                len => (len, 1),
            };
            let end = at + times as usize;
            if end > litlens + dists {
                return Err(malformed("a block has too many code lengths"));
            }
            lengths[at..end].fill(len);
            at = end;
        }
        if lengths[256] == 0 {
            return Err(malformed("a block has no end"));
        }
        let (litlens, rest) = lengths.split_at(litlens);
        self.build(litlens, &rest[..dists])
    }

    fn build(&mut self, litlens: &[u8], dists: &[u8]) -> io::Result<()> {
        table::build(self.tables.litlen.as_mut_slice(), LITLEN_BITS, litlens, table::litlen)
            .and_then(|()| table::build(&mut self.tables.dist, DIST_BITS, dists, table::distance))
            .ok_or_else(|| malformed("a block's code is none"))
    }

    fn compressed(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.input.input.fill_buf()?;
            if buffer.len() >= AHEAD {
                let Output { bytes, oldest, full, at, .. } = &mut self.output;
                let Bits { bits, count, .. } = self.input;
                let start = Position { read: 0, bits, count, at: *at };
                let (tables, room) = (&self.tables, (*oldest, *full));
                let (end, ended) = cpu::with_bit_instructions(
                    #[inline(always)]
                    || run(tables, buffer, bytes, room, start),
                );
                (self.input.bits, self.input.count, self.output.at) = (end.bits, end.count, end.at);
                self.input.input.consume(end.read);
                let ended = ended?;
                if self.output.at >= self.output.full {
                    self.output.flush()?;
                }
                if ended {
                    return Ok(());
                }
                continue;
            }
            if self.symbol()? {
                return Ok(());
            }
        }
    }

    /// One literal or match, where little input is at hand. True at the block's end.
    fn symbol(&mut self) -> io::Result<bool> {
        let input = &mut self.input;
        input.want(MAX_SYMBOL)?;
        let mut entry = self.tables.litlen[(input.bits & ((1 << LITLEN_BITS) - 1)) as usize];
        if entry & (SPECIAL | LITERAL | END | INVALID) == SPECIAL {
            input.drop(entry & 0xff)?;
            entry = self.tables.litlen[subtable(entry, input.bits)];
        }
        let bits = input.bits;
        input.drop(entry & 0xff)?;
        if entry & LITERAL != 0 {
            self.output.bytes[self.output.at] = (entry >> 16) as u8;
            self.output.at += 1;
            if self.output.at >= self.output.full {
                self.output.flush()?;
            }
            return Ok(false);
        }
        if entry & SPECIAL != 0 {
            return if entry & END != 0 { Ok(true) } else { Err(malformed("a code is unknown")) };
        }
        let len = value(entry, bits);
        input.want(MAX_SYMBOL)?;
        let mut entry = self.tables.dist[(input.bits & ((1 << DIST_BITS) - 1)) as usize];
        if entry & (SPECIAL | INVALID) == SPECIAL {
            input.drop(entry & 0xff)?;
            entry = self.tables.dist[subtable(entry, input.bits)];
        }
        if entry & SPECIAL != 0 {
            return Err(malformed("a distance's code is unknown"));
        }
        let distance = value(entry, input.bits);
        input.drop(entry & 0xff)?;
        self.output.copy(distance, len)?;
        Ok(false)
    }
}
