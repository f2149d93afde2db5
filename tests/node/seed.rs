//! The image that the tests run: busybox, pulled once a test binary from a registry of its own by a
//! podwright of its own, then copied into each test's store. hack/vm brings a store that was made
//! before, in `$PODWRIGHT_TEST_STORE`: a pull's digests take minutes on an emulated processor.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use podwright::image::{Auth, Config, Images};

static SEED: OnceLock<Seed> = OnceLock::new();

struct Seed {
    /// Gone with the process; None for one that was brought.
    _dir: Option<tempfile::TempDir>,
    store: PathBuf,
    id: String,
}

/// Holds `store` and the image's ID in `id`.
const BROUGHT: &str = "PODWRIGHT_TEST_STORE";

/// A store with the image in it.
pub fn store() -> PathBuf {
    seed().store.clone()
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

/// For hack/vm: makes what is then brought.
#[tokio::test]
#[ignore = "writes to $PODWRIGHT_TEST_STORE"]
async fn keep() {
    let to = PathBuf::from(std::env::var_os(BROUGHT).expect("PODWRIGHT_TEST_STORE names a directory"));
    let seed = pull().await;
    crate::harness::copy_tree(&seed.store, &to.join("store"));
    std::fs::write(to.join("id"), seed.id).unwrap();
}

async fn make() -> Seed {
    if let Some(brought) = std::env::var_os(BROUGHT).map(PathBuf::from) {
        let id = std::fs::read_to_string(brought.join("id")).unwrap();
        return Seed { _dir: None, store: brought.join("store"), id };
    }
    pull().await
}

async fn pull() -> Seed {
    let dir = tempfile::Builder::new().prefix("podwright-seed-").tempdir().unwrap();
    let layout = dir.path().join("layout");
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    crate::layout::write(&layout, Path::new(busybox.expect("busybox-static is installed")));
    let port = free_port();
    let mut registry = start_registry(dir.path(), port);
    let reference = format!("127.0.0.1:{port}/busybox:test");
    push(&layout, &reference);
    let config = Config { root: dir.path().join("store"), ..Config::default() };
    let images = Images::open(config).await.unwrap();
    let id = images.pull(&reference, Auth::default()).await.unwrap();
    drop(images);
    registry.kill().unwrap();
    registry.wait().unwrap();
    let store = dir.path().join("store");
    Seed { _dir: Some(dir), store, id }
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Debian's docker-registry on loopback.
fn start_registry(dir: &Path, port: u16) -> std::process::Child {
    let mut child = start_registry_by(Command::new("docker-registry"), dir, port);
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

/// One that may not listen yet, by a command in whichever network.
pub fn start_registry_by(mut command: Command, dir: &Path, port: u16) -> std::process::Child {
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.join("registry").display()
    );
    let path = dir.join("registry.yml");
    std::fs::write(&path, config).unwrap();
    command
        .arg("serve")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is installed")
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
