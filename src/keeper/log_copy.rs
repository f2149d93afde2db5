//! One batch of a stream, from its pipe to its log file, so that a byte is always in one of them.
//!
//! ```text
//! tee      pipe ──▶ a private pipe ──▶ memory: the pipe keeps its bytes
//! format   carry + bytes ──▶ whole lines; the unfinished line is stored as the next carry
//! note     timestamp, lengths, file, offset        killed before: nothing has happened
//! write    lines ──▶ file                          killed before the next: the successor sees by the
//! take     bytes leave the pipe, the first of      noted byte that they have not left, formats them
//!          them into the note                      again and appends what the file lacks
//! end      the next carry is the carry             killed before: the noted byte tells; only end
//! ```
//!
//! A write that fails ends there as well: to try again is to do what a successor does, so that a
//! stalled container needs no memory.
//!
//! The container can read its own pipe, or change its mode (pipe(7), O_DIRECT) or size. All reads
//! here are single and non-blocking; if other bytes are taken than were teed, that container's
//! output is off, and nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::log_format::{self, LINE_LIMIT, Prefix};
use super::log_note::{Batch, StreamNote, Target};
use crate::sys::log_pipe::read_noted;
use crate::sys::wiping::Unforked;

/// Bytes of a pipe in one batch at most: what an ordinary pipe holds, and what a tee into one can.
const BATCH: usize = 64 * 1024;

/// What a turn at a pipe came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// So many bytes have left the pipe.
    Moved(usize),
    /// Nothing in it now.
    Empty,
    /// Nothing in it, and nobody who could write.
    Closed,
}

/// The log file could not be written, with the errno: ENOSPC, EIO, EDQUOT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled(pub i32);

impl From<Errno> for Stalled {
    fn from(errno: Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

/// The memory of all copying: one a thread. Containers' children of ours have no copy of it.
pub struct Copier {
    /// A carry ends and a pipe's bytes begin at [`LINE_LIMIT`].
    text: Unforked,
    out: Unforked,
    private: (OwnedFd, OwnedFd),
}

impl Copier {
    pub fn new() -> rustix::io::Result<Self> {
        let private = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let text = Unforked::zeroed(LINE_LIMIT + BATCH)?;
        Ok(Self { text, out: Unforked::with_capacity(log_format::OUT_CAPACITY)?, private })
    }

    /// Copies what is in the pipe, one batch at most. No batch may be noted.
    pub fn copy(
        &mut self,
        note: StreamNote<'_>,
        pipe: BorrowedFd<'_>,
        file: &OwnedFd,
    ) -> Result<Turn, Stalled> {
        let length = match self.peek(pipe)? {
            Turn::Moved(length) => length,
            nothing => return Ok(nothing),
        };
        self.begin(note, length, file, false)?;
        self.write(note, file, 0)?;
        Ok(Turn::Moved(self.end(note, Some(pipe))))
    }

    /// Writes an unfinished line. No batch may be noted.
    pub fn flush(&mut self, note: StreamNote<'_>, file: &OwnedFd) -> Result<(), Stalled> {
        if note.carry_length() == 0 {
            return Ok(());
        }
        self.begin(note, 0, file, true)?;
        self.write(note, file, 0)?;
        self.end(note, None);
        Ok(())
    }

    /// The bytes of the batch that has left its pipe just now.
    pub fn taken(&self, length: usize) -> &[u8] {
        &self.text[LINE_LIMIT..LINE_LIMIT + length.min(BATCH)]
    }

    /// Reads and drops what is in the pipe, one batch at most.
    pub fn discard(&mut self, pipe: BorrowedFd<'_>) -> Turn {
        match rustix::io::read(pipe, &mut self.text[LINE_LIMIT..LINE_LIMIT + BATCH]) {
            Ok(0) => Turn::Closed,
            Ok(n) => Turn::Moved(n),
            Err(Errno::AGAIN | Errno::INTR) => Turn::Empty,
            Err(_) => Turn::Closed,
        }
    }

    /// Ends a batch that was begun, by a predecessor or before the file stalled. Returns how many
    /// bytes have left the pipe.
    pub fn recover(
        &mut self,
        note: StreamNote<'_>,
        pipe: Option<BorrowedFd<'_>>,
        file: &OwnedFd,
    ) -> Result<usize, Stalled> {
        let Some(batch) = note.batch() else { return Ok(0) };
        if note.left() {
            note.end(batch.next_carry);
            return Ok(0);
        }
        if !self.format_again(note, batch, pipe) {
            return self.give_up(note, file).map(|()| 0);
        }
        let written = self.written(note, file)?;
        self.write(note, file, written)?;
        Ok(self.end(note, pipe))
    }

    /// Goes on with `new` where a batch stalled on `old`: with the line that `old` has not whole.
    pub fn retarget(
        &mut self,
        note: StreamNote<'_>,
        pipe: Option<BorrowedFd<'_>>,
        old: &OwnedFd,
        new: &OwnedFd,
    ) -> Result<(), Stalled> {
        let Some(batch) = note.batch() else { return Ok(()) };
        if note.left() || !self.format_again(note, batch, pipe) {
            return Ok(());
        }
        let written = self.written(note, old)?;
        let skip = (note.target().skip as usize).min(self.out.len());
        let skip = (skip + whole_lines(&self.out[skip..skip + written])) as u64;
        note.retarget(Target { skip, ..target_of(new)? });
        Ok(())
    }

    /// Copies the pipe's bytes to memory behind [`LINE_LIMIT`]; they stay in the pipe.
    fn peek(&mut self, pipe: BorrowedFd<'_>) -> Result<Turn, Stalled> {
        let teed = match rustix::pipe::tee(pipe, &self.private.1, BATCH, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(Turn::Closed),
            Ok(teed) => teed,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Turn::Empty),
            Err(_) => return Ok(Turn::Closed),
        };
        let read = rustix::io::read(&self.private.0, &mut self.text[LINE_LIMIT..])?;
        // In packet mode (O_DIRECT) a read ends with a packet; the others have another turn, since
        // a batch has to leave its pipe in one read.
        let mut rest = teed - read;
        while rest > 0 {
            match rustix::io::read(&self.private.0, &mut self.text[LINE_LIMIT + read..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(n) => rest = rest.saturating_sub(n),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Turn::Moved(read))
    }

    /// Formats the carry and `length` bytes behind it, and notes the batch.
    fn begin(
        &mut self,
        note: StreamNote<'_>,
        length: usize,
        file: &OwnedFd,
        flush: bool,
    ) -> Result<(), Stalled> {
        let target = target_of(file)?;
        let timestamp = now();
        let mut carry = note.carry_length();
        if note.load_carry(&mut self.text[LINE_LIMIT - carry..LINE_LIMIT]).is_err() {
            // A damaged note, whose line is lost: better than a container that is stalled for ever.
            note.abandon(false);
            carry = 0;
        }
        let start = LINE_LIMIT - carry;
        let prefix = Prefix::new(note.stream, timestamp);
        let mut batch =
            Batch { timestamp, raw_length: length, first: self.text[LINE_LIMIT], flush, next_carry: 0 };
        let text = &self.text[start..LINE_LIMIT + length];
        self.out.clear();
        let formatted = log_format::format(&prefix, text, flush, &mut self.out);
        let rest = &text[formatted.used..];
        if formatted.full {
            batch.raw_length = formatted.used - carry;
        } else if note.store_next_carry(rest).is_ok() {
            batch.next_carry = rest.len();
        } else {
            // Without room to carry it, the line is split rather than lost.
            batch.flush = true;
            log_format::format(&prefix, rest, true, &mut self.out);
        }
        note.begin(batch, target);
        Ok(())
    }

    /// Writes the formatted batch from `written` on.
    fn write(&mut self, note: StreamNote<'_>, file: &OwnedFd, written: usize) -> Result<(), Stalled> {
        let mut rest = &self.out[(note.target().skip as usize + written).min(self.out.len())..];
        while !rest.is_empty() {
            match rustix::io::write(file, rest) {
                Ok(0) => return Err(Errno::NOSPC.into()),
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Takes the batch out of its pipe. Returns how many bytes have left.
    fn end(&mut self, note: StreamNote<'_>, pipe: Option<BorrowedFd<'_>>) -> usize {
        let Some(batch) = note.batch() else { return 0 };
        let mut taken = 0;
        if let (Some(pipe), 1..) = (pipe, batch.raw_length) {
            // The memory of the bytes themselves: it is resident, so the read cannot end short.
            let rest = &mut self.text[LINE_LIMIT + 1..LINE_LIMIT + batch.raw_length];
            taken = read_noted(pipe, note.page.pages(), note.left_offset(), rest).unwrap_or(0);
        }
        note.end(batch.next_carry);
        taken
    }

    /// Formats a noted batch as it was. False: its bytes are no longer there.
    fn format_again(&mut self, note: StreamNote<'_>, batch: Batch, pipe: Option<BorrowedFd<'_>>) -> bool {
        if batch.raw_length > BATCH {
            return false;
        }
        if batch.raw_length > 0 {
            match pipe.map(|pipe| self.peek(pipe)) {
                Some(Ok(Turn::Moved(length)))
                    if length >= batch.raw_length && self.text[LINE_LIMIT] == batch.first => {}
                _ => return false,
            }
        }
        let start = LINE_LIMIT - note.carry_length();
        if note.load_carry(&mut self.text[start..LINE_LIMIT]).is_err() {
            return false;
        }
        let text = &self.text[start..LINE_LIMIT + batch.raw_length];
        self.out.clear();
        log_format::format(&Prefix::new(note.stream, batch.timestamp), text, batch.flush, &mut self.out);
        true
    }

    /// How much of the formatted batch, less its skip, `file` has. Where it is another file, or
    /// somebody else wrote there since, the note is changed to what is missing, from its line's start.
    fn written(&self, note: StreamNote<'_>, file: &OwnedFd) -> Result<usize, Stalled> {
        let target = note.target();
        let out = &self.out[(target.skip as usize).min(self.out.len())..];
        let now = target_of(file)?;
        if (now.device, now.inode) != (target.device, target.inode) {
            note.retarget(Target { skip: target.skip, ..now });
            return Ok(0);
        }
        let present = now.offset.saturating_sub(target.offset).min(out.len() as u64) as usize;
        let mut same = 0;
        let mut chunk = [0; 4096];
        while same < present {
            let want = chunk.len().min(present - same);
            match rustix::io::pread(file, &mut chunk[..want], target.offset + same as u64) {
                Ok(0) => break,
                Ok(n) => {
                    let equal = chunk[..n].iter().zip(&out[same..]).take_while(|(a, b)| a == b).count();
                    same += equal;
                    if equal < n {
                        let skip = target.skip + whole_lines(&out[..same]) as u64;
                        note.retarget(Target { skip, ..now });
                        return Ok(0);
                    }
                }
                // Opened for writing only: the size alone has to do.
                Err(Errno::BADF) => return Ok(present),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(same)
    }

    /// The bytes of a noted batch were lost with their pipe, when nobody held it: ends the line that
    /// the file has half of.
    fn give_up(&mut self, note: StreamNote<'_>, file: &OwnedFd) -> Result<(), Stalled> {
        let (target, now) = (note.target(), target_of(file)?);
        let same_file = (now.device, now.inode) == (target.device, target.inode);
        let begun = same_file && now.offset > target.offset;
        if begun {
            let mut last = [b'\n'];
            let read = rustix::io::pread(file, &mut last, now.offset - 1);
            if read.is_ok() && last != [b'\n'] {
                rustix::io::write(file, b"\n")?;
            }
        }
        note.abandon(!begun);
        Ok(())
    }
}

fn whole_lines(text: &[u8]) -> usize {
    memchr::memrchr(b'\n', text).map_or(0, |end| end + 1)
}

/// The file's end as a target.
fn target_of(file: &OwnedFd) -> Result<Target, Stalled> {
    let stat = rustix::fs::fstat(file.as_fd())?;
    Ok(Target { device: stat.st_dev, inode: stat.st_ino, offset: stat.st_size as u64, skip: 0 })
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}
