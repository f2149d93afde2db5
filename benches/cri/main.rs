//! A plain CRI client that measures any runtime:
//!
//! ```text
//! cargo bench --bench cri -- --endpoint unix:///run/podwright/podwright.sock --image IMAGE [--n N]
//!     [--parallel P] [--hold H] [--json FILE] [--html FILE]
//! cargo bench --bench cri -- --compare A.json --compare B.json --html FILE
//! ```
//!
//! The image needs `sh`, `sleep`, `true`, `yes` and `dd`, and must have been pulled.

mod client;
mod measure;
mod memory;
mod report;

use std::path::PathBuf;

use clap::Parser;

#[derive(Parser)]
pub struct Options {
    /// The runtime's socket.
    #[arg(long, default_value = "unix:///run/podwright/podwright.sock")]
    endpoint: String,
    #[arg(long, default_value = "docker.io/library/busybox:latest")]
    image: String,
    /// What the report calls this run.
    #[arg(long, default_value = "podwright")]
    name: String,
    /// Sequential lifecycles.
    #[arg(long, default_value_t = 100)]
    n: usize,
    /// Workers of the parallel part, which runs `n` lifecycles more.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// Pods held with a container up.
    #[arg(long, default_value_t = 60)]
    hold: usize,
    /// Lines of 100 bytes through a container's log, in thousands of them; 0: skip.
    #[arg(long, default_value_t = 3_000_000)]
    lines: u64,
    /// Sandboxes with the seccomp default profile, as kubelet asks for it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    seccomp: bool,
    /// Whose memory counts, by the process name's beginning.
    #[arg(long = "process", default_values_t = ["podwright".to_owned()])]
    processes: Vec<String>,
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long)]
    html: Option<PathBuf>,
    /// Earlier results to put side by side, instead of measuring.
    #[arg(long)]
    compare: Vec<PathBuf>,
    /// Cargo's own flag.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let runs = if options.compare.is_empty() {
        vec![measure::run(&options).await?]
    } else {
        let read = |path: &PathBuf| -> Result<measure::Run, Box<dyn std::error::Error>> {
            Ok(serde_json::from_slice(&std::fs::read(path)?)?)
        };
        options.compare.iter().map(read).collect::<Result<_, _>>()?
    };
    print!("{}", report::text(&runs));
    if let (Some(path), [run]) = (&options.json, runs.as_slice()) {
        std::fs::write(path, serde_json::to_vec_pretty(run)?)?;
    }
    if let Some(path) = &options.html {
        std::fs::write(path, report::html(&runs))?;
    }
    Ok(())
}
