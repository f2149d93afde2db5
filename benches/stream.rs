//! What an idle session of the streaming server costs in memory, what a short one takes, and how
//! fast output comes, over WebSocket, with a client that costs little itself:
//!
//! ```text
//! cargo bench --bench stream -- --endpoint SOCKET --container ID [--sessions N] [--mb N]
//! ```
//!
//! The container runs and has `true`, `sleep` and `dd` in it. What a client in Go sees over SPDY and
//! WebSocket, beside Kubernetes' own server, is measured by `tests/stream-client`.

use std::error::Error;
use std::time::Instant;

use clap::Parser;
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use podwright::cri::wire as cri;
use podwright::cri::wire::runtime_service_client::RuntimeServiceClient;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::transport::{Channel, Endpoint, Uri};

type Failure = Box<dyn Error>;
type Session = WebSocketStream<TcpStream>;

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "/run/podwright/podwright.sock")]
    endpoint: String,
    #[arg(long)]
    container: String,
    #[arg(long, default_value_t = 200)]
    sessions: u64,
    #[arg(long, default_value_t = 300)]
    mb: usize,
    /// Cargo's own flag.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Client {
    runtime: RuntimeServiceClient<Channel>,
    container: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let path = options.endpoint.strip_prefix("unix://").unwrap_or(&options.endpoint).to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    let mut client =
        Client { runtime: RuntimeServiceClient::new(channel), container: options.container.clone() };

    let mut times = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        read(client.exec(&["true"]).await?).await?;
        times.push(begun.elapsed());
    }
    times.sort();
    println!("exec(true), WebSocket, p50: {:?}, p90: {:?}", times[50], times[90]);

    let begun = Instant::now();
    let count = format!("count={}", options.mb * 16);
    let bytes = read(client.exec(&["dd", "if=/dev/zero", "bs=64k", &count]).await?).await?;
    println!("stdout, WebSocket: {:.0} MB/s", bytes as f64 / 1e6 / begun.elapsed().as_secs_f64());

    for (name, tty) in [("exec", false), ("exec with a terminal", true)] {
        let before = pss()?;
        let mut held = Vec::new();
        for _ in 0..options.sessions {
            held.push(client.open(&["sleep", "600"], tty).await?);
        }
        let grown = pss()?.saturating_sub(before);
        println!("{name}: {:.1} KiB for each idle session", grown as f64 / options.sessions as f64);
        drop(held);
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    Ok(())
}

impl Client {
    async fn exec(&mut self, argv: &[&str]) -> Result<Session, Failure> {
        self.open(argv, false).await
    }

    async fn open(&mut self, argv: &[&str], tty: bool) -> Result<Session, Failure> {
        let request = cri::ExecRequest {
            container_id: self.container.clone(),
            cmd: argv.iter().map(|a| (*a).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty,
        };
        let url = self.runtime.exec(request).await?.into_inner().url;
        let address = url.split('/').nth(2).ok_or("a URL without an address")?.to_owned();
        let mut request = url.replace("http://", "ws://").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse()?);
        let (mut session, _) =
            tokio_tungstenite::client_async(request, TcpStream::connect(address).await?).await?;
        // The empty message that says that it is there.
        session.next().await;
        Ok(session)
    }
}

/// Bytes of stdout up to the end.
async fn read(mut session: Session) -> Result<usize, Failure> {
    let mut bytes = 0;
    while let Some(Ok(message)) = session.next().await {
        let content = message.into_data();
        if content.first() == Some(&1) {
            bytes += content.len() - 1;
        }
    }
    Ok(bytes)
}

/// KiB of the daemon, by its process name.
fn pss() -> Result<u64, Failure> {
    let mut sum = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        if std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == "podwright") {
            let rollup = std::fs::read_to_string(path.join("smaps_rollup")).unwrap_or_default();
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            sum += line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}
