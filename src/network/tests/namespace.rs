use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;

use rustix::thread::LinkNameSpaceType;

use super::*;
use crate::error::Kind;
use crate::network::namespace;

fn sysctls(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn inside<T: Send + 'static>(fds: &[&OwnedFd], work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for fd in fds {
                rustix::thread::move_into_link_name_space(fd.as_fd(), None::<LinkNameSpaceType>).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn namespaces_are_made_set_up_and_unpinned() {
    in_a_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("netns/pod");
        let sysctls = sysctls(&[
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("kernel.shm_rmid_forced", "1"),
            ("fs.mqueue.msg_max", "77"),
            ("kernel.domainname", "example.org"),
        ]);
        let new =
            NewNamespaces { pin: Some(&pin), ipc: true, hostname: Some("pod-a"), sysctls: Some(&sysctls) };
        let made = create(&new).unwrap();
        let (net, ipc, uts) = (made.net.unwrap(), made.ipc.unwrap(), made.uts.unwrap());
        let read = || {
            let port = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
            let queue = fs::read_to_string("/proc/sys/fs/mqueue/msg_max").unwrap();
            let shm = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
            let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
            let host = host + "." + rustix::system::uname().domainname().to_str().unwrap();
            (port.trim().to_owned(), shm.trim().to_owned() + queue.trim(), host)
        };
        assert_eq!(inside(&[&net, &ipc, &uts], read), ("0".into(), "177".into(), "pod-a.example.org".into()));
        let here = read();
        assert_eq!(
            (here.0.as_str(), here.2.contains("example.org")),
            ("1024", false),
            "the node's are as they were"
        );
        let listens = inside(&[&net], || TcpListener::bind("127.0.0.1:80").is_ok());
        assert!(listens, "loopback is up");
        let pinned = namespace::open(&pin).unwrap();
        let id = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(id(&pinned), id(&net));

        let again = create(&new).unwrap_err();
        assert!(again.message.contains("pinning") && again.message.contains("exists"), "{again}");
        unpin(&pin).unwrap();
        unpin(&pin).unwrap();
        assert_eq!(files(&dir.path().join("netns")), Vec::<String>::new());
    });
}

#[test]
fn a_sysctl_that_the_kernel_refuses_leaves_nothing() {
    in_a_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("netns/pod");
        for (name, value) in [("net.ipv4.no_such_thing", "1"), ("net.ipv4.ip_forward", "many")] {
            let sysctls = sysctls(&[(name, value)]);
            let new = NewNamespaces { pin: Some(&pin), sysctls: Some(&sysctls), ..NewNamespaces::default() };
            let error = create(&new).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
            assert!(error.message.contains(name), "{error}");
            assert!(!pin.exists());
        }
    });
}

#[test]
fn a_hostname_that_is_too_long_is_refused() {
    let name = "x".repeat(65);
    let error = create(&NewNamespaces { hostname: Some(&name), ..NewNamespaces::default() }).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
}

#[test]
fn what_is_not_asked_for_is_the_nodes() {
    let made = create(&NewNamespaces::default()).unwrap();
    assert!(made.net.is_none() && made.ipc.is_none() && made.uts.is_none());
}

#[test]
fn a_file_that_is_no_namespace_is_not_entered() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let fd = namespace::open(file.path()).unwrap();
    let error = run(&fd, || Ok(())).unwrap_err();
    assert!(error.message.contains("entering"), "{error}");
}
