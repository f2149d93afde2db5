//! proc_pid_stat(5): what the kernel says of a process, also of one that has ended until it is reaped.

/// Bytes that such a text has at most: 52 numbers and a name.
pub const LONGEST: usize = 1024;

pub struct ProcStat<'a> {
    /// From field 3 on. The command's name before it, in brackets, may hold anything.
    rest: &'a str,
}

impl<'a> ProcStat<'a> {
    pub fn of(text: &'a str) -> Option<Self> {
        text.rsplit_once(") ").map(|(_, rest)| Self { rest: rest.trim_end() })
    }

    fn field(&self, number: usize) -> Option<&'a str> {
        self.rest.split(' ').nth(number - 3)
    }

    pub fn is_zombie(&self) -> bool {
        self.field(3) == Some("Z")
    }

    /// Zero where its leader is of a PID namespace above that of the reader's procfs.
    pub fn session(&self) -> Option<i32> {
        self.field(6)?.parse().ok()
    }

    fn flag(&self, flag: u64) -> Option<bool> {
        self.field(9)?.parse().ok().map(|flags: u64| flags & flag != 0)
    }

    /// Since it was cloned. Nothing that it does can undo this. True before an execve closes files.
    pub fn has_executed(&self) -> Option<bool> {
        /// PF_FORKNOEXEC of the kernel's include/linux/sched.h.
        const NOT_EXECUTED: u64 = 0x40;
        self.flag(NOT_EXECUTED).map(|not| !not)
    }

    /// It is on its way to its end, and may have closed its files.
    pub fn is_exiting(&self) -> Option<bool> {
        /// PF_EXITING of the same file.
        const EXITING: u64 = 0x4;
        self.flag(EXITING)
    }

    /// Clock ticks after boot.
    pub fn start_time(&self) -> Option<u64> {
        self.field(22)?.parse().ok()
    }

    /// The status word of wait(2), once it has ended. Zero also where the reader may not trace it.
    pub fn exit_status(&self) -> Option<i32> {
        self.field(52)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pid: u32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap()
    }

    #[test]
    fn a_name_may_look_like_the_rest() {
        let text = "7 (a) Z 1 2 (b) S 1 7 9 0 -1 4194628 0";
        let stat = ProcStat::of(text).unwrap();
        assert_eq!((stat.is_zombie(), stat.session()), (false, Some(9)));
        assert_eq!((stat.has_executed(), stat.is_exiting()), (Some(false), Some(true)));
        assert_eq!(stat.exit_status(), None);
        assert!(ProcStat::of("nothing").is_none());
    }

    #[test]
    fn a_process_that_has_ended_is_told_from_one_that_lives() {
        let own = read(std::process::id());
        let own = ProcStat::of(&own).unwrap();
        assert_eq!((own.is_zombie(), own.is_exiting(), own.has_executed()), (false, Some(false), Some(true)));
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 9"]).spawn().unwrap();
        let text = loop {
            let text = read(child.id());
            if ProcStat::of(&text).unwrap().is_zombie() {
                break text;
            }
            std::thread::yield_now();
        };
        let stat = ProcStat::of(&text).unwrap();
        assert_eq!((stat.is_exiting(), stat.exit_status()), (Some(true), Some(9 << 8)));
        child.wait().unwrap();
    }
}
