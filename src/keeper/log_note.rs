//! What a log copier writes down before it acts, so that its successor can end what it began.
//!
//! Each stream has an area of 512 bytes in the note page of its container:
//!
//! ```text
//!   0  state u32: carry length (bits 0-15), its place (16), a batch is noted (17), its target (18)
//!   4  raw length u32: bytes of the batch that are to leave the pipe
//!   8  timestamp u64 (ns since the epoch)
//!  16  carry length after the batch u32 (at the other place)
//!  20  u32: the batch's first byte (bits 0-7), flush (8)
//!  24  the byte that left the pipe first u8: the complement of the above until it has left
//!  32  target 0: device u64, inode u64, offset u64, skip u64
//!  64  target 1: the same, of the file after it
//! 128  carry, place 0 (192 bytes)
//! 320  carry, place 1
//! ```
//!
//! The carry is the unfinished line at the end of what has left the pipe. One that is too long for
//! the area is in the note's file behind the page, 16 KiB for each stream and place; on a tmpfs
//! these cost memory only from their first use on.
//!
//! Every change of state is one store of the first word, after all that it refers to.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::log_format::LINE_LIMIT;
use super::note::{NotePage, STREAM_AREA, Stream};

const STATE: usize = 0;
const RAW_LENGTH: usize = 4;
const TIMESTAMP: usize = 8;
const NEXT_CARRY: usize = 16;
const FIRST: usize = 20;
const LEFT: usize = 24;
const TARGETS: [usize; 2] = [32, 64];
const CARRIES: [usize; 2] = [128, 320];
const CARRY_LENGTH: usize = 192;

const PLACE: u32 = 1 << 16;
const NOTED: u32 = 1 << 17;
const TARGET: u32 = 1 << 18;
const FLUSH: u32 = 1 << 8;

/// Where a batch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub device: u64,
    pub inode: u64,
    /// The file's size before the batch.
    pub offset: u64,
    /// Bytes of the formatted batch that an earlier file has.
    pub skip: u64,
}

/// A batch that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    pub raw_length: usize,
    /// Of the raw bytes.
    pub first: u8,
    /// The unfinished line at the end was written as well.
    pub flush: bool,
    /// Length of the carry that remains; it is stored already.
    pub next_carry: usize,
}

/// One stream's area of a note.
#[derive(Clone, Copy)]
pub struct StreamNote<'a> {
    pub page: &'a NotePage,
    pub stream: Stream,
}

impl StreamNote<'_> {
    fn state(&self) -> u32 {
        self.page.stream_u32(self.stream, STATE).load(Acquire)
    }

    fn set_state(&self, state: u32) {
        self.page.stream_u32(self.stream, STATE).store(state, Release);
    }

    fn place(&self) -> usize {
        usize::from(self.state() & PLACE != 0)
    }

    fn target_place(&self) -> usize {
        usize::from(self.state() & TARGET != 0)
    }

    /// Bytes of the carry; 0 where the note is damaged.
    pub fn carry_length(&self) -> usize {
        let length = (self.state() & 0xffff) as usize;
        if length <= LINE_LIMIT { length } else { 0 }
    }

    /// Reads the carry; `to` is as long as it.
    pub fn load_carry(&self, to: &mut [u8]) -> io::Result<()> {
        let place = self.place();
        if to.len() <= CARRY_LENGTH {
            self.page.pages().read(self.area() + CARRIES[place], to);
            return Ok(());
        }
        let mut done = 0;
        while done < to.len() {
            match rustix::io::pread(self.page.file(), &mut to[done..], self.behind(place) + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    /// Stores the carry that is to follow the present one. ENOSPC: there is no room for it.
    pub fn store_next_carry(&self, carry: &[u8]) -> io::Result<()> {
        let place = 1 - self.place();
        if carry.len() <= CARRY_LENGTH {
            self.page.pages().write(self.area() + CARRIES[place], carry);
            return Ok(());
        }
        let mut done = 0;
        while done < carry.len() {
            let at = self.behind(place) + done as u64;
            done += rustix::io::pwrite(self.page.file(), &carry[done..], at)?;
        }
        Ok(())
    }

    /// Notes a batch before its first byte is written.
    pub fn begin(&self, batch: Batch, target: Target) {
        let state = self.state() & !(NOTED | TARGET);
        self.store_target(0, target);
        let word = |offset| self.page.stream_u32(self.stream, offset);
        word(RAW_LENGTH).store(batch.raw_length as u32, Relaxed);
        word(NEXT_CARRY).store(batch.next_carry as u32, Relaxed);
        word(FIRST).store(u32::from(batch.first) | if batch.flush { FLUSH } else { 0 }, Relaxed);
        self.page.pages().write(self.left_offset(), &[!batch.first]);
        self.page.stream_u64(self.stream, TIMESTAMP).store(batch.timestamp as u64, Relaxed);
        self.set_state(state | NOTED);
    }

    /// The batch that was begun and not ended.
    pub fn batch(&self) -> Option<Batch> {
        if self.state() & NOTED == 0 {
            return None;
        }
        let word = |offset| self.page.stream_u32(self.stream, offset).load(Relaxed);
        Some(Batch {
            timestamp: self.page.stream_u64(self.stream, TIMESTAMP).load(Relaxed) as i64,
            raw_length: word(RAW_LENGTH) as usize,
            first: word(FIRST) as u8,
            flush: word(FIRST) & FLUSH != 0,
            next_carry: (word(NEXT_CARRY) as usize).min(LINE_LIMIT),
        })
    }

    /// The noted batch's bytes have left the pipe; they are in the file then.
    pub fn left(&self) -> bool {
        let mut left = [0];
        self.page.pages().read(self.left_offset(), &mut left);
        let first = self.page.stream_u32(self.stream, FIRST).load(Relaxed) as u8;
        self.page.stream_u32(self.stream, RAW_LENGTH).load(Relaxed) > 0 && left[0] != !first
    }

    /// Where in the page the byte that leaves the pipe first is to be read to.
    pub fn left_offset(&self) -> usize {
        self.area() + LEFT
    }

    /// Where the noted batch goes.
    pub fn target(&self) -> Target {
        let base = TARGETS[self.target_place()];
        let word = |offset| self.page.stream_u64(self.stream, base + offset).load(Relaxed);
        Target { device: word(0), inode: word(8), offset: word(16), skip: word(24) }
    }

    /// Sends what is left of the noted batch elsewhere.
    pub fn retarget(&self, target: Target) {
        self.store_target(1 - self.target_place(), target);
        self.set_state(self.state() ^ TARGET);
    }

    /// Ends the batch: `next_carry` bytes at the other place are the carry now.
    pub fn end(&self, next_carry: usize) {
        let place = (self.state() & PLACE) ^ PLACE;
        self.set_state(place | next_carry as u32);
    }

    /// Forgets the batch, whose bytes are gone. The present carry stays, or goes with them.
    pub fn abandon(&self, keep_carry: bool) {
        let carry = if keep_carry { self.state() & (PLACE | 0xffff) } else { 0 };
        self.set_state(carry);
    }

    fn store_target(&self, place: usize, target: Target) {
        let words = [target.device, target.inode, target.offset, target.skip];
        for (i, word) in words.into_iter().enumerate() {
            self.page.stream_u64(self.stream, TARGETS[place] + 8 * i).store(word, Relaxed);
        }
    }

    fn area(&self) -> usize {
        STREAM_AREA[self.stream as usize]
    }

    /// Where in the note's file the long carries of a place are.
    fn behind(&self, place: usize) -> u64 {
        (crate::sys::shared_page::PAGE + (2 * self.stream as usize + place) * LINE_LIMIT) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_successor_reads_what_was_noted() {
        let file = tempfile::tempfile().unwrap();
        let target = Target { device: 1, inode: 2, offset: 3, skip: 0 };
        let batch = Batch { timestamp: 77, raw_length: 5, first: b'a', flush: true, next_carry: 300 };
        {
            let page = NotePage::map(file.as_fd()).unwrap();
            let note = StreamNote { page: &page, stream: Stream::Stderr };
            assert_eq!((note.batch(), note.carry_length()), (None, 0));
            note.store_next_carry(&[b'x'; 300]).unwrap();
            note.begin(batch, target);
        }
        let page = NotePage::map(file.as_fd()).unwrap();
        let note = StreamNote { page: &page, stream: Stream::Stderr };
        assert_eq!((note.batch(), note.target(), note.left()), (Some(batch), target, false));
        note.retarget(Target { offset: 9, skip: 4, ..target });
        assert_eq!((note.target().offset, note.target().skip), (9, 4));
        page.pages().write(note.left_offset(), b"a");
        assert!(note.left());
        note.end(300);
        let mut carry = [0; 300];
        note.load_carry(&mut carry).unwrap();
        assert_eq!((note.batch(), note.carry_length(), carry), (None, 300, [b'x'; 300]));
        assert_eq!(StreamNote { page: &page, stream: Stream::Stdout }.carry_length(), 0);
    }
}
