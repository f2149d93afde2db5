//! The embedded network: a bridge of ours with an IPv4 subnet, a veth pair for each pod, a route
//! out and masquerading, all over netlink.
//!
//! ```text
//!   pod's namespace             the daemon's namespace
//!   eth0 10.88.0.7/16 ── veth ── pw0123456789abc ── podwright0 10.88.0.1/16 ── masquerade ── out
//!   default via 10.88.0.1
//! ```
//!
//! "The daemon's namespace" is that of the thread that opens the network, whichever it is, so that
//! tests run whole networks in namespaces of their own, and several daemons share one with bridges
//! and subnets of their own. What holds the addresses is drawn in [`address`].
//!
//! A pod costs the same whether it is the first or the thousandth: ports of the bridge and the
//! pods' links have no IPv6 link-local address, whose neighbour discovery every port would receive.
//! Taking a pod down asks the kernel for nothing at all: its links go with its namespace. A bridge
//! has at most 1023 ports; more pods than that on one node want CNI.

mod address;
mod bridge;
mod masquerade;
pub(super) mod subnet;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::netlink::link::{Link, Mac, Veth};
use super::netlink::message::Batch;
use super::netlink::{self, Socket};
use super::{Attachment, Config, PodNetwork, namespace};
use crate::error::{Result, Step};
use crate::{Error, error::Kind};

use address::{Owner, Pool};
use bridge::Bridge;
use subnet::Subnet;

/// What the pod's link is called in the pod.
const IN_POD: &str = "eth0";

pub struct Builtin {
    pool: Mutex<Pool>,
    bridge: Mutex<Bridge>,
    /// Any socket of the daemon's namespace, to ask for links without waiting for `bridge`.
    links: OwnedFd,
    /// Why the last attempt to set up the bridge failed.
    failure: Mutex<Option<String>>,
}

impl Builtin {
    /// Opens what is on disk. Nothing is made in the kernel before [`prepare`](Self::prepare).
    pub fn open(config: &Config, dir: &Path) -> Result<Self> {
        let links = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .step(|| "opening a socket")?;
        let dir = dir.join("builtin");
        std::fs::create_dir_all(&dir).step(|| format!("making {}", dir.display()))?;
        let bridge = Bridge::new(&config.bridge, config.subnet.parse()?, config.mtu)?;
        Ok(Self {
            pool: Mutex::new(Pool::open(dir.join("addresses"))?),
            bridge: Mutex::new(bridge),
            links,
            failure: Mutex::new(None),
        })
    }

    /// Makes the bridge and the rules, unless they are there. Blocks.
    pub fn prepare(&self) -> Result<()> {
        let outcome = lock(&self.bridge).ensure().map(|_| ());
        *lock(&self.failure) = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    /// The reason why no pod can be attached. Tries again where it failed before, but waits for
    /// nobody who is at it.
    pub fn ready(&self) -> Result<(), String> {
        let Some(reason) = lock(&self.failure).clone() else { return Ok(()) };
        match self.bridge.try_lock() {
            Ok(mut bridge) => {
                let outcome = bridge.ensure().map(|_| ()).map_err(|e| e.to_string());
                *lock(&self.failure) = outcome.as_ref().err().cloned();
                outcome
            }
            Err(_) => Err(reason),
        }
    }

    /// From now on pods get addresses of `subnet`; those that have one keep it.
    pub fn set_subnet(&self, subnet: &str) -> Result<()> {
        let subnet: Subnet = subnet.parse()?;
        lock(&self.bridge).set_subnet(subnet);
        self.prepare()
    }

    /// Gives the pod an address and a link. Blocks for about a millisecond. On failure all is
    /// taken back.
    pub fn attach(&self, pod: &PodNetwork) -> Result<Attachment> {
        if pod.port_mappings.iter().any(|p| p.host_port != 0) {
            tracing::warn!(pod = pod.pod_id, "the builtin network serves no host ports yet");
        }
        let netns = namespace::open(&pod.netns)?;
        // From here on a link of this name is this call's to delete.
        let name = link_name(&pod.pod_id);
        if self.link_exists(&name) {
            return Err(Error::precondition(format!("the pod's link {name} exists already")));
        }
        let owner = Owner { pod_id: pod.pod_id.clone(), netns: pod.netns.clone() };
        let subnet = lock(&self.bridge).subnet();
        let address = {
            let mut pool = lock(&self.pool);
            pool.sweep(|id| self.is_gone(id))?;
            pool.allocate(&subnet, &owner)?
        };
        let attached = self.connect(&pod.pod_id, &netns, address, &subnet);
        if let Err(error) = attached {
            self.undo(&pod.pod_id);
            return Err(error.during(format!("giving the pod address {address}")));
        }
        Ok(Attachment { ips: vec![IpAddr::V4(address)] })
    }

    fn connect(&self, pod_id: &str, netns: &OwnedFd, address: Ipv4Addr, subnet: &Subnet) -> Result<()> {
        let name = link_name(pod_id);
        let ipv6 = {
            let mut bridge = lock(&self.bridge);
            let (index, mtu) = bridge.ensure()?;
            let ipv6 = bridge.has_ipv6(mtu);
            let mut batch = Batch::new();
            batch.add_veth(&Veth {
                name: &name,
                bridge: index,
                mtu,
                peer_name: IN_POD,
                peer_mac: mac(address),
                peer_netns: netns.as_fd(),
            });
            if ipv6 {
                batch.without_link_local(Link::Name(&name));
            }
            batch.set_up(Link::Name(&name));
            bridge.socket()?.send(batch).map_err(|e| e.map_or_else(|e| e, explain))?;
            ipv6
        };
        let subnet = *subnet;
        namespace::run(netns, move || {
            let mut socket = Socket::open(netlink::ROUTE)?;
            let index = socket
                .link_index(IN_POD)
                .ok_or_else(|| Error::internal(format!("{IN_POD} is not in the pod's namespace")))?;
            let mut batch = Batch::new();
            batch.set_up(Link::Name("lo"));
            if ipv6 {
                batch.without_link_local(Link::Index(index));
            }
            batch
                .add_address(index, address, subnet.prefix, subnet.broadcast())
                .set_up(Link::Index(index))
                .add_default_route(index, subnet.gateway());
            socket.call(batch)
        })
    }

    /// After a failure the pod may live on for a while, and its link with it: delete it here.
    fn undo(&self, pod_id: &str) {
        let name = link_name(pod_id);
        if self.link_exists(&name) {
            let mut batch = Batch::new();
            batch.delete_link(&name);
            let deleted = lock(&self.bridge).socket().and_then(|s| s.call(batch));
            if let Err(error) = deleted {
                tracing::warn!(%error, link = name, "a link of a failed pod stays until its namespace goes");
            }
        }
        if let Err(error) = self.detach(pod_id) {
            tracing::warn!(%error, pod = pod_id, "an address stays reserved until the next start");
        }
    }

    /// Gives the pod's address back. Its links go with its namespace, which is the caller's to
    /// drop; until they are gone nobody else gets the address.
    pub fn detach(&self, pod_id: &str) -> Result<()> {
        let mut pool = lock(&self.pool);
        pool.leave(pod_id)?;
        pool.sweep(|id| self.is_gone(id)).map(|_| ())
    }

    /// Frees what has gone by now; returns how many addresses still wait.
    pub fn sweep(&self) -> Result<usize> {
        lock(&self.pool).sweep(|id| self.is_gone(id))
    }

    /// Takes the bridge and the rules away.
    pub fn remove(&self) -> Result<()> {
        lock(&self.bridge).remove()
    }

    /// Releases the addresses, and unpins the namespaces, of all pods that are not `live`.
    pub fn reconcile(&self, live: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut pool = lock(&self.pool);
        let mut failed = None;
        for pod_id in pool.pods().into_iter().filter(|id| !live(id)) {
            let released = pool.leave(&pod_id).and_then(|owner| match owner {
                Some(owner) => namespace::unpin(&owner.netns),
                None => Ok(()),
            });
            tracing::info!(pod = pod_id, "released the address of a pod that is no more");
            failed = failed.or(released.err());
        }
        pool.sweep(|id| self.is_gone(id))?;
        failed.map_or(Ok(()), Err)
    }

    fn is_gone(&self, pod_id: &str) -> bool {
        !self.link_exists(&link_name(pod_id))
    }

    fn link_exists(&self, name: &str) -> bool {
        rustix::net::netdevice::name_to_index(&self.links, name).is_ok()
    }
}

/// The daemon's end of a pod's veth pair: "pw" and 13 characters, the most that a name can have
/// (IFNAMSIZ). Pod IDs are 64 hexadecimal digits of chance, so 13 of them do not meet.
fn link_name(pod_id: &str) -> String {
    let short: String = pod_id.chars().filter(char::is_ascii_alphanumeric).take(13).collect();
    format!("pw{short}")
}

/// A link address made of the IPv4 one: whoever gets an address anew has the link address that
/// neighbours still remember for it.
fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x70, a, b, c, d]
}

fn explain(refusal: netlink::Refusal) -> Error {
    if refusal.errno == libc::EXFULL {
        return Error::new(
            Kind::ResourceExhausted,
            format!("{}: the bridge has its 1023 ports, more pods need a CNI network", refusal.step),
        );
    }
    refusal.into()
}

/// A panic elsewhere leaves these tables whole: every change to them is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
