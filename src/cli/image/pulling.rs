//! `podwright image ls [--pulling]`, and the bars of `podwright pull`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::Result;
use crate::cli::client::table::{Table, size};
use crate::cli::client::{Client, Endpoint};
use crate::cli::{images, print};
use crate::cri::wire::store::{Pull, PullLayer, PullsRequest};

const REDRAW: Duration = Duration::from_millis(200);
/// Characters of a bar.
const WIDTH: u64 = 30;

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    endpoint: Endpoint,
    /// The pulls and imports under way instead, with their rate and remaining time
    #[arg(long)]
    pulling: bool,
    /// Print whole IDs only
    #[arg(short, long, conflicts_with = "pulling")]
    quiet: bool,
}

impl Ls {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { endpoint, pulling, quiet } = self;
        if !pulling {
            return images::Images::new(endpoint, quiet).run();
        }
        endpoint.run(async |mut client: Client| {
            print(table(&client.store.pulls(PullsRequest {}).await?.into_inner().pulls))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn table(pulls: &[Pull]) -> String {
    let mut table = Table::new(&["IMAGE", "FETCHED", "OF", "RATE", "REMAINING"]);
    for pull in pulls {
        let (fetched, of) = total(pull);
        // What was here before came at no time: the rate is of what is on its way.
        let moving = pull.layers.iter().map(|layer| layer.fetched).sum::<u64>() + pull.archive;
        let rate = moving.saturating_mul(1000) / pull.milliseconds.max(1);
        if pull.archive > 0 {
            let unknown = || "unknown".to_owned();
            let row = [pull.reference.clone(), size(pull.archive), unknown(), size(rate) + "/s", unknown()];
            table.row(row);
            continue;
        }
        let remaining = match rate {
            0 => "unknown".to_owned(),
            rate => format!("{} s", (of - fetched).div_ceil(rate)),
        };
        table.row([pull.reference.clone(), size(fetched), size(of), size(rate) + "/s", remaining]);
    }
    table.render()
}

fn total(pull: &Pull) -> (u64, u64) {
    let of: u64 = pull.layers.iter().map(|layer| layer.size).sum();
    let fetched = |layer: &PullLayer| if layer.done { layer.size } else { layer.fetched.min(layer.size) };
    (pull.layers.iter().map(fetched).sum(), of)
}

/// Bars for the layers of a pull, on a terminal alone, redrawn until it is dropped.
pub(crate) struct Bars(Option<tokio::task::JoinHandle<()>>);

impl Bars {
    /// Another runtime has no such list: then nothing is drawn.
    pub(crate) fn draw(client: &Client, image: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let (mut store, image) = (client.store.clone(), image.to_owned());
        Self(Some(tokio::spawn(async move {
            let mut drawn = 0;
            loop {
                tokio::time::sleep(REDRAW).await;
                let Ok(answer) = store.pulls(PullsRequest {}).await else { return };
                let pulls = answer.into_inner().pulls;
                let of_it = pulls.iter().filter(|pull| pull.reference.contains(&image) || pulls.len() == 1);
                let lines: Vec<_> = of_it.flat_map(|pull| pull.layers.iter().map(bar)).collect();
                let up = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
                let text: String = lines.iter().map(|line| format!("\x1b[K{line}\n")).collect();
                let _ = write!(std::io::stderr(), "{up}{text}\x1b[J");
                drawn = lines.len();
            }
        })))
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// `0123456789ab [=====>      ] 12.3 MB of 45.6 MB`
fn bar(layer: &PullLayer) -> String {
    let id: String = layer.digest.trim_start_matches("sha256:").chars().take(12).collect();
    if layer.done {
        return format!("{id} [{}] {}", "=".repeat(WIDTH as usize), size(layer.size));
    }
    let filled =
        layer.fetched.saturating_mul(WIDTH).checked_div(layer.size).unwrap_or(0).min(WIDTH - 1) as usize;
    let rest = WIDTH as usize - 1 - filled;
    let fetched = size(layer.fetched);
    format!("{id} [{}>{}] {fetched} of {}", "=".repeat(filled), " ".repeat(rest), size(layer.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(size: u64, fetched: u64, done: bool) -> PullLayer {
        PullLayer { digest: "sha256:0123456789abcdef".into(), size, fetched, done }
    }

    #[test]
    fn bars_grow_and_are_full_when_done() {
        let half = bar(&layer(2_000_000, 1_000_000, false));
        assert_eq!(half, format!("0123456789ab [{}>{}] 1.0 MB of 2.0 MB", "=".repeat(15), " ".repeat(14)));
        assert!(bar(&layer(10, 10, false)).contains(&("=".repeat(29) + ">]")));
        assert!(bar(&layer(0, 0, true)).contains(&"=".repeat(30)));
        bar(&layer(0, 0, false));
    }

    #[test]
    fn remaining_time_follows_from_what_moves() {
        let layers = vec![layer(1000, 0, true), layer(4000, 1000, false)];
        let pull = Pull { reference: "a.b/c:d".into(), milliseconds: 1000, layers, archive: 0 };
        let text = table(std::slice::from_ref(&pull));
        assert!(text.contains("2.0 kB") && text.contains("1.0 kB/s") && text.contains("3 s"), "{text}");
        let waiting = Pull { layers: Vec::new(), ..pull };
        assert!(table(std::slice::from_ref(&waiting)).contains("unknown"));
        let import = table(&[Pull { archive: 6000, ..waiting }]);
        assert!(import.contains("6.0 kB") && import.contains("6.0 kB/s"), "{import}");
    }
}
