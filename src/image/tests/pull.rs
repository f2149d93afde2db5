use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::fake::{Fake, OCI_INDEX, OCI_MANIFEST, Reply, answer, gzip, layer, tar_of};
use super::*;
use crate::error::Kind;

async fn pull(images: &Images, reference: &str) -> Result<String> {
    images.pull(reference, Auth::default()).await
}

fn user(name: &str) -> Auth {
    Auth { username: name.into(), password: format!("{name}'s password"), ..Auth::default() }
}

/// The layers' directories, the topmost first.
fn stack(images: &Images, reference: &str) -> Vec<PathBuf> {
    images.status(reference).unwrap().unwrap().layers
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_listed_and_resolved() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let layers = [layer(&[("a/b", b"one"), ("x", b"1")]), layer(&[("a/c", b"two")])];
    let (id, manifest) = fake.put_image("some/image", "v1", &layers);
    let images = open(root.path()).await;
    let name = fake.reference("some/image:v1");
    let pulled = pull(&images, &name).await.unwrap();
    assert_eq!(pulled, id.to_string(), "BEHAVIOUR 5");
    let list = images.list(None).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].repo_tags, std::slice::from_ref(&name));
    assert_eq!(list[0].repo_digests, [format!("{}@{manifest}", fake.reference("some/image"))]);
    assert_eq!((list[0].uid, list[0].size > 0), (Some(7), true));
    let resolved = images.status(&name).unwrap().unwrap();
    assert_eq!(resolved.layers.len(), 2);
    assert_eq!(std::fs::read(resolved.layers[0].join("a/c")).unwrap(), b"two");
    assert_eq!(std::fs::read(resolved.layers[1].join("a/b")).unwrap(), b"one");
    assert_eq!(
        resolved.config.config().as_ref().unwrap().cmd().as_deref(),
        Some(&["/bin/true".to_owned()][..])
    );
    for reference in [pulled.as_str(), &pulled[7..], &pulled[7..20], &list[0].repo_digests[0]] {
        assert_eq!(images.list(Some(reference)).unwrap(), list, "{reference}");
    }
    assert!(images.status("a.b/none").unwrap().is_none(), "BEHAVIOUR 2");
    assert_eq!(entries(&root.path().join("staging")), 0);
    assert_eq!(images.usage().bytes, list[0].size, "BEHAVIOUR 32");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_names_registry_and_repository() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let error = pull(&images, &fake.reference("some/image:none")).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    for part in [&fake.address.to_string(), "some/image", "manifest none", "manifest unknown"] {
        assert!(error.message.contains(part), "{error}");
    }
    let gone = fake.address;
    drop(fake);
    let error = pull(&images, &format!("127.0.0.1:1/{}", "x")).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "{error} {gone}");
    assert!(error.message.contains("refused"), "{error}");
    assert_eq!(pull(&images, "a.b/C").await.unwrap_err().kind, Kind::InvalidArgument);
}

/// A registry that wants tokens from a token server of its own.
async fn with_tokens() -> (Fake, Fake) {
    let tokens = Fake::start(|request, _| {
        let who = request.headers.get("authorization").cloned().unwrap_or("anonymous".into());
        let token = crate::image::Digest::of(who.as_bytes()).hex();
        (!request.path.is_empty())
            .then(|| Reply::new(200, json!({"token": token, "expires_in": 300}).to_string()))
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let registry = Fake::start(move |request, content| {
        let challenge =
            format!(r#"Bearer realm="{realm}",service="the registry",scope="repository:some/image:pull""#);
        if request.path == "/v2/" || !request.headers.contains_key("authorization") {
            return Some(Reply::new(401, "").header("WWW-Authenticate", challenge));
        }
        Some(answer(request, content))
    })
    .await;
    (registry, tokens)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_and_never_cross_credentials() {
    let root = tempfile::tempdir().unwrap();
    let (registry, tokens) = with_tokens().await;
    registry.put_image("some/image", "v1", &[layer(&[("a", b"1")])]);
    let images = open(root.path()).await;
    let name = registry.reference("some/image:v1");
    for (auth, asked) in [(Auth::default(), 1), (user("amy"), 2), (user("bob"), 3), (user("amy"), 3)] {
        images.pull(&name, auth).await.unwrap();
        assert_eq!(tokens.count("/token"), asked);
    }
    let asked = tokens.requests.lock().unwrap().clone();
    assert_eq!(asked[0].path, "/token?service=the+registry&scope=repository%3Asome%2Fimage%3Apull");
    assert!(!asked[0].headers.contains_key("authorization"));
    assert!(asked[1].headers["authorization"].starts_with("Basic "));
    assert_ne!(asked[1].headers["authorization"], asked[2].headers["authorization"]);
    // The registry itself sees bearer tokens only, and each pull its own.
    let seen = registry.requests.lock().unwrap().clone();
    let seen: HashSet<_> = seen.iter().filter_map(|r| r.headers.get("authorization").cloned()).collect();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|header| header.starts_with("Bearer ")));
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_tokens_go_by_post() {
    let root = tempfile::tempdir().unwrap();
    let (registry, tokens) = with_tokens().await;
    registry.put_image("some/image", "v1", &[]);
    let images = open(root.path()).await;
    let auth = Auth { identity_token: "refresh&me".into(), ..Auth::default() };
    images.pull(&registry.reference("some/image:v1"), auth).await.unwrap();
    let asked = tokens.requests.lock().unwrap().clone();
    assert_eq!((asked[0].method.as_str(), asked[0].path.as_str()), ("POST", "/token"));
    assert!(
        asked[0].body.contains("grant_type=refresh_token&refresh_token=refresh%26me&"),
        "{}",
        asked[0].body
    );
    // An image without layers has one empty directory to stack.
    assert_eq!(stack(&images, &registry.reference("some/image:v1")), [root.path().join("empty")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_authentication_and_its_refusal() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::start(|request, content| {
        use base64::Engine as _;
        let right = base64::prelude::BASE64_STANDARD.encode("amy:amy's password");
        let given = request.headers.get("authorization").cloned().unwrap_or_default();
        let denied = Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        Some(if given == format!("Basic {right}") { answer(request, content) } else { denied })
    })
    .await;
    registry.put_image("some/image", "v1", &[layer(&[("a", b"1")])]);
    let images = open(root.path()).await;
    let name = registry.reference("some/image:v1");
    for auth in [Auth::default(), user("bob"), Auth { server_address: "other.host".into(), ..user("amy") }] {
        let error = images.pull(&name, auth).await.unwrap_err();
        assert_eq!(error.kind, Kind::PermissionDenied, "{error}");
        assert!(!error.message.contains("password"), "{error}");
    }
    assert!(images.list(None).unwrap().is_empty());
    images.pull(&name, user("amy")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_host_carries_no_authorization() {
    let root = tempfile::tempdir().unwrap();
    let storage = Fake::plain().await;
    let elsewhere = storage.address;
    let registry = Fake::start(move |request, content| {
        if !request.headers.contains_key("authorization") {
            return Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        let blob = request.path.contains("/blobs/");
        let moved = || Reply::new(307, "").header("Location", format!("http://{elsewhere}{}", request.path));
        Some(if blob { moved() } else { answer(request, content) })
    })
    .await;
    let layers = [layer(&[("a", b"1")])];
    registry.put_image("some/image", "v1", &layers);
    storage.put_image("some/image", "v1", &layers);
    let images = open(root.path()).await;
    images.pull(&registry.reference("some/image:v1"), user("amy")).await.unwrap();
    let seen = storage.requests.lock().unwrap().clone();
    assert_eq!(seen.len(), 2, "the config and the layer");
    assert!(seen.iter().all(|request| !request.headers.contains_key("authorization")));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::start(|request, _| {
        (request.path != "/v2/").then(|| Reply::new(302, "").header("Location", request.path.clone()))
    })
    .await;
    let error = pull(&open(root.path()).await, &registry.reference("a/b")).await.unwrap_err();
    assert!(error.message.contains("redirected too often"), "{error}");
}

/// Pulls an image whose layer's blob is answered by `reply`, and expects an error and no trace.
async fn broken_blob(reply: impl Fn(Vec<u8>) -> Reply + Send + Sync + 'static) -> Error {
    let root = tempfile::tempdir().unwrap();
    let layers = [layer(&[("a", &[7; 100_000])])];
    let path = format!("/v2/a/b/blobs/{}", Digest::of(&layers[0].0));
    let bytes = layers[0].0.clone();
    let registry = Fake::start(move |request, _| (request.path == path).then(|| reply(bytes.clone()))).await;
    registry.put_image("a/b", "latest", &layers);
    let images = open(root.path()).await;
    let error = pull(&images, &registry.reference("a/b")).await.unwrap_err();
    assert!(images.list(None).unwrap().is_empty());
    assert_eq!(images.usage(), Usage::default());
    assert_eq!(entries(&root.path().join("staging")) + entries(&root.path().join("layers")), 0);
    assert!(error.message.contains("repository a/b, blob sha256:"), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_what_it_should_be_is_refused() {
    let other = layer(&[("b", b"2")]).0;
    let longer = broken_blob(|mut bytes| {
        bytes.push(0);
        Reply::new(200, bytes)
    });
    assert!(longer.await.message.contains("longer than"));
    // The same size, and as good as the right one to inflate and unpack: the header's time.
    let error = broken_blob(|mut bytes| {
        bytes[4] ^= 1;
        Reply::new(200, bytes)
    });
    assert!(error.await.message.contains("its digest is"));
    let error = broken_blob(move |_| Reply::new(200, other.clone())).await;
    assert!(error.message.contains("it ended after"), "{error}");
    let error = broken_blob(|bytes| Reply::new(200, vec![0x1f; bytes.len()])).await;
    let what = ["its digest is", "checksum", "decompressing"];
    assert!(what.iter().any(|what| error.message.contains(what)), "{error}");
    assert_eq!(broken_blob(|_| Reply::new(404, "")).await.kind, Kind::NotFound);
    assert_eq!(broken_blob(|_| Reply::new(403, "")).await.kind, Kind::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_body_is_an_error_after_some_attempts() {
    let error = broken_blob(|bytes| Reply { cut: Some(0), ..Reply::new(200, bytes) }).await;
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_broke() {
    for with_ranges in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let registry = Fake::start(move |request, content| {
            if !request.path.contains("/blobs/") {
                return None;
            }
            let mut request = request.clone();
            if !with_ranges {
                request.headers.remove("range");
            }
            let mut reply = answer(&request, content);
            let from = reply.headers.iter().any(|(name, _)| name == "Content-Range");
            if reply.body.len() > 3000 && !from {
                reply.cut = Some(if with_ranges { 1000 } else { reply.body.len() });
            }
            Some(reply)
        })
        .await;
        let mut noise = vec![0; 20_000];
        getrandom::fill(&mut noise).unwrap();
        registry.put_image("a/b", "latest", &[layer(&[("noise", &noise)])]);
        let images = open(root.path()).await;
        let name = registry.reference("a/b");
        pull(&images, &name).await.unwrap();
        assert_eq!(std::fs::read(stack(&images, &name)[0].join("noise")).unwrap(), noise);
        let requests = registry.requests.lock().unwrap().clone();
        let ranges: Vec<_> = requests.iter().filter_map(|r| r.headers.get("range").cloned()).collect();
        assert_eq!(ranges, if with_ranges { vec!["bytes=1000-".to_owned()] } else { Vec::new() });
    }
}

/// A server that drops the connection behind the last byte has sent all that is wanted.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_all_here_is_not_asked_for_again() {
    let root = tempfile::tempdir().unwrap();
    let registry = Fake::start(|request, content| {
        let bytes = answer(request, content).body;
        if !bytes.starts_with(&[0x1f, 0x8b]) || request.headers.contains_key("range") {
            return None;
        }
        // The chunk that says that it was the last one is missing.
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat();
        Some(Reply::new(200, chunk).header("Transfer-Encoding", "chunked"))
    })
    .await;
    let layers = [layer(&[("a", b"1")])];
    registry.put_image("a/b", "latest", &layers);
    let images = open(root.path()).await;
    pull(&images, &registry.reference("a/b")).await.unwrap();
    assert_eq!(registry.count(&Digest::of(&layers[0].0).to_string()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_manifests_configs_and_diff_ids_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let good = layer(&[("a", b"1")]);
    // The config says another diff ID.
    fake.put_image("a/diff", "latest", &[(good.0.clone(), b"something else".to_vec())]);
    let error = pull(&images, &fake.reference("a/diff")).await.unwrap_err();
    assert!(error.message.contains("its diff ID is"), "{error}");
    // The registry has something else under the digest.
    let (id, manifest) = fake.put_image("a/b", "latest", &[good]);
    fake.put(&format!("/v2/a/b/blobs/{id}"), "x", b"{}".to_vec());
    let error = pull(&images, &fake.reference("a/b")).await.unwrap_err();
    assert!(error.message.contains(&format!("blob {id}")) && error.message.contains("digest"), "{error}");
    let path = format!("/v2/a/b/manifests/{manifest}");
    fake.put(&path, OCI_MANIFEST, json!({"schemaVersion": 2, "manifests": []}).to_string().into_bytes());
    let error = pull(&images, &fake.reference(&format!("a/b@{manifest}"))).await.unwrap_err();
    assert!(error.message.contains("not what was asked for"), "{error}");
    // Too much of it.
    fake.put("/v2/a/big/manifests/latest", OCI_MANIFEST, vec![b' '; 5 << 20]);
    let error = pull(&images, &fake.reference("a/big")).await.unwrap_err();
    assert!(error.message.contains("longer than"), "{error}");
    fake.put("/v2/a/old/manifests/latest", "x", json!({"schemaVersion": 1}).to_string().into_bytes());
    let error = pull(&images, &fake.reference("a/old")).await.unwrap_err();
    assert!(error.message.contains("schema 1"), "{error}");
    assert!(images.list(None).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_followed_to_this_platform_and_gives_the_repo_digest() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let (id, manifest) = fake.put_image("a/b", "real", &[layer(&[("a", b"1")])]);
    let size = fake_size(&fake, "a/b", &manifest);
    let host = manifest::Platform::host();
    let platform = json!({"os": host.os, "architecture": host.architecture, "variant": host.variant});
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": Digest::of(b"no").to_string(), "size": 2,
         "platform": {"os": "linux", "architecture": "s390x"}},
        {"mediaType": OCI_MANIFEST, "digest": manifest.to_string(), "size": size, "platform": platform},
    ]});
    let inner = fake.put_manifest("a/b", "inner", OCI_INDEX, &inner);
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_INDEX, "digest": inner.to_string(), "size": fake_size(&fake, "a/b", &inner)},
    ]});
    let outer = fake.put_manifest("a/b", "outer", OCI_INDEX, &outer);
    let images = open(root.path()).await;
    let reference = fake.reference(&format!("a/b@{outer}"));
    assert_eq!(pull(&images, &reference).await.unwrap(), id.to_string());
    let image = images.list(Some(&reference)).unwrap().remove(0);
    assert_eq!(
        (image.repo_tags, image.repo_digests),
        (Vec::<String>::new(), vec![reference]),
        "BEHAVIOUR 5, 7"
    );
    let none = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": Digest::of(b"no").to_string(), "size": 2,
         "platform": {"os": "windows", "architecture": "amd64"}},
    ]});
    fake.put_manifest("a/b", "none", OCI_INDEX, &none);
    let error = pull(&images, &fake.reference("a/b:none")).await.unwrap_err();
    assert!(error.message.contains("no image for linux/"), "{error}");
    assert_eq!(error.kind, Kind::NotFound);
}

/// The size of a manifest that was put.
fn fake_size(fake: &Fake, repository: &str, digest: &Digest) -> usize {
    fake.size(&format!("/v2/{repository}/manifests/{digest}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_come_compressed_in_several_ways() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let [gz, members, zst, plain] =
        ["gz", "members", "zst", "plain"].map(|name| tar_of(&[(name, name.as_bytes())]));
    let several = [gzip(&members[..700]), gzip(&members[700..])].concat();
    let skippable =
        [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd::encode_all(&zst[..], 3).unwrap()]
            .concat();
    let layers = [(gzip(&gz), gz), (several, members), (skippable, zst), (plain.clone(), plain)];
    fake.put_image("a/b", "latest", &layers);
    let images = open(root.path()).await;
    pull(&images, &fake.reference("a/b")).await.unwrap();
    let stack = stack(&images, &fake.reference("a/b"));
    for (directory, name) in stack.iter().zip(["plain", "zst", "members", "gz"]) {
        assert_eq!(std::fs::read_to_string(directory.join(name)).unwrap(), name);
    }
}

/// A registry whose layer blobs wait for the gate.
async fn gated() -> (Fake, Arc<tokio::sync::Semaphore>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let count = AtomicUsize::new(0);
    let fake = Fake::start(move |request, content| {
        // The first blob of each image is its config.
        let layer = request.path.contains("/blobs/") && content[&request.path].1.starts_with(&[0x1f, 0x8b]);
        count.fetch_add(usize::from(layer), Ordering::Relaxed);
        layer.then(|| Reply { gate: Some(Arc::clone(&held)), ..answer(request, content) })
    })
    .await;
    (fake, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_joins_the_first_even_when_its_client_gave_up() {
    let root = tempfile::tempdir().unwrap();
    let (fake, gate) = gated().await;
    let (id, _) = fake.put_image("a/b", "latest", &[layer(&[("a", b"1")])]);
    let images = open(root.path()).await;
    let name = fake.reference("a/b");
    let first = tokio::spawn({
        let (images, name) = (images.clone(), name.clone());
        async move { pull(&images, &name).await }
    });
    eventually(|| fake.count("/blobs/") == 2).await;
    let second = tokio::spawn({
        let (images, name) = (images.clone(), name.clone());
        async move { pull(&images, &name).await }
    });
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    assert_eq!(second.await.unwrap().unwrap(), id.to_string());
    assert_eq!((fake.count("/manifests/"), fake.count("/blobs/")), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_fetched_once_for_all_images() {
    let root = tempfile::tempdir().unwrap();
    let (fake, gate) = gated().await;
    let shared = layer(&[("shared", b"1")]);
    let one = fake.put_image("a/one", "latest", &[shared.clone(), layer(&[("one", b"1")])]).0;
    let two = fake.put_image("a/two", "latest", &[shared.clone(), layer(&[("two", b"1")])]).0;
    let three = fake.put_image("a/three", "latest", &[shared.clone(), shared.clone()]).0;
    let images = open(root.path()).await;
    let names = ["a/one", "a/two", "a/three"].map(|name| fake.reference(name));
    gate.add_permits(100);
    let pulls = names.iter().map(|name| pull(&images, name));
    let ids = futures_util::future::try_join_all(pulls).await.unwrap();
    assert_eq!(ids, [one, two, three].map(|id| id.to_string()));
    assert_eq!(fake.count(&Digest::of(&shared.0).to_string()), 3 - 2, "one download");
    assert_eq!(entries(&root.path().join("layers")), 3);
    assert_eq!(stack(&images, &names[2]).len(), 1, "overlay refuses a directory twice");
    assert_eq!(stack(&images, &names[0])[1], stack(&images, &names[1])[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pulls_missing_permission_does_not_fail_another() {
    let root = tempfile::tempdir().unwrap();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let shared = layer(&[("shared", b"1")]);
    let path = format!("/blobs/{}", Digest::of(&shared.0));
    let fake = Fake::start(move |request, content| {
        let blob = request.path.ends_with(&path);
        if blob && request.path.contains("/poor/") {
            return Some(Reply { gate: Some(Arc::clone(&held)), ..Reply::new(403, "") });
        }
        Some(answer(request, content))
    })
    .await;
    fake.put_image("a/poor/b", "latest", std::slice::from_ref(&shared));
    fake.put_image("a/rich/b", "latest", &[shared, layer(&[("x", b"1")])]);
    let images = open(root.path()).await;
    let (poor, rich) = (fake.reference("a/poor/b"), fake.reference("a/rich/b"));
    let failing = tokio::spawn({
        let images = images.clone();
        async move { pull(&images, &poor).await }
    });
    eventually(|| fake.count("/poor/b/blobs/") == 2).await;
    let succeeding = tokio::spawn({
        let images = images.clone();
        async move { pull(&images, &rich).await }
    });
    eventually(|| fake.count("/rich/b/blobs/") == 2).await;
    gate.add_permits(1);
    assert_eq!(failing.await.unwrap().unwrap_err().kind, Kind::PermissionDenied);
    succeeding.await.unwrap().unwrap();
}
