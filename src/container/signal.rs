//! Signal names, as images and the CRI write them (BEHAVIOUR 11).

/// glibc's SIGRTMIN: two fewer real-time signals than the kernel has, as every client counts.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: &[(&str, i32)] = &[
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// The number of `SIGTERM`, `term`, `15`, `SIGRTMIN+3` or `SIGRTMAX-1`.
pub fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(n, _)| *n == bare) {
        return Some(*number);
    }
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    let number = match (bare.strip_prefix("RTMIN"), bare.strip_prefix("RTMAX")) {
        (Some(rest), _) => RTMIN.checked_add(offset(rest, '+')?)?,
        (_, Some(rest)) => RTMAX.checked_sub(offset(rest, '-')?)?,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// The CRI's name for a signal: `SIGTERM` for `term` or `15`; None if there is none.
pub fn canonical(name: &str) -> Option<String> {
    let number = number(name)?;
    if let Some((name, _)) = NAMES.iter().find(|(_, n)| *n == number) {
        return Some(format!("SIG{name}"));
    }
    match number {
        RTMIN => Some("SIGRTMIN".into()),
        RTMAX => Some("SIGRTMAX".into()),
        n if n > RTMIN && n <= RTMIN + 15 => Some(format!("SIGRTMIN+{}", n - RTMIN)),
        n if n > RTMIN => Some(format!("SIGRTMAX-{}", RTMAX - n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_11_names_and_numbers_of_signals() {
        for (name, want) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGRTMIN", 34)]
        {
            assert_eq!(number(name), Some(want), "{name}");
        }
        for bad in ["", "SIG", "0", "65", "SIGRTMIN+31", "SIGRTMAX-x", "NOPE", "SIGRTMIN3"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn canonical_names_mean_the_same_signal() {
        for n in 1..=RTMAX {
            if let Some(name) = canonical(&n.to_string()) {
                assert_eq!(number(&name), Some(n));
            }
        }
        assert_eq!(canonical("15").as_deref(), Some("SIGTERM"));
    }
}
