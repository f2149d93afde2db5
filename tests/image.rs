//! Pulls from Debian's docker-registry, of images that skopeo pushed in every form.
//!
//! Needs root, docker-registry and skopeo; `hack/test` installs them. Without them the tests say
//! so and pass, unless CI is set.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podwright::image::{Auth, Config, Images};
use serde_json::json;
use sha2::{Digest as _, Sha256};

struct Registry {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// None where the programs are not installed.
    fn start() -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.path().join("config.yml");
        let storage = directory.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, port, directory };
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    fn push(&self, archive: &Path, name: &str, arguments: &[&str]) {
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .args(arguments)
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{}", self.reference(name)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A docker-archive of these layers, each a directory on the host.
    fn archive(&self, layers: &[PathBuf]) -> PathBuf {
        let work = tempfile::tempdir_in(self.directory.path()).unwrap();
        let mut diff_ids = Vec::new();
        let mut names = Vec::new();
        for (at, layer) in layers.iter().enumerate() {
            let name = format!("{at}.tar");
            let file = work.path().join(&name);
            run("tar", &["-C", layer.to_str().unwrap(), "-cf", file.to_str().unwrap(), "--sort=name", "."]);
            let digest = Sha256::digest(fs::read(&file).unwrap());
            diff_ids
                .push(format!("sha256:{}", digest.iter().map(|b| format!("{b:02x}")).collect::<String>()));
            names.push(name);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"], "User": "nobody"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        fs::write(work.path().join("config.json"), config.to_string()).unwrap();
        let manifest = json!([{"Config": "config.json", "RepoTags": ["x:y"], "Layers": names}]);
        fs::write(work.path().join("manifest.json"), manifest.to_string()).unwrap();
        let archive =
            self.directory.path().join(format!("{}.tar", work.path().file_name().unwrap().display()));
        run("tar", &["-C", work.path().to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        archive
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn open(root: &Path) -> Images {
    Images::open(Config { root: root.to_owned(), insecure_registries: Vec::new() }).await.unwrap()
}

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
