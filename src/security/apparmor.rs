//! AppArmor profiles: a default of ours, loaded at the first need, and those of the node by name.
//!
//! A profile is text that apparmor_parser(8) compiles and loads; a process asks for its own to change
//! at its next execve (apparmor(7), `/proc/self/attr/apparmor/exec`), which the child does.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::container::spec::AppArmor;
use crate::error::Step;
use crate::{Error, Result};

/// The name of our profile.
pub const DEFAULT: &str = "podwright-default";

const PARSER: &str = "apparmor_parser";

/// How long it may take; a moment, but on an emulated processor.
const PARSER_LIMIT: Duration = Duration::from_secs(30);

const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// What no container needs and none may have, root or not: the kernel's own knobs in /proc and /sys,
/// mounts, and the memory of processes with another profile. Files are otherwise the business of
/// their modes and of the mount namespace.
const TEXT: &str = "
profile podwright-default flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  umount,
  unix,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=podwright-default,
  ptrace (read, readby, trace, tracedby) peer=podwright-default,

  deny mount,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** wl,
  deny /proc/sys/{abi,debug,dev,fs,kernel,user,vm}/** wl,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wl,
  deny /sys/fs/[^c]*/** wl,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
";

/// The name of the profile that a container is to run with, which is loaded. None: no change.
///
/// # Errors
/// INVALID_ARGUMENT: the node has not loaded a profile of that name. FAILED_PRECONDITION: ours cannot
/// be loaded. Blocks for as long as apparmor_parser takes, once a boot.
pub fn resolve(wish: &AppArmor) -> Result<Option<String>> {
    match wish {
        AppArmor::Unconfined => Ok(None),
        AppArmor::RuntimeDefault => load_default().map(|()| Some(DEFAULT.to_owned())),
        // As with the peers: only a node without the parser runs what asks for nothing without one.
        AppArmor::Preferred if !has_parser() && !is_loaded(DEFAULT)? => Ok(None),
        AppArmor::Preferred => load_default().map(|()| Some(DEFAULT.to_owned())),
        AppArmor::Localhost(name) if is_loaded(name)? => Ok(Some(name.clone())),
        AppArmor::Localhost(name) => {
            Err(Error::invalid(format!("AppArmor profile {name:?} is not loaded on this node")))
        }
    }
}

/// By the lines of the kernel's list, e.g. `/usr/bin/man (enforce)`.
fn is_loaded(name: &str) -> Result<bool> {
    let list = std::fs::read_to_string(LOADED).step(|| format!("reading {LOADED}"))?;
    Ok(list.lines().filter_map(|line| line.rsplit_once(" (")).any(|(loaded, _)| loaded == name))
}

fn has_parser() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(PARSER).is_file())
}

fn load_default() -> Result<()> {
    static LOADING: Mutex<()> = Mutex::new(());
    // Nothing is kept under the lock that a panic could leave half done.
    let _guard = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if is_loaded(DEFAULT)? {
        return Ok(());
    }
    let failed = |cause: String| {
        Error::precondition(format!("loading the AppArmor profile {DEFAULT} by apparmor_parser: {cause}"))
    };
    let mut child = Command::new(PARSER)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let fed = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(TEXT.as_bytes()));
    let ended = ended(&mut child).map_err(|e| failed(e.to_string()))?;
    if !ended {
        return Err(failed(format!("it did not end within {} s", PARSER_LIMIT.as_secs())));
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => fed.map_err(|e| failed(e.to_string())),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// Waits for its end as long as the limit allows, and then ends it. False: it had to.
fn ended(child: &mut Child) -> std::io::Result<bool> {
    let until = Instant::now() + PARSER_LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unconfined_needs_nothing_of_the_node() {
        assert_eq!(resolve(&AppArmor::Unconfined).unwrap(), None);
    }
}
