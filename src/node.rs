//! What every verb works on: the node's services and its tables of pods and containers.

use std::sync::Arc;

use crate::Result;
use crate::config::Config;

/// The running daemon. Verbs take `&Arc<Node>`.
pub struct Node {
    pub config: Config,
    pub images: crate::image::Images,
    pub network: crate::network::Network,
    pub events: crate::pod::events::Events,
}

impl Node {
    /// Opens everything, connects to the keeper, and takes back the pods of before.
    pub async fn open(_config: Config) -> Result<Arc<Node>> {
        todo!()
    }

    /// Err: why no container could be run now (Status: RuntimeReady).
    pub fn ready(&self) -> Result<(), String> {
        todo!()
    }
}
