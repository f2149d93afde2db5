//! Pulls that are killed, and disks that are full: the image is whole or not there.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podwright::error::Kind;
use podwright::image::Auth;

use crate::support::{Registry, open, run};

/// Runs one of this binary's ignored tests in a process of its own.
pub fn again(test: &str, before: &str, environment: &[(&str, &str)]) -> Command {
    let binary = std::env::current_exe().unwrap();
    let mut command = Command::new("sh");
    let script = format!("{before} exec \"$0\" --exact {test} --ignored --nocapture");
    command.args(["-c", &script]).arg(binary).envs(environment.iter().copied());
    command
}

pub fn layer(path: &Path, files: usize, byte: u8) {
    fs::create_dir_all(path).unwrap();
    for number in 0..files {
        let mut bytes = vec![byte; 40_000];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        fs::write(path.join(format!("file{number}")), bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_killed_at_any_point_leaves_a_whole_image_or_none() {
    let Some(registry) = Registry::start() else { return };
    let layers: Vec<_> = (0..4).map(|n| registry.directory.path().join(format!("layer{n}"))).collect();
    layers.iter().enumerate().for_each(|(n, path)| layer(path, 150, n as u8));
    let archive = registry.archive(&layers);
    registry.push(&archive, "a/b:v1", &[]);
    let name = registry.reference("a/b:v1");
    let root = tempfile::tempdir().unwrap();
    let store = root.path().to_str().unwrap();
    let mut outcomes = [0, 0];
    for round in 0..12 {
        let mut child = again("durability::pull_once", "", &[("TEST_STORE", store), ("TEST_IMAGE", &name)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40 + 60 * round));
        let _ = child.kill();
        child.wait().unwrap();
        let images = open(root.path()).await;
        let report = images.check(false).await.unwrap();
        // Directories without a record are being deleted; nothing that has one is torn.
        let torn: Vec<_> = report.faults.iter().filter(|fault| fault.what.starts_with("layer")).collect();
        assert!(torn.is_empty(), "round {round}: {torn:?}");
        match images.status(&name).unwrap() {
            Some(resolved) => {
                assert_eq!(resolved.layers.len(), 4);
                assert!(resolved.layers.iter().all(|layer| fs::read_dir(layer).unwrap().count() == 150));
                images.remove(&name).await.unwrap();
                outcomes[1] += 1;
            }
            None => outcomes[0] += 1,
        }
        // The next pull finds the store in order.
        if round % 4 == 3 {
            images.pull(&name, Auth::default()).await.unwrap();
            images.remove(&name).await.unwrap();
        }
        closed(images, root.path()).await;
    }
    println!("not there {}, whole {}", outcomes[0], outcomes[1]);
    let images = open(root.path()).await;
    for _ in 0..400 {
        if ["staging", "layers"].iter().all(|name| fs::read_dir(root.path().join(name)).unwrap().count() == 0)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(fs::read_dir(root.path().join("staging")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.path().join("layers")).unwrap().count(), 0);
    assert_eq!(images.usage().bytes, 0);
}

/// Waits until the store's background work has let go of it.
pub async fn closed(images: podwright::image::Images, root: &Path) {
    drop(images);
    for _ in 0..1000 {
        match podwright::image::check_offline(root, false) {
            Ok(_) => return,
            Err(error) => assert!(error.message.contains("in use"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the store stayed in use");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_pull_killed_at_any_point_leaves_a_whole_image_or_none"]
async fn pull_once() {
    let (Ok(store), Ok(image)) = (std::env::var("TEST_STORE"), std::env::var("TEST_IMAGE")) else { return };
    open(Path::new(&store)).await.pull(&image, Auth::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_one_pull_and_leaves_room_for_the_next() {
    let Some(registry) = Registry::start() else { return };
    for (name, files, byte) in [("big", 800, 0), ("small", 5, 1)] {
        let path = registry.directory.path().join(name);
        layer(&path, files, byte);
        let archive = registry.archive(&[path]);
        registry.push(&archive, &format!("a/{name}:v1"), &[]);
    }
    // Of what does not compress it is known before that it does not fit.
    let noise = registry.directory.path().join("noise");
    fs::create_dir_all(&noise).unwrap();
    run(
        "dd",
        &["if=/dev/urandom", &format!("of={}/noise", noise.display()), "bs=1M", "count=24", "status=none"],
    );
    let archive = registry.archive(&[noise]);
    registry.push(&archive, "a/noise:v1", &[]);
    let store = registry.directory.path().join("store");
    fs::create_dir_all(&store).unwrap();
    let mount = format!("mount -t tmpfs -o size=16m store {} &&", store.display());
    let environment = [("TEST_STORE", store.to_str().unwrap()), ("TEST_REGISTRY", &registry.host())];
    let inner = again("durability::on_a_small_disk", &mount, &environment);
    let output = Command::new("unshare")
        .arg("--mount")
        .arg(inner.get_program())
        .args(inner.get_args())
        .envs(environment)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_full_disk_fails_one_pull_and_leaves_room_for_the_next"]
async fn on_a_small_disk() {
    let (Ok(store), Ok(registry)) = (std::env::var("TEST_STORE"), std::env::var("TEST_REGISTRY")) else {
        return;
    };
    let root = Path::new(&store);
    let images = open(root).await;
    for (name, words) in [("noise", "are missing"), ("big", "no space left")] {
        let error = images.pull(&format!("{registry}/a/{name}:v1"), Auth::default()).await.unwrap_err();
        assert_eq!(error.kind, Kind::ResourceExhausted, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert_eq!(fs::read_dir(root.join("staging")).unwrap().count(), 0);
    }
    images.pull(&format!("{registry}/a/small:v1"), Auth::default()).await.unwrap();
    assert!(images.check(false).await.unwrap().faults.is_empty());
}
