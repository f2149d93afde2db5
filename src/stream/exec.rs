//! Exec: from a client's streams to a process in a container and back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::remote_command::pump::{self, Input, Output};
use super::remote_command::status::Status;
use super::remote_command::{Streams, Wanted};
use crate::container::exec_session::{self, Ends, Session, Wish};
use crate::error::Step;
use crate::node::Node;
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub struct Ticket {
    pub container_id: String,
    pub argv: Vec<String>,
    pub wanted: Wanted,
}

/// Serves one session up to its status.
pub async fn serve(node: &Arc<Node>, ticket: Ticket, streams: Streams) {
    let Wanted { stdin, stdout, stderr, tty } = ticket.wanted;
    let wish = Wish { argv: ticket.argv, stdin, stdout, stderr, tty };
    let begun = exec_session::begin(node, &ticket.container_id, &wish).await;
    let (session, ends) = match begun {
        Ok(begun) => begun,
        Err(error) => return refuse(&streams, &error).await,
    };
    let pumps = match Pumps::new(ends) {
        Ok(pumps) => pumps,
        Err(error) => {
            session.release();
            return refuse(&streams, &error).await;
        }
    };
    match pumps.run(&session, &streams).await {
        Some(status) => streams.conclude(&status).await,
        None => session.release(),
    }
}

async fn refuse(streams: &Streams, error: &Error) {
    for outlet in [&streams.stdout, &streams.stderr].into_iter().flatten() {
        let _ = outlet.finish().await;
    }
    streams.conclude(&Status::Error(format!("error executing command in container: {error}"))).await;
}

/// What is moved between the process and the client.
struct Pumps {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// For its size.
    master: Option<OwnedFd>,
}

impl Pumps {
    fn new(ends: Ends) -> Result<Self> {
        let step = || "watching the exec's streams";
        Ok(match ends {
            Ends::Pipes { stdin, stdout, stderr } => Self {
                stdin: stdin.map(Input::new).transpose().step(step)?,
                stdout: stdout.map(Output::pipe).transpose().step(step)?,
                stderr: stderr.map(Output::pipe).transpose().step(step)?,
                master: None,
            },
            Ends::Terminal { master } => Self {
                stdin: Some(Input::new(master.try_clone().step(step)?).step(step)?),
                stdout: Some(Output::terminal(master.try_clone().step(step)?).step(step)?),
                stderr: None,
                master: Some(master),
            },
        })
    }

    /// Up to the end of the process, and of what it had written by then. None: the client left.
    async fn run(self, session: &Session, streams: &Streams) -> Option<Status> {
        let (end, ended) = watch::channel(false);
        let Self { stdin, stdout, stderr, master } = self;
        let taken = Notify::new();
        let input = async {
            if let (Some(stdin), Some(inlet)) = (stdin, &streams.stdin) {
                // A terminal's is closed with the session: its other half is still read.
                stdin.copy(inlet).await;
            }
            taken.notify_one();
        };
        let sizes = async {
            if let (Some(master), Some(inlet)) = (&master, &streams.resize) {
                pump::sizes(inlet, |size| exec_session::resize(master, size.width, size.height)).await;
            }
        };
        let copy = async |output: Option<Output>, outlet| {
            if let Some(output) = output {
                output.copy(outlet, ended.clone()).await;
            }
        };
        let outputs = async {
            tokio::join!(copy(stdout, streams.stdout.as_ref()), copy(stderr, streams.stderr.as_ref()));
        };
        let exit = async {
            let exit = session.exited().await;
            let _ = end.send(true);
            exit
        };
        let inputs = async {
            tokio::join!(input, sizes);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (exit, ()) = async { tokio::join!(exit, outputs) } => Some(Status::of_exit(exit.status.code())),
            () = inputs => None,
            () = streams.left(&taken) => None,
        }
    }
}
