//! Reading and writing the small files of cgroupfs: one open, one system call, one close.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use crate::Result;
use crate::error::Step;

/// Enough for every file read here; `memory.stat` is the longest, at about 2 KiB.
pub(super) const BUFFER: usize = 8192;

pub(super) fn open(path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// The file's text in `buffer`, without the last newline.
pub(super) fn read<'a>(path: &str, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let fd = open(path, OFlags::RDONLY)?;
    read_fd(&fd, buffer)
}

/// The same from the start of an open file, in one read: the kernel gives these files whole, and
/// makes the text anew when asked for the rest.
pub(super) fn read_fd<'a>(fd: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *buffer, 0))?;
    let text = std::str::from_utf8(&buffer[..length]).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(text.strip_suffix('\n').unwrap_or(text))
}

/// The text of a file that may be long or of any kind.
pub(super) fn read_all(path: &str) -> Result<String> {
    std::fs::read_to_string(path).step(|| format!("reading {path}"))
}

/// One write(2) of the whole value: cgroupfs takes each write as one command.
pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    let fd = open(path, OFlags::WRONLY)?;
    write_fd(&fd, value)
}

pub(super) fn write_fd(fd: &OwnedFd, value: &str) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(fd, value.as_bytes()))?;
    Ok(())
}

/// A file that holds one number; `max`, and what v1 has in its place, is None.
pub(super) fn parse_limit(text: &str) -> Option<u64> {
    let number: i64 = text.trim().parse().ok()?;
    // v1 says "no limit" as the largest multiple of the page size, or as -1.
    const UNLIMITED: i64 = i64::MAX - (1 << 20);
    (0..UNLIMITED).contains(&number).then_some(number as u64)
}

pub(super) fn missing(error: &io::Error) -> bool {
    // ENODEV: the cgroup was removed between open and read.
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
