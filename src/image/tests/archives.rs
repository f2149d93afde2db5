//! Images from archives.

use serde_json::json;

use super::fake::{gzip, layer, tar_of};
use super::*;
use crate::error::Kind;

/// An archive of files, and of symbolic links (their targets after an arrow).
fn archive(files: &[(&str, Vec<u8>)], links: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (link, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, link, target).unwrap();
    }
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).to_string().into_bytes()
}

/// What `docker save` writes: the index last, a layer that repeats as a link.
fn docker(tags: &[&str]) -> (Vec<u8>, Digest) {
    let (one, two) = (tar_of(&[("a", b"1")]), tar_of(&[("b", b"2")]));
    let config = config(&[&one, &two]);
    let layers = ["x/layer.tar", "y/layer.tar"];
    let manifest = json!([{"Config": "c.json", "RepoTags": tags, "Layers": layers}]).to_string();
    let files = [
        ("real/layer.tar", one),
        ("y/layer.tar", two),
        ("c.json", config.clone()),
        ("manifest.json", manifest.into()),
    ];
    (archive(&files, &[("x/layer.tar", "../real/layer.tar")]), Digest::of(&config))
}

async fn import(images: &Images, archive: Vec<u8>, name: Option<&str>) -> Result<Vec<Imported>> {
    images.import(Box::new(std::io::Cursor::new(archive)), name.map(str::to_owned)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_archives_are_taken_in_plain_and_compressed() {
    let (bytes, id) = docker(&["busybox:1", "a.b/c:d"]);
    let zstd = zstd::encode_all(&bytes[..], 1).unwrap();
    for bytes in [bytes.clone(), gzip(&bytes), zstd] {
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path()).await;
        let imported = import(&images, bytes, None).await.unwrap();
        let names = ["docker.io/library/busybox:1".to_owned(), "a.b/c:d".to_owned()];
        assert_eq!(imported, [Imported { id: id.to_string(), names: names.to_vec() }]);
        let resolved = images.status("busybox:1").unwrap().unwrap();
        assert_eq!(resolved.image.repo_tags.len(), 2);
        assert!(resolved.image.repo_digests.is_empty(), "no registry has it");
        assert_eq!(std::fs::read(resolved.layers[1].join("a")).unwrap(), b"1");
        assert_eq!(std::fs::read(resolved.layers[0].join("b")).unwrap(), b"2");
        assert_eq!(entries(&root.path().join("staging")), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_needs_a_name() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let (bytes, id) = docker(&[]);
    let error = import(&images, bytes.clone(), None).await.unwrap_err();
    assert!(error.message.contains("name"), "{error}");
    let imported = import(&images, bytes, Some("a.b/given")).await.unwrap();
    assert_eq!(
        (&imported[0].id, imported[0].names.as_slice()),
        (&id.to_string(), &["a.b/given:latest".to_owned()][..])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ocis_archives_are_taken_in_and_verified() {
    let (compressed, plain) = layer(&[("a", b"1")]);
    let config = config(&[&plain]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": super::fake::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": Digest::of(&config).to_string(), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(&compressed).to_string(), "size": compressed.len()}],
    })
    .to_string()
    .into_bytes();
    let digest = Digest::of(&manifest);
    let entry = |name: &str| {
        json!({"mediaType": super::fake::OCI_MANIFEST, "digest": digest.to_string(), "size": manifest.len(),
               "annotations": {"org.opencontainers.image.ref.name": name}})
    };
    let index = json!({"schemaVersion": 2, "manifests": [entry("a.b/c:d"), entry("a.b/c:e")]}).to_string();
    let layout = |config: Vec<u8>| {
        let (name, layer, document) = (blob(&self::config(&[&plain])), blob(&compressed), blob(&manifest));
        archive(
            &[
                ("oci-layout", b"{}".to_vec()),
                ("index.json", index.clone().into()),
                (&name, config),
                (&layer, compressed.clone()),
                (&document, manifest.clone()),
            ],
            &[],
        )
    };
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let error = import(&images, layout(b"{}".to_vec()), None).await.unwrap_err();
    assert!(error.message.contains("has digest"), "{error}");
    let imported = import(&images, layout(config), None).await.unwrap();
    assert_eq!(imported[0].names, ["a.b/c:d", "a.b/c:e"]);
    let image = images.status("a.b/c:e").unwrap().unwrap().image;
    assert_eq!(image.repo_digests, [format!("a.b/c@{digest}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_archive_leaves_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let out = || {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let (good, _) = docker(&["a.b/c:d"]);
    for bytes in [
        Vec::new(),
        b"nonsense".repeat(200),
        out(),
        good[..good.len() / 2].to_vec(),
        archive(&[("x", vec![])], &[]),
    ] {
        let error = import(&images, bytes, None).await.unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument, "{error}");
    }
    assert!(images.list(None).unwrap().is_empty());
    eventually(|| entries(&root.path().join("staging")) == 0).await;
}
