//! What a pull may take of the host: it depends neither on the image's size nor on how many layers it has.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use podwright::image::Auth;

use crate::durability::again;
use crate::support::{Registry, open};

const LAYERS: usize = 24;
const DIRECTORIES: usize = 24;
/// Of 12 layers at once: 16 directories each, the files that are written and handed to the disk, and
/// connections; and what any process has.
const DESCRIPTORS: usize = 12 * (16 + 40) + 64;
/// KiB, with all that a test's program has besides.
const MEMORY: u64 = 80 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_descriptors_do_not_grow_with_an_image() {
    let Some(registry) = Registry::start() else { return };
    let layers: Vec<_> = (0..LAYERS).map(|n| registry.directory.path().join(format!("layer{n}"))).collect();
    for (number, layer) in layers.iter().enumerate() {
        for directory in 0..DIRECTORIES {
            let directory = layer.join(directory.to_string());
            fs::create_dir_all(&directory).unwrap();
            for file in 0..4_usize {
                let bytes: Vec<u8> =
                    (0..40_000_usize).map(|at| ((at * (number + file + 7)) >> 5) as u8).collect();
                fs::write(directory.join(file.to_string()), bytes).unwrap();
            }
        }
    }
    let archive = registry.archive(&layers);
    registry.push(&archive, "a/large:v1", &[]);
    let root = tempfile::tempdir().unwrap();
    let name = registry.reference("a/large:v1");
    let environment = [("TEST_STORE", root.path().to_str().unwrap()), ("TEST_IMAGE", &name)];
    let output = again("budget::pull_within_bounds", "", &environment).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by memory_and_descriptors_do_not_grow_with_an_image"]
async fn pull_within_bounds() {
    let (Ok(store), Ok(image)) = (std::env::var("TEST_STORE"), std::env::var("TEST_IMAGE")) else { return };
    let images = open(Path::new(&store)).await;
    let (most, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let watching = std::thread::spawn({
        let (most, done) = (Arc::clone(&most), Arc::clone(&done));
        move || {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(descriptors(), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    });
    let before = descriptors();
    images.pull(&image, Auth::default()).await.unwrap();
    done.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    let (most, memory) = (most.load(Ordering::Relaxed), peak());
    println!("a pull of {LAYERS} layers: {most} descriptors, {memory} KiB at most");
    assert!(most > before && most <= DESCRIPTORS, "{most} descriptors");
    assert!(memory <= MEMORY, "{memory} KiB");
    for _ in 0..400 {
        // Connections that idle go after a while.
        if descriptors() <= before + 16 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{} descriptors stay, there were {before}", descriptors());
}
