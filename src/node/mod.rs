//! What every verb works on: the node's services and its tables of pods and containers.

pub mod layout;
pub mod open;
pub mod record;
pub mod table;

use std::sync::Arc;

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::container::{self, Container};
use crate::error::Kind;
use crate::flight::Flights;
use crate::image::Images;
use crate::keeper::client::Keeper;
use crate::network::Network;
use crate::node::layout::Layout;
use crate::node::table::Table;
use crate::pod::events::{Event, EventKind, Events};
use crate::pod::spec::{NamespaceMode, PodName, PodSpec};
use crate::pod::{self, Pod};
use crate::{Error, Result};

/// The running daemon. Verbs take `&Arc<Node>`.
pub struct Node {
    pub config: Config,
    pub layout: Layout,
    pub images: Images,
    pub network: Network,
    pub cgroups: Cgroups,
    pub keeper: Keeper,
    pub events: Events,
    pub pods: Table<Pod>,
    pub containers: Table<Container>,
    /// RunPodSandbox and CreateContainer under way, by name.
    pub running: Flights<PodName, String>,
    pub creating: Flights<(String, container::spec::ContainerName), String>,
    /// Starts, stops and removals under way, by verb and ID.
    pub changing: Flights<String, ()>,
    /// The bounding set that this process has: no container gets more (BEHAVIOUR 21).
    pub capabilities: u64,
}

impl Node {
    /// Err: why no container could be run now (Status: RuntimeReady).
    pub fn ready(&self) -> Result<(), String> {
        if self.keeper.alive() {
            Ok(())
        } else {
            Err("the keeper does not answer; it is being restarted".into())
        }
    }

    /// A pod that needs an address is refused while there is none to be had (BEHAVIOUR 31).
    pub fn network_ready(&self, spec: &PodSpec) -> Result<()> {
        if spec.security.namespaces.network == NamespaceMode::Node {
            return Ok(());
        }
        self.network
            .ready()
            .map_err(|reason| Error::new(Kind::Unavailable, format!("the network is not ready: {reason}")))
    }

    /// Tells the listeners of GetContainerEvents.
    pub fn announce(&self, container: &Arc<Container>, kind: EventKind) {
        let pod_id = &container.record.pod_id;
        self.events.send(|| Event {
            container_id: container.id.clone(),
            kind,
            created_at: table::now(),
            pod: pod::status::status(self, pod_id).ok(),
            containers: pod::status::containers(self, pod_id).unwrap_or_default(),
        });
    }

    /// The same for a pod itself (BEHAVIOUR 14).
    pub fn announce_pod(&self, pod: &Arc<Pod>, kind: EventKind) {
        self.events.send(|| Event {
            container_id: pod.id.clone(),
            kind,
            created_at: table::now(),
            pod: (kind != EventKind::Deleted).then(|| pod::status::of(pod)),
            containers: pod::status::containers(self, &pod.id).unwrap_or_default(),
        });
    }
}
