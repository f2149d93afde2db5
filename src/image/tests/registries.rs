//! Mirrors and hosts that fail, and who gets to see which credential.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::fake::{Fake, Reply, answer, layer};
use super::*;
use crate::error::Kind;

/// `hosts.toml` for `registry`: the mirror first.
fn mirrored(directory: &Path, registry: &Fake, text: &str) {
    let directory = directory.join(registry.address.to_string());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

async fn open_with(root: &Path, registries: Settings) -> Images {
    let config = super::super::Config { root: root.join("store"), registries, ..Default::default() };
    Images::open(config).await.unwrap()
}

fn settings(root: &Path) -> Settings {
    Settings { certs_dirs: vec![root.to_owned()], stall: Duration::from_millis(500), ..Settings::default() }
}

fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    getrandom::fill(&mut noise).unwrap();
    noise
}

fn amy() -> Auth {
    Auth { username: "amy".into(), password: "secret".into(), ..Auth::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_without_the_pulls_credential() {
    let root = tempfile::tempdir().unwrap();
    let (registry, mirror) = (Fake::plain().await, Fake::plain().await);
    let wanting = Fake::start(|request, content| {
        let given = request.headers.contains_key("authorization");
        let denied = Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        Some(if given { answer(request, content) } else { denied })
    })
    .await;
    for fake in [&registry, &mirror, &wanting] {
        fake.put_image("a/b", "v1", &[layer(&[("x", b"1")])]);
    }
    let text = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}/base/v2\"]\n[host.\"http://{}/base/v2\".header]\nx-team = \"nodes\"\n",
        wanting.address, mirror.address, mirror.address
    );
    mirrored(root.path(), &registry, &text);
    let images = open_with(root.path(), settings(root.path())).await;
    let name = registry.reference("a/b:v1");
    // The second mirror has nothing under that path: the registry itself answers in the end.
    images.pull(&name, amy()).await.unwrap();
    let seen = |fake: &Fake| fake.requests.lock().unwrap().clone();
    assert!(seen(&wanting).iter().all(|r| !r.headers.contains_key("authorization")));
    assert!(!seen(&wanting).is_empty());
    let at_mirror = seen(&mirror);
    assert_eq!(
        at_mirror[0].path,
        format!("/base/v2/a/b/manifests/v1?ns={}", registry.address.to_string().replace(':', "%3A"))
    );
    assert!(
        at_mirror.iter().all(|r| r.headers["x-team"] == "nodes" && !r.headers.contains_key("authorization"))
    );
    assert!(seen(&registry).iter().all(|r| !r.headers.contains_key("x-team")));
    // A credential that names the mirror is for it.
    images.remove(&name).await.unwrap();
    let before = registry.count("");
    images.pull(&name, Auth { server_address: wanting.address.to_string(), ..amy() }).await.unwrap();
    assert_eq!(registry.count(""), before, "the mirror had it all");
}

/// A pull whose secret is for the mirror is another one than a pull without: neither joins the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_for_the_mirror_serves_no_other_pull() {
    let root = tempfile::tempdir().unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let registry = Fake::start(|request, _| (request.path != "/v2/").then(|| Reply::new(403, ""))).await;
    let mirror = Fake::start(move |request, content| {
        let given = request.headers.contains_key("authorization");
        let denied = Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        let answer = || Reply { gate: Some(Arc::clone(&held)), ..answer(request, content) };
        Some(if given { answer() } else { denied })
    })
    .await;
    mirror.put_image("a/b", "v1", &[layer(&[("x", b"1")])]);
    mirrored(root.path(), &registry, &format!("[host.\"http://{}\"]\n", mirror.address));
    let images = open_with(root.path(), settings(root.path())).await;
    let name = registry.reference("a/b:v1");
    let auth = Auth { server_address: mirror.address.to_string(), ..amy() };
    let with = tokio::spawn({
        let (images, name) = (images.clone(), name.clone());
        async move { images.pull(&name, auth).await }
    });
    eventually(|| mirror.count("/manifests/") == 2).await;
    let without = tokio::spawn({
        let (images, name) = (images.clone(), name.clone());
        async move { images.pull(&name, Auth::default()).await }
    });
    eventually(|| registry.count("/manifests/") == 1 || without.is_finished()).await;
    gate.add_permits(100);
    assert_eq!(without.await.unwrap().unwrap_err().kind, Kind::PermissionDenied);
    with.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_without_resolve_is_asked_for_content_only() {
    let root = tempfile::tempdir().unwrap();
    let (registry, mirror) = (Fake::plain().await, Fake::plain().await);
    for fake in [&registry, &mirror] {
        fake.put_image("a/b", "v1", &[layer(&[("x", b"1")])]);
    }
    // The mirror's API begins where the URL says, and the query does not matter to this fake.
    let text = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n", mirror.address);
    mirrored(root.path(), &registry, &text);
    let images = open_with(root.path(), settings(root.path())).await;
    images.pull(&registry.reference("a/b:v1"), Auth::default()).await.unwrap();
    assert_eq!((mirror.count("/manifests/"), registry.count("/manifests/")), (0, 1));
    assert_eq!((mirror.count("/blobs/"), registry.count("/blobs/")), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_host_stalls_the_next_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::plain().await;
    let never = Arc::new(tokio::sync::Semaphore::new(0));
    let mirror = Fake::start(move |request, content| {
        let mut reply = answer(request, content);
        if reply.body.len() > 100_000 {
            (reply.cut, reply.stall) = (Some(70_000), Some(Arc::clone(&never)));
        }
        Some(reply)
    })
    .await;
    let noise = noise(150_000);
    for fake in [&registry, &mirror] {
        fake.put_image("a/b", "v1", &[layer(&[("noise", &noise)])]);
    }
    mirrored(root.path(), &registry, &format!("[host.\"http://{}\"]\n", mirror.address));
    let images = open_with(root.path(), settings(root.path())).await;
    let name = registry.reference("a/b:v1");
    images.pull(&name, Auth::default()).await.unwrap();
    let stack = images.status(&name).unwrap().unwrap().layers;
    assert_eq!(std::fs::read(stack[0].join("noise")).unwrap(), noise);
    let requests = registry.requests.lock().unwrap().clone();
    let [rest] = &requests.iter().filter(|r| r.path.contains("/blobs/")).collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!(rest.headers["range"], "bytes=70000-");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_errors_are_told() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::plain().await;
    let mirror = Fake::start(|_, _| Some(Reply::new(403, "{}"))).await;
    mirrored(root.path(), &registry, &format!("[host.\"http://{}\"]\n", mirror.address));
    let images = open_with(root.path(), settings(root.path())).await;
    let error = images.pull(&registry.reference("a/b:v1"), Auth::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "the registry's own word counts");
    for part in [&mirror.address.to_string(), "403", "manifest unknown", "repository a/b, manifest v1"] {
        assert!(error.message.contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_patience_gets_it() {
    let root = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let registry = Fake::start(move |request, _| {
        let busy = request.path != "/v2/" && asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        busy.then(|| Reply::new(429, "").header("Retry-After", "0"))
    })
    .await;
    registry.put_image("a/b", "v1", &[layer(&[("x", b"1")])]);
    let images = open_with(root.path(), settings(root.path())).await;
    images.pull(&registry.reference("a/b:v1"), Auth::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_conf_gives_short_names_and_other_places() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::plain().await;
    let (id, _) = registry.put_image("inner/tool", "v1", &[layer(&[("x", b"1")])]);
    let conf = root.path().join("registries.conf");
    let text = format!(
        "unqualified-search-registries = [\"{0}/none\", \"search.example\"]\n\
         [[registry]]\nprefix = \"search.example\"\nlocation = \"{0}/inner\"\n\
         [[registry]]\nlocation = \"bad.example\"\nblocked = true\n",
        registry.address
    );
    std::fs::write(&conf, text).unwrap();
    let images =
        open_with(root.path(), Settings { registries_conf: Some(conf), ..settings(root.path()) }).await;
    assert_eq!(images.pull("tool:v1", Auth::default()).await.unwrap(), id.to_string());
    let image = images.status("tool:v1").unwrap().unwrap().image;
    assert_eq!(image.repo_tags, ["search.example/tool:v1"]);
    let error = images.pull("bad.example/x", Auth::default()).await.unwrap_err();
    assert!(error.message.contains("blocked"), "{error}");
    images.remove("tool:v1").await.unwrap();
    assert!(images.list(None).unwrap().is_empty());
}

/// A mirror may have been given something else under a digest, or lie: the image's own registry has
/// the last word, for layers (a changed one, one that is no archive or of another length), configs and manifests.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_wrong_bytes_is_passed_over() {
    for what in ["layer", "noise", "short", "long", "config", "manifest"] {
        let root = tempfile::tempdir().unwrap();
        let registry = Fake::plain().await;
        let mut one = layer(&[("a", b"1")]);
        one.0[4] ^= 1; // A header's time: as good to unpack as any other.
        registry.put_image("a/b", "v1", &[one]);
        let mirror = Fake::start(move |request, content| {
            let (_, bytes) = content.get(request.path.split('?').next()?)?;
            let mut bytes = bytes.clone();
            let is_config = bytes.starts_with(b"{");
            match what {
                "manifest" if request.path.contains("/manifests/sha256:") => bytes.push(b' '),
                "config" if request.path.contains("/blobs/") && is_config => bytes.reverse(),
                "layer" if request.path.contains("/blobs/") && !is_config => bytes[4] ^= 1,
                "short" if request.path.contains("/blobs/") && !is_config => {
                    bytes = b"<html>not what you asked for</html>".to_vec();
                }
                "long" if request.path.contains("/blobs/") && !is_config => bytes.extend([0x5a; 100]),
                "noise" if request.path.contains("/blobs/") && !is_config => bytes.fill(0x5a),
                _ => return None,
            }
            Some(Reply::new(200, bytes))
        })
        .await;
        let mut one = layer(&[("a", b"1")]);
        one.0[4] ^= 1;
        let (_, manifest) = mirror.put_image("a/b", "v1", &[one]);
        mirrored(root.path(), &registry, &format!("[host.\"http://{}\"]\n", mirror.address));
        let images = open_with(root.path(), settings(root.path())).await;
        let name = match what {
            "manifest" => registry.reference(&format!("a/b@{manifest}")),
            _ => registry.reference("a/b:v1"),
        };
        images.pull(&name, Auth::default()).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(mirror.count("a/b") > 0 && registry.count("a/b") > 0, "{what}");
        let layers = images.status(&name).unwrap().unwrap().layers;
        assert_eq!(std::fs::read(layers[0].join("a")).unwrap(), b"1");
    }
}

/// A disk's fault is told as one, and no other host is asked to repeat what it cannot help.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_this_hosts_disk_is_not_blamed_on_a_registry() {
    for full in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let (registry, mirror) = (Fake::plain().await, Fake::plain().await);
        let zeros = vec![0; 24 << 20];
        for fake in [&registry, &mirror] {
            fake.put_image("a/b", "v1", &[layer(&[("some/file", &zeros)])]);
        }
        mirrored(root.path(), &registry, &format!("[host.\"http://{}\"]\n", mirror.address));
        let (_disk, store) = small_disk();
        let config = super::super::Config {
            root: store.clone(),
            registries: settings(root.path()),
            ..Default::default()
        };
        let images = Images::open(config).await.unwrap();
        if !full {
            std::fs::remove_dir(store.join("staging")).unwrap();
            std::fs::write(store.join("staging"), "no directory").unwrap();
        }
        let error = images.pull(&registry.reference("a/b:v1"), Auth::default()).await.unwrap_err();
        let (kind, words) = match full {
            true => (Kind::ResourceExhausted, ["unpacking \"some/file\" in ", "no space left on device"]),
            false => (Kind::Internal, ["making ", "not a directory"]),
        };
        assert_eq!(error.kind, kind, "{error}");
        for word in
            words.into_iter().chain([store.join("staging").to_str().unwrap(), "unpacking blob sha256:"])
        {
            assert!(error.message.contains(word), "{error}");
        }
        assert!(!error.message.contains("registry 127"), "{error}");
        assert_eq!(registry.count(""), 0, "{error}");
        assert!(images.list(None).unwrap().is_empty());
    }
}

/// A file system of 16 MB in memory, and the path to it. It goes with the descriptor.
fn small_disk() -> (std::os::fd::OwnedFd, PathBuf) {
    use std::os::fd::AsRawFd;

    use rustix::mount::*;
    let disk = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&disk, "size", "16m").unwrap();
    fsconfig_create(&disk).unwrap();
    let disk = fsmount(&disk, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}/store", disk.as_raw_fd()));
    (disk, path)
}

/// A blob that another repository of the registry has: the token is asked for anew, for that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_repository_has_a_token_of_its_scope() {
    let root = tempfile::tempdir().unwrap();
    let tokens = Fake::start(|request, _| {
        let scope = request.path.split("scope=").nth(1)?;
        Some(Reply::new(
            200,
            serde_json::json!({"token": format!("for-{}", scope.replace('%', "_"))}).to_string(),
        ))
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let registry = Fake::start(move |request, content| {
        let repository = if request.path.contains("/base/x/") { "base/x" } else { "a/b" };
        let token = format!("Bearer for-repository_3A{}_3Apull", repository.replace('/', "_2F"));
        if request.headers.get("authorization") != Some(&token) {
            let challenge =
                format!(r#"Bearer realm="{realm}",service="r",scope="repository:{repository}:pull""#);
            return Some(Reply::new(401, "").header("WWW-Authenticate", challenge));
        }
        let moved = || Reply::new(307, "").header("Location", request.path.replace("/a/b/", "/base/x/"));
        let blob = request.path.contains("/a/b/blobs/");
        Some(if blob { moved() } else { answer(request, content) })
    })
    .await;
    for repository in ["a/b", "base/x"] {
        registry.put_image(repository, "v1", &[layer(&[("x", b"1")]), layer(&[("y", b"2")])]);
    }
    let images = open_with(root.path(), settings(root.path())).await;
    images.pull(&registry.reference("a/b:v1"), amy()).await.unwrap();
    let asked: HashSet<_> = tokens.requests.lock().unwrap().iter().map(|r| r.path.clone()).collect();
    assert_eq!(asked.len(), 2, "each scope by itself: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_token_goes_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::start(|request, content| {
        let right = request.headers.get("authorization").is_some_and(|given| given == "Bearer as-it-is");
        let denied = Reply::new(401, "").header("WWW-Authenticate", "Bearer realm=\"http://127.0.0.1:1/\"");
        Some(if right { answer(request, content) } else { denied })
    })
    .await;
    registry.put_image("a/b", "v1", &[layer(&[("x", b"1")])]);
    let images = open_with(root.path(), settings(root.path())).await;
    let with = |token: &str| Auth { registry_token: token.into(), ..Auth::default() };
    let name = registry.reference("a/b:v1");
    assert_eq!(images.pull(&name, with("another")).await.unwrap_err().kind, Kind::PermissionDenied);
    images.pull(&name, with("as-it-is")).await.unwrap();
}

/// What may not be distributed is fetched from where its manifest says, without a credential; other layers
/// are not, whatever their manifest says.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_comes_from_its_url() {
    let root = tempfile::tempdir().unwrap();
    let (registry, elsewhere) = (Fake::plain().await, Fake::plain().await);
    let (compressed, plain) = layer(&[("x", b"1")]);
    let (id, digest) = registry.put_image("a/b", "v1", &[(compressed.clone(), plain)]);
    elsewhere.put("/some/where.tgz", "x", compressed.clone());
    let bytes = registry.bytes(&format!("/v2/a/b/manifests/{digest}"));
    let blob = format!("/v2/a/b/blobs/{}", Digest::of(&compressed));
    let put = |kind: &str| {
        let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let urls = ["nowhere", "some/where.tgz"].map(|path| format!("http://{}/{path}", elsewhere.address));
        manifest["layers"][0]["urls"] = serde_json::json!(urls);
        manifest["layers"][0]["mediaType"] = kind.into();
        registry.put_manifest("a/b", "v1", super::fake::OCI_MANIFEST, &manifest);
    };
    let images = open_with(root.path(), settings(root.path())).await;
    let name = registry.reference("a/b:v1");
    // The registry's own comes first.
    put("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    images.pull(&name, amy()).await.unwrap();
    images.remove(&name).await.unwrap();
    assert_eq!(elsewhere.count(""), 0);
    registry.take(&blob);
    put("application/vnd.oci.image.layer.v1.tar+gzip");
    eventually(|| images.usage() == Usage::default()).await;
    assert_eq!(images.pull(&name, amy()).await.unwrap_err().kind, Kind::NotFound);
    assert_eq!(elsewhere.count(""), 0);
    for kind in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        put(kind);
        assert_eq!(images.pull(&name, amy()).await.unwrap(), id.to_string());
        images.remove(&name).await.unwrap();
        eventually(|| images.usage() == Usage::default()).await;
    }
    let requests = elsewhere.requests.lock().unwrap().clone();
    assert!(requests.len() >= 2 && requests.iter().all(|r| !r.headers.contains_key("authorization")));
    // It is verified like any other.
    let mut changed = compressed;
    changed[4] ^= 1;
    elsewhere.put("/some/where.tgz", "x", changed);
    let error = images.pull(&name, amy()).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "the other URL's word comes last: {error}");
    assert!(error.message.contains("its digest is"), "{error}");
}

/// Neither a life without end nor an empty field of the two makes a token useless.
#[tokio::test(flavor = "multi_thread")]
async fn token_servers_answers_are_taken_as_they_are() {
    let life = ["18446744073709551615", "1e300", "-5", "0.5", "null"];
    for (life, number) in life.into_iter().zip(0..) {
        let tokens = Fake::start(move |_, _| {
            let body = format!(r#"{{"token": "", "access_token": "t{number}", "expires_in": {life}}}"#);
            Some(Reply::new(200, body))
        })
        .await;
        let realm = format!("http://{}/token", tokens.address);
        let registry = Fake::start(move |request, content| {
            let right = request
                .headers
                .get("authorization")
                .is_some_and(|given| *given == format!("Bearer t{number}"));
            let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
            Some(match right {
                true => answer(request, content),
                false => Reply::new(401, "").header("WWW-Authenticate", challenge),
            })
        })
        .await;
        registry.put_image("a/b", "latest", &[layer(&[("a", b"1")])]);
        let root = tempfile::tempdir().unwrap();
        let images = open_with(root.path(), settings(root.path())).await;
        let pulled = images.pull(&registry.reference("a/b"), Auth::default()).await;
        pulled.unwrap_or_else(|e| panic!("{life}: {e}"));
    }
}
