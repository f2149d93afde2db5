//! Peers of other versions, and packets that are none: refused in words, and nothing else suffers.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use podwright::error::Kind;
use podwright::keeper::client::{self, Config, Keeper, Status};
use podwright::keeper::protocol::{Refusal, Reply, Request, VERSION};
use podwright::keeper::wire::Inbox;
use podwright::sys::seqpacket;
use rustix::net::SendFlags;

use crate::support::{KEEPER, Node, RawObserver, alone};

/// A packet as `keeper::wire` draws it.
fn packet(kind: u8, fds: u16, number: u32, length: u32, body: &[u8]) -> Vec<u8> {
    let header = [&[kind, 0][..], &fds.to_le_bytes(), &number.to_le_bytes(), &length.to_le_bytes()];
    [&header.concat(), body].concat()
}

fn inline(number: u32, body: &[u8]) -> Vec<u8> {
    packet(0, 0, number, body.len() as u32, body)
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    seqpacket::send(socket, &[IoSlice::new(bytes)], fds, SendFlags::empty()).unwrap();
}

/// The body of a request.
fn body(request: &Request) -> Vec<u8> {
    postcard::to_stdvec(request).unwrap()
}

/// A container that writes while `during` happens: not one line of its log may be missing.
async fn while_one_logs(node: &Node, during: impl AsyncFnOnce()) {
    let script = "for i in $(seq 1 20000); do echo line $i; done; exit 9";
    let process = node.run(node.container("logs", script)).await;
    during().await;
    assert_eq!(process.exited().await.status, Status::Code(9));
    let expected: String = (1..=20000).map(|i| format!("line {i}\n")).collect();
    assert!(node.text("logs") == expected, "the log is not whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_keeper_does_not_know_is_refused_in_words() {
    let node = Node::new().await;
    let keeper = node.keeper_pid();
    while_one_logs(&node, async || {
        let peer = RawObserver::new(&node.path("state"));
        let start = body(&Request::Start { id: "logs".into() });
        let longer = [&body(&Request::Status)[..], &[1]].concat();
        let requests: [&[u8]; 5] = [&[200], &[200, 1, 2, 3], &[], &start[..start.len() - 1], &longer];
        for (number, request) in (10..).zip(requests) {
            peer.send(&inline(number, request));
            let (answered, reply) = peer.answer();
            let Reply::Refused { reason: Refusal::Unknown, text } = reply else { panic!("{reply:?}") };
            assert_eq!(answered, number);
            assert!(text.contains("does not know such a request"), "{text}");
            assert!(text.contains(&format!("protocol {VERSION}")), "{text}");
        }
        // The connection goes on.
        peer.ask(99, &Request::Status);
        let (answered, reply) = peer.answer();
        assert!(answered == 99 && matches!(reply, Reply::Status(_)), "{reply:?}");
    })
    .await;
    assert_eq!(node.keeper_pid(), keeper);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_that_is_none_ends_its_connection_with_a_sentence() {
    let node = Node::new().await;
    let keeper = node.keeper_pid();
    let before = node.keeper.status().await.unwrap().fds;
    let null = std::fs::File::open("/dev/null").unwrap();
    let null = [null.as_fd()];
    while_one_logs(&node, async || {
        let cases: [(Vec<u8>, &[BorrowedFd<'_>], &str); 8] = [
            (vec![0], &[], "without a header"),
            (packet(0, 0, 7, 5, b"four"), &[], "wrong length"),
            (packet(0, 0, 7, 3, b"four"), &[], "wrong length"),
            (packet(9, 0, 7, 0, b""), &[], "unknown kind"),
            (packet(0, 1, 7, 0, b""), &[], "descriptors are not those it announces"),
            (packet(0, 0, 7, 0, b""), &null, "descriptors are not those it announces"),
            (packet(1, 1, 7, 500, b""), &null, "body is not in its descriptor"),
            (inline(7, &[0; 40_000]), &[], "too long"),
        ];
        for (bytes, fds, sentence) in cases {
            let peer = RawObserver::new(&node.path("state"));
            send(peer.socket.as_fd(), &bytes, fds);
            let (_, reply) = peer.answer();
            let Reply::Refused { reason: Refusal::Invalid, text } = reply else { panic!("{reply:?}") };
            assert!(text.contains(sentence), "{text}");
            peer.ended();
        }
    })
    .await;
    node.keeper.forget("logs").await.unwrap();
    assert_eq!(node.keeper_pid(), keeper);
    assert_eq!(node.keeper.status().await.unwrap().fds, before, "what came with the packets is closed");
}

/// The daemon's own connection: it is told why, makes another, and has all that it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_sends_no_packet_connects_again() {
    let mut node = Node::new().await;
    let keeper = node.keeper_pid();
    let held = node.run(node.container("held", "sleep 1000")).await.pid;
    node.keeper.die();
    let daemon = RawObserver::connect(&node.path("state"), false);
    daemon.send(&[1, 2, 3]);
    let (_, reply) = daemon.answer();
    assert!(matches!(&reply, Reply::Refused { text, .. } if text.contains("without a header")), "{reply:?}");
    daemon.ended();
    let found = node.reconnect().await;
    assert_eq!(found.processes.iter().map(|(process, _)| process.pid).collect::<Vec<_>>(), [held]);
    while_one_logs(&node, async || {}).await;
    assert_eq!(node.keeper_pid(), keeper);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_speak_the_lower_version() {
    let node = Node::new().await;
    for (theirs, spoken) in [(1, 1), (VERSION, VERSION), (VERSION + 1, VERSION), (u32::MAX, VERSION)] {
        let peer = RawObserver::new(&node.path("state"));
        peer.ask(5, &Request::Hello { version: theirs, observer: true });
        let (_, reply) = peer.answer();
        let Reply::Welcome { version, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(version, spoken);
    }
}

/// A keeper that says what it is told to, packet by packet, to whoever asks; then keeps silent.
fn fake_keeper(state: &Path, answers: fn(u32) -> Vec<Vec<u8>>) {
    std::fs::create_dir_all(state).unwrap();
    let listener = seqpacket::listen(state, "keeper.sock").unwrap();
    std::thread::spawn(move || {
        let wait = |fd: &OwnedFd| {
            let mut poll = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None).unwrap();
        };
        loop {
            wait(&listener);
            let Ok(socket) = seqpacket::accept(listener.as_fd()) else { continue };
            std::thread::spawn(move || {
                let mut inbox = Inbox::default();
                loop {
                    match inbox.receive(socket.as_fd()) {
                        Ok(request) => {
                            for bytes in answers(request.number) {
                                let parts = [IoSlice::new(&bytes)];
                                let _ = seqpacket::send(socket.as_fd(), &parts, &[], SendFlags::empty());
                            }
                        }
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => wait(&socket),
                        Err(_) => return,
                    }
                }
            });
        }
    });
}

fn welcome(version: u32) -> Vec<u8> {
    let reply = Reply::Welcome { version, keeper: "99.0".into(), pid: 1 };
    inline(1, &postcard::to_stdvec(&reply).unwrap())
}

async fn connect_to(answers: fn(u32) -> Vec<Vec<u8>>) -> (tempfile::TempDir, podwright::Error) {
    let folder = tempfile::tempdir().unwrap();
    fake_keeper(folder.path(), answers);
    let config = Config {
        state: folder.path().to_owned(),
        executable: KEEPER.into(),
        cgroup_procs: Vec::new(),
        fd_store: Arc::default(),
        met: Default::default(),
    };
    let error = Keeper::connect(config).await.err().expect("it is no keeper of ours");
    (folder, error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_says_what_is_wrong_with_its_keeper() {
    let _alone = alone().await;
    // One whose answers are of a kind that we do not know, or too short.
    let unknown: fn(u32) -> _ =
        |number| vec![if number == 1 { welcome(99) } else { inline(number, &[200, 1]) }];
    let short: fn(u32) -> _ = |number| vec![if number == 1 { welcome(99) } else { inline(number, &[1]) }];
    for answers in [unknown, short] {
        let (_folder, error) = connect_to(answers).await;
        assert!(error.message.contains("not understood, it may be of another version"), "{error}");
    }
    // One that refuses.
    let (_folder, error) = connect_to(|number| {
        let text = "not with you".to_owned();
        let reply = Reply::Refused { reason: Refusal::Invalid, text };
        vec![inline(number, &postcard::to_stdvec(&reply).unwrap())]
    })
    .await;
    assert_eq!(error.message, "not with you");
    // One that sends what is no packet.
    let (_folder, error) = connect_to(|_| vec![vec![1, 2, 3]]).await;
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains("the keeper sent a packet without a header"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_keeps_silent_is_not_waited_for_for_ever() {
    let _alone = alone().await;
    let (folder, error) = connect_to(|_| Vec::new()).await;
    assert!(error.message.contains("does not answer"), "{error}");
    let state = folder.path().to_owned();
    let error = tokio::task::spawn_blocking(move || client::observe(&state)).await.unwrap().unwrap_err();
    assert!(error.message.contains("does not answer"), "{error}");
}

/// `podwright keeper status` beside a keeper of another version.
#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_is_told_as_well() {
    let folder = tempfile::tempdir().unwrap();
    fake_keeper(folder.path(), |number| vec![inline(number, &[200])]);
    let state = folder.path().to_owned();
    let error = tokio::task::spawn_blocking(move || client::observe(&state)).await.unwrap().unwrap_err();
    assert!(error.message.contains("another version"), "{error}");
}
