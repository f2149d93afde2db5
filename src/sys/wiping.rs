//! Memory that a copy of this process must not find anything in.
//!
//! A child of the keeper is a copy of it until its execve, and in a PID namespace that others live
//! in, who has CAP_SYS_PTRACE there can read it. So what the keeper has worked on for other
//! containers, such as their environments and log lines, is not to be lying about.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::io::Result;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// The system's allocator, which forgets what is freed. `realloc` is GlobalAlloc's own: it moves
/// what grows, and frees the old place.
pub struct Wiping;

// SAFETY: every call goes to the system's allocator with the arguments as they came; a block is
// still the caller's while it is wiped.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by this function's own contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the block has the layout's size. Not a plain store, which is left out
        // where nobody reads it.
        unsafe {
            libc::explicit_bzero(pointer.cast(), layout.size());
            System.dealloc(pointer, layout);
        }
    }
}

/// Memory that children do not get a copy of: a buffer of a fixed capacity.
#[derive(Debug)]
pub struct Unforked {
    address: NonNull<u8>,
    capacity: usize,
    length: usize,
}

// SAFETY: plain memory that this owns alone.
unsafe impl Send for Unforked {}

impl Unforked {
    /// An empty one. Pages are taken when they are first touched.
    pub fn with_capacity(capacity: usize) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which is ours alone; the advice concerns children.
        unsafe {
            let address = rustix::mm::mmap_anonymous(ptr::null_mut(), capacity, access, MapFlags::PRIVATE)?;
            let owned = Self { address: NonNull::new_unchecked(address.cast()), capacity, length: 0 };
            rustix::mm::madvise(address, capacity, Advice::LinuxDontFork)?;
            Ok(owned)
        }
    }

    /// One of so many zeros.
    pub fn zeroed(length: usize) -> Result<Self> {
        let mut buffer = Self::with_capacity(length)?;
        buffer.length = length;
        Ok(buffer)
    }

    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Panics beyond the capacity.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.capacity - self.length, "beyond the capacity");
        // SAFETY: there is room by the assertion, and nobody else has a reference to it.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.as_ptr().add(self.length), bytes.len())
        };
        self.length += bytes.len();
    }

    pub fn push(&mut self, byte: u8) {
        self.extend_from_slice(&[byte]);
    }
}

impl Deref for Unforked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so much of the mapping was written, or is zero as the kernel made it.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl DerefMut for Unforked {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Unforked {
    fn drop(&mut self) {
        // SAFETY: mapped by `with_capacity` with this length, and no reference outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.capacity) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unforked_buffer_is_a_buffer() {
        let mut buffer = Unforked::with_capacity(8).unwrap();
        assert!(buffer.is_empty());
        buffer.extend_from_slice(b"abc");
        buffer.push(b'd');
        buffer[0] = b'x';
        assert_eq!(&*buffer, b"xbcd");
        buffer.clear();
        assert_eq!((&*buffer, &*Unforked::zeroed(3).unwrap()), (&b""[..], &[0, 0, 0][..]));
    }

    #[test]
    #[should_panic(expected = "capacity")]
    fn an_unforked_buffer_does_not_grow() {
        let mut buffer = Unforked::with_capacity(4).unwrap();
        buffer.extend_from_slice(b"abcde");
    }
}
