//! The connection over time: made, lost with a keeper's death, made again.
//!
//! When a keeper dies, its children become ours (we are a subreaper and were its parent). So that
//! no exit code is lost, whoever of them ends is reaped here, by pidfd, and the next keeper is told.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::sync::watch;

use super::link::{Answer, Link, lock};
use super::table::{Attachment, Entry, Reaped, Table};
use super::{Config, Hold, Snapshot, Status, launch};
use crate::error::{Kind, Step};
use crate::keeper::protocol::{Phase, Record, Reply, Request, VERSION};
use crate::sys::proc_stat::ProcStat;
use crate::sys::{async_fd, pidfd, prctl};
use crate::{Error, Result};

/// How long a request waits for the next keeper.
const NEXT_KEEPER_LIMIT: Duration = Duration::from_secs(10);
/// How long a daemon that starts looks for a keeper that lives.
const FIRST_KEEPER_LIMIT: Duration = Duration::from_secs(10);
/// How long a keeper may take to greet: its control never waits for anything.
const GREETING_LIMIT: Duration = Duration::from_secs(20);
/// Keepers that one request may outlive.
const ATTEMPTS: usize = 16;
/// How long a dead keeper's children may take to become ours.
const ADOPTION_LIMIT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// A keeper that dies sooner means that something is wrong with keepers as such. Short, since without
/// one nobody copies logs: what waits in the pipes is lost should we die as well.
const STABLE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Orphans of containers in the node's PID namespace come to us one by one.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// What moves the messages of a link, and ends with it.
type Moving = tokio::task::JoinHandle<()>;

pub struct Shared {
    pub(super) config: Config,
    pub table: Mutex<Table>,
    /// None between two keepers.
    link: watch::Sender<Option<Arc<Link>>>,
    /// The keeper, if it is our own child.
    child: Mutex<Option<Child>>,
    /// Of attached clients.
    pub next_key: AtomicU64,
    /// What moves the link's messages.
    mover: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(mover) = lock(&self.mover).take() {
            mover.abort();
        }
    }
}

impl Shared {
    pub async fn connect(config: Config) -> Result<(Arc<Self>, Snapshot)> {
        prctl::child_subreaper().step(|| "becoming a subreaper")?;
        let shared = Arc::new(Self {
            config,
            table: Mutex::default(),
            link: watch::Sender::new(None),
            child: Mutex::new(None),
            next_key: AtomicU64::new(1),
            mover: Mutex::new(None),
        });
        let (link, ended, snapshot) = shared.first_connection().await?;
        shared.link.send_replace(Some(link));
        // Weak: the last handle that goes ends the connection.
        tokio::spawn(supervise(Arc::downgrade(&shared), ended));
        tokio::spawn(sweep(Arc::downgrade(&shared)));
        Ok((shared, snapshot))
    }

    /// Tries again where the keeper that was found was about to die.
    async fn first_connection(self: &Arc<Self>) -> Result<(Arc<Link>, Moving, Snapshot)> {
        let since = Instant::now();
        loop {
            let connected = async {
                let (link, ended) = self.open().await?;
                Ok::<_, Error>((Arc::clone(&link), ended, self.take_snapshot(&link).await?))
            };
            match connected.await {
                Err(e) if e.kind == Kind::Unavailable && since.elapsed() < FIRST_KEEPER_LIMIT => {
                    tracing::warn!(error = %e, "the keeper died while we connected to it; trying again");
                    *lock(&self.table) = Table::default();
                    self.bury();
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    pub fn alive(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// Asks, and waits for the first answer.
    pub async fn ask(&self, request: &Request, fds: Vec<Arc<OwnedFd>>) -> Result<Answer> {
        let link = self.current().await?;
        link.send(request, fds)?.next().await
    }

    /// As [`Self::ask`], of the next keeper if this one dies meanwhile: for what may be said twice.
    pub async fn ask_again(&self, request: &Request, fds: &[Arc<OwnedFd>]) -> Result<Answer> {
        let mut answer = self.ask(request, fds.to_vec()).await;
        for _ in 1..ATTEMPTS {
            match answer {
                Err(e) if e.kind == Kind::Unavailable => {
                    // The end of the link is noticed a little after its first failure.
                    tokio::time::sleep(RETRY_PAUSE).await;
                    answer = self.ask(request, fds.to_vec()).await;
                }
                other => return other,
            }
        }
        answer
    }

    /// A process that came into the table, or whose descriptors did, while its keeper may have been
    /// dying: those who then saw to the others may have missed it.
    pub fn catch_up(self: &Arc<Self>, asked: &Arc<Link>, id: &str) {
        if !asked.has_ended() {
            return;
        }
        let (shared, id) = (Arc::clone(self), id.to_owned());
        tokio::spawn(async move {
            let mut fds = Vec::new();
            let record = {
                let mut table = lock(&shared.table);
                let Some(entry) = table.entries.get(&id) else { return };
                let (pid, pidfd) = (entry.pid, Arc::clone(&entry.pidfd));
                let record = entry.record(&id, &mut fds);
                if table.watched.insert((id.clone(), pid)) {
                    tokio::spawn(Self::reap(Arc::downgrade(&shared), id.clone(), pid, pidfd));
                }
                record
            };
            // One that the next keeper was given after all it refuses to take twice.
            let _ = shared.ask_again(&Request::Restore(record), &fds).await;
            // Somebody may have had it forgotten before the keeper knew it.
            let wanted = lock(&shared.table).entries.get(&id).is_some_and(|entry| !entry.forgotten);
            if !wanted {
                let _ = shared.ask_again(&Request::Forget { id }, &[]).await;
            }
        });
    }

    pub async fn current(&self) -> Result<Arc<Link>> {
        let mut link = self.link.subscribe();
        let up = tokio::time::timeout(NEXT_KEEPER_LIMIT, link.wait_for(Option::is_some));
        match up.await {
            Ok(Ok(link)) => link.clone().ok_or_else(no_keeper),
            _ => Err(no_keeper()),
        }
    }

    /// Finds or starts a keeper and greets it; what is returned with the link ends with it.
    async fn open(self: &Arc<Self>) -> Result<(Arc<Link>, Moving)> {
        let config = self.config.clone();
        let (socket, child) = tokio::task::spawn_blocking(move || launch::find_or_start(&config))
            .await
            .map_err(|e| Error::internal(e.to_string()))??;
        if child.is_some() {
            *lock(&self.child) = child;
        }
        let link = Link::new(socket).step(|| "connecting to the keeper")?;
        let ended = tokio::spawn({
            let (link, shared) = (Arc::clone(&link), Arc::downgrade(self));
            async move {
                let event = |reply| {
                    if let (Some(shared), Reply::Exited { id, exit }) = (shared.upgrade(), reply) {
                        lock(&shared.table).exited(&id, exit);
                    }
                };
                link.run(event).await;
            }
        });
        *lock(&self.mover) = Some(ended.abort_handle());
        let mut answers = link.send(&Request::Hello { version: VERSION, observer: false }, Vec::new())?;
        let greeted = tokio::time::timeout(GREETING_LIMIT, answers.next()).await;
        let silent = |_| Error::unavailable("a keeper has the node's containers, but does not answer");
        match greeted.map_err(silent)??.0 {
            Reply::Welcome { keeper, pid, .. } => {
                tracing::info!(version = keeper, pid, "connected to the keeper");
                (self.config.met.0)(pid);
                Ok((Arc::clone(&link), ended))
            }
            other => Err(super::requests::unexpected(other)),
        }
    }

    async fn take_snapshot(&self, link: &Arc<Link>) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        // Whatever ends while we read is told at once, and may overtake what we read.
        lock(&self.table).early = Some(HashMap::new());
        let mut answers = link.send(&Request::Snapshot, Vec::new())?;
        loop {
            match answers.next().await? {
                (Reply::Process(record), fds) => {
                    let (id, entry) = Entry::from_record(record, fds)?;
                    snapshot.processes.push((entry.process(&id), entry.state()));
                    let mut table = lock(&self.table);
                    table.entries.insert(id.clone(), entry);
                    // An exec that ended is of no use to anybody who was not there.
                    if let Some(exit) = table.early.as_mut().and_then(|early| early.remove(&id)) {
                        table.exited(&id, exit);
                    }
                }
                (Reply::Hold { key, about }, fds) => {
                    let fds = fds.into_iter().map(Arc::new).collect();
                    let hold = Hold { key: key.clone(), about, fds };
                    lock(&self.table).holds.insert(key, hold.clone());
                    snapshot.holds.push(hold);
                }
                (Reply::Done, _) => {
                    lock(&self.table).early = None;
                    return Ok(snapshot);
                }
                (other, _) => return Err(super::requests::unexpected(other)),
            }
        }
    }

    /// Hands the next keeper everything that the last one held.
    async fn hand_over(self: &Arc<Self>) -> Result<(Arc<Link>, Moving)> {
        let (link, ended) = self.open().await?;
        let mut held = HashSet::new();
        let mut answers = link.send(&Request::Snapshot, Vec::new())?;
        loop {
            match answers.next().await? {
                // It is the same keeper, and only our connection was lost.
                (Reply::Process(record), fds) => {
                    held.insert(record.id.clone());
                    self.catch_up_with(record, fds)?;
                }
                (Reply::Hold { key, .. }, _) if !lock(&self.table).holds.contains_key(&key) => {
                    drop(link.send(&Request::Release { key }, Vec::new())?);
                }
                (Reply::Done, _) => break,
                (other @ Reply::Refused { .. }, _) => return Err(super::requests::unexpected(other)),
                _ => {}
            }
        }
        let messages: Vec<_> = {
            let table = lock(&self.table);
            let holds = table.holds.values().map(|hold| {
                let (key, about) = (hold.key.clone(), hold.about.clone());
                (Request::Hold { key, about }, hold.fds.clone())
            });
            let entries = table.entries.iter().filter(|(id, _)| !held.contains(*id)).map(|(id, entry)| {
                let mut fds = Vec::new();
                (Request::Restore(entry.record(id, &mut fds)), fds)
            });
            // After it: whether it ran its program shows in what it left behind.
            let reaped = table.entries.iter().filter_map(|(id, entry)| {
                let (id, exit) = (id.clone(), entry.reaped?);
                Some((Request::Reaped { id, exit }, Vec::new()))
            });
            // First: what waits in the pipes is shown as well.
            let attached = table.entries.iter().flat_map(|(id, entry)| {
                entry.attached.iter().map(|attachment| {
                    let Attachment { key, stdout, stderr, socket } = attachment.clone();
                    (Request::Attach { id: id.clone(), key, stdout, stderr }, vec![socket])
                })
            });
            holds.chain(attached).chain(entries).chain(reaped).collect()
        };
        let sent: Vec<_> =
            messages.iter().map(|(request, fds)| link.send(request, fds.clone())).collect::<Result<_>>()?;
        for mut answers in sent {
            if let (other @ Reply::Refused { .. }, _) = answers.next().await? {
                // One broken container must not keep the others without a keeper.
                tracing::error!(error = %super::requests::unexpected(other), "handing over to the keeper");
            }
        }
        Ok((link, ended))
    }

    /// What came of a process while there was no connection to its keeper.
    fn catch_up_with(self: &Arc<Self>, record: Record, fds: Vec<OwnedFd>) -> Result<()> {
        let (id, known) = Entry::from_record(record, fds)?;
        let mut table = lock(&self.table);
        let Some(entry) = table.entries.get_mut(&id) else {
            drop(table);
            tokio::spawn(Arc::clone(self).disown(id, known.pidfd));
            return Ok(());
        };
        if entry.phase != known.phase && !matches!(entry.phase, Phase::Exited { .. }) {
            entry.pid = known.pid;
            entry.pidfd = known.pidfd;
            entry.joins = known.joins;
            entry.phase = known.phase;
            (entry.channel, entry.report) = (known.channel, known.report);
        }
        if let Phase::Exited { exit, .. } = known.phase {
            table.exited(&id, exit);
        }
        Ok(())
    }

    /// Ends a process whose spawning nobody heard of: whoever had asked for it has given up, or was
    /// told that it failed.
    pub async fn disown(self: Arc<Self>, id: String, pidfd: Arc<OwnedFd>) {
        tracing::warn!(process = id, "ending a process whose spawning was not heard of");
        let _ = pidfd::send_signal(pidfd.as_fd(), libc::SIGKILL);
        let duplicate = pidfd.as_ref().try_clone();
        if let Ok(ended) = duplicate.and_then(|fd| async_fd::watch(fd, Interest::READABLE)) {
            let _ = ended.readable().await;
        }
        if let Err(error) = self.ask_again(&Request::Forget { id: id.clone() }, &[]).await {
            tracing::warn!(process = id, %error, "the keeper still holds a process that nobody wants");
        }
    }

    /// The keeper is dead: reaps it, and sees to it that its children are reaped.
    fn bury(self: &Arc<Self>) {
        let child = lock(&self.child).take();
        if let Some(mut child) = child {
            // Where it only hung up it must not live on beside its successor.
            let _ = child.try_wait().map(|status| status.is_none().then(|| child.kill()));
            std::thread::spawn(move || child.wait());
        }
        let mut table = lock(&self.table);
        let table = &mut *table;
        for (id, entry) in &table.entries {
            if entry.exit.borrow().is_none()
                && entry.reaped.is_none()
                && table.watched.insert((id.clone(), entry.pid))
            {
                let pidfd = Arc::clone(&entry.pidfd);
                tokio::spawn(Self::reap(Arc::downgrade(self), id.clone(), entry.pid, pidfd));
            }
        }
    }

    /// Waits for the end of a process that may be our child by now.
    async fn reap(shared: Weak<Self>, id: String, mut pid: i32, mut pidfd: Arc<OwnedFd>) {
        let (shared, exit) = loop {
            let duplicate = pidfd.as_ref().try_clone();
            let Ok(ended) = duplicate.and_then(|fd| async_fd::watch(fd, Interest::READABLE)) else { return };
            let _ = ended.readable().await;
            let Some(shared) = shared.upgrade() else { return };
            let status = match ending(&pidfd).await {
                Some(pidfd::Ended::Code(code)) => Some(Status::Code(code)),
                Some(pidfd::Ended::Signal(signal)) => Some(Status::Signal(signal)),
                None => None,
            };
            let reaped = lock(&shared.table).reaped(&id, pid, status);
            // Not before its note says how it ended.
            let _ = pidfd::reap(pidfd.as_fd());
            match reaped {
                Reaped::Exit(exit) => break (shared, exit),
                Reaped::Helper(made, its_pidfd) => (pid, pidfd) = (made, its_pidfd),
                Reaped::Nothing => return,
            }
        };
        // If the keeper dies before it hears this, the next is given it with the rest.
        let _ = shared.ask_again(&Request::Reaped { id, exit }, &[]).await;
    }
}

/// How a process ended. None: it is another's child, whose end the keeper learns from the kernel.
///
/// A keeper that dies loses its connection before its children are given to us, so that ECHILD may
/// only mean "not yet".
async fn ending(pidfd: &OwnedFd) -> Option<pidfd::Ended> {
    let since = Instant::now();
    loop {
        match pidfd::peek(pidfd.as_fd()) {
            Ok(ended) => return ended,
            Err(_) if since.elapsed() < ADOPTION_LIMIT => tokio::time::sleep(RETRY_PAUSE).await,
            Err(_) => return None,
        }
    }
}

fn no_keeper() -> Error {
    Error::unavailable("the keeper does not answer")
}

/// Brings a new keeper up whenever one has died.
async fn supervise(shared: Weak<Shared>, mut ended: Moving) {
    let mut pause = Duration::ZERO;
    loop {
        let since = Instant::now();
        let _ = (&mut ended).await;
        let Some(shared) = shared.upgrade() else { return };
        tracing::warn!("the keeper is gone; starting another");
        shared.link.send_replace(None);
        shared.bury();
        pause = if since.elapsed() > STABLE { Duration::ZERO } else { pause };
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).clamp(Duration::from_millis(20), LONGEST_PAUSE);
            match shared.hand_over().await {
                Ok((link, next)) => {
                    shared.link.send_replace(Some(link));
                    ended = next;
                    break;
                }
                Err(e) if e.kind == Kind::Unavailable => shared.bury(),
                Err(e) => {
                    tracing::error!(error = %e, "starting a keeper");
                    shared.bury();
                }
            }
        }
    }
}

/// Reaps those who became our children by a keeper's death, or by that of a plugin which left them
/// behind, and whom nobody knows. Our own commands are of our session, as is what they leave, and are
/// waited for at once; containers and what these leave never are.
async fn sweep(shared: Weak<Shared>) {
    // Zero where its leader is of a PID namespace above ours: getsid(2) cannot name it either.
    let own = session_of("self", |_| true);
    let mut unclaimed = HashSet::new();
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let known: HashSet<i32> = {
            let table = lock(&shared.table);
            let living = table.entries.values().filter(|entry| entry.exit.borrow().is_none());
            living.flat_map(|entry| entry.final_pid().into_iter().chain([entry.pid])).collect()
        };
        let zombies = children().into_iter().filter(|pid| !known.contains(pid));
        let ended = zombies.filter_map(|pid| Some((pid, session_of(pid, |stat| stat.is_zombie())?)));
        let (ours, others): (Vec<_>, Vec<_>) = ended.partition(|(_, session)| Some(*session) == own);
        let ours: HashSet<i32> = ours.into_iter().map(|(pid, _)| pid).collect();
        let left = ours.intersection(&unclaimed).copied();
        left.chain(others.into_iter().map(|(pid, _)| pid)).for_each(pidfd::reap_pid);
        unclaimed = ours;
    }
}

fn children() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect()
}

/// The session of a process of which `holds`.
fn session_of(pid: impl std::fmt::Display, holds: impl Fn(&ProcStat) -> bool) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ProcStat::of(&text).filter(holds)?.session()
}
