//! A registry whose images are made to harm: each pull fails with a sentence, and nothing stays.

use serde_json::json;

use super::fake::{Fake, OCI_MANIFEST, Reply, answer, gzip, tar_of};
use super::*;
use crate::error::Kind;

const LIMITS: Limits = Limits { bytes: 4 << 20, entries: 500, depth: 40 };

async fn refused_by(images: &Images, root: &Path, reference: &str) -> Error {
    let error = images.pull(reference, Auth::default()).await.unwrap_err();
    assert!(images.list(None).unwrap().is_empty());
    assert_eq!(images.usage(), Usage::default());
    assert_eq!(entries(&root.join("store/staging")) + entries(&root.join("store/layers")), 0, "{error}");
    let outside = std::fs::read(root.join("outside")).unwrap();
    assert_eq!(outside, b"untouched");
    error
}

async fn open_limited(root: &Path) -> Images {
    std::fs::write(root.join("outside"), "untouched").unwrap();
    let config = super::super::Config { root: root.join("store"), limits: LIMITS, ..Default::default() };
    Images::open(config).await.unwrap()
}

/// A layer's archive of raw entries: kind, name, link target, size field.
fn raw(entries: &[(u8, &str, &str, Option<[u8; 12]>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (kind, name, link, size) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        if let Some(size) = size {
            gnu.size = *size;
        }
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
    }
    archive.extend_from_slice(&[0; 1024]);
    archive
}

/// A file behind an extended header with one record.
fn with_pax(key: &str, value: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([(key, value)]).unwrap();
    let mut archive = builder.into_inner().unwrap();
    archive.truncate(archive.len() - 1024);
    archive.extend(tar_of(&[("x", b"")]));
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_want_out_or_too_much() {
    let negative = Some([0xff; 12]);
    let overflowing = Some(*b"777777777777");
    let deep = "d/".repeat(45);
    let half = "d/".repeat(30);
    let longer = format!("l/{half}");
    let many: Vec<_> = (0..600).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(|name| (b'5', name.as_str(), "", None)).collect();
    let implied: Vec<_> = (0..20).map(|n| format!("{n}/{}", "d/".repeat(30))).collect();
    let implied: Vec<_> = implied.iter().map(|name| (b'5', name.as_str(), "", None)).collect();
    let long =
        |n: usize| with_pax("path", format!("{n}{}", format!("/{}", "n".repeat(200)).repeat(19)).as_bytes());
    let long: Vec<u8> =
        (0..20).flat_map(|n| long(n)[..].strip_suffix(&[0; 1024]).unwrap().to_vec()).collect();
    let zeros = vec![0; 6 << 20];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("..", raw(&[(b'0', "../../outside", "", None)])),
        ("..", raw(&[(b'0', "a/../../outside", "", None)])),
        ("..", raw(&[(b'1', "a", "../outside", None)])),
        ("hard link", raw(&[(b'1', "a", "/outside", None)])),
        ("whiteout", raw(&[(b'0', "a/.wh...", "", None)])),
        ("whiteout", raw(&[(b'0', ".wh.", "", None)])),
        // A directory that is swapped for a link before something is put into it.
        ("", raw(&[(b'5', "d", "", None), (b'2', "d", "../..", None), (b'1', "d/x", "no", None)])),
        ("negative", raw(&[(b'0', "a", "", negative)])),
        ("", raw(&[(b'0', "a", "", overflowing)])),
        ("deeper", raw(&[(b'5', &deep, "", None)])),
        // No name is deep, but the way through the link is.
        ("deeper", raw(&[(b'5', &half, "", None), (b'2', "l", &half, None), (b'5', &longer, "", None)])),
        ("longer", with_pax("path", "d/".repeat(4096).as_bytes())),
        ("entries", raw(&many)),
        // A few entries that make many directories on their way, and names that fill memory.
        ("entries", raw(&implied)),
        ("together", long),
        ("larger", tar_of(&[("bomb", &zeros)])),
        // Nothing but a hole.
        ("larger", with_pax("GNU.sparse.size", b"5000000000")),
        // Behind the archive's end, where no file counts it.
        ("larger", [tar_of(&[("a", b"1")]), vec![0; 64 << 20]].concat()),
        ("too long", with_pax("comment", &vec![b'x'; 2 << 20])),
        ("PAX", with_pax("path", b"a\0b")),
        ("PAX", with_pax("size", b"-5")),
        ("uid", with_pax("uid", b"4294967295")),
        ("", with_pax("size", b"18446744073709551615")),
    ];
    let root = tempfile::tempdir().unwrap();
    let images = open_limited(root.path()).await;
    for (number, (word, plain)) in cases.into_iter().enumerate() {
        let fake = Fake::plain().await;
        fake.put_image("evil/image", "v1", &[(gzip(&plain), plain)]);
        let error = refused_by(&images, root.path(), &fake.reference("evil/image:v1")).await;
        assert_eq!(error.kind, Kind::InvalidArgument, "case {number}: {error}");
        assert!(error.message.contains(word), "case {number}: {error}");
        assert!(error.message.contains("repository evil/image, blob sha256:"), "case {number}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_and_odd_names_are_what_they_are_and_stay_inside() {
    let plain = raw(&[
        (b'3', "null", "", None),
        (b'0', "new\nline", "", None),
        (b'2', "link", "../../outside", None),
        (b'0', "link", "", None),
    ]);
    let root = tempfile::tempdir().unwrap();
    let images = open_limited(root.path()).await;
    let fake = Fake::plain().await;
    fake.put_image("odd/image", "v1", &[(gzip(&plain), plain)]);
    let name = fake.reference("odd/image:v1");
    images.pull(&name, Auth::default()).await.unwrap();
    let layer = images.status(&name).unwrap().unwrap().layers.remove(0);
    use std::os::unix::fs::FileTypeExt;
    assert!(std::fs::symlink_metadata(layer.join("null")).unwrap().file_type().is_char_device());
    assert!(layer.join("new\nline").is_file());
    assert!(std::fs::symlink_metadata(layer.join("link")).unwrap().is_file(), "replaced, not followed");
    assert_eq!(std::fs::read(root.path().join("outside")).unwrap(), b"untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_never_end_or_lie_about_sizes() {
    let root = tempfile::tempdir().unwrap();
    let images = open_limited(root.path()).await;
    let plain = tar_of(&[("a", b"1")]);
    let image = vec![(gzip(&plain), plain)];
    // Documents and blobs without an end.
    for part in ["/manifests/", "/blobs/"] {
        let fake = Fake::start(move |request, content| {
            request.path.contains(part).then(|| Reply { endless: true, ..answer(request, content) })
        })
        .await;
        fake.put_image("a/b", "v1", &image);
        let error = refused_by(&images, root.path(), &fake.reference("a/b:v1")).await;
        assert!(error.message.contains("longer than"), "{error}");
    }
    // A refusal that takes for ever to explain itself.
    let fake = Fake::start(|request, _| {
        (request.path != "/v2/").then(|| Reply { trickle: true, ..Reply::new(403, "{") })
    })
    .await;
    let name = fake.reference("a/b:v1");
    let refusal = refused_by(&images, root.path(), &name);
    let refusal = tokio::time::timeout(std::time::Duration::from_secs(120), refusal).await;
    assert_eq!(refusal.expect("an end").kind, Kind::PermissionDenied);
    // A manifest of 100 MB.
    let fake = Fake::plain().await;
    fake.put("/v2/a/b/manifests/v1", OCI_MANIFEST, vec![b' '; 100 << 20]);
    let error = refused_by(&images, root.path(), &fake.reference("a/b:v1")).await;
    assert!(error.message.contains("longer than"), "{error}");
    // A manifest whose sizes lie, in both directions.
    for delta in [-1_i64, 1] {
        let fake = Fake::plain().await;
        let (_, digest) = fake.put_image("a/b", "v1", &image);
        let bytes = fake.bytes(&format!("/v2/a/b/manifests/{digest}"));
        let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let size = manifest["layers"][0]["size"].as_i64().unwrap();
        manifest["layers"][0]["size"] = json!(size + delta);
        fake.put_manifest("a/b", "v1", OCI_MANIFEST, &manifest);
        let error = refused_by(&images, root.path(), &fake.reference("a/b:v1")).await;
        assert!(error.message.contains("longer than") || error.message.contains("it ended after"), "{error}");
    }
    // Content-Length that is more or less than what comes.
    for len in ["1", "1000000"] {
        let fake = Fake::start(move |request, content| {
            let blob = request.path.contains("/blobs/");
            blob.then(|| answer(request, content).header("Content-Length", len))
        })
        .await;
        fake.put_image("a/b", "v1", &image);
        refused_by(&images, root.path(), &fake.reference("a/b:v1")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_fit_fails_before_a_byte_is_fetched() {
    let root = tempfile::tempdir().unwrap();
    let images = open_limited(root.path()).await;
    let fake = Fake::plain().await;
    let plain = tar_of(&[("a", b"1")]);
    let (_, digest) = fake.put_image("a/b", "v1", &[(gzip(&plain), plain)]);
    let bytes = fake.bytes(&format!("/v2/a/b/manifests/{digest}"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    manifest["layers"][0]["size"] = json!(1_u64 << 60);
    fake.put_manifest("a/b", "v1", OCI_MANIFEST, &manifest);
    let error = refused_by(&images, root.path(), &fake.reference("a/b:v1")).await;
    assert_eq!(error.kind, Kind::ResourceExhausted, "{error}");
    assert!(error.message.contains("are missing"), "{error}");
    assert_eq!(fake.count("/blobs/"), 1, "the config alone");
}
