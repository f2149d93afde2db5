//! Pulls, through any runtime's CRI socket:
//!
//! ```text
//! cargo bench --bench pull -- --endpoint unix:///run/podwright/podwright.sock --pid DAEMON [--rounds N]
//!     [--work DIR] [--forms six,one,sixty,zstd,shared,many]
//! ```
//!
//! It makes the images once in DIR (431 MB as gzip, 1,018 MB unpacked, 20,000 files), serves them from
//! a docker-registry of its own on loopback, and pulls each so often, removing it in between. Needs
//! docker-registry and skopeo, and a runtime that may speak plain HTTP to loopback.

mod many;
mod registry;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use hyper_util::rt::TokioIo;
use podwright::cri::wire as cri;
use registry::{Layout, Registry};
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
    #[arg(long, value_delimiter = ',', default_value = "six,one,sixty,zstd,shared,many")]
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
            "many" => many::many(&registry, &mut images).await?,
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
    remove(images, &name).await?;
    let store = store(images).await?;
    let before = disk(&store);
    let (mut times, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        remove(images, &name).await?;
        plain.push(plain_write(&options.work)?);
        if let Some(pid) = options.pid {
            reset_peak(pid);
        }
        let started = Instant::now();
        pull(images, &name).await?;
        times.push(started.elapsed());
    }
    times.sort();
    plain.sort();
    let used = disk(&store).saturating_sub(before);
    println!(
        "{}: p50 {:.2} s, {:.2} to {:.2} s over {} rounds; the same bytes by plain writes and fdatasync {:.2} s; \
         peak RSS {} MB; {} MB on disk",
        form.name,
        times[times.len() / 2].as_secs_f64(),
        times[0].as_secs_f64(),
        times[times.len() - 1].as_secs_f64(),
        times.len(),
        plain[plain.len() / 2].as_secs_f64(),
        options.pid.and_then(peak).map_or("unknown".into(), |kib| (kib / 1000).to_string()),
        used / 1_000_000,
    );
    if form.name == "six" {
        let reference = unpacked_by_tar(&options.work, &name)?;
        println!(
            "  GNU tar's tree of it takes {} MB, the store {:.3} of that",
            reference / 1_000_000,
            used as f64 / reference as f64
        );
    }
    remove(images, &name).await
}

/// What the image's layers take on disk, in bytes, as GNU tar unpacks them.
fn unpacked_by_tar(work: &Path, name: &str) -> Result<u64, Failure> {
    let (blobs, tree) = (work.join("blobs"), work.join("tree"));
    for directory in [&blobs, &tree] {
        let _ = fs::remove_dir_all(directory);
    }
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
        .args([format!("docker://{name}"), format!("dir:{}", blobs.display())])
        .status()?;
    if !copied.success() {
        return Err(format!("skopeo: {copied}").into());
    }
    for (number, blob) in fs::read_dir(&blobs)?.enumerate() {
        let blob = blob?;
        if blob.metadata()?.len() < 64 << 10 {
            continue;
        }
        let layer = tree.join(number.to_string());
        fs::create_dir_all(&layer)?;
        let status = Command::new("tar").arg("-xzf").arg(blob.path()).arg("-C").arg(layer).status()?;
        if !status.success() {
            return Err(format!("tar: {status}").into());
        }
    }
    rustix::fs::sync();
    let used = disk(&tree);
    fs::remove_dir_all(blobs)?;
    fs::remove_dir_all(tree)?;
    Ok(used)
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

/// And waits until its layers are gone, which costs the disk time: until the filesystem has the
/// same room for a second.
async fn remove(images: &mut Images, name: &str) -> Result<(), Failure> {
    images.remove_image(cri::RemoveImageRequest { image: spec(name) }).await?;
    let store = store(images).await?;
    let mut last = 0;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rustix::fs::sync();
        let free = rustix::fs::statvfs(&store)?.f_ffree;
        if free == last {
            break;
        }
        last = free;
    }
    Ok(())
}

async fn store(images: &mut Images) -> Result<PathBuf, Failure> {
    let info = images.image_fs_info(cri::ImageFsInfoRequest {}).await?.into_inner();
    let first = info.image_filesystems.into_iter().next().and_then(|fs| fs.fs_id);
    Ok(first.ok_or("the runtime tells of no image filesystem")?.mountpoint.into())
}

/// Bytes of the blocks that a tree has.
fn disk(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let children = if meta.is_dir() { fs::read_dir(path).ok() } else { None };
    let below = children.into_iter().flatten().flatten().map(|child| disk(&child.path())).sum::<u64>();
    meta.blocks() * 512 + below
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
