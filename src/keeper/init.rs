//! PID 1 of a pod whose containers share a PID namespace: reaps what they leave behind.
//!
//! It is the keeper's executable under another name, so that no further file is needed; and since
//! it does next to nothing it touches few pages of its own.

use std::io;

use rustix::event::{PollFd, PollFlags, poll};

use crate::sys::{pidfd, prctl};

/// Its argv[0].
pub const NAME: &str = "podwright-init";

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Runs until it is told to end. The namespace ends with it.
pub fn run() -> io::Result<()> {
    // Containers that run as the same user must not trace us: we are PID 1 of all of them.
    prctl::not_dumpable()?;
    let mask = bit(libc::SIGCHLD) | bit(libc::SIGTERM) | bit(libc::SIGINT);
    prctl::set_signal_mask(mask)?;
    let signals = prctl::signal_fd(mask)?;
    loop {
        while let Some(pid) = pidfd::any_ended_child() {
            pidfd::reap_pid(pid);
        }
        let mut wait = [PollFd::new(&signals, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut wait, None))?;
        // One struct signalfd_siginfo, which begins with the signal's number.
        let mut info = [0u8; 128];
        while let Ok(128) = rustix::io::read(&signals, &mut info) {
            let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if number != libc::SIGCHLD {
                std::process::exit(0);
            }
        }
    }
}
