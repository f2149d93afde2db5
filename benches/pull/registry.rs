//! A registry on loopback, and the images that it has.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Failure;

pub struct Registry {
    process: Child,
    pub port: u16,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    pub fn start(work: &Path) -> Result<Self, Failure> {
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
    pub fn ensure(
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
pub struct Layout {
    root: PathBuf,
    layers: Vec<serde_json::Value>,
    diff_ids: Vec<String>,
}

impl Layout {
    pub fn new(root: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(root.join("blobs/sha256"))?;
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { root: root.to_owned(), layers: Vec::new(), diff_ids: Vec::new() })
    }

    pub fn layer(&mut self, seed: usize, files: usize, size: usize, zstd: bool) -> Result<(), Failure> {
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

    pub fn finish(&self) -> Result<(), Failure> {
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
        let _ = write!(
            bytes,
            "{:07}{:04x} the {} ",
            *state >> 8,
            state.wrapping_mul(2_654_435_761) >> 9 & 0xffff,
            (*state >> 8) % 7
        );
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

pub fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
