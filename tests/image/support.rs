//! A docker-registry, and images for it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podwright::image::{Config, Images, Settings};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// What tokens for a docker-registry say.
pub const TOKEN_SERVICE: &str = "the registry";
pub const TOKEN_ISSUER: &str = "the tests";

/// A docker-registry of the test's own.
pub struct Registry {
    process: Child,
    pub port: u16,
    pub directory: tempfile::TempDir,
    tls: bool,
}

/// How it is set up.
#[derive(Default)]
pub struct Setup<'a> {
    /// Certificate and key.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// Who may be a client.
    pub client_ca: Option<&'a Path>,
    /// USER and PASSWORD.
    pub user: Option<(&'a str, &'a str)>,
    /// A token server's URL, and the certificate of the key that its tokens are signed with.
    pub tokens: Option<(&'a str, &'a Path)>,
    /// A pull-through mirror of the registry at this URL.
    pub mirror_of: Option<String>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Setup<'_> {
    fn config(&self, port: u16, directory: &Path) -> String {
        let storage = directory.join("storage");
        let mut http = json!({"addr": format!("127.0.0.1:{port}")});
        if let Some((certificate, key)) = self.tls {
            http["tls"] = json!({"certificate": certificate, "key": key});
            if let Some(ca) = self.client_ca {
                http["tls"]["clientcas"] = json!([ca]);
            }
        }
        let mut config = json!({
            "version": "0.1", "log": {"level": "error"}, "http": http,
            "storage": {"filesystem": {"rootdirectory": storage}},
        });
        if let Some((user, password)) = self.user {
            let made = Command::new("htpasswd").args(["-bnB", user, password]).output().unwrap();
            let path = directory.join("htpasswd");
            fs::write(&path, made.stdout).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": path}});
        }
        if let Some((realm, certificate)) = self.tokens {
            config["auth"] = json!({"token": {
                "realm": realm, "service": TOKEN_SERVICE, "issuer": TOKEN_ISSUER, "rootcertbundle": certificate,
            }});
        }
        if let Some(url) = &self.mirror_of {
            config["proxy"] = json!({"remoteurl": url});
        }
        // JSON is YAML.
        config.to_string()
    }
}

impl Registry {
    /// None where the programs are not installed.
    pub fn start() -> Option<Self> {
        Self::start_with(&Setup::default())
    }

    pub fn start_with(setup: &Setup<'_>) -> Option<Self> {
        for (program, argument) in
            [("docker-registry", "--version"), ("skopeo", "--version"), ("htpasswd", "-bnB")]
        {
            let mut command = Command::new(program);
            command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null());
            if command.status().is_err() {
                assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.path().join("config.yml");
        fs::write(&config, setup.config(port, directory.path())).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, port, directory, tls: setup.tls.is_some() };
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "docker-registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.host())
    }

    pub fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    pub fn push(&self, archive: &Path, name: &str, arguments: &[&str]) {
        self.copy(&format!("docker-archive:{}", archive.display()), name, arguments);
    }

    /// From where skopeo says `source`.
    pub fn copy(&self, source: &str, name: &str, arguments: &[&str]) {
        let to = format!("docker://{}", self.reference(name));
        let common = ["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"];
        run("skopeo", &[&common, arguments, &[source, &to]].concat());
    }

    /// An OCI layout of an archive's image, as `NAME:v1`, its layers not compressed.
    pub fn layout(&self, archive: &Path) -> PathBuf {
        let layout = archive.with_extension("oci");
        let (from, to) =
            (format!("docker-archive:{}", archive.display()), format!("oci:{}:v1", layout.display()));
        let plain = "--dest-oci-accept-uncompressed-layers";
        run("skopeo", &["copy", "--quiet", "--insecure-policy", plain, &from, &to]);
        layout
    }

    /// The manifest or index that the registry has.
    pub fn manifest(&self, name: &str) -> serde_json::Value {
        let image = format!("docker://{}", self.reference(name));
        let output = Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &image]).output();
        serde_json::from_slice(&output.unwrap().stdout).unwrap()
    }

    /// A docker-archive of these layers, each a directory on the host.
    pub fn archive(&self, layers: &[PathBuf]) -> PathBuf {
        self.archive_of(&layers.iter().map(|layer| (layer.as_path(), ".")).collect::<Vec<_>>())
    }

    /// The same of parts of directories.
    pub fn archive_of(&self, layers: &[(&Path, &str)]) -> PathBuf {
        let work = tempfile::tempdir_in(self.directory.path()).unwrap();
        let mut diff_ids = Vec::new();
        let mut names = Vec::new();
        for (at, (layer, part)) in layers.iter().enumerate() {
            let name = format!("{at}.tar");
            let file = work.path().join(&name);
            run(
                "tar",
                &[
                    "-C",
                    layer.to_str().unwrap(),
                    "-cf",
                    file.to_str().unwrap(),
                    "--sort=name",
                    "--xattrs",
                    "--sparse",
                    part,
                ],
            );
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

/// A docker-archive of one image, `a.b/tiny:NUMBER`, with one small layer of its own.
pub fn tiny_archive(number: usize) -> Vec<u8> {
    let tar = |files: &[(&str, &[u8])]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let layer = tar(&[("file", number.to_string().as_bytes())]);
    let diff_id: String = Sha256::digest(&layer).iter().map(|b| format!("{b:02x}")).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["/file"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    });
    let manifest = json!([{"Config": "c", "RepoTags": [format!("a.b/tiny:{number}")], "Layers": ["l"]}]);
    tar(&[
        ("l", &layer),
        ("c", config.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub async fn open(root: &Path) -> Images {
    Images::open(Config { root: root.to_owned(), ..Config::default() }).await.unwrap()
}

pub async fn open_with(root: &Path, registries: Settings) -> Images {
    Images::open(Config { root: root.to_owned(), registries, ..Config::default() }).await.unwrap()
}
