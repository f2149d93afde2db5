//! Calls under way, so that a retried one joins the running one (BEHAVIOUR 3).
//!
//! The work runs in a task of its own: a client that gives up does not stop it half way, and the
//! retry that follows gets its result.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::{Error, Result};

type Joint<T> = Shared<BoxFuture<'static, Result<T>>>;

pub struct Flights<K, T>(Arc<Mutex<HashMap<K, Joint<T>>>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the call of `key`, or makes it.
    pub async fn join<F>(&self, key: K, make: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let joint = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&key) {
                Some(joint) => joint.clone(),
                None => {
                    let joint = Self::launch(Arc::clone(&self.0), key.clone(), make());
                    flights.insert(key, joint.clone());
                    joint
                }
            }
        };
        joint.await
    }

    fn launch(
        flights: Arc<Mutex<HashMap<K, Joint<T>>>>,
        key: K,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Joint<T> {
        let task = tokio::spawn(async move {
            let _landing = Landing { flights, key };
            work.await
        });
        async move { task.await.unwrap_or_else(|e| Err(Error::internal(format!("the call ended early: {e}")))) }
            .boxed()
            .shared()
    }
}

/// Takes the call off the list however it ends, a panic included.
struct Landing<K: Eq + Hash, T> {
    flights: Arc<Mutex<HashMap<K, Joint<T>>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn simultaneous_calls_share_one_run_and_later_ones_run_again() {
        let flights = Flights::<&str, u32>::default();
        let runs = Arc::new(AtomicU32::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::task::yield_now().await;
                Ok(runs.fetch_add(1, Ordering::SeqCst))
            }
        };
        let (a, b) = tokio::join!(flights.join("pod", work), flights.join("pod", work));
        assert_eq!((a.unwrap(), b.unwrap()), (0, 0));
        assert_eq!(flights.join("pod", work).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error_and_the_next_one_runs() {
        let flights = Flights::<&str, u32>::default();
        let broken = flights.join("layer", || async { panic!("on purpose") }).await;
        assert!(broken.unwrap_err().message.contains("ended early"));
        assert_eq!(flights.join("layer", || async { Ok(7) }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_does_not_stop_the_call() {
        let flights = Flights::<&str, u32>::default();
        let gate = Arc::new(tokio::sync::Notify::new());
        let opened = Arc::clone(&gate);
        let work = || async move {
            opened.notified().await;
            Ok(7)
        };
        let first = flights.join("pod", work).now_or_never();
        assert!(first.is_none());
        gate.notify_one();
        let joined = flights.join("pod", || async { Ok(8) }).await.unwrap();
        assert_eq!(joined, 7);
    }
}
