//! Pulls, through any runtime's CRI socket:
//!
//! ```text
//! cargo bench --bench pull -- --endpoint unix:///run/podwright/podwright.sock --pid DAEMON [--rounds N]
//!     [--work DIR] [--forms six,one,sixty,zstd,shared]
//! ```
//!
//! It makes the images once in DIR (431 MB as gzip, 1,018 MB unpacked, 20,000 files), serves them from
//! a docker-registry of its own on loopback, and pulls each so often, removing it in between. Needs
//! docker-registry and skopeo, and a runtime that may speak plain HTTP to loopback.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use hyper_util::rt::TokioIo;
use podwright::cri::wire as cri;
use sha2::{Digest, Sha256};
use tonic::transport::{Channel, Endpoint, Uri};

type Failure = Box<dyn std::error::Error>;
type Images = cri::image_service_client::ImageServiceClient<Channel>;

#[derive(Parser)]
struct Options {
    /// The runtime's socket.
    #[arg(long, default_value = "unix:///run/podwright/podwright.sock")]
    endpoint: String,
    /// Whose peak memory is told.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keeps the images from one run to the next: some 2 GB.
    #[arg(long, default_value = "/var/tmp/podwright-bench")]
    work: PathBuf,
    #[arg(long, value_delimiter = ',', default_value = "six,one,sixty,zstd,shared")]
    forms: Vec<String>,
    /// Cargo's own flag.
    #[arg(long, hide = true)]
    bench: bool,
}

const FILES: usize = 20_000;
const BYTES: usize = 1_018_000_000;
const SHARED_IMAGES: usize = 20;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    fs::create_dir_all(&options.work)?;
    let registry = Registry::start(&options.work)?;
    let mut images = connect(&options.endpoint).await?;
    println!("the same bytes by dd with fdatasync: {:.2} s", plain_write(&options.work)?.as_secs_f64());
    for form in &options.forms {
        match form.as_str() {
            "six" => {
                measure(&options, &registry, &mut images, Form { name: "six", layers: 6, zstd: false })
                    .await?
            }
            "one" => {
                measure(&options, &registry, &mut images, Form { name: "one", layers: 1, zstd: false })
                    .await?
            }
            "sixty" => {
                measure(&options, &registry, &mut images, Form { name: "sixty", layers: 60, zstd: false })
                    .await?
            }
            "zstd" => {
                measure(&options, &registry, &mut images, Form { name: "zstd", layers: 6, zstd: true })
                    .await?
            }
            "shared" => shared(&options, &registry, &mut images).await?,
            other => return Err(format!("there is no form {other:?}").into()),
        }
    }
    Ok(())
}

/// How the image is cut into layers.
#[derive(Clone, Copy)]
struct Form {
    name: &'static str,
    layers: usize,
    zstd: bool,
}

async fn measure(
    options: &Options,
    registry: &Registry,
    images: &mut Images,
    form: Form,
) -> Result<(), Failure> {
    let name = registry.ensure(&options.work, form.name, |layout| {
        let mut writer = Layout::new(layout)?;
        for layer in 0..form.layers {
            writer.layer(layer, FILES / form.layers, BYTES / FILES, form.zstd)?;
        }
        writer.finish()
    })?;
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        remove(images, &name).await?;
        if let Some(pid) = options.pid {
            reset_peak(pid);
        }
        let started = Instant::now();
        pull(images, &name).await?;
        times.push(started.elapsed());
    }
    times.sort();
    let used = used(images).await?;
    println!(
        "{}: p50 {:.2} s, {:.2} to {:.2} s over {} rounds; peak RSS {} MB; {} MB used",
        form.name,
        times[times.len() / 2].as_secs_f64(),
        times[0].as_secs_f64(),
        times[times.len() - 1].as_secs_f64(),
        times.len(),
        options.pid.and_then(peak).map_or("unknown".into(), |kib| (kib / 1000).to_string()),
        used / 1_000_000,
    );
    remove(images, &name).await
}

/// Images that have all but a layer of 64 KiB in common, which is here: all at once against one.
async fn shared(options: &Options, registry: &Registry, images: &mut Images) -> Result<(), Failure> {
    let mut names = Vec::new();
    for number in 0..=SHARED_IMAGES + 1 {
        names.push(registry.ensure(&options.work, &format!("shared{number}"), |layout| {
            let mut writer = Layout::new(layout)?;
            writer.layer(0, 200, 50_000, false)?;
            writer.layer(1000 + number, 1, 64 << 10, false)?;
            writer.finish()
        })?);
    }
    pull(images, &names[0]).await?;
    let started = Instant::now();
    pull(images, &names[1]).await?;
    let one = started.elapsed();
    let started = Instant::now();
    let pulls = names[2..].iter().map(|name| {
        let mut images = images.clone();
        async move { pull(&mut images, name).await }
    });
    futures_util::future::try_join_all(pulls).await?;
    let all = started.elapsed();
    println!(
        "shared: one {:.1} ms, {SHARED_IMAGES} at once {:.1} ms",
        one.as_secs_f64() * 1e3,
        all.as_secs_f64() * 1e3
    );
    for name in &names {
        remove(images, name).await?;
    }
    Ok(())
}

async fn connect(endpoint: &str) -> Result<Images, Failure> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint).to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    Ok(Images::new(Endpoint::from_static("http://localhost").connect_with_connector(connector).await?))
}

fn spec(name: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: name.into(), ..Default::default() })
}

async fn pull(images: &mut Images, name: &str) -> Result<(), Failure> {
    images.pull_image(cri::PullImageRequest { image: spec(name), ..Default::default() }).await?;
    Ok(())
}

/// And waits until its layers are gone, which costs the disk time.
async fn remove(images: &mut Images, name: &str) -> Result<(), Failure> {
    images.remove_image(cri::RemoveImageRequest { image: spec(name) }).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rustix::fs::sync();
    Ok(())
}

async fn used(images: &mut Images) -> Result<u64, Failure> {
    let info = images.image_fs_info(cri::ImageFsInfoRequest {}).await?.into_inner();
    Ok(info.image_filesystems.first().and_then(|fs| fs.used_bytes).map_or(0, |bytes| bytes.value))
}

/// proc_pid_clear_refs(5): 5 resets the peak.
fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().split(' ').next()?.parse().ok()
}

fn plain_write(work: &Path) -> Result<Duration, Failure> {
    let path = work.join("plain");
    let block = vec![1_u8; 1 << 20];
    let started = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..BYTES >> 20 {
        file.write_all(&block)?;
    }
    file.sync_data()?;
    let took = started.elapsed();
    fs::remove_file(path)?;
    Ok(took)
}

struct Registry {
    process: Child,
    port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    fn start(work: &Path) -> Result<Self, Failure> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = serde_json::json!({
            "version": "0.1", "log": {"level": "error"}, "http": {"addr": format!("127.0.0.1:{port}")},
            "storage": {"filesystem": {"rootdirectory": work.join("storage")}},
        });
        let path = work.join("registry.yml");
        fs::write(&path, config.to_string())?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { process, port };
        for _ in 0..400 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Err("docker-registry does not answer".into())
    }

    /// The image's name in the registry; `make` writes its layout where that was not done before.
    fn ensure(
        &self,
        work: &Path,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<String, Failure> {
        let reference = format!("127.0.0.1:{}/bench/{name}:v1", self.port);
        let made = work.join(format!("{name}.made"));
        if made.exists() {
            return Ok(reference);
        }
        let layout = work.join("layout");
        let _ = fs::remove_dir_all(&layout);
        make(&layout)?;
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{reference}"))
            .status()?;
        if !status.success() {
            return Err(format!("skopeo: {status}").into());
        }
        fs::remove_dir_all(&layout)?;
        fs::write(made, "")?;
        Ok(reference)
    }
}

/// An OCI layout that is being written.
struct Layout {
    root: PathBuf,
    layers: Vec<serde_json::Value>,
    diff_ids: Vec<String>,
}

impl Layout {
    fn new(root: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(root.join("blobs/sha256"))?;
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { root: root.to_owned(), layers: Vec::new(), diff_ids: Vec::new() })
    }

    fn layer(&mut self, seed: usize, files: usize, size: usize, zstd: bool) -> Result<(), Failure> {
        let path = self.root.join("blob");
        let file = Hashing::new(BufWriter::new(File::create(&path)?));
        let (diff_id, file) = if zstd {
            let mut encoder = zstd::stream::write::Encoder::new(file, 3)?;
            let diff_id = archive(&mut encoder, seed, files, size)?;
            (diff_id, encoder.finish()?)
        } else {
            let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            let diff_id = archive(&mut encoder, seed, files, size)?;
            (diff_id, encoder.finish()?)
        };
        let kind = if zstd { "zstd" } else { "gzip" };
        self.diff_ids.push(diff_id);
        let descriptor =
            self.place(file, &path, &format!("application/vnd.oci.image.layer.v1.tar+{kind}"))?;
        self.layers.push(descriptor);
        Ok(())
    }

    fn place<W: Write>(
        &self,
        mut file: Hashing<W>,
        path: &Path,
        kind: &str,
    ) -> Result<serde_json::Value, Failure> {
        file.inner.flush()?;
        let hex = hex(file.hasher);
        fs::rename(path, self.root.join("blobs/sha256").join(&hex))?;
        Ok(serde_json::json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": file.len}))
    }

    fn document(&self, value: &serde_json::Value, kind: &str) -> Result<serde_json::Value, Failure> {
        let path = self.root.join("blob");
        let mut file = Hashing::new(File::create(&path)?);
        file.write_all(value.to_string().as_bytes())?;
        self.place(file, &path, kind)
    }

    fn finish(&self) -> Result<(), Failure> {
        let rootfs = serde_json::json!({"type": "layers", "diff_ids": self.diff_ids});
        let config =
            serde_json::json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs});
        let config = self.document(&config, "application/vnd.oci.image.config.v1+json")?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": self.layers});
        let manifest = self.document(&manifest, kind)?;
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.root.join("index.json"), index.to_string())?;
        Ok(())
    }
}

/// Writes a layer's archive and returns its diff ID.
fn archive(to: impl Write, seed: usize, files: usize, size: usize) -> Result<String, Failure> {
    let mut builder = tar::Builder::new(Hashing::new(to));
    let mut state = (seed as u32).wrapping_mul(2_654_435_761) | 1;
    for number in 0..files {
        let body = words(&mut state, size);
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        let name = format!("usr/share/{seed}/{}/{number}", number / 100);
        builder.append_data(&mut header, name, body.as_slice())?;
    }
    Ok(format!("sha256:{}", hex(builder.into_inner()?.hasher)))
}

/// Text and numbers that compress to about 42 %.
fn words(state: &mut u32, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let _ = write!(bytes, "{:06} the {} ", *state >> 12, (*state >> 8) % 7);
    }
    bytes.truncate(size);
    bytes
}

struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    len: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), len: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        self.len += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
