//! Every form of an image that skopeo pushes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use podwright::image::Auth;

use crate::support::{Registry, open};

#[tokio::test(flavor = "multi_thread")]
async fn every_form_that_skopeo_pushes_gives_the_same_layers() {
    let Some(registry) = Registry::start() else { return };
    let layers = ["lower", "upper"].map(|name| registry.directory.path().join(name));
    fs::create_dir_all(layers[0].join("bin")).unwrap();
    fs::write(layers[0].join("bin/sh"), vec![0x7f; 300_000]).unwrap();
    fs::create_dir_all(layers[1].join("etc")).unwrap();
    fs::write(layers[1].join("etc/motd"), "hello\n").unwrap();
    std::os::unix::fs::chown(layers[1].join("etc/motd"), Some(12), Some(34)).unwrap();
    let archive = registry.archive(&layers);
    let forms: [(&str, &[&str]); 4] = [
        ("docker", &["--format", "v2s2"]),
        ("oci", &["--format", "oci"]),
        ("zstd", &["--format", "oci", "--dest-compress", "--dest-compress-format", "zstd"]),
        ("gzip", &["--format", "oci", "--dest-compress", "--dest-compress-format", "gzip"]),
    ];
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let mut stacks = Vec::new();
    for (name, arguments) in forms {
        registry.push(&archive, &format!("forms/{name}:v1"), arguments);
        let reference = registry.reference(&format!("forms/{name}:v1"));
        let id = images.pull(&reference, Auth::default()).await.unwrap();
        let resolved = images.status(&reference).unwrap().unwrap();
        assert_eq!(resolved.image.id, id);
        assert_eq!((resolved.image.uid, resolved.image.username.as_str()), (None, "nobody"));
        stacks.push(resolved.layers);
    }
    assert!(stacks.iter().all(|stack| *stack == stacks[0]), "layers are shared by diff ID");
    let motd = stacks[0][0].join("etc/motd");
    let stat = fs::metadata(&motd).unwrap();
    assert_eq!((fs::read_to_string(&motd).unwrap().as_str(), stat.uid(), stat.gid()), ("hello\n", 12, 34));
    assert_eq!(fs::metadata(stacks[0][1].join("bin/sh")).unwrap().len(), 300_000);
    images.remove(&registry.reference("forms/docker:v1")).await.unwrap();
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
