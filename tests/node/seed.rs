//! The image that the tests run: busybox, pulled once a test binary from a registry of its own by a
//! podwright of its own, then copied into each test's store.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use podwright::image::{Auth, Config, Images};

static SEED: OnceLock<Seed> = OnceLock::new();

struct Seed {
    dir: tempfile::TempDir,
    id: String,
}

/// A store with the image in it.
pub fn store() -> PathBuf {
    seed().dir.path().join("store")
}

/// The image's ID.
pub fn image_id() -> &'static str {
    &seed().id
}

fn seed() -> &'static Seed {
    SEED.get_or_init(|| {
        // A thread, since a runtime cannot be started on one that belongs to another.
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(make())
        })
        .join()
        .unwrap()
    })
}

async fn make() -> Seed {
    let dir = tempfile::Builder::new().prefix("podwright-seed-").tempdir().unwrap();
    let layout = dir.path().join("layout");
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    crate::layout::write(&layout, Path::new(busybox.expect("busybox-static is installed")));
    let port = free_port();
    let mut registry = start_registry(dir.path(), port);
    let reference = format!("127.0.0.1:{port}/busybox:test");
    push(&layout, &reference);
    let config = Config { root: dir.path().join("store"), insecure_registries: Vec::new() };
    let images = Images::open(config).await.unwrap();
    let id = images.pull(&reference, Auth::default()).await.unwrap();
    drop(images);
    registry.kill().unwrap();
    registry.wait().unwrap();
    Seed { dir, id }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Debian's docker-registry on loopback.
pub fn start_registry(dir: &Path, port: u16) -> std::process::Child {
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.join("registry").display()
    );
    let path = dir.join("registry.yml");
    std::fs::write(&path, config).unwrap();
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed");
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return child;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("docker-registry does not answer on port {port}");
}

pub fn push(layout: &Path, reference: &str) {
    let output = Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}", layout.display()))
        .arg(format!("docker://{reference}"))
        .output()
        .expect("skopeo is installed");
    assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
}
