//! When a seccomp filter is loaded, decided by what it permits.
//!
//! In a PID namespace that others live in, one of them may have CAP_SYS_PTRACE, and can then write
//! into whatever process of ours it sees, dumpable or not (ptrace(2), PTRACE_MODE). So the final
//! process should have its filter from its first instruction, and no more privileges than its
//! program will have: without no_new_privs, loading a filter takes CAP_SYS_ADMIN.
//!
//! ```text
//!  Helper   helper: filter, CAP_SYS_ADMIN off, clone ─▶ child: setsid, execve
//!  Thread   helper: CAP_SYS_ADMIN off, a thread of it: filter for both, clone ─▶ child: the same
//!  Last     helper: clone ─▶ child: setsid, filter, execve
//! ```
//!
//! Last is for a process that makes its PID namespace, and for a filter that forbids the clone: the
//! daemon refuses that one where somebody in the namespace may trace.

use super::plan::Bytes;
use crate::sys::clone::SIBLING_FLAGS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loading {
    Helper,
    /// For a filter that forbids capset(2).
    Thread,
    Last,
}

/// Instructions and SECCOMP_FILTER_FLAG_*, and when they are loaded.
pub struct Filter {
    pub program: Bytes,
    pub flags: u32,
    pub loading: Loading,
}

/// For a process that is cloned into a PID namespace that exists.
pub fn loading(program: &[u8], terminal: bool, capset: bool) -> Loading {
    let mut calls = vec![(libc::SYS_clone, [SIBLING_FLAGS, 0, 0, 0, 0, 0]), (libc::SYS_setsid, [0; 6])];
    if terminal {
        calls.push((libc::SYS_ioctl, [0, libc::TIOCSCTTY, 0, 0, 0, 0]));
    }
    if !calls.iter().all(|(number, arguments)| permits(program, *number, arguments)) {
        return Loading::Last;
    }
    if capset && !permits(program, libc::SYS_capset, &[0; 6]) { Loading::Thread } else { Loading::Helper }
}

/// AUDIT_ARCH_* of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;

/// Whether the filter lets a call pass. One that this does not understand permits nothing.
fn permits(program: &[u8], number: libc::c_long, arguments: &[u64; 6]) -> bool {
    // struct seccomp_data of linux/seccomp.h, as words.
    let mut data = [0u32; 16];
    (data[0], data[1]) = (number as u32, ARCHITECTURE);
    for (i, argument) in arguments.iter().enumerate() {
        let bytes = argument.to_ne_bytes();
        for (half, word) in bytes.chunks_exact(4).enumerate() {
            data[4 + 2 * i + half] = word.try_into().map(u32::from_ne_bytes).unwrap_or_default();
        }
    }
    matches!(run(program, &data).map(|verdict| verdict & 0xffff_0000), Some(ALLOW | LOG))
}

/// Interprets the instructions that seccomp(2) takes and ours and libseccomp's filters are made of.
fn run(program: &[u8], data: &[u32; 16]) -> Option<u32> {
    let (mut at, mut a) = (0usize, 0u32);
    loop {
        // struct sock_filter: code, jt, jf, k.
        let i = program.get(at.checked_mul(8)?..)?.first_chunk::<8>()?;
        let (code, k) = (u16::from_ne_bytes([i[0], i[1]]), u32::from_ne_bytes([i[4], i[5], i[6], i[7]]));
        at += 1;
        // Jumps go forward only, so that this ends.
        let jump = |holds: bool| usize::from(if holds { i[2] } else { i[3] });
        match code {
            0x20 => a = *data.get(k as usize / 4).filter(|_| k % 4 == 0)?,
            0x54 => a &= k,
            0x05 => at = at.checked_add(k as usize)?,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x45 => at += jump(a & k != 0),
            0x06 => return Some(k),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let bytes = |(code, jt, jf, k): &(u16, u8, u8, u32)| {
            [&code.to_ne_bytes()[..], &[*jt, *jf], &k.to_ne_bytes()[..]].concat()
        };
        instructions.iter().flat_map(bytes).collect()
    }

    /// Everything but the calls with these numbers.
    fn denying(numbers: &[libc::c_long]) -> Vec<u8> {
        let mut list = vec![(0x20, 0, 0, 0)];
        for (n, number) in numbers.iter().enumerate() {
            list.push((0x15, (numbers.len() - n) as u8, 0, *number as u32));
        }
        list.extend([(0x06, 0, 0, ALLOW), (0x06, 0, 0, 0x0005_0001)]);
        program(&list)
    }

    #[test]
    fn a_filter_decides_when_it_is_loaded() {
        use Loading::{Helper, Last, Thread};
        let rows: [(&[libc::c_long], bool, bool, Loading); 8] = [
            (&[], true, true, Helper),
            (&[libc::SYS_capset], false, true, Thread),
            // With no_new_privs there is nothing to drop.
            (&[libc::SYS_capset], false, false, Helper),
            (&[libc::SYS_clone], false, false, Last),
            (&[libc::SYS_setsid, libc::SYS_capset], false, true, Last),
            (&[libc::SYS_ioctl], false, true, Helper),
            (&[libc::SYS_ioctl], true, true, Last),
            // The others are no business of the helper's.
            (&[libc::SYS_clone3, libc::SYS_setresuid, libc::SYS_mkdirat], true, true, Helper),
        ];
        for (denied, terminal, capset, expected) in rows {
            assert_eq!(loading(&denying(denied), terminal, capset), expected, "{denied:?} {terminal}");
        }
    }

    #[test]
    fn arguments_and_architecture_count() {
        // clone is denied with any of the flags of new namespaces, as the default profile does it.
        let masked = program(&[
            (0x20, 0, 0, 0),
            (0x15, 0, 3, libc::SYS_clone as u32),
            (0x20, 0, 0, 16),
            (0x45, 0, 1, 0x7e02_0000),
            (0x06, 0, 0, 0x0005_0001),
            (0x06, 0, 0, ALLOW),
        ]);
        assert_eq!(loading(&masked, true, true), Loading::Helper);
        let foreign = program(&[
            (0x20, 0, 0, 4),
            (0x15, 1, 0, ARCHITECTURE),
            (0x06, 0, 0, ALLOW),
            (0x06, 0, 0, 0x8000_0000),
        ]);
        assert_eq!(loading(&foreign, false, false), Loading::Last);
    }

    #[test]
    fn what_is_not_understood_permits_nothing() {
        for bad in [&[][..], &program(&[(0x15, 9, 9, 0)]), &program(&[(0x07, 0, 0, 0)]), &[6, 0, 0, 0, 0]] {
            assert_eq!(loading(bad, false, false), Loading::Last, "{bad:?}");
        }
        assert_eq!(loading(&program(&[(0x05, 0, 0, u32::MAX)]), false, false), Loading::Last);
        assert_eq!(loading(&program(&[(0x20, 0, 0, 64), (0x06, 0, 0, ALLOW)]), false, false), Loading::Last);
    }
}
