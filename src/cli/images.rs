//! `podwright images`

use std::process::ExitCode;

use clap::Args;

use crate::Result;
use crate::cli::client::table::{Table, short, size};
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::{Image, ListImagesRequest};

#[derive(Debug, Args)]
pub(super) struct Images {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Print whole IDs only
    #[arg(short, long)]
    quiet: bool,
}

impl Images {
    pub(super) fn new(endpoint: Endpoint, quiet: bool) -> Self {
        Self { endpoint, quiet }
    }

    pub(super) fn run(self) -> Result<ExitCode> {
        let quiet = self.quiet;
        self.endpoint.run(|client| list(client, quiet))
    }
}

async fn list(mut client: Client, quiet: bool) -> Result<ExitCode> {
    let mut images = client.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
    images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
    if quiet {
        print(images.iter().map(|image| format!("{}\n", image.id)).collect::<String>())?;
    } else {
        print(table(&images))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A row for each name, by digest where there is no tag.
fn table(images: &[Image]) -> String {
    let mut table = Table::new(&["IMAGE", "TAG", "ID", "SIZE"]);
    for image in images {
        let mut names: Vec<_> = image.repo_tags.iter().map(|name| name_and_tag(name)).collect();
        if names.is_empty() {
            let repository = |digest: &String| digest.split('@').next().unwrap_or_default().to_owned();
            let name = image.repo_digests.first().map_or("<none>".into(), repository);
            names.push((name, "<none>".into()));
        }
        for (name, tag) in names {
            table.row([name, tag, short(&image.id), size(image.size)]);
        }
    }
    table.render()
}

/// The colon of a registry's port is no tag's.
fn name_and_tag(name: &str) -> (String, String) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name.into(), tag.into()),
        _ => (name.into(), "<none>".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(name_and_tag("localhost:5000/a/b"), ("localhost:5000/a/b".into(), "<none>".into()));
        assert_eq!(name_and_tag("localhost:5000/a:1"), ("localhost:5000/a".into(), "1".into()));
    }

    #[test]
    fn an_image_has_a_row_for_each_tag() {
        let tagged = Image {
            id: "sha256:0123456789abcdef".into(),
            repo_tags: vec!["r/a:1".into(), "r/a:2".into()],
            size: 1_500_000,
            ..Default::default()
        };
        let untagged = Image {
            id: "sha256:ff".into(),
            repo_digests: vec!["r/b@sha256:00".into()],
            ..Default::default()
        };
        let text = "IMAGE  TAG     ID             SIZE\n\
                    r/a    1       0123456789abc  1.5 MB\n\
                    r/a    2       0123456789abc  1.5 MB\n\
                    r/b    <none>  ff             0 B\n";
        assert_eq!(table(&[tagged, untagged]), text);
    }
}
