//! StopContainer.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::container::phase::{Kill, Stage};
use crate::container::{Container, Ending, end, signal};
use crate::error::Kind;
use crate::node::{Node, table};
use crate::{Error, Result};

/// How long a killed container may take to end before the call fails and names what holds it.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Signals, waits, kills (BEHAVIOUR 11). Unknown and ended containers are fine.
pub async fn stop(node: &Arc<Node>, id: &str, timeout: Duration) -> Result<()> {
    let container = match node.containers.find(id) {
        Err(error) if error.kind == Kind::NotFound => return Ok(()),
        found => found?,
    };
    if container.phase().stage() == Stage::Created {
        // A start under way comes first, or who stops it would be told so of one that runs.
        drop(container.gate.lock().await);
    }
    if !container.phase().stage().stops() {
        return Ok(());
    }
    if timeout.is_zero() {
        return kill(node, &container).await;
    }
    let deadline = announce(&container, timeout)?;
    let over = wait(&container, deadline).await;
    if over {
        return Ok(());
    }
    kill(node, &container).await
}

/// Enters the stop under way, shortening it if this one is shorter, or begins one with the
/// container's signal. The signal is sent once.
fn announce(container: &Container, timeout: Duration) -> Result<watch::Receiver<Instant>> {
    let now = Instant::now();
    // A century is for ever, and does not overflow.
    let deadline = now + timeout.min(Duration::from_secs(100 * 365 * 86_400));
    let mut stopping = container.stopping.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = &*stopping {
        running.send_if_modified(|current| {
            let shorter = deadline < *current;
            if shorter {
                *current = deadline;
            }
            shorter
        });
        return Ok(running.subscribe());
    }
    let name = &container.record.stop_signal;
    let number = signal::number(name)
        .ok_or_else(|| Error::internal(format!("the recorded stop signal {name:?} is none")))?;
    if let Some(process) = container.process() {
        process.signal(number)?;
    }
    let sender = watch::Sender::new(deadline);
    let receiver = sender.subscribe();
    *stopping = Some(sender);
    Ok(receiver)
}

/// True if the container ended before the deadline, which may move closer meanwhile.
async fn wait(container: &Container, mut deadline: watch::Receiver<Instant>) -> bool {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            biased;
            () = container.ended() => return true,
            () = tokio::time::sleep_until(until) => return false,
            Ok(()) = deadline.changed() => {}
        }
    }
}

/// SIGKILL to everything in the container's cgroup, and its end. A CREATED container ends as well.
pub async fn kill(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    if container.phase().stage().kill() == Kill::EndParked {
        discard(node, container).await?;
    }
    // A start that was under way may have come first.
    if container.phase().stage().kill() != Kill::All {
        return Ok(());
    }
    match (&container.record.cgroup, container.process()) {
        (Some(cgroup), _) => node.cgroups.kill(cgroup)?,
        (None, Some(process)) => process.signal(libc::SIGKILL)?,
        (None, None) => {}
    }
    if tokio::time::timeout(KILL_LIMIT, container.ended()).await.is_ok() {
        return Ok(());
    }
    let survivors = match &container.record.cgroup {
        Some(cgroup) => node.cgroups.wait_empty(cgroup, Duration::ZERO).await.err(),
        None => None,
    };
    let what = survivors.map_or_else(|| "its exit was not reported".to_owned(), |e| e.message);
    Err(Error::new(
        Kind::DeadlineExceeded,
        format!(
            "container {} did not end within {} s of SIGKILL: {what}",
            container.id,
            KILL_LIMIT.as_secs()
        ),
    ))
}

/// Ends a parked child, unless it was started meanwhile.
async fn discard(node: &Arc<Node>, container: &Arc<Container>) -> Result<()> {
    let _gate = container.gate.lock().await;
    if container.phase().stage().kill() != Kill::EndParked {
        return Ok(());
    }
    // It may have been released by a start whose answer was lost.
    if let Some(cgroup) = &container.record.cgroup {
        node.cgroups.kill(cgroup)?;
    }
    if let Some(process) = container.process() {
        let _ = tokio::time::timeout(KILL_LIMIT, process.exited()).await;
    }
    node.keeper.forget(&container.id).await?;
    let ending = Ending {
        finished_at: table::now(),
        exit_code: 128 + libc::SIGKILL,
        reason: "Error".into(),
        message: "the pod was stopped before the container was started".into(),
        ..Ending::default()
    };
    end::conclude(node, container, ending).await;
    Ok(())
}
