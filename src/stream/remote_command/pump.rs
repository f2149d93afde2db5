//! Between a process's descriptors and a client's streams.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::resize::{Size, Sizes};
use super::{Inlet, Outlet};
use crate::stream::chunk::{CONTENT, Chunk};
use crate::sys::async_fd;

/// What is still taken of a terminal after the end: its count is not to be had, and a background
/// process may go on writing for ever.
const TERMINAL: usize = 128 << 10;

/// Where a process's output is read from. Non-blocking.
pub struct Output {
    fd: AsyncFd<OwnedFd>,
    terminal: bool,
}

impl Output {
    pub fn pipe(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: async_fd::watch(fd, Interest::READABLE)?, terminal: false })
    }

    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: async_fd::watch(master, Interest::READABLE)?, terminal: true })
    }

    /// Copies until the end: nobody can write any more, or the process has ended and what was there
    /// at its end is copied (background children may hold the other end open, or go on writing).
    /// Without an outlet what comes is dropped.
    pub async fn copy(self, outlet: Option<&Outlet>, mut ended: watch::Receiver<bool>) {
        let mut left: Option<usize> = None;
        let mut outlet = outlet;
        loop {
            if left.is_none() && *ended.borrow_and_update() {
                left = Some(self.there());
            }
            let read = match left {
                Some(0) => break,
                Some(left) => Chunk::read(self.fd.get_ref(), left).map_err(io::Error::from),
                None => tokio::select! {
                    read = self.read() => read,
                    changed = ended.changed() => if changed.is_err() { break } else { continue },
                },
            };
            match read {
                Ok(chunk) if chunk.is_empty() => break,
                Ok(chunk) => {
                    left = left.map(|left| left.saturating_sub(chunk.len()));
                    if let Some(to) = outlet
                        && to.write(chunk).await.is_err()
                    {
                        // It has reset this stream alone, maybe: the program is not held up.
                        outlet = None;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Empty after the end; or EIO, since the last process has closed the terminal.
                Err(_) => break,
            }
        }
        if let Some(outlet) = outlet {
            let _ = outlet.finish().await;
        }
    }

    async fn read(&self) -> io::Result<Chunk> {
        loop {
            let mut ready = self.fd.readable().await?;
            if let Ok(read) = ready.try_io(|fd| Ok(Chunk::read(fd.get_ref(), CONTENT)?)) {
                return read;
            }
        }
    }

    fn there(&self) -> usize {
        if self.terminal {
            return TERMINAL;
        }
        let there = rustix::io::ioctl_fionread(self.fd.get_ref()).unwrap_or(0);
        usize::try_from(there).unwrap_or(usize::MAX)
    }
}

/// Where a process's input is written to. Non-blocking.
pub struct Input {
    fd: AsyncFd<OwnedFd>,
}

impl Input {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: async_fd::watch(fd, Interest::WRITABLE)? })
    }

    /// Copies until the client has finished. Then, dropped, the process sees the end of a pipe.
    pub async fn copy(self, inlet: &Inlet) {
        while let Some(chunk) = inlet.read().await {
            if self.write(&chunk).await.is_err() {
                // Nobody reads it: the client may go on sending, for nothing.
                inlet.stop_reading();
                return;
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(e),
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Gives a terminal the sizes that the client tells.
pub async fn sizes(inlet: &Inlet, resize: impl Fn(Size)) {
    let mut sizes = Sizes::default();
    while let Some(bytes) = inlet.read().await {
        if let Some(size) = sizes.read(&bytes) {
            resize(size);
        }
    }
}
