//! `podwright image gc`: a plain CRI client, so that it works against any runtime.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;

use clap::Args;
use tonic::Code;

use crate::Result;
use crate::cli::client::table::{short, size};
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::{
    ContainerStatusRequest, Image, ImageFsInfoRequest, ImageSpec, ListContainersRequest, ListImagesRequest,
    RemoveImageRequest,
};

#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Only say what would be removed, and why the rest stays
    #[arg(long)]
    dry_run: bool,
}

/// What becomes of an image, and why.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Remove,
    Pinned,
    /// By so many containers.
    Used(usize),
}

impl Gc {
    pub(super) fn run(self) -> Result<ExitCode> {
        let dry_run = self.dry_run;
        self.endpoint.run(|client| collect(client, dry_run))
    }
}

async fn collect(mut client: Client, dry_run: bool) -> Result<ExitCode> {
    let images = client.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
    let users = users(&mut client).await?;
    let before = used(&mut client).await?;
    for (image, verdict) in judge(&images, &users) {
        let name = image
            .repo_tags
            .first()
            .or(image.repo_digests.first())
            .map_or_else(|| short(&image.id), Clone::clone);
        let bytes = size(image.size);
        let line = match verdict {
            Verdict::Pinned => format!("keep    {name}  {bytes}  it is pinned\n"),
            Verdict::Used(1) => format!("keep    {name}  {bytes}  a container uses it\n"),
            Verdict::Used(count) => format!("keep    {name}  {bytes}  {count} containers use it\n"),
            Verdict::Remove => format!("remove  {name}  {bytes}  no container uses it\n"),
        };
        print(line)?;
        if verdict == Verdict::Remove && !dry_run {
            let spec = ImageSpec { image: image.id.clone(), ..Default::default() };
            client.images.remove_image(RemoveImageRequest { image: Some(spec) }).await?;
        }
    }
    if !dry_run {
        // Layers are freed in the background: the figures are of what nothing refers to any more.
        let freed = before.saturating_sub(used(&mut client).await?);
        print(format!("{} freed\n", size(freed)))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn used(client: &mut Client) -> Result<u64> {
    let info = client.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    Ok(info.image_filesystems.first().and_then(|fs| fs.used_bytes).map_or(0, |bytes| bytes.value))
}

/// How many containers use an image, by its ID: run it, or have it as a volume.
async fn users(client: &mut Client) -> Result<HashMap<String, usize>> {
    let containers = client.runtime.list_containers(ListContainersRequest::default()).await?.into_inner();
    let mut users = HashMap::new();
    for container in containers.containers {
        let request = ContainerStatusRequest { container_id: container.id, ..Default::default() };
        let status = match client.runtime.container_status(request).await {
            Ok(answer) => answer.into_inner().status.unwrap_or_default(),
            // It was removed meanwhile.
            Err(error) if error.code() == Code::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let volumes = status.mounts.into_iter().filter_map(|mount| mount.image);
        let used: HashSet<_> = volumes
            .map(|image| image.image_ref)
            .chain([container.image_id])
            .filter(|id| !id.is_empty())
            .collect();
        used.into_iter().for_each(|id| *users.entry(id).or_default() += 1);
    }
    Ok(users)
}

fn judge<'a>(images: &'a [Image], users: &HashMap<String, usize>) -> Vec<(&'a Image, Verdict)> {
    let verdict = |image: &Image| match users.get(image.id.as_str()) {
        Some(count) => Verdict::Used(*count),
        None if image.pinned => Verdict::Pinned,
        None => Verdict::Remove,
    };
    images.iter().map(|image| (image, verdict(image))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_or_pinned_stays() {
        let image = |id: &str, pinned| Image { id: id.into(), pinned, ..Default::default() };
        let images = [image("1", true), image("2", false), image("3", true)];
        let users = HashMap::from([("1".to_owned(), 2)]);
        let verdicts: Vec<_> = judge(&images, &users).into_iter().map(|(_, v)| v).collect();
        assert_eq!(verdicts, [Verdict::Used(2), Verdict::Remove, Verdict::Pinned]);
    }
}
