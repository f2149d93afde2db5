//! Blocking work that may hang, or be asked for too often: on a number of threads that is its own.

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::{Error, Result};

/// Runs `work` on a thread that may block, once there is `room`. The room is taken until the work is
/// done, also where this is dropped before; work that has not begun by then never does.
///
/// # Errors
/// Those of `work`; INTERNAL if it panics.
pub async fn run<T: Send + 'static>(
    room: &'static Semaphore,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let lost = |e: &dyn std::fmt::Display| Error::internal(format!("on a thread of its own: {e}"));
    let taken = room.acquire().await.map_err(|e| lost(&e))?;
    let task = spawn_blocking(move || {
        let _taken = taken;
        work()
    });
    task.await.map_err(|e| lost(&e))?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Arc, Mutex};

    use futures_util::future::join_all;

    use super::*;

    static ROOM: Semaphore = Semaphore::const_new(3);

    /// So many calls, each of which hangs until its channel is closed.
    async fn hang(count: usize, begun: &Arc<AtomicUsize>, until: &Arc<Mutex<Receiver<()>>>) {
        let calls = (0..count).map(|_| {
            let (begun, until) = (Arc::clone(begun), Arc::clone(until));
            run(&ROOM, move || {
                begun.fetch_add(1, Ordering::SeqCst);
                let _ = until.lock().map(|until| until.recv());
                Ok(())
            })
        });
        join_all(calls).await;
    }

    #[tokio::test]
    async fn what_is_given_up_takes_no_more_threads() {
        let begun = Arc::<AtomicUsize>::default();
        let (hangs, until) = channel::<()>();
        let until = Arc::new(Mutex::new(until));
        for _ in 0..5 {
            let all_hang = async {
                while begun.load(Ordering::SeqCst) < 3 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                () = hang(10, &begun, &until) => panic!("they hang"),
                () = all_hang => {}
            }
            assert_eq!(ROOM.available_permits(), 0, "they hang on, though nobody waits for them");
        }
        drop(hangs);
        hang(1, &begun, &until).await;
        assert_eq!(begun.load(Ordering::SeqCst), 4);
    }
}
