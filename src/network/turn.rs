//! One change at a time for each pod; pods do not wait for each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Held while a pod is being changed.
pub type Turn = OwnedMutexGuard<()>;

#[derive(Default)]
pub struct Turns {
    pods: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl Turns {
    /// Waits until nothing else changes the pod.
    pub async fn wait(&self, pod_id: &str) -> Turn {
        let turn = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for any more.
            if pods.len() > 64 {
                pods.retain(|_, turn| turn.strong_count() > 0);
            }
            match pods.get(pod_id).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(AsyncMutex::new(()));
                    pods.insert(pod_id.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_waits_for_itself_only() {
        let turns = Turns::default();
        let a = turns.wait("a").await;
        turns.wait("b").await;
        let again = turns.wait("a");
        tokio::pin!(again);
        assert!(futures_util::poll!(&mut again).is_pending());
        drop(a);
        again.await;
    }
}
