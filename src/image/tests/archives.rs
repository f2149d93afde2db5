//! Images from archives.

use serde_json::json;

use super::fake::{gzip, layer, tar_of};
use super::*;
use crate::error::Kind;

/// An archive of files, and of symbolic links (their targets after an arrow).
pub fn archive(files: &[(&str, Vec<u8>)], links: &[(&str, &str)]) -> Vec<u8> {
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

pub fn config(layers: &[&[u8]]) -> Vec<u8> {
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

pub async fn import(images: &Images, archive: Vec<u8>, name: Option<&str>) -> Result<Vec<Imported>> {
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

/// An archive that stops after `before` bytes until `go` is there.
struct Halting {
    bytes: std::io::Cursor<Vec<u8>>,
    before: u64,
    go: std::sync::mpsc::Receiver<()>,
}

impl std::io::Read for Halting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let at = self.bytes.position();
        if at == self.before {
            let _ = self.go.recv();
        }
        let most = if at < self.before { (self.before - at) as usize } else { usize::MAX };
        let len = buffer.len().min(most);
        self.bytes.read(&mut buffer[..len])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_unpacked_as_they_come_and_nothing_is_spooled() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let (bytes, id) = docker(&["a.b/c:d"]);
    let before = bytes.windows(6).position(|w| w == b"c.json").unwrap() as u64;
    let (go, halted) = std::sync::mpsc::channel();
    let archive = Halting { bytes: std::io::Cursor::new(bytes), before, go: halted };
    let importing = tokio::spawn({
        let images = images.clone();
        async move { images.import(Box::new(archive), None).await }
    });
    let staging = root.path().join("staging");
    let there = |name: &str| {
        let layers = std::fs::read_dir(&staging).unwrap();
        layers.filter(|layer| layer.as_ref().unwrap().path().join("fs").join(name).is_file()).count()
    };
    eventually(|| there("a") == 1 && there("b") == 1).await;
    assert_eq!((entries(&staging), there("0"), there("1")), (2, 0, 0));
    go.send(()).unwrap();
    assert_eq!(importing.await.unwrap().unwrap()[0].id, id.to_string());
    assert_eq!(entries(&staging), 0);
}

/// An OCI archive of these blobs, which `index` comes before.
fn oci(index: &serde_json::Value, blobs: &[Vec<u8>]) -> Vec<u8> {
    let names: Vec<_> = blobs.iter().map(|b| format!("blobs/sha256/{}", Digest::of(b).hex())).collect();
    let mut files = vec![("oci-layout", b"{}".to_vec()), ("index.json", index.to_string().into_bytes())];
    files.extend(names.iter().map(String::as_str).zip(blobs.iter().cloned()));
    archive(&files, &[])
}

/// What no image has is no matter, also where it is damaged or of another platform; what one has is.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_an_image_wants_is_taken() {
    let (compressed, plain) = layer(&[("a", b"1")]);
    let (foreign, foreign_plain) = layer(&[("foreign", b"1")]);
    let damaged = compressed[..compressed.len() / 2].to_vec();
    let image = |plain: &[u8], layer: &[u8]| {
        let config = config(&[plain]);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": super::fake::OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": Digest::of(&config).to_string(), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                        "digest": Digest::of(layer).to_string(), "size": layer.len()}],
        });
        (config, manifest.to_string().into_bytes())
    };
    let host = manifest::Platform::host();
    let entry = |manifest: &[u8], architecture: &str| {
        json!({"mediaType": super::fake::OCI_MANIFEST, "digest": Digest::of(manifest).to_string(),
               "size": manifest.len(), "platform": {"os": host.os, "architecture": architecture}})
    };
    let named = |bytes: &[u8], kind: &str| {
        json!({"schemaVersion": 2, "manifests": [{
            "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len(),
            "annotations": {"io.containerd.image.name": "a.b/c:d"},
        }]})
    };
    let (ours, theirs) = (image(&plain, &compressed), image(&foreign_plain, &foreign));
    let platforms = json!({"schemaVersion": 2, "mediaType": super::fake::OCI_INDEX,
               "manifests": [entry(&theirs.1, "other"), entry(&ours.1, &host.architecture)]});
    let platforms = platforms.to_string().into_bytes();
    let index = named(&platforms, super::fake::OCI_INDEX);
    let documents = [platforms, ours.0.clone(), ours.1.clone(), theirs.0, theirs.1];
    let layers = [foreign, damaged.clone(), compressed];
    for order in [[&documents[..], &layers].concat(), [&layers[..], &documents].concat()] {
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path()).await;
        let imported = import(&images, oci(&index, &order), None).await.unwrap();
        assert_eq!(imported[0].id, Digest::of(&ours.0).to_string());
        let layers = images.status("a.b/c:d").unwrap().unwrap().layers;
        assert_eq!((layers.len(), std::fs::read(layers[0].join("a")).unwrap()), (1, b"1".to_vec()));
        eventually(|| entries(&root.path().join("staging")) == 0).await;
    }
    let (config, manifest) = image(&plain, &damaged);
    let broken = oci(&named(&manifest, super::fake::OCI_MANIFEST), &[damaged, config, manifest]);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let error = import(&images, broken, None).await.unwrap_err();
    assert!(error.message.contains("layer blobs/sha256/") && error.message.contains("cut off"), "{error}");
    assert!(images.list(None).unwrap().is_empty());
    eventually(|| entries(&root.path().join("staging")) == 0).await;
}

/// Who watches sees an import, too, and how much of it came; of how much, nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_seen_while_it_runs() {
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let (bytes, _) = docker(&["a.b/c:d"]);
    let (mut writer, reader) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
    let importing = tokio::spawn({
        let images = images.clone();
        async move { images.import(Box::new(reader), Some("a.b/given".into())).await }
    });
    let (first, rest) = bytes.split_at(1500);
    std::io::Write::write_all(&mut writer, first).unwrap();
    eventually(|| images.pulling().first().is_some_and(|pull| pull.archive == 1500)).await;
    assert_eq!(images.pulling()[0].reference, "a.b/given");
    std::io::Write::write_all(&mut writer, rest).unwrap();
    drop(writer);
    importing.await.unwrap().unwrap();
    assert!(images.pulling().is_empty());
}
