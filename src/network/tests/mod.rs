//! Against the real kernel, as root, each test in a network namespace of its own.

mod builtin;
mod cni;
mod measure;
mod namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::namespace::{NewNamespaces, create, run, unpin};
use super::netlink::{self, Socket, link};
use super::{Config, Mode, Network, PodNetwork};
use crate::pod::spec::PodName;
use crate::sys::namespace::{Unshare, unshare};

/// Runs `test` on a thread in a new network namespace; everything that it starts is in there too.
fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let thread = std::thread::spawn(|| {
        unshare(Unshare { net: true, ..Unshare::default() }).unwrap();
        let mut batch = netlink::message::Batch::new();
        batch.set_up(link::Link::Name("lo"));
        Socket::open(netlink::ROUTE).unwrap().call(batch).unwrap();
        // A new namespace copies the machine's.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A node in miniature: a root directory, a place for pins, and a network.
struct Host {
    dir: tempfile::TempDir,
    /// On a tmpfs, as /run/netns is: a pin costs ten times as much on ext4.
    pins: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    network: Network,
}

impl Host {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            mode: Some(Mode::Builtin),
            cni_conf_dir: dir.path().join("net.d"),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            bridge: "pwtest0".into(),
            subnet: "10.77.0.0/24".into(),
            mtu: None,
            root: dir.path().join("root"),
            cni_cache_dir: None,
        };
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let network = runtime.block_on(async { Network::open(config) }).unwrap();
        let pins = tempfile::tempdir_in("/dev/shm").unwrap();
        Self { dir, pins, runtime, network }
    }

    /// The same node after its daemon was killed and started again.
    fn restart(&mut self) {
        let config = self.network.inner.config.clone();
        self.network = Network::open(config).unwrap();
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// A pod with a namespace and no network yet.
    fn pod(&self, name: &str) -> Pod {
        // As a pod's ID is: chance first.
        let id = format!("{:016x}{name}", fastrand(name));
        let netns = self.pins.path().join("netns").join(name);
        let new = NewNamespaces { pin: Some(&netns), ..NewNamespaces::default() };
        let fd = create(&new).unwrap().net.unwrap();
        let network = PodNetwork {
            pod_id: id,
            name: PodName { name: name.into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
            netns: netns.clone(),
            port_mappings: Vec::new(),
            annotations: BTreeMap::new(),
        };
        Pod { network, netns: Some(fd), pin: netns }
    }

    fn attach(&self, pod: &Pod) -> IpAddr {
        self.wait(self.network.attach(&pod.network)).unwrap().ips[0]
    }

    /// How many addresses are taken, and how many wait for their links to go, by what is on disk.
    fn addresses(&self) -> (usize, usize) {
        let path = self.dir.path().join("root/network/builtin/addresses");
        let (mut taken, mut leaving) = (BTreeSet::new(), BTreeSet::new());
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let address = line.split(' ').nth(1).unwrap().to_owned();
            match line.as_bytes()[0] {
                b'+' => taken.insert(address),
                b'-' => taken.remove(&address) && leaving.insert(address),
                _ => leaving.remove(&address),
            };
        }
        (taken.len(), leaving.len())
    }
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Different in every run, since tests of several runs share the machine's names.
fn fastrand(name: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(name)
}

struct Pod {
    network: PodNetwork,
    netns: Option<OwnedFd>,
    pin: PathBuf,
}

impl Pod {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run(self.netns.as_ref().unwrap().as_fd(), || Ok(work())).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.netns.take());
        unpin(&self.pin).unwrap();
    }
}

fn links() -> Vec<String> {
    let links = link::list(&mut Socket::open(netlink::ROUTE).unwrap()).unwrap();
    links.into_iter().map(|l| l.name).filter(|n| n.starts_with("pw")).collect()
}

/// Waits for what the kernel or a task does in its own time.
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects from one namespace to a listener in another; returns who the listener saw.
fn connect(from: &Pod, listener: &TcpListener, to: IpAddr) -> IpAddr {
    let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
    let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10))).unwrap();
    let (_, peer) = listener.accept().unwrap();
    drop(stream);
    peer.ip()
}
