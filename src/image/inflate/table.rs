//! Decoding tables of Huffman codes (RFC 1951, 3.2.2).
//!
//! A table is indexed by the next bits of the input; codes longer than its main part continue in a
//! subtable. An entry is one number, so that the hot loop loads it once:
//!
//! ```text
//! bit   31      LITERAL
//!       16..31  the literal; the base of a length or distance; where a subtable begins
//!       15      SPECIAL: none of these, or a subtable
//!       14, 13  END of the block, INVALID
//!       8..12   bits of the code (of the part not yet consumed); of a subtable: its index bits
//!       0..8    bits to consume: those of the code and of the extra bits that follow it
//! ```

pub const LITERAL: u32 = 1 << 31;
pub const SPECIAL: u32 = 1 << 15;
pub const END: u32 = 1 << 14;
pub const INVALID: u32 = 1 << 13;

pub const LITLEN_BITS: u32 = 11;
pub const DIST_BITS: u32 = 8;
pub const PRECODE_BITS: u32 = 7;
/// Codes have at most so many bits.
const MAX_BITS: usize = 15;
/// Entries that the worst codes need with their subtables (zlib's `enough`): 2342 for 288 symbols
/// behind 11 bits, 402 for 32 behind 8. Rounded up.
pub const LITLEN_SIZE: usize = 2400;
pub const DIST_SIZE: usize = 416;
pub const PRECODE_SIZE: usize = 1 << PRECODE_BITS;

/// Symbols that a literal and length code can have; the last two mean nothing.
pub const LITLEN_SYMBOLS: usize = 288;
pub const DIST_SYMBOLS: usize = 32;

/// Base and extra bits of each length from symbol 257 on.
const LENGTHS: [(u32, u32); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// The same of distances.
const DISTANCES: [(u32, u32); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12289, 12),
    (16385, 13),
    (24577, 13),
];

/// An entry without the bits of its code.
pub type Symbol = u32;

pub fn litlen(symbol: usize) -> Symbol {
    match symbol {
        0..256 => LITERAL | (symbol as u32) << 16,
        256 => SPECIAL | END,
        _ => LENGTHS.get(symbol - 257).map_or(SPECIAL | INVALID, |&(base, extra)| base << 16 | extra),
    }
}

pub fn distance(symbol: usize) -> Symbol {
    DISTANCES.get(symbol).map_or(SPECIAL | INVALID, |&(base, extra)| base << 16 | extra)
}

/// The code of code lengths.
pub fn precode(symbol: usize) -> Symbol {
    (symbol as u32) << 16
}

/// What `entry` stands for, its extra bits added; `bits` begins with its code.
pub fn value(entry: u32, bits: u64) -> usize {
    let mask = (1_u64 << (entry & 0xff)) - 1;
    (entry >> 16 & 0x7fff) as usize + ((bits & mask) >> (entry >> 8 & 15)) as usize
}

/// Builds the table of the code whose symbols have codes of `lengths` bits (0: none). None where
/// that is no code, as zlib has it: an incomplete one is legitimate only where it has one code of
/// one bit, or none at all.
pub fn build(
    table: &mut [u32],
    main_bits: u32,
    lengths: &[u8],
    symbol: impl Fn(usize) -> Symbol,
) -> Option<()> {
    let mut counts = [0_usize; MAX_BITS + 1];
    lengths.iter().for_each(|len| counts[usize::from(*len)] += 1);
    let used = lengths.len() - counts[0];
    counts[0] = 0;
    let mut space = 1_usize << MAX_BITS;
    for (len, count) in counts.iter().enumerate().skip(1) {
        space = space.checked_sub(count << (MAX_BITS - len))?;
    }
    if space > 0 && !(used == 0 || used == 1 && counts[1] == 1) {
        return None;
    }
    // Symbols in the order of their codes.
    let mut starts = [0_usize; MAX_BITS + 2];
    for len in 1..=MAX_BITS {
        starts[len + 1] = starts[len] + counts[len];
    }
    let mut sorted = [0_u16; LITLEN_SYMBOLS];
    for (symbol, len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
        let next = &mut starts[usize::from(*len)];
        sorted[*next] = symbol as u16;
        *next += 1;
    }
    let mut code = Codes { table, main_bits, symbol, code: 0, end: 0 };
    code.fill(&counts, &sorted)
}

struct Codes<'a, S> {
    table: &'a mut [u32],
    main_bits: u32,
    symbol: S,
    /// The next code, its first bit lowest: the order of bits in the input.
    code: usize,
    /// Of the subtables so far.
    end: usize,
}

impl<S: Fn(usize) -> Symbol> Codes<'_, S> {
    fn fill(&mut self, counts: &[usize; MAX_BITS + 1], sorted: &[u16]) -> Option<()> {
        let main = 1_usize << self.main_bits;
        let mut symbols = sorted.iter().map(|symbol| usize::from(*symbol));
        // The main part grows with the length of codes: what is there repeats behind itself.
        self.table[0] = SPECIAL | INVALID;
        let mut filled = 1_usize;
        for len in 1..=self.main_bits {
            self.table.copy_within(..filled, filled);
            filled *= 2;
            for symbol in symbols.by_ref().take(counts[len as usize]) {
                self.table[self.code] = (self.symbol)(symbol) + (len << 8) + len;
                self.advance(len);
            }
        }
        self.end = main;
        let mut subtable = None;
        for len in self.main_bits + 1..=MAX_BITS as u32 {
            for at in 0..counts[len as usize] {
                let symbol = symbols.next()?;
                let prefix = self.code & (main - 1);
                let (start, bits) = match subtable {
                    Some((of, start, bits)) if of == prefix => (start, bits),
                    _ => {
                        let left = counts[len as usize] - at;
                        let (start, bits) = self.begin_subtable(prefix, len, left, counts)?;
                        subtable = Some((prefix, start, bits));
                        (start, bits)
                    }
                };
                let rest = len - self.main_bits;
                let entry = (self.symbol)(symbol) + (rest << 8) + rest;
                let mut place = self.code >> self.main_bits;
                while place < 1 << bits {
                    *self.table.get_mut(start + place)? = entry;
                    place += 1 << rest;
                }
                self.advance(len);
            }
        }
        Some(())
    }

    /// As large as the longest of the codes with this prefix needs: it is full, since the code is
    /// complete.
    fn begin_subtable(
        &mut self,
        prefix: usize,
        len: u32,
        left: usize,
        counts: &[usize; MAX_BITS + 1],
    ) -> Option<(usize, u32)> {
        let mut bits = len - self.main_bits;
        let mut codes = left;
        while codes < 1 << bits && ((bits + self.main_bits) as usize) < MAX_BITS {
            bits += 1;
            codes = (codes << 1) + counts[(bits + self.main_bits) as usize];
        }
        let start = self.end;
        self.end += 1 << bits;
        self.table.get_mut(start..self.end)?.fill(SPECIAL | INVALID);
        self.table[prefix] = SPECIAL | (start as u32) << 16 | bits << 8 | self.main_bits;
        Some((start, bits))
    }

    /// The next code of `len` bits, counted from the highest bit of the code: the lowest zero
    /// from that end becomes one, the ones before it become zero.
    fn advance(&mut self, len: u32) {
        let ones = (1_usize << len) - 1;
        let zeros = self.code ^ ones;
        if zeros == 0 {
            return;
        }
        let bit = 1_usize << zeros.ilog2();
        self.code = self.code & (bit - 1) | bit;
    }
}
