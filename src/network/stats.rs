//! What went in and out of a pod.

use std::path::Path;

use super::netlink::link::{self, LinkState};
use super::netlink::{self, Socket};
use super::{InterfaceStats, namespace};
use crate::Result;

/// The CRI's default interface name; its counters come first.
const DEFAULT: &str = "eth0";

pub fn read(pins: &[impl AsRef<Path> + Sync]) -> Result<Vec<Result<Vec<InterfaceStats>>>> {
    namespace::visit(pins, || Ok(counters(link::list(&mut Socket::open(netlink::ROUTE)?)?)))
}

fn counters(links: Vec<LinkState>) -> Vec<InterfaceStats> {
    let mut stats: Vec<_> = links
        .into_iter()
        .filter(|link| !link.is_loopback())
        .map(|link| InterfaceStats {
            rx_bytes: link.counters.rx_bytes,
            rx_packets: link.counters.rx_packets,
            rx_errors: link.counters.rx_errors,
            rx_dropped: link.counters.rx_dropped,
            tx_bytes: link.counters.tx_bytes,
            tx_packets: link.counters.tx_packets,
            tx_errors: link.counters.tx_errors,
            tx_dropped: link.counters.tx_dropped,
            name: link.name,
        })
        .collect();
    stats.sort_by_key(|s| s.name != DEFAULT);
    stats
}
