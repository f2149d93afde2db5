//! The bridge, its gateway address, forwarding and masquerading: made when they are missing.

use std::fs;
use std::path::Path;

use super::subnet::Subnet;
use super::{mac, masquerade};
use crate::Error;
use crate::error::{Result, Step};
use crate::network::netlink::link::{self, Link};
use crate::network::netlink::message::Batch;
use crate::network::netlink::{self, Socket};

/// Ethernet's, where there is no default route to learn one from.
const USUAL_MTU: u32 = 1500;
/// The most that a veth takes; loopback, which a default route can go by, has one more.
const MOST_MTU: u32 = 65535;
/// IPV6_MIN_MTU: a link with less has no IPv6.
const LEAST_IPV6_MTU: u32 = 1280;
/// Of the calling thread's network namespace.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

pub struct Bridge {
    name: String,
    /// The last one is used for new pods; those before it still have pods.
    subnets: Vec<Subnet>,
    wanted_mtu: Option<u32>,
    /// Whether the kernel has IPv6 at all.
    ipv6: bool,
    socket: Option<Socket>,
    /// {index, MTU} once it is set up.
    up: Option<(u32, u32)>,
}

impl Bridge {
    /// # Errors
    /// INVALID_ARGUMENT for a name that no link can have.
    pub fn new(name: &str, subnet: Subnet, mtu: Option<u32>) -> Result<Self> {
        let fits = (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        if !fits || name.contains(['/', ':', '%']) || matches!(name, "." | "..") {
            return Err(Error::invalid(format!(
                "bridge name {name:?} is not one of 1 to 15 plain characters"
            )));
        }
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        Ok(Self {
            name: name.to_owned(),
            subnets: vec![subnet],
            wanted_mtu: mtu,
            ipv6,
            socket: None,
            up: None,
        })
    }

    pub fn subnet(&self) -> Subnet {
        // Never empty: begun with one, and only ever added to.
        self.subnets[self.subnets.len() - 1]
    }

    pub fn set_subnet(&mut self, subnet: Subnet) {
        if self.subnet() != subnet {
            self.subnets.retain(|s| *s != subnet);
            self.subnets.push(subnet);
            self.up = None;
        }
    }

    /// Whether a link of this MTU has IPv6, and so a link-local address to be turned off.
    pub fn has_ipv6(&self, mtu: u32) -> bool {
        self.ipv6 && mtu >= LEAST_IPV6_MTU
    }

    /// The one long-lived rtnetlink socket, of the namespace of the thread that asks first.
    pub fn socket(&mut self) -> Result<&mut Socket> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => Socket::open(netlink::ROUTE)?,
        };
        Ok(self.socket.insert(socket))
    }

    /// {index, MTU} of the bridge, which is made first if it is missing, or was deleted.
    pub fn ensure(&mut self) -> Result<(u32, u32)> {
        let name = self.name.clone();
        let index = self.socket()?.link_index(&name);
        if let (Some((known, mtu)), Some(index)) = (self.up, index)
            && known == index
        {
            return Ok((index, mtu));
        }
        self.up = None;
        let up = self.set_up(index.is_some()).step(|| format!("setting up bridge {name}"))?;
        self.up = Some(up);
        Ok(up)
    }

    /// Takes the bridge and the rules away; those that are gone are fine.
    pub fn remove(&mut self) -> Result<()> {
        self.up = None;
        let name = self.name.clone();
        if let Err(error) = masquerade::remove(&name) {
            tracing::warn!(error = %error.map_or_else(|e| e, Error::from), "nftables rules may be left");
        }
        let socket = self.socket()?;
        if socket.link_index(&name).is_none() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.delete_link(&name);
        socket.call(batch)
    }

    fn set_up(&mut self, exists: bool) -> Result<(u32, u32)> {
        let (name, subnets) = (self.name.clone(), self.subnets.clone());
        let wanted = self.wanted_mtu;
        let first = mac(self.subnet().gateway());
        let socket = self.socket()?;
        let mtu = match wanted {
            Some(mtu) => mtu,
            None => uplink_mtu(socket)?.min(MOST_MTU),
        };
        if !exists {
            // With an address of its own the bridge does not take on the lowest of its ports',
            // which would change as pods come and go.
            let mut batch = Batch::new();
            batch.add_bridge(&name, first, mtu);
            socket.call(batch)?;
        }
        let link = link::get(socket, &name)?;
        if link.kind != "bridge" {
            return Err(Error::precondition(format!("{name} exists and is not a bridge")));
        }
        refuse_overlap(socket, link.index, &subnets)?;
        let ipv6 = self.has_ipv6(link.mtu);
        let socket = self.socket()?;
        let mut batch = Batch::new();
        if ipv6 {
            batch.without_link_local(Link::Index(link.index));
        }
        for subnet in &subnets {
            batch.add_address(link.index, subnet.gateway(), subnet.prefix, subnet.broadcast());
        }
        batch.set_up(Link::Index(link.index));
        socket.call(batch)?;
        forward();
        masquerade(&name, &subnets)?;
        Ok((link.index, mtu))
    }
}

/// With a subnet on two links the kernel would send what is for the pods to either.
fn refuse_overlap(socket: &mut Socket, bridge: u32, subnets: &[Subnet]) -> Result<()> {
    let addresses = link::list_addresses(socket)?;
    let theirs = addresses.into_iter().filter(|(index, _)| *index != bridge);
    for (index, address) in theirs {
        if let Some(subnet) = subnets.iter().find(|s| s.contains(address)) {
            let links = link::list(socket)?;
            let name = links.into_iter().find(|l| l.index == index).map(|l| l.name).unwrap_or_default();
            return Err(Error::precondition(format!(
                "subnet {subnet} is in use: link {name} has address {address}; choose another network.subnet"
            )));
        }
    }
    Ok(())
}

/// The MTU of the link that the default route goes out by.
fn uplink_mtu(socket: &mut Socket) -> Result<u32> {
    let Some(index) = link::default_route_link(socket)? else { return Ok(USUAL_MTU) };
    let links = link::list(socket)?;
    Ok(links.into_iter().find(|l| l.index == index).map_or(USUAL_MTU, |l| l.mtu))
}

/// Lets packets through from the bridge to other links. Where that cannot be set (a read-only
/// /proc/sys), pods still reach each other and the node.
fn forward() {
    let is_on = fs::read_to_string(FORWARDING).is_ok_and(|v| v.trim() == "1");
    if !is_on && let Err(error) = fs::write(FORWARDING, "1") {
        tracing::warn!(%error, "pods have no route out: {FORWARDING} cannot be set");
    }
}

/// Without nf_tables pods have the addresses that they have: reachable where the network routes
/// their subnet. That is said, and is no reason to run none.
fn masquerade(table: &str, subnets: &[Subnet]) -> Result<()> {
    match masquerade::replace(table, subnets) {
        Ok(()) => Ok(()),
        Err(Ok(refusal)) => {
            let error = Error::from(refusal);
            tracing::warn!(%error, "pods' traffic is not masqueraded: nftables refused");
            Ok(())
        }
        Err(Err(error)) if error.kind == crate::error::Kind::Internal => {
            tracing::warn!(%error, "pods' traffic is not masqueraded: no nftables");
            Ok(())
        }
        Err(Err(error)) => Err(error),
    }
}
