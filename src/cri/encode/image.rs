//! Images and what they use of the disk.

use std::path::Path;

use serde_json::json;

use crate::cri::encode::{info, now};
use crate::cri::wire;
use crate::error::Result;
use crate::image::{Image, Resolved, Usage};

pub(in crate::cri) fn image(image: Image) -> wire::Image {
    wire::Image {
        // The name that a client can ask for it by again.
        spec: image
            .repo_tags
            .first()
            .or(image.repo_digests.first())
            .map(|name| wire::ImageSpec { image: name.clone(), ..Default::default() }),
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid: image.uid.map(|value| wire::Int64Value { value }),
        username: image.username,
        pinned: image.pinned,
    }
}

/// A missing image is an answer without one (BEHAVIOUR 2).
pub(in crate::cri) fn status(found: Option<Resolved>, verbose: bool) -> Result<wire::ImageStatusResponse> {
    let Some(found) = found else { return Ok(Default::default()) };
    let info = if verbose {
        // crictl reads imageSpec from here for `inspecti`'s history and environment.
        info(&json!({ "imageSpec": found.config, "layers": found.layers }))?
    } else {
        Default::default()
    };
    Ok(wire::ImageStatusResponse { image: Some(image(found.image)), info })
}

/// kubelet takes the first of each list, and refuses an answer that lacks either.
pub(in crate::cri) fn fs_info(usage: Usage, root: &Path) -> wire::ImageFsInfoResponse {
    let filesystem = filesystem(usage, &root.to_string_lossy(), now());
    wire::ImageFsInfoResponse {
        image_filesystems: vec![filesystem.clone()],
        container_filesystems: vec![filesystem],
    }
}

pub(super) fn filesystem(usage: Usage, mountpoint: &str, timestamp: i64) -> wire::FilesystemUsage {
    wire::FilesystemUsage {
        timestamp,
        fs_id: Some(wire::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: Some(wire::UInt64Value { value: usage.bytes }),
        inodes_used: Some(wire::UInt64Value { value: usage.inodes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_2_a_missing_image_is_no_error() {
        let answer = status(None, true).unwrap();
        assert_eq!(answer, wire::ImageStatusResponse::default());
    }

    #[test]
    fn behaviour_32_both_filesystems_are_given() {
        let answer = fs_info(Usage { bytes: 7, inodes: 3 }, Path::new("/var/lib/podwright"));
        for list in [&answer.image_filesystems, &answer.container_filesystems] {
            assert_eq!(list.len(), 1);
            assert_eq!(list[0].used_bytes.unwrap().value, 7);
            assert!(list[0].timestamp > 0);
        }
    }

    #[test]
    fn an_image_that_runs_as_root_by_number_has_a_uid() {
        let root = image(Image { uid: Some(0), ..Default::default() });
        assert_eq!(root.uid, Some(wire::Int64Value { value: 0 }));
        assert_eq!(image(Image::default()).uid, None);
    }
}
