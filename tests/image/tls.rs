//! TLS, passwords and mirrors, against docker-registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podwright::error::Kind;
use podwright::image::{Auth, Settings};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::support::{Registry, Setup, open, open_with};

/// An authority of the test's own, with a server's and a client's certificate.
pub struct Authority {
    directory: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Self { directory };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(authority.path("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for (name, hosts) in [("server", vec!["127.0.0.1", crate::proxy::SECURE]), ("client", vec!["node-7"])]
        {
            let key = KeyPair::generate().unwrap();
            let params =
                CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())
                    .unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            fs::write(authority.path(&format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(authority.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        authority
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// `DIRECTORY/HOST_PORT_/hosts.toml`.
fn write_hosts(directory: &Path, registry: &Registry, text: &str) {
    let directory = directory.join(format!("127.0.0.1_{}_", registry.port));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

/// Pushes `a/b:v1`; returns its archive.
pub fn push(registry: &Registry, arguments: &[&str]) -> PathBuf {
    let layer = registry.directory.path().join("layer");
    fs::create_dir_all(layer.join("etc")).unwrap();
    fs::write(layer.join("etc/motd"), vec![b'x'; 200_000]).unwrap();
    let archive = registry.archive(&[layer]);
    registry.push(&archive, "a/b:v1", arguments);
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_verified_by_what_hosts_toml_says() {
    let authority = Authority::new();
    let (certificate, key) = (authority.path("server.pem"), authority.path("server.key"));
    let setup = Setup { tls: Some((&certificate, &key)), ..Setup::default() };
    let Some(registry) = Registry::start_with(&setup) else { return };
    push(&registry, &[]);
    let certs = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let settings = Settings { certs_dirs: vec![certs.path().into()], ..Settings::default() };
    let images = open_with(root.path(), settings).await;
    let name = registry.reference("a/b:v1");
    let error = images.pull(&name, Auth::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains(&registry.host()), "{error}");
    // Each change takes effect at the next pull.
    write_hosts(certs.path(), &registry, &format!("ca = {:?}\n", authority.path("ca.pem")));
    images.pull(&name, Auth::default()).await.unwrap();
    images.remove(&name).await.unwrap();
    write_hosts(certs.path(), &registry, &format!("ca = {:?}\n", Authority::new().path("ca.pem")));
    assert!(images.pull(&name, Auth::default()).await.is_err(), "a missing or another authority");
    write_hosts(certs.path(), &registry, "skip_verify = true\n");
    images.pull(&name, Auth::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_their_certificate() {
    let authority = Authority::new();
    let (certificate, key) = (authority.path("server.pem"), authority.path("server.key"));
    let ca = authority.path("ca.pem");
    let open_setup = Setup { tls: Some((&certificate, &key)), ..Setup::default() };
    let Some(upstream) = Registry::start_with(&open_setup) else { return };
    push(&upstream, &[]);
    let storage = upstream.directory.path().join("storage");
    let setup = Setup { tls: Some((&certificate, &key)), client_ca: Some(&ca), ..Setup::default() };
    let Some(registry) = Registry::start_with(&setup) else { return };
    let copied = Command::new("cp").arg("-a").arg(&storage).arg(registry.directory.path()).status().unwrap();
    assert!(copied.success());
    let certs = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let settings = Settings { certs_dirs: vec![certs.path().into()], ..Settings::default() };
    let images = open_with(root.path(), settings).await;
    let name = registry.reference("a/b:v1");
    write_hosts(certs.path(), &registry, &format!("ca = {ca:?}\n"));
    images.pull(&name, Auth::default()).await.unwrap_err();
    let pair =
        format!("client = [[{:?}, {:?}]]\n", authority.path("client.pem"), authority.path("client.key"));
    write_hosts(certs.path(), &registry, &format!("ca = {ca:?}\n{pair}"));
    images.pull(&name, Auth::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_come_from_the_pull_or_the_nodes_files() {
    let setup = Setup { user: Some(("amy", "sesame")), ..Setup::default() };
    let Some(registry) = Registry::start_with(&setup) else { return };
    push(&registry, &["--dest-creds", "amy:sesame"]);
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("auth.json");
    let settings = Settings { auth_files: vec![file.clone()], ..Settings::default() };
    let images = open_with(&root.path().join("store"), settings).await;
    let name = registry.reference("a/b:v1");
    let amy = |password: &str| Auth { username: "amy".into(), password: password.into(), ..Auth::default() };
    assert_eq!(images.pull(&name, Auth::default()).await.unwrap_err().kind, Kind::PermissionDenied);
    images.pull(&name, amy("sesame")).await.unwrap();
    images.remove(&name).await.unwrap();
    fs::write(&file, format!(r#"{{"auths": {{"{}": {{"auth": "YW15OnNlc2FtZQ=="}}}}}}"#, registry.host()))
        .unwrap();
    images.pull(&name, Auth::default()).await.unwrap();
    // The pull's own wins, also where it is wrong.
    images.remove(&name).await.unwrap();
    assert_eq!(images.pull(&name, amy("wrong")).await.unwrap_err().kind, Kind::PermissionDenied);
}

/// Runs itself again with a credential helper in PATH.
#[tokio::test(flavor = "multi_thread")]
async fn credential_helpers_are_asked() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup { user: Some(("amy", "sesame")), ..Setup::default() };
    let Some(registry) = Registry::start_with(&setup) else { return };
    push(&registry, &["--dest-creds", "amy:sesame"]);
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread -r server || :\n[ \"$1 $server\" = \"get {}\" ] || {{ echo credentials not found; exit 1; }}\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"amy\",\"Secret\":\"sesame\"}}'\n",
        registry.host()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.path().join("config.json");
    fs::write(&file, format!(r#"{{"credHelpers": {{"{}": "test"}}}}"#, registry.host())).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tls::with_a_helper_in_path", "--ignored"])
        .env("PATH", path)
        .env("TEST_AUTH_FILE", &file)
        .env("TEST_IMAGE", registry.reference("a/b:v1"))
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by credential_helpers_are_asked"]
async fn with_a_helper_in_path() {
    let (Some(file), Ok(image)) = (std::env::var_os("TEST_AUTH_FILE"), std::env::var("TEST_IMAGE")) else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let images =
        open_with(root.path(), Settings { auth_files: vec![file.into()], ..Settings::default() }).await;
    images.pull(&image, Auth::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_through_mirror_is_asked_first() {
    let Some(upstream) = Registry::start() else { return };
    push(&upstream, &[]);
    let setup = Setup { mirror_of: Some(upstream.url()), ..Setup::default() };
    let Some(mirror) = Registry::start_with(&setup) else { return };
    let certs = tempfile::tempdir().unwrap();
    let mirror_first = format!("[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.url());
    write_hosts(certs.path(), &upstream, &mirror_first);
    let name = upstream.reference("a/b:v1");
    let settings = Settings { certs_dirs: vec![certs.path().into()], ..Settings::default() };
    let root = tempfile::tempdir().unwrap();
    let images = open_with(root.path(), settings.clone()).await;
    images.pull(&name, Auth::default()).await.unwrap();
    let image = images.status(&name).unwrap().unwrap().image;
    assert_eq!(image.repo_tags, std::slice::from_ref(&name), "the image has its own registry's name");
    let cached = mirror.directory.path().join("storage/docker/registry/v2/repositories/a/b");
    assert!(cached.exists(), "the mirror was asked");
    // Without the mirror it comes from the registry itself.
    drop(mirror);
    let root = tempfile::tempdir().unwrap();
    open_with(root.path(), settings).await.pull(&name, Auth::default()).await.unwrap();
    drop(open(&root.path().join("other")).await);
}
