//! One daemon per directory: two would undo each other's work.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Step;
use crate::{Error, Result};

/// What a killed daemon was just starting, a keeper say, shares its lock up to its execve(2).
const LEFTOVER_LIMIT: Duration = Duration::from_secs(2);

/// `DIR/podwright.lock`, with our PID in it, held until it is dropped; the kernel lets go of it
/// with the process, however that ends. FAILED_PRECONDITION with the holder's PID.
pub(super) fn take(dir: &Path) -> Result<File> {
    take_within(dir, LEFTOVER_LIMIT)
}

fn take_within(dir: &Path, limit: Duration) -> Result<File> {
    fs::create_dir_all(dir).step(|| format!("making {}", dir.display()))?;
    let path = dir.join("podwright.lock");
    let step = || format!("locking {}", path.display());
    let mut options = File::options();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).step(step)?;
    let deadline = Instant::now() + limit;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => return Err(held(dir, &mut file)),
            Err(errno) => return Err(Error::io(step(), errno)),
        }
    }
    file.set_len(0).step(step)?;
    file.seek(SeekFrom::Start(0)).step(step)?;
    writeln!(file, "{}", std::process::id()).step(step)?;
    Ok(file)
}

fn held(dir: &Path, file: &mut File) -> Error {
    let mut pid = String::new();
    // The holder may not have written it yet.
    let _ = file.read_to_string(&mut pid);
    let who = match pid.trim() {
        "" => String::new(),
        pid => format!(" (pid {pid})"),
    };
    Error::precondition(format!(
        "another podwright{who} works on {}; give this one directories of its own with --state and --root",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_with_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let first = take(&state).unwrap();
        let refusal = take_within(&state, Duration::ZERO).unwrap_err();
        let pid = format!("(pid {})", std::process::id());
        assert!(refusal.message.contains(&pid), "{refusal}");
        drop(first);
        // What another test is just starting may share the lock for a moment.
        take(&state).unwrap();
    }

    #[test]
    fn what_a_dead_daemon_was_starting_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let shared = std::process::Stdio::from(first);
        let mut child = std::process::Command::new("sleep").arg("1000").stdin(shared).spawn().unwrap();
        assert_eq!(
            take_within(dir.path(), Duration::ZERO).unwrap_err().kind,
            crate::error::Kind::FailedPrecondition
        );
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            child.kill().and_then(|()| child.wait()).unwrap();
        });
        take_within(dir.path(), Duration::from_secs(60)).unwrap();
        ending.join().unwrap();
    }
}
