//! systemd's fd store as the third holder of what the keeper and the daemon both hold for pods
//! (sd_pid_notify_with_fds(3)): namespaces outlive both even while no container of the pod runs.
//!
//! An fd is stored under the name `KEY#N/COUNT#ABOUT`, N counting from zero: the manager gives them
//! back in no particular order, and under no other hint of what they are.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix};

use super::Hold;
use crate::error::Step;
use crate::sys::fd::take_inherited;
use crate::{Error, Result};

/// SD_LISTEN_FDS_START.
const FIRST: i32 = 3;
/// FDNAME= takes no longer ones.
const LONGEST: usize = 255;

/// The manager's, or nobody's: then all of this does nothing.
#[derive(Debug, Default)]
pub struct FdStore {
    address: Option<SocketAddrUnix>,
    /// What was stored by a predecessor, until it is asked for.
    inherited: Mutex<Vec<Hold>>,
    /// The names that are stored now, by key.
    names: Mutex<BTreeMap<String, Vec<String>>>,
}

impl FdStore {
    /// From the environment that systemd gives to a service. To be called once, at the start of the
    /// process, before it opens anything.
    pub fn of_service() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(address) = variable("NOTIFY_SOCKET").and_then(|path| address(&path)) else {
            return Self::default();
        };
        let ours = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let names = variable("LISTEN_FDNAMES").filter(|_| ours).unwrap_or_default();
        let fds = (FIRST..).zip(names.split(':')).filter(|(_, name)| !name.is_empty());
        // One that is not open was none.
        let fds = fds.filter_map(|(number, name)| Some((name.to_owned(), take_inherited(number).ok()?)));
        let (inherited, stale) = assemble(fds.collect());
        let store = Self { address: Some(address), ..Self::default() };
        for name in stale {
            store.forget(&name);
        }
        for hold in &inherited {
            store.names().insert(hold.key.clone(), names_of(hold));
        }
        *store.inherited.lock().unwrap_or_else(PoisonError::into_inner) = inherited;
        store
    }

    /// What a predecessor had stored; the first time it is asked.
    pub fn take(&self) -> Vec<Hold> {
        std::mem::take(&mut self.inherited.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A failure costs the third holder, not the pod.
    pub fn put(&self, hold: &Hold) {
        if self.address.is_none() || self.names().contains_key(&hold.key) {
            return;
        }
        let names = names_of(hold);
        if names.iter().any(|name| name.len() > LONGEST || name.contains([':', '\n'])) {
            return;
        }
        for (name, fd) in names.iter().zip(&hold.fds) {
            // Without FDPOLL=0 one that hangs up is dropped.
            let state = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
            if let Err(error) = self.send(&state, Some(fd)) {
                tracing::warn!(%error, name, "the service manager does not hold a descriptor");
            }
        }
        self.names().insert(hold.key.clone(), names);
    }

    pub fn remove(&self, key: &str) {
        let names = self.names().remove(key);
        for name in names.into_iter().flatten() {
            self.forget(&name);
        }
    }

    fn forget(&self, name: &str) {
        if let Err(error) = self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None) {
            tracing::warn!(%error, name, "the service manager goes on holding a descriptor");
        }
    }

    fn send(&self, state: &str, fd: Option<&Arc<OwnedFd>>) -> Result<()> {
        let Some(address) = &self.address else { return Ok(()) };
        let step = || "telling the service manager";
        let kind = rustix::net::SocketType::DGRAM;
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(rustix::net::AddressFamily::UNIX, kind, flags, None).step(step)?;
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Error::internal("a descriptor does not fit its message"));
        }
        let bytes = [std::io::IoSlice::new(state.as_bytes())];
        // A manager that is busy for long is not waited for: pods go before its store.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg_addr(&socket, address, &bytes, &mut control, flags).step(step)?;
        Ok(())
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        // Each change is one call, so the map is whole even after a panic elsewhere.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(path: &str) -> Option<SocketAddrUnix> {
    match path.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()).ok(),
        None => SocketAddrUnix::new(path).ok(),
    }
}

fn names_of(hold: &Hold) -> Vec<String> {
    let about = String::from_utf8_lossy(&hold.about);
    let count = hold.fds.len();
    (0..count).map(|number| format!("{}#{number}/{count}#{about}", hold.key)).collect()
}

/// The holds that are whole, and the names of the others' parts.
fn assemble(fds: Vec<(String, OwnedFd)>) -> (Vec<Hold>, Vec<String>) {
    type Parts = BTreeMap<usize, Arc<OwnedFd>>;
    let mut found: BTreeMap<(String, usize, String), Parts> = BTreeMap::new();
    let mut stale = Vec::new();
    for (name, fd) in fds {
        match parse(&name) {
            Some((key, number, count, about)) => {
                let parts = found.entry((key.to_owned(), count, about.to_owned())).or_default();
                parts.insert(number, Arc::new(fd));
            }
            None => stale.push(name),
        }
    }
    let mut holds = Vec::new();
    for ((key, count, about), parts) in found {
        let whole = parts.len() == count && parts.keys().all(|number| *number < count);
        let hold = Hold { key, about: about.into_bytes(), fds: parts.into_values().collect() };
        if whole {
            holds.push(hold);
        } else {
            let about = String::from_utf8_lossy(&hold.about);
            stale.extend((0..count).map(|number| format!("{}#{number}/{count}#{about}", hold.key)));
        }
    }
    (holds, stale)
}

fn parse(name: &str) -> Option<(&str, usize, usize, &str)> {
    let (key, rest) = name.split_once('#')?;
    let (place, about) = rest.split_once('#')?;
    let (number, count) = place.split_once('/')?;
    // As many as a message of the protocol could bring.
    let count = count.parse().ok().filter(|count| *count <= 253)?;
    Some((key, number.parse().ok()?, count, about))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn hold(key: &str, count: usize) -> Hold {
        let fds = (0..count).map(|_| Arc::new(fd())).collect();
        Hold { key: key.into(), about: b"net ipc".to_vec(), fds }
    }

    #[test]
    fn b44_what_is_whole_comes_back_and_the_rest_is_named() {
        let mut names = names_of(&hold("pod/a", 2));
        names.reverse();
        names.push(names_of(&hold("pod/b", 2))[1].clone());
        names.push("stored".into());
        let (holds, stale) = assemble(names.into_iter().map(|name| (name, fd())).collect());
        let seen: Vec<_> = holds.iter().map(|h| (h.key.as_str(), h.about.as_slice(), h.fds.len())).collect();
        assert_eq!(seen, [("pod/a", b"net ipc".as_slice(), 2)]);
        assert_eq!(stale, ["stored", "pod/b#0/2#net ipc", "pod/b#1/2#net ipc"]);
    }

    #[test]
    fn b44_the_manager_is_sent_each_descriptor_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let store = FdStore { address: address(path.to_str().unwrap()), ..FdStore::default() };
        store.put(&hold("pod/a", 1));
        store.put(&hold("pod/a", 1));
        store.remove("pod/a");
        let mut buffer = [0; 128];
        for expected in
            ["FDSTORE=1\nFDPOLL=0\nFDNAME=pod/a#0/1#net ipc", "FDSTOREREMOVE=1\nFDNAME=pod/a#0/1#net ipc"]
        {
            let length = manager.recv(&mut buffer).unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), expected);
        }
    }
}
