//! Port-forward: whose loopback it reaches, over which protocol, and what it holds.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use podwright::cri::wire as cri;
use podwright::network::namespace;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::client::{PortSession, raise_loopback};
use super::eventually;
use super::spdy::{Client, Frame, REFUSED_STREAM};
use crate::harness::{Daemon, namespaces, pod};

/// More than anything here takes.
const LIMIT: Duration = Duration::from_secs(200);

async fn start(name: &str) -> (Daemon, String) {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let (id, _) = daemon.run_pod(pod(name)).await;
    (daemon, id)
}

pub async fn url(daemon: &Daemon, pod: &str, port: &[i32]) -> String {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.into(), port: port.into() };
    daemon.runtime().port_forward(request).await.unwrap().into_inner().url
}

/// A listener in a pod's network; without a pod in the node's.
fn listen(daemon: &Daemon, pod: Option<&str>, address: &str) -> TcpListener {
    let netns = match pod {
        Some(pod) => {
            let pin = daemon.dir.path().join("netns").join(format!("podwright-{}", &pod[..16]));
            format!("/proc/{}/root{}", daemon.pid(), pin.display())
        }
        None => format!("/proc/{}/ns/net", daemon.pid()),
    };
    let netns = std::fs::File::open(netns).unwrap();
    let bound = namespace::run(netns, || {
        TcpListener::bind(address).map_err(|e| podwright::Error::io(format!("listening on {address}"), e))
    });
    bound.unwrap()
}

/// One connection, whose reads end in time whatever comes.
fn accept(listener: &TcpListener) -> TcpStream {
    let mut poll = [PollFd::new(listener, PollFlags::IN)];
    let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut poll, Some(&limit)).unwrap(), 1, "nobody connects");
    let tcp = listener.accept().unwrap().0;
    tcp.set_read_timeout(Some(LIMIT)).unwrap();
    tcp
}

/// Sends back what comes, with a name before it, up to its end. Dropped, it lets go of the network
/// namespace.
pub struct Echo {
    pub port: u16,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(daemon: &Daemon, pod: Option<&str>, address: &str, name: &'static str) -> Self {
        let listener = Arc::new(listen(daemon, pod, address));
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(AtomicUsize::new(0));
        let accepting = std::thread::spawn({
            let (open, listener) = (Arc::clone(&open), Arc::clone(&listener));
            move || {
                while let Ok((tcp, _)) = listener.accept() {
                    let counter = Arc::clone(&open);
                    counter.fetch_add(1, Ordering::SeqCst);
                    let serve = move || {
                        echo(tcp, name);
                        counter.fetch_sub(1, Ordering::SeqCst);
                    };
                    std::thread::Builder::new().stack_size(64 << 10).spawn(serve).unwrap();
                }
            }
        });
        Self { port, open, listener, accepting: Some(accepting) }
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// The name of one that does not end with its client's half, but when nobody is there any more.
const STUBBORN: &str = "stubborn ";

fn echo(mut tcp: TcpStream, name: &str) {
    let mut buffer = [0; 4096];
    let _ = tcp.write_all(name.as_bytes());
    while let Ok(read @ 1..) = tcp.read(&mut buffer) {
        if tcp.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    while name == STUBBORN && tcp.write_all(b".").is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_loopbacks_of_the_pod_and_of_the_node() {
    let (daemon, id) = start("loopback").await;
    let mut host = pod("host");
    let security = host.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let network = cri::NamespaceMode::Node as i32;
    security.namespace_options =
        Some(cri::NamespaceOption { network, ..namespaces(cri::NamespaceMode::Container) });
    let (host, _) = daemon.run_pod(host).await;
    for (pod, netns, name) in [(&id, Some(id.as_str()), "pod "), (&host, None, "node ")] {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let echo = Echo::start(&daemon, netns, address, name);
            let mut client = Client::open(&daemon, &url(&daemon, pod, &[]).await, "portforward.k8s.io").await;
            let (error, data) = client.pair(echo.port, 0).await;
            client.data(error, true, b"").await;
            client.data(data, true, b"hello").await;
            let [wrong, said] = client.read_each([error, data]).await;
            assert_eq!(String::from_utf8(said).unwrap(), format!("{name}hello"), "{address}");
            assert!(wrong.is_empty());
            // A port of nobody's, in the same session.
            let (error, data) = client.pair(1, 1).await;
            client.data(error, true, b"").await;
            let said = String::from_utf8(client.read(error).await.unwrap()).unwrap();
            assert!(
                said.contains("127.0.0.1:1") && said.contains("[::1]:1") && said.contains("refused"),
                "{said}"
            );
            client.reset(data).await;
        }
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_for_the_ports_that_the_request_names() {
    let (daemon, id) = start("channels").await;
    let one = Echo::start(&daemon, Some(&id), "127.0.0.1:0", "one ");
    let two = Echo::start(&daemon, Some(&id), "[::1]:0", "two ");
    let (first, second) = (one.port, two.port);
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
        // Those of the CRI's request, whatever is in the URL.
        let asked = url(&daemon, &id, &[i32::from(first), 1, i32::from(second)]).await;
        let again = url(&daemon, &id, &[i32::from(first), 1, i32::from(second)]).await;
        for url in [asked, format!("{again}?port=2")] {
            let mut session = PortSession::open(&daemon, &url, protocol).await.unwrap();
            for (at, port) in [first, 1, second].into_iter().enumerate() {
                for channel in [2 * at, 2 * at + 1] {
                    session.until(channel, &port.to_le_bytes()).await;
                }
            }
            let refused = session.until_text(3, "refused").await;
            assert!(refused.contains("error forwarding port 1 to pod"), "{refused}");
            session.send(0, b"hello").await;
            session.send(4, &[b'x'; 5000]).await;
            assert!(session.until_text(0, "hello").await.ends_with("one hello"));
            session.until(4, &[&second.to_le_bytes()[..], b"two ", &[b'x'; 5000]].concat()).await;
        }
    }
    drop((one, two));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_end_with_the_last_port() {
    let (daemon, id) = start("ends").await;
    let listeners = [0, 1].map(|_| listen(&daemon, Some(&id), "127.0.0.1:0"));
    let ports: Vec<i32> = listeners.iter().map(|l| l.local_addr().unwrap().port().into()).collect();
    let mut session = PortSession::open(&daemon, &url(&daemon, &id, &ports).await, "").await.unwrap();
    let [one, two] = listeners.map(|listener| accept(&listener));
    drop(one);
    (&two).write_all(b"last words").unwrap();
    session.until_text(2, "last words").await;
    // What is for nobody holds up nothing.
    session.send(0, &[0; 300_000]).await;
    session.send(2, b"heard").await;
    let mut heard = [0; 5];
    (&two).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"heard");
    drop(two);
    assert!(session.ends_in_order().await);
    // And a client that leaves ends its connections.
    let listener = listen(&daemon, Some(&id), "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port().into();
    let session = PortSession::open(&daemon, &url(&daemon, &id, &[port]).await, "").await.unwrap();
    let mut tcp = accept(&listener);
    drop(session);
    match tcp.read(&mut [0; 10]) {
        Ok(read) => assert_eq!(read, 0),
        Err(e) => assert_ne!(e.kind(), std::io::ErrorKind::WouldBlock, "it is not closed"),
    }
    drop((tcp, listener));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_are_none_are_refused() {
    let (daemon, id) = start("none").await;
    let many: Vec<i32> = (1..=40).collect();
    let cases = [
        (url(&daemon, &id, &[]).await, "", "400"),
        // It is kubelet that takes them from its client's query, into the CRI's request.
        (url(&daemon, &id, &[]).await + "?port=80%2C81", "", "400"),
        (url(&daemon, &id, &[]).await + "?port=80", "v4.channel.k8s.io", "400"),
        (url(&daemon, &id, &many).await, "v4.channel.k8s.io", "400"),
        (url(&daemon, &id, &[80]).await, "v5.channel.k8s.io", "403"),
        (url(&daemon, &id, &[80]).await, "channel.k8s.io", "403"),
    ];
    for (url, protocol, status) in cases {
        let refused = PortSession::open(&daemon, &url, protocol).await.err().expect("it is refused");
        assert!(refused.to_string().contains(status), "{url}: {refused}");
    }
    for port in [0, -1, 65536] {
        let request = cri::PortForwardRequest { pod_sandbox_id: id.clone(), port: vec![port] };
        let error = daemon.runtime().port_forward(request).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    }
    daemon.finish().await;
}

/// One connection, opened and closed by the book.
async fn hello(client: &mut Client, port: u16, request: usize) {
    let (error, data) = client.pair(port, request).await;
    client.data(error, true, b"").await;
    client.data(data, true, b"hello").await;
    assert_eq!(client.read(data).await.as_deref(), Some(&b"x hello"[..]), "request {request}");
}

/// What a stream says, and when it ends, among the frames of a session.
#[derive(Default)]
struct End {
    said: Vec<u8>,
    at: Option<usize>,
}

/// When the data ends clients reset it, and wait for the end of the error stream.
#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_is_told_before_the_data_ends() {
    let (daemon, id) = start("order").await;
    let listener = listen(&daemon, Some(&id), "127.0.0.1:0");
    let open = listener.local_addr().unwrap().port();
    let closing = std::thread::spawn(move || drop(accept(&listener)));
    let mut client = Client::open(&daemon, &url(&daemon, &id, &[]).await, "portforward.k8s.io").await;
    for (request, port) in [(1, open), (2, 1)] {
        let (error, data) = client.pair(port, request).await;
        let mut ends = [End::default(), End::default()];
        for at in 0.. {
            if ends.iter().all(|end| end.at.is_some()) {
                break;
            }
            match client.frame().await.expect("the session goes on") {
                Frame::Data { stream, fin, content } => {
                    let end = &mut ends[usize::from(stream == data)];
                    assert!(stream == data || stream == error);
                    end.said.extend(content);
                    end.at = fin.then_some(at).or(end.at);
                }
                Frame::Reset { .. } => panic!("a stream is reset"),
                _ => {}
            }
        }
        assert!(ends[0].at < ends[1].at, "request {request}");
        assert_eq!(ends[0].said.is_empty(), port == open);
    }
    closing.join().unwrap();
    drop(client);
    daemon.finish().await;
}

/// A client that opens connections and resets them at once (CVE-2023-44487 is HTTP/2's).
#[tokio::test(flavor = "multi_thread")]
async fn what_is_reset_is_closed_and_counts_no_more() {
    let (daemon, id) = start("reset").await;
    let echo = Echo::start(&daemon, Some(&id), "127.0.0.1:0", "x ");
    let stubborn = Echo::start(&daemon, Some(&id), "127.0.0.1:0", STUBBORN);
    let mut client = Client::open(&daemon, &url(&daemon, &id, &[]).await, "portforward.k8s.io").await;
    for request in 0..1500 {
        let (error, data) = client.pair(stubborn.port, request).await;
        client.reset(data).await;
        client.reset(error).await;
    }
    hello(&mut client, echo.port, 1500).await;
    eventually("all connections are closed", async || stubborn.open() == 0).await;
    // Halves of connections, which wait for the other one.
    for request in 2000..5000 {
        let request = request.to_string();
        let stream = client.syn(&[("streamtype", "error"), ("port", "1"), ("requestid", &request)]).await;
        client.reset(stream).await;
    }
    hello(&mut client, echo.port, 5000).await;
    drop((client, echo, stubborn));
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_five_hundred_connections_and_no_more() {
    let (daemon, id) = start("limit").await;
    let echo = Echo::start(&daemon, Some(&id), "127.0.0.1:0", "x ");
    let mut client = Client::open(&daemon, &url(&daemon, &id, &[]).await, "portforward.k8s.io").await;
    let mut first = None;
    for request in 0..500 {
        let (_, data) = client.pair(echo.port, request).await;
        first = first.or(Some(data));
    }
    eventually("all are connected", async || echo.open() == 500).await;
    let (error, data) = client.pair(echo.port, 500).await;
    let mut refused = Vec::new();
    while refused.len() < 2 {
        if let Frame::Reset { stream, reason } = client.frame().await.expect("the session goes on") {
            assert_eq!(reason, REFUSED_STREAM);
            refused.push(stream);
        }
    }
    assert_eq!(refused, [error, data]);
    client.reset(first.unwrap()).await;
    client.reset(first.unwrap() - 2).await;
    eventually("one of them is closed", async || echo.open() == 499).await;
    hello(&mut client, echo.port, 501).await;
    drop(client);
    eventually("all are closed", async || echo.open() == 0).await;
    drop(echo);
    daemon.finish().await;
}
