//! `podwright logs`

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::cli::client::log_file::{LogFile, Record, Stream, parse};
use crate::cli::client::{Client, Endpoint};
use crate::cri::wire::{ContainerState, ContainerStatus, ContainerStatusRequest};
use crate::{Error, Result};

/// How often a log that is followed is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How many polls pass between two questions whether the container still runs.
const POLLS_PER_STATUS: u32 = 4;

#[derive(Debug, Args)]
pub(super) struct Logs {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Print the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Only the last N lines of what is there
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// ID, its beginning, or name
    container: String,
}

/// What is printed of a log.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Show {
    pub follow: bool,
    pub timestamps: bool,
    pub tail: Option<usize>,
}

impl Logs {
    pub(super) fn run(self) -> Result<ExitCode> {
        let show = Show { follow: self.follow, timestamps: self.timestamps, tail: self.tail };
        self.endpoint.run(async |mut client: Client| {
            let id = client.container(&self.container).await?.id;
            client.show_log(&id, show).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Client {
    pub async fn container_status(&mut self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let status = self.runtime.container_status(request).await?.into_inner().status;
        status.ok_or_else(|| Error::internal(format!("the runtime has no status of container {id}")))
    }

    /// Prints a container's log: its stdout to ours, its stderr to ours.
    pub async fn show_log(&mut self, id: &str, show: Show) -> Result<()> {
        let status = self.container_status(id).await?;
        if status.log_path.is_empty() {
            return Err(Error::precondition(format!("container {id} was created without a log")));
        }
        let mut log = LogFile::open(PathBuf::from(&status.log_path))?;
        let mut printer = Printer { timestamps: show.timestamps, at_line_start: [true; 2] };
        print_present(&mut log, &mut printer, show.tail)?;
        let mut ended = !show.follow;
        let mut polls = 0;
        loop {
            while let Some(line) = log.next()? {
                printer.print(line)?;
            }
            if log.follow_rotation()? {
                continue;
            }
            if ended {
                return Ok(());
            }
            if polls % POLLS_PER_STATUS == 0 {
                // What it wrote before its end is in the file by then, and read in one more round.
                ended = self.has_ended(id).await?;
            }
            polls += 1;
            if !ended {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    async fn has_ended(&mut self, id: &str) -> Result<bool> {
        match self.container_status(id).await {
            Ok(status) => Ok(!matches!(
                status.state(),
                ContainerState::ContainerRunning | ContainerState::ContainerCreated
            )),
            Err(error) if error.kind == crate::error::Kind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// The last `tail` lines of what is in the file now; a line may be of several records.
fn print_present(log: &mut LogFile, printer: &mut Printer, tail: Option<usize>) -> Result<()> {
    let Some(tail) = tail else { return Ok(()) };
    let mut last: VecDeque<Vec<u8>> = VecDeque::new();
    let mut full = 0;
    while let Some(line) = log.next()? {
        last.push_back(line.to_vec());
        full += usize::from(is_full(line));
        while full > tail || (tail == 0 && !last.is_empty()) {
            full -= usize::from(last.pop_front().is_some_and(|line| is_full(&line)));
        }
    }
    last.iter().try_for_each(|line| printer.print(line))
}

/// What is not in the format is a line too.
fn is_full(line: &[u8]) -> bool {
    parse(line).is_none_or(|record| record.full)
}

struct Printer {
    timestamps: bool,
    /// Of stdout and stderr: the record before was no partial one.
    at_line_start: [bool; 2],
}

impl Printer {
    fn print(&mut self, line: &[u8]) -> Result<()> {
        let fallback = Record { time: b"", stream: Stream::Stdout, full: true, text: line };
        let record = parse(line).unwrap_or(fallback);
        let stream = usize::from(record.stream == Stream::Stderr);
        let mut text = Vec::with_capacity(line.len() + 1);
        if self.timestamps && self.at_line_start[stream] {
            text.extend_from_slice(record.time);
            text.push(b' ');
        }
        text.extend_from_slice(record.text);
        if record.full {
            text.push(b'\n');
        }
        self.at_line_start[stream] = record.full;
        match record.stream {
            Stream::Stdout => super::print(text),
            Stream::Stderr => match std::io::stderr().write_all(&text) {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
                Err(e) => Err(Error::io("writing to standard error", e)),
                Ok(()) => Ok(()),
            },
        }
    }
}
