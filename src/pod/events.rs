//! What happened to pods and containers, for GetContainerEvents.

use tokio::sync::broadcast;

use crate::container::status::ContainerStatus;
use crate::pod::status::PodStatus;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// A pod's own events have the pod's ID as `container_id` (BEHAVIOUR 14).
#[derive(Debug, Clone)]
pub struct Event {
    pub container_id: String,
    pub kind: EventKind,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// None once the pod itself is deleted.
    pub pod: Option<PodStatus>,
    pub containers: Vec<ContainerStatus>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(1024).0)
    }
}

impl Events {
    /// Events from now on; a reader that falls behind by 1,024 is told so by `Lagged`.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    /// The event is only made if somebody listens.
    pub fn send(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            let _ = self.0.send(event());
        }
    }
}
