//! `podwright keeper status|upgrade`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::Result;
use crate::cli::client::table::{Table, age, now, short, size};
use crate::cli::print;
use crate::config::Config;
use crate::error::{Step, errno_text};
use crate::keeper::client;
use crate::keeper::protocol::{KeeperStatus, Phase, ProcessStatus, RoleKind};

#[derive(Debug, Args)]
pub(super) struct Keeper {
    /// The configuration, for the state directory [default: /etc/podwright/config.toml]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The daemon's state directory
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print what the keeper holds
    Status,
    /// Have the keeper go on as another executable, with all that it holds
    Upgrade {
        /// [default: as configured, else podwright-keeper beside this program]
        executable: Option<PathBuf>,
    },
}

impl Keeper {
    pub(super) fn run(self) -> Result<ExitCode> {
        let config = Config::load(self.config.as_deref())?;
        let state = self.state.unwrap_or(config.state);
        match self.verb {
            Verb::Status => print(describe(&client::observe(&state)?, now()))?,
            Verb::Upgrade { executable } => {
                let executable = match executable {
                    Some(executable) => executable,
                    None if !config.keeper.as_os_str().is_empty() => config.keeper,
                    None => beside_us()?,
                };
                client::upgrade(&state, &executable)?;
                let status = client::observe(&state)?;
                print(format!("the keeper (pid {}) is {} now\n", status.pid, status.version))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn beside_us() -> Result<PathBuf> {
    Ok(std::env::current_exe().step(|| "finding our own executable")?.with_file_name("podwright-keeper"))
}

fn describe(status: &KeeperStatus, now: i64) -> String {
    let daemon = if status.daemon_connected { "connected" } else { "not connected" };
    let mut text = format!(
        "keeper     {}, protocol {}, pid {}\nstarted    {}, {} upgrades since\nuses       {}, {} descriptors\n\
         daemon     {daemon}\n\n",
        status.version,
        status.protocol,
        status.pid,
        age(status.started_at, now),
        status.upgrades,
        size(status.rss),
        status.fds,
    );
    let mut table = Table::new(&["PROCESS", "ROLE", "PID", "PHASE", "LOG", "PARENT"]);
    for process in &status.processes {
        table.row([
            short(&process.id),
            role(process.role).into(),
            process.pid.to_string(),
            phase(process, now),
            process.log_stalled.map_or("ok".into(), |errno| format!("stalled: {}", errno_text(errno))),
            if process.child { "keeper" } else { "another" }.into(),
        ]);
    }
    text += &table.render();
    let mut holds = Table::new(&["HELD FOR", "DESCRIPTORS"]);
    for hold in &status.holds {
        holds.row([hold.key.clone(), hold.fds.to_string()]);
    }
    text + "\n" + &holds.render()
}

fn role(role: RoleKind) -> &'static str {
    match role {
        RoleKind::Container => "container",
        RoleKind::PodInit => "pod init",
        RoleKind::Exec => "exec",
    }
}

fn phase(process: &ProcessStatus, now: i64) -> String {
    match process.phase {
        Phase::Preparing { .. } => "preparing".into(),
        Phase::Parked => "parked".into(),
        Phase::Released => "starting".into(),
        Phase::Running { started_at } => format!("running, started {}", age(started_at, now)),
        Phase::Exited { exit, .. } => {
            format!("exited {}, {}", exit.status.code(), age(exit.finished_at, now))
        }
    }
}
