//! Looks at what a container has mounted, where a file system may never answer: a thread that asks it
//! hangs with it. Of one container that is one thread, and of all together they are few.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::error::Kind;
use crate::{Error, Result, threads};

/// Containers that are looked into at a time.
static ROOM: Semaphore = Semaphore::const_new(16);

/// Of each container.
#[derive(Debug)]
pub struct Inside(Arc<Semaphore>);

impl Default for Inside {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Inside {
    /// Has `look` done on a thread, when its turn has come.
    ///
    /// # Errors
    /// Those of `look`; DEADLINE_EXCEEDED if it is not done within `limit`. What hangs goes on hanging.
    pub async fn look<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        look: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let looked = async {
            let turn = Arc::clone(&self.0).acquire_owned().await;
            let turn = turn.map_err(|e| Error::internal(format!("{what}: {e}")))?;
            threads::run(&ROOM, move || {
                let _turn = turn;
                begins.store(true, Ordering::Relaxed);
                look()
            })
            .await
        };
        tokio::time::timeout(limit, looked).await.unwrap_or_else(|_| {
            let why = match begun.load(Ordering::Relaxed) {
                true => "there is no answer",
                false => "what was asked before does not answer",
            };
            Err(Error::new(Kind::DeadlineExceeded, format!("{what}: {why} within {} s", limit.as_secs())))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use futures_util::future::join_all;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const LATE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_hangs_takes_few_threads_and_holds_up_no_other() {
        let (hangs, until) = channel::<()>();
        let until = Arc::new(Mutex::new(until));
        let hang = |inside: Arc<Inside>, limit, begun: Option<tokio::sync::oneshot::Sender<()>>| {
            let until = Arc::clone(&until);
            async move {
                let hangs = move || {
                    let _ = begun.map(|begun| begun.send(()));
                    drop(until.lock().map(|until| until.recv()));
                    Ok(())
                };
                inside.look("it", limit, hangs).await
            }
        };
        let (one, other) = (Arc::<Inside>::default(), Inside::default());
        let (begins, begun) = tokio::sync::oneshot::channel();
        let first = tokio::spawn(hang(Arc::clone(&one), LATE, Some(begins)));
        begun.await.unwrap();
        for _ in 0..20 {
            let hung = one.look("it", SOON, || Ok(())).await.unwrap_err();
            assert_eq!(hung.kind, Kind::DeadlineExceeded);
            assert!(hung.message.contains("it: what was asked before does not answer"), "{hung}");
        }
        assert_eq!(other.look("other", LATE, || Ok(7)).await.unwrap(), 7);
        // Many containers.
        let answers = join_all((0..40).map(|_| hang(Arc::default(), SOON, None))).await;
        let messages: Vec<String> = answers.into_iter().map(|answer| answer.unwrap_err().message).collect();
        assert!(messages.iter().filter(|message| message.contains("there is no answer")).count() < 16);
        drop(hangs);
        first.await.unwrap().unwrap();
        assert_eq!(one.look("it", LATE, || Ok(8)).await.unwrap(), 8);
    }
}
