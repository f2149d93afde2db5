//! Volumes that may hang, opened by a process of their own.
//!
//! ```text
//!  daemon                                     podwright open-volumes (socket on fd 0)
//!  [Mount] ──────────────────────────────────▶
//!          ◀────────────────────────────────── Opened, with the detached mount, for each in order
//! ```
//!
//! One that does not answer in time is killed. Where even that does not end it (the kernel waits
//! without listening to signals), it counts against a limit, and its path is refused until it ends:
//! however often a client tries again, the node does not fill with what hangs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Volume, label};
use crate::container::spec::Mount;
use crate::error::{Kind, Step};
use crate::keeper::wire::{self, Inbox};
use crate::sys::{async_fd, seqpacket};
use crate::{Error, Result};

/// The hidden verb of the command line.
pub const VERB: &str = "open-volumes";

/// Processes at a time, those that cannot be killed included.
const LIMIT: usize = 32;
static ROOM: Semaphore = Semaphore::const_new(LIMIT);

/// Host paths at which a killed process still hangs, and how many do.
static HANGING: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

fn hanging() -> MutexGuard<'static, BTreeMap<String, u32>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Serialize, Deserialize)]
enum Opened {
    Volume { directory: bool },
    Failed { invalid: bool, message: String },
}

/// Opens the mounts, in order.
pub async fn open(mounts: Vec<Mount>, limit: Duration) -> Result<Vec<Volume>> {
    if let Some(mount) = mounts.iter().find(|mount| hanging().contains_key(&mount.host_path)) {
        let text = format!("mounting {}: it has not answered since an earlier try", label(mount));
        return Err(Error::unavailable(text));
    }
    let deadline = tokio::time::Instant::now() + limit;
    let Ok(room) = tokio::time::timeout_at(deadline, ROOM.acquire()).await else {
        let paths = hanging().keys().cloned().collect::<Vec<_>>().join(", ");
        let text = format!("too many volumes of this node do not answer ({paths}); no more are opened");
        return Err(Error::new(Kind::ResourceExhausted, text));
    };
    let room = room.map_err(|e| Error::internal(e.to_string()))?;
    let mut opener = Opener::start(mounts, room)?;
    match tokio::time::timeout_at(deadline, opener.volumes()).await {
        Ok(volumes) => {
            opener.answered = true;
            volumes
        }
        Err(_) => Err(Error::new(
            Kind::DeadlineExceeded,
            format!("mounting {}: it did not answer within {} s", opener.at(), limit.as_secs()),
        )),
    }
}

/// A process at work. Whatever way the call ends, dropped half way too, the process is killed.
struct Opener {
    mounts: Vec<Mount>,
    socket: AsyncFd<OwnedFd>,
    opened: Vec<Volume>,
    /// All was opened, or something failed: it does not hang.
    answered: bool,
    /// Until it is dropped.
    process: Option<(Child, SemaphorePermit<'static>)>,
}

impl Opener {
    fn start(mounts: Vec<Mount>, room: SemaphorePermit<'static>) -> Result<Self> {
        let step = || "starting a process to open volumes";
        let (ours, theirs) = seqpacket::pair().step(step)?;
        rustix::io::ioctl_fionbio(&ours, true).step(step)?;
        let child = Command::new("/proc/self/exe")
            .arg(VERB)
            // What systemd told the daemon is not for it.
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .step(step)?;
        let request = wire::encode(0, &mounts, Vec::new()).step(step)?;
        let mut outbox = wire::Outbox::default();
        // One packet, for which a fresh socket has room.
        outbox.push(request);
        outbox.flush(ours.as_fd()).step(step)?;
        let socket = async_fd::watch(ours, Interest::READABLE).step(step)?;
        Ok(Self { mounts, socket, opened: Vec::new(), answered: false, process: Some((child, room)) })
    }

    /// What it works on.
    fn at(&self) -> String {
        self.mounts.get(self.opened.len()).map(label).unwrap_or_default()
    }

    async fn volumes(&mut self) -> Result<Vec<Volume>> {
        let mut inbox = Inbox::default();
        while self.opened.len() < self.mounts.len() {
            let mut ready = self.socket.readable().await.step(|| "waiting for a volume")?;
            let incoming = match ready.try_io(|socket| inbox.receive(socket.as_fd())) {
                Err(_would_block) => continue,
                Ok(Ok(incoming)) => incoming,
                Ok(Err(_)) => {
                    let text = format!("mounting {}: the process that opens volumes has ended", self.at());
                    return Err(Error::internal(text));
                }
            };
            let answer = incoming.decode().map_err(|e| Error::internal(format!("opening volumes: {e}")))?;
            match (answer, incoming.fds.into_iter().next()) {
                (Opened::Volume { directory }, Some(mount)) => {
                    let label = self.at();
                    self.opened.push(Volume { mount, directory, label });
                }
                (Opened::Failed { invalid, message }, _) => {
                    let kind = if invalid { Kind::InvalidArgument } else { Kind::Internal };
                    return Err(Error::new(kind, message));
                }
                (Opened::Volume { .. }, None) => {
                    return Err(Error::internal("a volume came without its mount"));
                }
            }
        }
        Ok(std::mem::take(&mut self.opened))
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let Some((mut child, room)) = self.process.take() else { return };
        let _ = child.start_kill();
        let path = self.mounts.get(self.opened.len()).filter(|_| !self.answered);
        let path = path.map(|mount| mount.host_path.clone());
        if let Some(path) = &path {
            *hanging().entry(path.clone()).or_default() += 1;
        }
        tokio::spawn(async move {
            let _ = child.wait().await;
            if let Some(path) = path {
                end_of_hang(&path);
            }
            drop(room);
        });
    }
}

fn end_of_hang(path: &str) {
    let mut hanging = hanging();
    if let Some(count) = hanging.get_mut(path) {
        *count -= 1;
        if *count == 0 {
            hanging.remove(path);
        }
    }
}

/// The process's whole life: the verb of [`VERB`].
pub fn serve() -> Result<ExitCode> {
    let socket = crate::sys::fd::standard(0);
    let step = || "reading which volumes to open";
    let mut inbox = Inbox::default();
    let incoming = loop {
        rustix::io::retry_on_intr(|| {
            let mut poll = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None)
        })
        .step(step)?;
        match inbox.receive(socket) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            other => break other.step(step)?,
        }
    };
    let mounts: Vec<Mount> = incoming.decode().map_err(|e| Error::internal(format!("{}: {e}", step())))?;
    for (place, mount) in mounts.iter().enumerate() {
        let (answer, fds) = match super::open(mount) {
            Ok(volume) => (Opened::Volume { directory: volume.directory }, vec![Arc::new(volume.mount)]),
            Err(e) => {
                let invalid = e.kind == Kind::InvalidArgument;
                (Opened::Failed { invalid, message: e.message }, Vec::new())
            }
        };
        let number = place as u32 + 1;
        // Nobody is left to tell where this fails.
        wire::send_all(socket, number, &answer, fds).step(|| "handing a volume over")?;
        if matches!(answer, Opened::Failed { .. }) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
