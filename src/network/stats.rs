//! What went in and out of a pod.

use std::path::Path;

use super::netlink::{self, Socket, link};
use super::{InterfaceStats, namespace};
use crate::Result;

/// The CRI's default interface name; its counters come first.
const DEFAULT: &str = "eth0";

pub fn read(netns: &Path) -> Result<Vec<InterfaceStats>> {
    let netns = namespace::open(netns)?;
    let links = namespace::run(&netns, || link::list(&mut Socket::open(netlink::ROUTE)?))?;
    let mut stats: Vec<_> = links
        .into_iter()
        .filter(|link| !link.is_loopback())
        .map(|link| InterfaceStats {
            rx_bytes: link.counters.rx_bytes,
            rx_errors: link.counters.rx_errors,
            tx_bytes: link.counters.tx_bytes,
            tx_errors: link.counters.tx_errors,
            name: link.name,
        })
        .collect();
    stats.sort_by_key(|s| s.name != DEFAULT);
    Ok(stats)
}
