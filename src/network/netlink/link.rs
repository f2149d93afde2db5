//! The few requests of rtnetlink(7) that pods need, and what is read out of links.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{
    self, Batch, Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, u32_at, u64_at,
};
use super::{Result, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// struct ifinfomsg
const LINK_HEADER: usize = 16;
/// struct ifaddrmsg
const ADDRESS_HEADER: usize = 8;
/// struct rtmsg
const ROUTE_HEADER: usize = 12;

pub type Mac = [u8; 6];

/// Which link a request is about.
#[derive(Debug, Clone, Copy)]
pub enum Link<'a> {
    Index(u32),
    Name(&'a str),
}

/// A veth pair: one end here on a bridge, the other one born in a pod's network namespace.
#[derive(Debug)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub bridge: u32,
    pub mtu: u32,
    pub peer_name: &'a str,
    pub peer_mac: Mac,
    pub peer_netns: BorrowedFd<'a>,
}

/// What is read of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    pub index: u32,
    pub flags: u32,
    pub name: String,
    pub mtu: u32,
    pub kind: String,
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

impl LinkState {
    pub const LOOPBACK: u32 = 8;

    pub fn is_loopback(&self) -> bool {
        self.flags & Self::LOOPBACK != 0
    }

    fn parse(message: &Message) -> Self {
        let mut link = Self {
            index: u32_at(message.payload, 4).unwrap_or_default(),
            flags: u32_at(message.payload, 8).unwrap_or_default(),
            ..Self::default()
        };
        for (kind, value) in message.attributes(LINK_HEADER) {
            match kind {
                IFLA_IFNAME => link.name = message::text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0).unwrap_or_default(),
                IFLA_LINKINFO => {
                    let info = message::attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = info.map(|(_, v)| message::text(v)).unwrap_or_default();
                }
                IFLA_STATS64 => link.counters = Counters::parse(value),
                _ => {}
            }
        }
        link
    }
}

impl Counters {
    /// struct rtnl_link_stats64: packets in and out, then so bytes, errors, drops, …
    fn parse(value: &[u8]) -> Self {
        let at = |i: usize| u64_at(value, 8 * i).unwrap_or_default();
        Self {
            rx_packets: at(0),
            tx_packets: at(1),
            rx_bytes: at(2),
            tx_bytes: at(3),
            rx_errors: at(4),
            tx_errors: at(5),
            rx_dropped: at(6),
            tx_dropped: at(7),
        }
    }
}

impl Batch {
    pub fn add_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> &mut Self {
        let step = format!("making bridge {name}");
        self.request(step, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(None, 0))
            .text(IFLA_IFNAME, name)
            .attribute(IFLA_ADDRESS, &mac)
            .number(IFLA_MTU, mtu)
            .nest(IFLA_LINKINFO, |b| {
                b.attribute(IFLA_INFO_KIND, b"bridge");
            })
    }

    /// Both ends are made by one request: nothing is ever moved between namespaces. One queue is
    /// enough, since a veth has no queueing discipline that would lock it; the kernel's default of
    /// one for each CPU is a kobject for each, twice.
    pub fn add_veth(&mut self, veth: &Veth) -> &mut Self {
        let step = format!("making veth {} on its bridge", veth.name);
        self.request(step, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(None, 0))
            .text(IFLA_IFNAME, veth.name)
            .number(IFLA_MTU, veth.mtu)
            .number(IFLA_NUM_TX_QUEUES, 1)
            .number(IFLA_NUM_RX_QUEUES, 1)
            .number(IFLA_MASTER, veth.bridge)
            .nest(IFLA_LINKINFO, |b| {
                b.attribute(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |b| {
                    b.nest(VETH_INFO_PEER, |b| {
                        let netns = u32::try_from(veth.peer_netns.as_raw_fd()).unwrap_or(u32::MAX);
                        b.raw(&link_header(None, 0))
                            .text(IFLA_IFNAME, veth.peer_name)
                            .attribute(IFLA_ADDRESS, &veth.peer_mac)
                            .number(IFLA_MTU, veth.mtu)
                            .number(IFLA_NUM_TX_QUEUES, 1)
                            .number(IFLA_NUM_RX_QUEUES, 1)
                            .number(IFLA_NET_NS_FD, netns);
                    });
                });
            })
    }

    /// No IPv6 link-local address on this link, hence no neighbour discovery that every other
    /// port of the bridge has to receive: what makes the thousandth pod as cheap as the first.
    /// The kernel carries this out after it sets a link up, so it goes before [`set_up`].
    ///
    /// [`set_up`]: Self::set_up
    pub fn without_link_local(&mut self, link: Link) -> &mut Self {
        self.set_link("turning IPv6 link-local off on", link, 0).nest(IFLA_AF_SPEC, |b| {
            b.nest(AF_INET6, |b| {
                b.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        })
    }

    pub fn set_up(&mut self, link: Link) -> &mut Self {
        self.set_link("setting up", link, IFF_UP)
    }

    fn set_link(&mut self, what: &str, link: Link, flags: u32) -> &mut Self {
        match link {
            Link::Index(index) => {
                self.request(format!("{what} link {index}"), RTM_SETLINK, 0, &link_header(Some(index), flags))
            }
            Link::Name(name) => self
                .request(format!("{what} {name}"), RTM_SETLINK, 0, &link_header(None, flags))
                .text(IFLA_IFNAME, name),
        }
    }

    /// Waits 30 ms and more for RCU: only where something went wrong.
    pub fn delete_link(&mut self, name: &str) -> &mut Self {
        self.request(format!("deleting link {name}"), RTM_DELLINK, 0, &link_header(None, 0))
            .text(IFLA_IFNAME, name)
    }

    pub fn add_address(
        &mut self,
        link: u32,
        address: Ipv4Addr,
        prefix: u8,
        broadcast: Ipv4Addr,
    ) -> &mut Self {
        let mut header = [0; ADDRESS_HEADER];
        header[0] = AF_INET;
        header[1] = prefix;
        header[4..].copy_from_slice(&link.to_ne_bytes());
        let step = format!("adding address {address}/{prefix}");
        self.request(step, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &header)
            .attribute(IFA_LOCAL, &address.octets())
            .attribute(IFA_ADDRESS, &address.octets())
            .attribute(IFA_BROADCAST, &broadcast.octets())
    }

    pub fn add_default_route(&mut self, link: u32, gateway: Ipv4Addr) -> &mut Self {
        let mut header = [0; ROUTE_HEADER];
        header[0] = AF_INET;
        header[4] = RT_TABLE_MAIN;
        header[5] = RTPROT_BOOT;
        header[7] = RTN_UNICAST;
        let step = format!("adding the default route by {gateway}");
        self.request(step, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header)
            .attribute(RTA_GATEWAY, &gateway.octets())
            .number(RTA_OIF, link)
    }
}

/// struct ifinfomsg; `flags` are set, the others stay as they are.
fn link_header(index: Option<u32>, flags: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.unwrap_or_default().to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// The link called `name`; an error names it where there is none.
pub fn get(socket: &mut Socket, name: &str) -> Result<LinkState> {
    let mut batch = Batch::new();
    batch
        .unacknowledged(format!("looking up link {name}"), RTM_GETLINK, 0, &link_header(None, 0))
        .text(IFLA_IFNAME, name);
    let mut found = LinkState::default();
    socket.query(batch, false, |message| found = LinkState::parse(message))?;
    Ok(found)
}

/// Every link of the socket's namespace, in the order of their indices.
pub fn list(socket: &mut Socket) -> Result<Vec<LinkState>> {
    let mut batch = Batch::new();
    batch.unacknowledged("listing links", RTM_GETLINK, NLM_F_DUMP, &link_header(None, 0));
    let mut links = Vec::new();
    socket.query(batch, true, |message| links.push(LinkState::parse(message)))?;
    Ok(links)
}

/// {link index, address} of every IPv4 address of the socket's namespace.
pub fn list_addresses(socket: &mut Socket) -> Result<Vec<(u32, Ipv4Addr)>> {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = AF_INET;
    let mut batch = Batch::new();
    batch.unacknowledged("listing addresses", RTM_GETADDR, NLM_F_DUMP, &header);
    let mut addresses = Vec::new();
    socket.query(batch, true, |message| {
        let local = message.attributes(ADDRESS_HEADER).find(|(kind, _)| *kind == IFA_LOCAL);
        let octets = local.and_then(|(_, v)| v.first_chunk::<4>().copied());
        addresses.extend(u32_at(message.payload, 4).zip(octets.map(Ipv4Addr::from)));
    })?;
    Ok(addresses)
}

/// The index of the link that the IPv4 default route of the main table goes out by.
pub fn default_route_link(socket: &mut Socket) -> Result<Option<u32>> {
    let mut header = [0; ROUTE_HEADER];
    header[0] = AF_INET;
    let mut batch = Batch::new();
    batch.unacknowledged("listing routes", RTM_GETROUTE, NLM_F_DUMP, &header);
    let mut found = None;
    socket.query(batch, true, |message| {
        let is_default = message.payload.get(1) == Some(&0) && message.payload.get(4) == Some(&RT_TABLE_MAIN);
        let mut attributes = message.attributes(ROUTE_HEADER);
        if found.is_none() && is_default && attributes.all(|(kind, _)| kind != RTA_DST) {
            let mut attributes = message.attributes(ROUTE_HEADER);
            found = attributes.find(|(kind, _)| *kind == RTA_OIF).and_then(|(_, v)| u32_at(v, 0));
        }
    })?;
    Ok(found)
}
