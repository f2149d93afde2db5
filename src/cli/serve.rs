//! `podwright serve`: the daemon.

mod lock;
mod log;
mod notify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::error::Step;
use crate::keeper::client::FdStore;
use crate::node::Node;
use crate::{Result, cgroup, network};

/// Threads that calls may block on files, mounts and processes at a time. They go when idle.
const MAX_BLOCKING: usize = 128;

/// Flags win over the configuration.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The configuration; its drop-ins are FILE.d/*.toml [default: /etc/podwright/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The CRI socket
    #[arg(long, value_name = "SOCKET")]
    listen: Option<PathBuf>,
    /// What outlives a boot
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What is of this boot
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// How pods get their addresses [default: cni where it is configured, else builtin]
    #[arg(long, value_name = "MODE")]
    network: Option<NetworkMode>,
    #[arg(long, value_name = "DRIVER")]
    cgroup_driver: Option<CgroupDriver>,
    /// trace, debug, info, warn, error, off; or target=level,…
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NetworkMode {
    Builtin,
    Cni,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

impl Serve {
    pub(super) fn run(self) -> Result<ExitCode> {
        // Before anything is opened: what was stored has the lowest numbers.
        let fd_store = FdStore::of_service();
        let config = self.configuration()?;
        log::start(&config.log_level);
        // Directories and files are made with the modes that the code says.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        raise_descriptor_limit();
        let _locks = [lock::take(&config.state)?, lock::take(&config.root)?];
        crate::sys::heap::keep_few_arenas();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.clamp(2, 4))
            .max_blocking_threads(MAX_BLOCKING)
            .enable_all()
            .build()
            .step(|| "starting the threads of the daemon")?;
        let served = runtime.block_on(serve(config, fd_store));
        // A thread that hangs in a dead volume does not keep the daemon from ending.
        runtime.shutdown_background();
        served.map(|()| ExitCode::SUCCESS)
    }

    /// The files, then the flags.
    fn configuration(self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        set(&mut config.listen, self.listen);
        set(&mut config.root, self.root);
        set(&mut config.state, self.state);
        set(&mut config.log_level, self.log_level);
        set(&mut config.cgroup.driver, self.cgroup_driver.map(Into::into));
        config.network.mode = self.network.map(Into::into).or(config.network.mode);
        config.validate()?;
        Ok(config)
    }
}

fn set<T>(key: &mut T, flag: Option<T>) {
    if let Some(flag) = flag {
        *key = flag;
    }
}

impl From<NetworkMode> for network::Mode {
    fn from(mode: NetworkMode) -> Self {
        match mode {
            NetworkMode::Builtin => Self::Builtin,
            NetworkMode::Cni => Self::Cni,
        }
    }
}

impl From<CgroupDriver> for cgroup::Driver {
    fn from(driver: CgroupDriver) -> Self {
        match driver {
            CgroupDriver::Cgroupfs => Self::Cgroupfs,
            CgroupDriver::Systemd => Self::Systemd,
        }
    }
}

/// Every container costs some descriptors; the hard limit is what the administrator meant.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(config: Config, fd_store: FdStore) -> Result<()> {
    let mut stop = Stop::listen()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), state = %config.state.display(), "podwright starts");
    let node = tokio::select! {
        node = Node::open(config, fd_store) => node?,
        signal = stop.wait() => {
            tracing::info!(signal, "stopped before the daemon was up");
            return Ok(());
        }
    };
    // The server polls this once it listens.
    let shutdown = async {
        notify::send("READY=1");
        // Little of what a start needs is needed again.
        crate::sys::text::unmap();
        let signal = stop.wait().await;
        notify::send("STOPPING=1");
        tracing::info!(signal, "stopping; containers go on");
    };
    crate::cri::server::serve(node, shutdown).await
}

/// The signals that end the daemon, and nothing but the daemon.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).step(|| "listening for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: Serve,
    }

    #[test]
    fn flags_win_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "listen = '/a.sock'\nroot = '/r'\n[network]\nmode = 'cni'").unwrap();
        let line = ["serve", "--config", file.to_str().unwrap(), "--listen", "/b.sock"];
        let config = |more: &[&str]| {
            let line = line.iter().chain(more).copied();
            Line::try_parse_from(line).unwrap().serve.configuration()
        };
        let plain = config(&[]).unwrap();
        assert_eq!((plain.listen.to_str(), plain.root.to_str()), (Some("/b.sock"), Some("/r")));
        assert_eq!(plain.network.mode, Some(network::Mode::Cni));
        let flags = config(&["--network", "builtin", "--cgroup-driver", "systemd"]).unwrap();
        assert_eq!(flags.network.mode, Some(network::Mode::Builtin));
        assert_eq!(flags.cgroup.driver, cgroup::Driver::Systemd);
        let refusal = config(&["--state", "relative"]).unwrap_err();
        assert!(refusal.message.starts_with("state: "), "{refusal}");
    }
}
