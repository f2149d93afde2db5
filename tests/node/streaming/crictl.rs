//! crictl as its users have it, over both transports; where it is (CRICTL, or on the PATH).

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{connect, raise_loopback};
use super::port_forward::Echo;
use crate::harness::{Daemon, pod, script};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::var_os("CRICTL").map(PathBuf::from);
    let found = named.or_else(|| std::env::split_paths(&path).map(|p| p.join("crictl")).find(|p| p.exists()));
    if found.is_none() {
        eprintln!("skipped: there is no crictl here");
    }
    found
}

/// Up to the subcommand's own arguments.
fn crictl(daemon: &Daemon, program: &PathBuf, subcommand: &str, transport: &str, terminal: bool) -> Command {
    let socket = format!("unix://{}", daemon.dir.path().join("cri.sock").display());
    let mut command = daemon.command("setsid");
    // Where it has a terminal, that is its session's.
    command.args(if terminal { &["--ctty"][..] } else { &[] });
    command.arg(program).args(["-r", &socket, "-t", "20s", subcommand, "--transport", transport]);
    command
}

/// Without a terminal.
fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// A program on a terminal of ours.
struct Terminal {
    master: std::fs::File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    fn start(command: &mut Command, size: (u16, u16)) -> Self {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave: OwnedFd = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut master = std::fs::File::from(master);
        set_size(&master, size);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, writer) = (master.try_clone().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                writer.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        let _ = master.flush();
        Self { master, seen, child }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits for something to be shown (up to 60 s).
    async fn until(&self, text: &str) {
        for _ in 0..1200 {
            if self.text().contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{text:?} is not shown: {:?}", self.text());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(master: &std::fs::File, (width, height): (u16, u16)) {
    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}

async fn start(name: &str) -> (Daemon, (String, podwright::cri::wire::PodSandboxConfig)) {
    let daemon = Daemon::start().await;
    raise_loopback(&daemon);
    let pod = daemon.run_pod(pod(name)).await;
    (daemon, pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_exec() {
    let Some(program) = program() else { return };
    let (daemon, pod) = start("exec").await;
    let id = daemon.run(&pod, script("main", "sleep 10000")).await;
    for transport in TRANSPORTS {
        let exec = || crictl(&daemon, &program, "exec", transport, false);
        let said = run(exec().args([&id, "sh", "-c", "echo out; echo err >&2; exit 3"]), b"");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "out\n", "{transport}: {said:?}");
        let errors = String::from_utf8_lossy(&said.stderr);
        assert!(errors.contains("err\n") && errors.contains("exit code 3"), "{transport}: {errors}");
        assert!(!said.status.success());
        let input = vec![b'x'; 3_000_000];
        let said = run(exec().args(["-i", &id, "sha256sum"]), &input);
        let wanted = run(&mut Command::new("sha256sum"), &input);
        assert_eq!(said.stdout, wanted.stdout, "{transport}: {said:?}");
        assert!(said.status.success());
        let said = run(exec().args([&id, "/no/such/program"]), b"");
        assert!(String::from_utf8_lossy(&said.stderr).contains("/no/such/program"), "{transport}: {said:?}");
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_on_a_terminal() {
    let Some(program) = program() else { return };
    let (daemon, pod) = start("terminal").await;
    let mut config = script("main", "while read line; do echo got $line; stty size; done");
    (config.stdin, config.tty) = (true, true);
    let id = daemon.run(&pod, config).await;
    for transport in TRANSPORTS {
        let mut exec = crictl(&daemon, &program, "exec", transport, true);
        let argv = "tty; trap 'echo now $(stty size)' WINCH; trap 'exit 7' INT; echo ready; \
                    while :; do sleep 0.1; done";
        let mut terminal = Terminal::start(exec.args(["-it", &id, "sh", "-c", argv]), (101, 31));
        terminal.until("ready").await;
        assert!(terminal.text().contains("/dev/pts/"), "{}", terminal.text());
        // What it is told at the start may come before the trap.
        for size in [(120, 40), (80, 24)] {
            set_size(&terminal.master, size);
            terminal.until(&format!("now {} {}", size.1, size.0)).await;
        }
        terminal.type_in("\x03");
        terminal.until("exit code 7").await;
        let ended = tokio::task::spawn_blocking(move || terminal.child.wait());
        let status = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap().unwrap().unwrap();
        assert!(!status.success(), "{transport}: {status}");

        let mut attach = crictl(&daemon, &program, "attach", transport, true);
        let mut terminal = Terminal::start(attach.args(["-it", &id]), (90, 20));
        terminal.type_in(&format!("{transport}\n"));
        terminal.until(&format!("got {transport}")).await;
        terminal.until("20 90").await;
        drop(terminal);
        assert_eq!(
            daemon.status(&id).await.state,
            podwright::cri::wire::ContainerState::ContainerRunning as i32
        );
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_port_forward() {
    let Some(program) = program() else { return };
    let (daemon, pod) = start("forward").await;
    let echo = Echo::start(&daemon, Some(&pod.0), "127.0.0.1:0", "");
    for (transport, local) in TRANSPORTS.into_iter().zip([7001, 7002]) {
        let mut forward = crictl(&daemon, &program, "port-forward", transport, true);
        let terminal = Terminal::start(forward.args([&pod.0, &format!("{local}:{}", echo.port)]), (80, 24));
        terminal.until("Forwarding from").await;
        for _ in 0..3 {
            let mut tcp = connect(&daemon, &format!("http://127.0.0.1:{local}/")).await;
            tcp.write_all(b"hello").await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut back = Vec::new();
            let read = tcp.read_to_end(&mut back);
            tokio::time::timeout(Duration::from_secs(60), read).await.unwrap().unwrap();
            assert_eq!(back, b"hello", "{transport}");
        }
    }
    drop(echo);
    daemon.finish().await;
}
