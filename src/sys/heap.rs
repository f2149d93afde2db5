//! What the allocator keeps of what was freed.

/// glibc makes up to eight arenas for each processor, and what is free in one is of no use in another.
/// Call it before there are threads.
pub fn keep_few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes numbers; it is called before other threads allocate.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free pages back to the kernel (malloc_trim(3)). Takes milliseconds where there are many.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and touches nothing but what the allocator has free.
    unsafe {
        libc::malloc_trim(0);
    }
}
