//! Every form of an image that skopeo pushes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use podwright::image::Auth;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Registry, open};

/// Two layers, and an archive of them.
fn small_image(registry: &Registry) -> std::path::PathBuf {
    let layers = ["lower", "upper"].map(|name| registry.directory.path().join(name));
    fs::create_dir_all(layers[0].join("bin")).unwrap();
    fs::write(layers[0].join("bin/sh"), vec![0x7f; 300_000]).unwrap();
    fs::create_dir_all(layers[1].join("etc")).unwrap();
    fs::write(layers[1].join("etc/motd"), "hello\n").unwrap();
    std::os::unix::fs::chown(layers[1].join("etc/motd"), Some(12), Some(34)).unwrap();
    registry.archive(&layers)
}

/// Each by a registry and into a store of its own, so that neither skopeo nor a pull takes what another form
/// brought.
#[tokio::test(flavor = "multi_thread")]
async fn every_form_that_skopeo_pushes_gives_the_same_layers() {
    let Some(first) = Registry::start() else { return };
    let archive = small_image(&first);
    let docker = format!("docker-archive:{}", archive.display());
    let plain = format!("oci:{}:v1", first.layout(&archive).display());
    let zstd: &[&str] = &["--format", "oci", "--dest-compress", "--dest-compress-format", "zstd"];
    let gzip: &[&str] = &["--format", "oci", "--dest-compress", "--dest-compress-format", "gzip"];
    for (name, source, arguments, kind) in [
        ("docker", &docker, &["--format", "v2s2"][..], "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ("oci", &docker, &["--format", "oci"], "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("zstd", &docker, zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("gzip", &docker, gzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
        // As skopeo has it: what is not compressed at all goes by the name of what is.
        ("plain", &plain, &["--preserve-digests"], "application/vnd.oci.image.layer.v1.tar+gzip"),
    ] {
        let registry = Registry::start().unwrap();
        let image = format!("forms/{name}:v1");
        registry.copy(source, &image, arguments);
        let pushed = registry.manifest(&image)["layers"][0].clone();
        let is_plain = pushed["size"].as_u64().unwrap() > 300_000;
        assert_eq!((pushed["mediaType"].as_str().unwrap(), is_plain), (kind, name == "plain"), "{name}");
        let root = tempfile::tempdir().unwrap();
        let images = open(root.path()).await;
        let reference = registry.reference(&image);
        let id = images.pull(&reference, Auth::default()).await.unwrap();
        let resolved = images.status(&reference).unwrap().unwrap();
        assert_eq!(resolved.image.id, id);
        assert_eq!((resolved.image.uid, resolved.image.username.as_str()), (None, "nobody"));
        let [upper, lower] = &resolved.layers[..] else { panic!("{name}: {resolved:?}") };
        let stat = fs::metadata(upper.join("etc/motd")).unwrap();
        assert_eq!(fs::read(upper.join("etc/motd")).unwrap(), b"hello\n", "{name}");
        assert_eq!((stat.uid(), stat.gid()), (12, 34), "{name}");
        assert_eq!(fs::read(lower.join("bin/sh")).unwrap(), vec![0x7f; 300_000], "{name}");
    }
}

/// Of the images of several platforms this host's is taken, by the tag and by the
/// index's digest.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_image_for_several_platforms_this_hosts_is_taken() {
    let Some(registry) = Registry::start() else { return };
    let layout = registry.layout(&small_image(&registry));
    let mut blobs = Blobs { layout: layout.clone() };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut ours = index["manifests"][0].clone();
    ours["annotations"] = json!({});
    // The same for another platform, but for what its config says.
    let mut manifest = blobs.read(&ours);
    let mut config = blobs.read(&manifest["config"]);
    config["architecture"] = "s390x".into();
    manifest["config"] = blobs.put(&config, &manifest["config"]["mediaType"]);
    let mut theirs = blobs.put(&manifest, &ours["mediaType"]);
    theirs["platform"] = json!({"os": "linux", "architecture": "s390x"});
    ours["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let kind = json!("application/vnd.oci.image.index.v1+json");
    let inner = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [theirs, ours]});
    let inner_of = blobs.put(&inner, &kind);
    let mut top = index;
    top["manifests"] = json!([inner_of]);
    top["manifests"][0]["annotations"] = json!({"org.opencontainers.image.ref.name": "several"});
    fs::write(layout.join("index.json"), top.to_string()).unwrap();
    registry.copy(
        &format!("oci:{}:several", layout.display()),
        "forms/several:v1",
        &["--all", "--preserve-digests"],
    );

    let (root, digest) = (tempfile::tempdir().unwrap(), inner_of["digest"].as_str().unwrap());
    let images = open(root.path()).await;
    let config = blobs.read(&inner["manifests"][1])["config"]["digest"].clone();
    for name in ["forms/several:v1".to_owned(), format!("forms/several@{digest}")] {
        assert_eq!(images.pull(&registry.reference(&name), Auth::default()).await.unwrap(), config);
    }
    let image = images.list(None).unwrap().remove(0);
    assert_eq!(image.repo_digests, [registry.reference(&format!("forms/several@{digest}"))]);
}

/// Those of an OCI layout.
struct Blobs {
    layout: std::path::PathBuf,
}

impl Blobs {
    fn read(&self, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        serde_json::from_slice(&fs::read(self.layout.join("blobs/sha256").join(digest)).unwrap()).unwrap()
    }

    /// Returns its descriptor.
    fn put(&mut self, value: &Value, kind: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        fs::write(self.layout.join("blobs/sha256").join(&hex), &bytes).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    }
}

/// `cargo test --release --test image -- --ignored --nocapture five_hundred`: reads of a full store.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn five_hundred_images_are_listed_at_once() {
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let images = open(root.path()).await;
    for number in 0..500 {
        let archive = crate::support::tiny_archive(number);
        images.import(Box::new(std::io::Cursor::new(archive)), None).await.unwrap();
    }
    let time = |what: &str, call: &dyn Fn()| {
        let mut times: Vec<_> = (0..200)
            .map(|_| {
                let started = Instant::now();
                call();
                started.elapsed()
            })
            .collect();
        times.sort();
        println!("{what}: p50 {:.1?}, p99 {:.1?}", times[100], times[197]);
    };
    let id = images.status("a.b/tiny:7").unwrap().unwrap().image.id;
    time("list of 500", &|| assert_eq!(images.list(None).unwrap().len(), 500));
    time("status by name", &|| drop(images.status("a.b/tiny:7").unwrap().unwrap()));
    time("status by ID", &|| drop(images.status(&id).unwrap().unwrap()));
    time("usage", &|| assert!(images.usage().bytes > 0));
}

/// `cargo test --test image -- --ignored --nocapture`: the time and memory of one pull.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_a_pull() {
    let Some(registry) = Registry::start() else { return };
    let layers: Vec<_> = (0..6).map(|n| registry.directory.path().join(format!("layer{n}"))).collect();
    for (n, layer) in layers.iter().enumerate() {
        make_layer(layer, n as u32);
    }
    let archive = registry.archive(&layers);
    registry.push(&archive, "measure:v1", &["--format", "oci"]);
    for round in 0..3 {
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let images = open(root.path()).await;
        let started = Instant::now();
        images.pull(&registry.reference("measure:v1"), Auth::default()).await.unwrap();
        let took = started.elapsed();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
        println!("round {round}: {took:.2?} for {:?}, {peak}", images.usage());
        let before = Instant::now();
        for _ in 0..1000 {
            images.status(&registry.reference("measure:v1")).unwrap().unwrap();
        }
        println!("status: {:.1?}", before.elapsed() / 1000);
        let mut plain = fs::File::create(root.path().join("plain")).unwrap();
        let block = vec![1_u8; 1 << 20];
        let before = Instant::now();
        for _ in 0..images.usage().bytes >> 20 {
            plain.write_all(&block).unwrap();
        }
        plain.sync_data().unwrap();
        println!("the same bytes, written and synced: {:.2?}", before.elapsed());
    }
}

/// 1,000 files, 35 MB, that compress to about 40 %: words from a small generator.
fn make_layer(layer: &Path, seed: u32) {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    for n in 0..1000 {
        let directory = layer.join(format!("usr/{}", n % 25));
        fs::create_dir_all(&directory).unwrap();
        let mut bytes = Vec::with_capacity(36_000);
        while bytes.len() < 35_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.extend_from_slice(format!("{:06} the {} ", state >> 12, (state >> 8) % 7).as_bytes());
        }
        fs::write(directory.join(n.to_string()), bytes).unwrap();
    }
}
