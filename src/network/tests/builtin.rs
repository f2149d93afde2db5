use std::fs;

use super::*;
use crate::error::Kind;
use crate::network::netlink::link::{Link, Veth};
use crate::network::netlink::message::Batch;

#[test]
fn pods_reach_each_other_the_node_and_the_outside() {
    in_a_namespace(|| {
        let host = Host::new(|_| {});
        host.network.ready().unwrap();
        let (a, b) = (host.pod("a"), host.pod("b"));
        let (ip_a, ip_b) = (host.attach(&a), host.attach(&b));
        assert_eq!((ip_a, ip_b), ("10.77.0.2".parse().unwrap(), "10.77.0.3".parse().unwrap()));

        let in_b = b.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        assert_eq!(connect(&a, &in_b, ip_b), ip_a, "pods see each other's own addresses");
        let here = TcpListener::bind("0.0.0.0:0").unwrap();
        assert_eq!(connect(&a, &here, "10.77.0.1".parse().unwrap()), ip_a);

        let outside = outside(&host);
        let there = outside.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        let seen = connect(&a, &there, "192.0.2.2".parse().unwrap());
        assert_eq!(seen, "192.0.2.1".parse::<IpAddr>().unwrap(), "masqueraded");

        let stats = Network::stats_of(&[&a.pin]).pop().unwrap().unwrap();
        assert_eq!(stats.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
        assert!(stats[0].rx_bytes > 100 && stats[0].tx_bytes > 100, "{stats:?}");
        let several = Network::stats_of(&[a.pin.as_path(), Path::new("/none"), &b.pin]);
        assert_eq!(several.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
        let ipv6 = a.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
        assert!(!ipv6.contains("eth0"), "no link-local address: {ipv6}");
        let ipv6 = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(!ipv6.contains(" pw"), "nor on the node's side: {ipv6}");
    });
}

/// A namespace beyond the node that has no route to the pods: 192.0.2.2, the node being .1.
fn outside(host: &Host) -> Pod {
    let pod = host.pod("outside");
    let mut socket = Socket::open(netlink::ROUTE).unwrap();
    let mut batch = Batch::new();
    batch.add_bridge("out0", [2, 0, 0, 0, 0, 1], 1500);
    socket.call(batch).unwrap();
    let index = socket.link_index("out0").unwrap();
    let veth = Veth {
        name: "out1",
        bridge: index,
        mtu: 1500,
        peer_name: "eth0",
        peer_mac: [2, 0, 0, 0, 0, 2],
        peer_netns: pod.netns.as_ref().unwrap().as_fd(),
    };
    let mut batch = Batch::new();
    batch
        .add_veth(&veth)
        .set_up(Link::Name("out1"))
        .add_address(index, [192, 0, 2, 1].into(), 24, [192, 0, 2, 255].into())
        .set_up(Link::Index(index));
    socket.call(batch).unwrap();
    pod.run(|| {
        let mut socket = Socket::open(netlink::ROUTE).unwrap();
        let index = socket.link_index("eth0").unwrap();
        let mut batch = Batch::new();
        batch
            .add_address(index, [192, 0, 2, 2].into(), 24, [192, 0, 2, 255].into())
            .set_up(Link::Index(index));
        socket.call(batch).unwrap();
    });
    pod
}

#[test]
fn nothing_is_left_of_pods_that_are_gone() {
    in_a_namespace(|| {
        let host = Host::new(|_| {});
        for round in 0..3 {
            let pods: Vec<_> = (0..8).map(|i| host.pod(&format!("r{round}p{i}"))).collect();
            for pod in &pods {
                host.attach(pod);
            }
            assert_eq!(host.addresses(), (8, 0));
            assert_eq!(links().len(), 9);
            for pod in &pods {
                host.wait(host.network.detach(&pod.network)).unwrap();
                host.wait(host.network.detach(&pod.network)).unwrap();
            }
            assert_eq!(host.addresses(), (0, 8), "as long as their links are there");
            drop(pods);
            eventually("links go", || links() == ["pwtest0"]);
            eventually("addresses are freed", || {
                host.wait(async { tokio::time::sleep(Duration::from_millis(20)).await });
                host.addresses() == (0, 0)
            });
        }
        assert_eq!(files(&host.pins.path().join("netns")), Vec::<String>::new());
    });
}

#[test]
fn an_address_is_not_used_again_while_its_link_is_there() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.subnet = "10.77.0.0/29".into());
        let first = host.pod("first");
        let ip = host.attach(&first);
        host.wait(host.network.detach(&first.network)).unwrap();
        let others: Vec<_> = (0..4).map(|i| host.pod(&format!("p{i}"))).collect();
        assert!(others.iter().all(|pod| host.attach(pod) != ip));
        let late = host.pod("late");
        let error = host.wait(host.network.attach(&late.network)).unwrap_err();
        assert_eq!(error.kind, Kind::ResourceExhausted, "{error}");
        drop(first);
        eventually("the link goes", || links().len() == 5);
        assert_eq!(host.attach(&late), ip);
    });
}

#[test]
fn a_failed_attach_is_undone() {
    in_a_namespace(|| {
        let host = Host::new(|_| {});
        let pod = host.pod("a");
        // The pod has an eth0 already: the pair cannot be made.
        pod.run(|| {
            let mut batch = Batch::new();
            batch.add_bridge("eth0", [2, 0, 0, 0, 0, 9], 1500);
            Socket::open(netlink::ROUTE).unwrap().call(batch).unwrap();
        });
        let error = host.wait(host.network.attach(&pod.network)).unwrap_err();
        assert!(error.message.contains("making veth") && error.message.contains("exists"), "{error}");
        assert_eq!(links(), ["pwtest0"]);
        assert_eq!(host.addresses(), (0, 0));

        let mut gone = host.pod("b");
        gone.network.netns = host.dir.path().join("netns/none");
        let error = host.wait(host.network.attach(&gone.network)).unwrap_err();
        assert!(error.message.contains("netns/none"), "{error}");
        assert_eq!(host.addresses(), (0, 0));
    });
}

#[test]
fn a_killed_daemons_pods_are_kept_or_released_by_what_is_live() {
    in_a_namespace(|| {
        let mut host = Host::new(|_| {});
        let (a, b) = (host.pod("a"), host.pod("b"));
        host.attach(&a);
        host.attach(&b);
        host.restart();
        host.wait(host.network.reconcile(std::slice::from_ref(&a.network.pod_id))).unwrap();
        assert_eq!(host.addresses().0, 1);
        assert!(a.pin.exists() && !b.pin.exists(), "the pin of a pod that is no more goes as well");
        host.wait(host.network.detach(&a.network)).unwrap();
    });
}

/// BEHAVIOUR 13: after a reboot the namespace is gone, and the path to it empty.
#[test]
fn after_a_reboot_addresses_are_released() {
    in_a_namespace(|| {
        let mut host = Host::new(|_| {});
        let mut pod = host.pod("a");
        host.attach(&pod);
        pod.network.netns = PathBuf::new();
        drop(pod.netns.take());
        unpin(&pod.pin).unwrap();
        eventually("the link goes", || links() == ["pwtest0"]);
        host.restart();
        host.wait(host.network.detach(&pod.network)).unwrap();
        assert_eq!(host.addresses(), (0, 0));
    });
}

#[test]
fn a_deleted_bridge_is_made_again() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.mtu = Some(1400));
        let mut batch = Batch::new();
        batch.delete_link("pwtest0");
        Socket::open(netlink::ROUTE).unwrap().call(batch).unwrap();
        let pod = host.pod("a");
        host.attach(&pod);
        let eth0 = pod.run(|| link::get(&mut Socket::open(netlink::ROUTE).unwrap(), "eth0").unwrap());
        assert_eq!(eth0.mtu, 1400);
        let here = TcpListener::bind("10.77.0.1:0").unwrap();
        connect(&pod, &here, "10.77.0.1".parse().unwrap());
    });
}

#[test]
fn a_link_too_narrow_for_ipv6_is_fine() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.mtu = Some(1000));
        let pod = host.pod("a");
        host.attach(&pod);
        let here = TcpListener::bind("10.77.0.1:0").unwrap();
        connect(&pod, &here, "10.77.0.1".parse().unwrap());
    });
}

#[test]
fn networks_live_side_by_side() {
    in_a_namespace(|| {
        let one = Host::new(|_| {});
        let two = Host::new(|c| (c.bridge, c.subnet) = ("pwtest1".into(), "10.78.0.0/24".into()));
        let (a, b) = (one.pod("a"), two.pod("a"));
        assert_eq!(one.attach(&a), "10.77.0.2".parse::<IpAddr>().unwrap());
        let ip_b = two.attach(&b);
        assert_eq!(ip_b, "10.78.0.2".parse::<IpAddr>().unwrap());
        let in_b = b.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        connect(&a, &in_b, ip_b);
    });
}

#[test]
fn a_pod_cidr_is_used_for_new_pods_and_remembered() {
    in_a_namespace(|| {
        let mut host = Host::new(|_| {});
        let a = host.pod("a");
        let ip_a = host.attach(&a);
        host.network.set_pod_cidr("").unwrap();
        host.network.set_pod_cidr("fd00:1::/64,10.79.3.0/24").unwrap();
        host.network.set_pod_cidr("nonsense").unwrap_err();
        host.restart();
        let b = host.pod("b");
        assert_eq!(host.attach(&b), "10.79.3.2".parse::<IpAddr>().unwrap());
        let in_a = a.run(|| TcpListener::bind("0.0.0.0:0").unwrap());
        connect(&b, &in_a, ip_a);
    });
}

#[test]
fn a_name_that_is_no_bridge_is_the_reason_for_not_being_ready() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.bridge = "lo".into());
        let reason = host.network.ready().unwrap_err();
        assert!(reason.contains("lo exists and is not a bridge"), "{reason}");
        let pod = host.pod("a");
        let error = host.wait(host.network.attach(&pod.network)).unwrap_err();
        assert!(error.message.contains("not a bridge"), "{error}");
        assert_eq!(host.addresses(), (0, 0));
    });
}

#[test]
fn a_subnet_that_another_link_has_is_the_reason_for_not_being_ready() {
    in_a_namespace(|| {
        let mut socket = Socket::open(netlink::ROUTE).unwrap();
        let mut batch = Batch::new();
        batch.add_bridge("other0", [2, 0, 0, 0, 0, 1], 1500);
        socket.call(batch).unwrap();
        let index = socket.link_index("other0").unwrap();
        let mut batch = Batch::new();
        batch.add_address(index, [10, 77, 0, 200].into(), 30, [10, 77, 0, 203].into());
        socket.call(batch).unwrap();
        let host = Host::new(|_| {});
        let reason = host.network.ready().unwrap_err();
        assert!(reason.contains("10.77.0.0/24 is in use: link other0 has address 10.77.0.200"), "{reason}");
        let mut batch = Batch::new();
        batch.delete_link("other0");
        socket.call(batch).unwrap();
        host.network.ready().unwrap();
    });
}

#[test]
fn removing_takes_bridge_and_rules_away_and_the_next_pod_brings_them_back() {
    in_a_namespace(|| {
        let tables = || {
            let nft = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
            String::from_utf8(nft.stdout).unwrap()
        };
        let host = Host::new(|_| {});
        let text = "ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 masquerade fully-random";
        assert!(tables().contains(text) && tables().contains("table ip pwtest0"), "{}", tables());
        host.network.remove().unwrap();
        host.network.remove().unwrap();
        assert_eq!((links(), tables().as_str()), (vec![], ""));
        let pod = host.pod("a");
        host.attach(&pod);
        assert!(tables().contains(text));
    });
}

#[test]
fn a_link_of_the_pods_name_is_not_taken_for_the_pods() {
    in_a_namespace(|| {
        let host = Host::new(|_| {});
        let (a, mut b) = (host.pod("a"), host.pod("b"));
        host.attach(&a);
        // The same up to the 13th character.
        b.network.pod_id = format!("{}other", &a.network.pod_id[..16]);
        let error = host.wait(host.network.attach(&b.network)).unwrap_err();
        assert!(error.message.contains("exists already"), "{error}");
        assert_eq!((links().len(), host.addresses()), (2, (1, 0)), "a keeps its own");
    });
}

#[test]
fn pods_that_come_and_go_at_once_never_share_an_address() {
    const WORKERS: usize = 4;
    const CYCLES: usize = 15;
    in_a_namespace(|| {
        // Few addresses, so that they are used again while links are still going.
        let host = Host::new(|c| c.subnet = "10.77.0.0/26".into());
        let in_use = std::sync::Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (host, in_use) = (&host, &in_use);
                let network = host.network.clone();
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    for cycle in 0..CYCLES {
                        let pod = host.pod(&format!("w{worker}c{cycle}"));
                        let ip = runtime.block_on(network.attach(&pod.network)).unwrap().ips[0];
                        assert!(in_use.lock().unwrap().insert(ip), "{ip} is given out twice");
                        pod.run(|| TcpListener::bind((ip, 0)).unwrap());
                        assert!(in_use.lock().unwrap().remove(&ip));
                        runtime.block_on(network.detach(&pod.network)).unwrap();
                    }
                });
            }
        });
        eventually("links go", || links() == ["pwtest0"]);
        host.network.inner.builtin.sweep().unwrap();
        assert_eq!(host.addresses(), (0, 0));
        assert_eq!(files(&host.pins.path().join("netns")), Vec::<String>::new());
    });
}
