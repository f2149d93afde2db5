//! The program's own code and constants.

unsafe extern "C" {
    // Made by the linker: where the program begins, and where its code ends (end(3)).
    static __executable_start: u8;
    static etext: u8;
}

/// Unmaps what has been used of the program so far. It stays in the page cache, and what is used again is
/// mapped again, 64 KiB at a time: call it when something is over that will not soon be done again, such
/// as a start.
pub fn unmap() {
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(PAGE - 1);
    // SAFETY: from its beginning to the end of its code a program is mapped read-only from its file, and
    // has no page that was relocated: each can be read from there again.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    /// KiB that are mapped of the part of the program that this function is in.
    fn mapped() -> u64 {
        let here = super::unmap as fn() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let is_here = |line: &&str| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let range =
                range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)));
            matches!(range, Some((Ok(from), Ok(to))) if (from..to).contains(&here))
        };
        let rss = maps.lines().skip_while(|line| !is_here(line)).find_map(|line| line.strip_prefix("Rss:"));
        rss.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_was_used_once_is_unmapped_and_the_program_goes_on() {
        let begin = (&raw const super::__executable_start).addr();
        let end = (&raw const super::etext).addr();
        for page in (begin..end).step_by(4096) {
            // SAFETY: the whole range is mapped and readable.
            std::hint::black_box(unsafe { (page as *const u8).read_volatile() });
        }
        let before = mapped();
        super::unmap();
        let after = mapped();
        assert!(after < before / 2, "{after} KiB of {before}");
    }
}
