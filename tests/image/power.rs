//! Power cuts, as the kernel plays them: ext4 is told to stop at once, without writing its journal, and is
//! mounted again. What was not on the disk by then is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podwright::image::Images;

use crate::durability::{again, closed, layer};
use crate::support::{Registry, open, run};

/// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
const CUT: &str =
    "open(F, '<', $ARGV[0]) or die $!; my $how = pack('L', 2); ioctl(F, 0x8004587d, $how) or die $!";
const FILES: usize = 60;
const LAYERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_point_leaves_whole_images_or_none() {
    let Some(registry) = Registry::start() else { return };
    if !Path::new("/dev/loop-control").exists() {
        assert!(std::env::var_os("CI").is_none(), "there are no loop devices");
        return;
    }
    for (name, first) in [("kept", 0), ("cut", 100)] {
        let layers: Vec<_> =
            (0..LAYERS).map(|n| registry.directory.path().join(format!("{name}{n}"))).collect();
        layers.iter().enumerate().for_each(|(n, path)| layer(path, FILES, first + n as u8));
        let archive = registry.archive(&layers);
        registry.push(&archive, &format!("a/{name}:v1"), &[]);
    }
    let work = registry.directory.path().join("power");
    fs::create_dir_all(work.join("mount")).unwrap();
    let environment = [("TEST_WORK", work.to_str().unwrap()), ("TEST_REGISTRY", &registry.host())];
    let inner = again("power::cut_again_and_again", "", &environment);
    // The mount goes with its namespace, whatever happens.
    let output = Command::new("unshare")
        .arg("--mount")
        .arg(inner.get_program())
        .args(inner.get_args())
        .envs(environment)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}

/// An ext4 on a file.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    fn make(work: &Path) -> Self {
        let disk = Self { image: work.join("disk"), mount: work.join("mount") };
        fs::File::create(&disk.image).unwrap().set_len(192 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", disk.image.to_str().unwrap()]);
        disk.attach();
        disk
    }

    fn attach(&self) {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.mount.to_str().unwrap()]);
    }

    fn store(&self) -> PathBuf {
        self.mount.join("store")
    }

    fn cut(&self) {
        run("perl", &["-e", CUT, self.mount.to_str().unwrap()]);
    }

    /// Once nobody has anything open any more.
    async fn detach(&self) {
        for _ in 0..1000 {
            if Command::new("umount").arg(&self.mount).output().unwrap().status.success() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} stayed in use", self.mount.display());
    }
}

/// Whether the image is there, and then whole, contents included.
async fn is_whole(images: &Images, name: &str) -> bool {
    let report = images.check(false).await.unwrap();
    // Directories without a record are being deleted; nothing that has one is torn.
    let torn: Vec<_> = report.faults.iter().filter(|fault| !fault.found[0].contains("no index")).collect();
    assert!(torn.is_empty(), "{torn:?}");
    assert_eq!(report.unverified, 0);
    let Some(resolved) = images.status(name).unwrap() else { return false };
    assert_eq!(resolved.layers.len(), LAYERS);
    assert!(resolved.layers.iter().all(|layer| fs::read_dir(layer).unwrap().count() == FILES));
    true
}

/// A process that pulls the image, or removes it.
fn change(disk: &Disk, image: &str, remove: bool) -> Child {
    let test = if remove { "power::remove_once" } else { "durability::pull_once" };
    let store = disk.store();
    let mut command = again(test, "", &[("TEST_STORE", store.to_str().unwrap()), ("TEST_IMAGE", image)]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_power_cut_at_any_point_leaves_whole_images_or_none"]
async fn remove_once() {
    let (Ok(store), Ok(image)) = (std::env::var("TEST_STORE"), std::env::var("TEST_IMAGE")) else { return };
    open(Path::new(&store)).await.remove(&image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_power_cut_at_any_point_leaves_whole_images_or_none"]
async fn cut_again_and_again() {
    let (Ok(work), Ok(registry)) = (std::env::var("TEST_WORK"), std::env::var("TEST_REGISTRY")) else {
        return;
    };
    let disk = Disk::make(Path::new(&work));
    let [kept, cut] = ["kept", "cut"].map(|name| format!("{registry}/a/{name}:v1"));
    assert!(change(&disk, &kept, false).wait().unwrap().success());
    // How long a pull takes here says when to cut.
    let started = Instant::now();
    assert!(change(&disk, &cut, false).wait().unwrap().success());
    let whole = started.elapsed();
    assert!(change(&disk, &cut, true).wait().unwrap().success());
    let mut was_there = false;
    let [mut absent, mut there, mut removed] = [0, 0, 0];
    for round in 0..18_u32 {
        let mut changing = change(&disk, &cut, was_there);
        // The last ones just after the end.
        tokio::time::sleep(if was_there { whole * (round % 5) / 10 } else { whole * (round + 2) / 16 }).await;
        let ended = changing.try_wait().unwrap();
        disk.cut();
        let _ = changing.kill();
        changing.wait().unwrap();
        disk.detach().await;
        disk.attach();
        let images = open(&disk.store()).await;
        assert!(is_whole(&images, &kept).await, "round {round}: another image suffered");
        let is_there = is_whole(&images, &cut).await;
        if ended.is_some_and(|status| status.success()) {
            assert_eq!(is_there, !was_there, "round {round}: what was told is not so");
        }
        match (was_there, is_there) {
            (true, false) => removed += 1,
            (_, true) => there += 1,
            (false, false) => absent += 1,
        }
        was_there = is_there;
        closed(images, &disk.store()).await;
    }
    println!("cut: not there {absent}, whole {there}, removed {removed}; a pull took {whole:?}");
    // What the cuts left is freed, and the store goes on.
    if !was_there {
        assert!(change(&disk, &cut, false).wait().unwrap().success());
    }
    let images = open(&disk.store()).await;
    assert!(is_whole(&images, &cut).await);
    for _ in 0..400 {
        let count = |name: &str| fs::read_dir(disk.store().join(name)).unwrap().count();
        if (count("staging"), count("layers")) == (0, 2 * LAYERS) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("leftovers stayed");
}
