//! `podwright image import`

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::archive::Directory;
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::store::ImportRequest;
use crate::error::Step;
use crate::{Error, Result};

/// Bytes that go in one message, and messages that may wait.
const PART: usize = 1 << 20;
const PARTS: usize = 2;

#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(flatten)]
    endpoint: Endpoint,
    /// An archive of docker's or OCI's form, a directory with an OCI layout, or - for standard input
    source: PathBuf,
    /// The image's name, where the archive has none or another is wanted
    #[arg(long)]
    name: Option<String>,
}

impl Import {
    pub(super) fn run(self) -> Result<ExitCode> {
        let mut source = open(&self.source)?;
        let shown = self.source.display().to_string();
        self.endpoint.run(async |mut client: Client| {
            let (sender, parts) = tokio::sync::mpsc::channel(PARTS);
            let mut name = self.name.clone().unwrap_or_default();
            let reading = tokio::task::spawn_blocking(move || -> Result<()> {
                loop {
                    let mut part = Vec::new();
                    (&mut source)
                        .take(PART as u64)
                        .read_to_end(&mut part)
                        .step(|| format!("reading {shown}"))?;
                    let last = part.is_empty();
                    let request = ImportRequest { name: std::mem::take(&mut name), part };
                    // The daemon has failed and says why.
                    if sender.blocking_send(request).is_err() || last {
                        return Ok(());
                    }
                }
            });
            let parts = tokio_stream::wrappers::ReceiverStream::new(parts);
            let imported = client.store.import(parts).await;
            reading.await.map_err(|e| Error::internal(format!("reading the archive: {e}")))??;
            for image in imported?.into_inner().images {
                for name in image.names {
                    print(format!("{name}\n"))?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn open(source: &PathBuf) -> Result<Box<dyn Read + Send>> {
    if source.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdin()));
    }
    if source.is_dir() {
        return Ok(Box::new(Directory::open(source)?));
    }
    Ok(Box::new(File::open(source).step(|| format!("opening {}", source.display()))?))
}
