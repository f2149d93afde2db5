//! Stores that are damaged, and their repair.

use super::fake::{Fake, layer};
use super::*;

async fn pulled(images: &Images, fake: &Fake) -> (String, Vec<PathBuf>) {
    let name = fake.reference("a/b:v1");
    images.pull(&name, Auth::default()).await.unwrap();
    let layers = images.status(&name).unwrap().unwrap().layers;
    (name, layers)
}

async fn fake() -> Fake {
    let fake = Fake::plain().await;
    let upper = layer(&[("etc/one", b"1"), ("etc/two", b"2"), ("etc/three", b"3"), ("etc/four", b"4")]);
    fake.put_image("a/b", "v1", &[layer(&[("base", b"base")]), upper]);
    fake
}

fn damage(layer: &Path) {
    let etc = layer.join("etc");
    std::fs::remove_file(etc.join("one")).unwrap();
    std::fs::write(etc.join("two"), "x").unwrap();
    std::fs::write(etc.join("three"), "longer").unwrap();
    std::fs::write(etc.join("foreign"), "").unwrap();
    std::os::unix::fs::chown(etc.join("four"), Some(7), None).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_named_and_nothing_is_done_unasked() {
    let root = tempfile::tempdir().unwrap();
    let (fake, images) = (fake().await, open(root.path()).await);
    let (name, layers) = pulled(&images, &fake).await;
    let report = images.check(false).await.unwrap();
    assert_eq!((report.layers, report.unverified, report.faults.len()), (2, 0, 0));
    damage(&layers[0]);
    std::fs::create_dir_all(root.path().join("layers/900/fs")).unwrap();
    let report = images.check(false).await.unwrap();
    let [torn, stray] = &report.faults[..] else { panic!("{report:?}") };
    let mut found = torn.found.clone();
    found.sort();
    assert_eq!(
        found,
        [
            "\"etc/foreign\" is foreign",
            "\"etc/four\" belongs to 7:0, not 0:0",
            "\"etc/one\" is missing",
            "\"etc/three\" has 6 bytes, not 1",
            "\"etc/two\" has other content",
        ]
    );
    assert!(torn.images.contains(&name) && stray.what.ends_with("layers/900"));
    assert!(images.status(&name).unwrap().is_some() && layers[0].is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_withdraws_and_the_next_pull_makes_it_anew() {
    let root = tempfile::tempdir().unwrap();
    let (fake, images) = (fake().await, open(root.path()).await);
    let (name, layers) = pulled(&images, &fake).await;
    let id = images.status(&name).unwrap().unwrap().image.id;
    images.hold(&id, "running").unwrap();
    damage(&layers[0]);
    assert_eq!(images.check(true).await.unwrap().faults.len(), 1);
    assert!(images.status(&name).unwrap().is_none(), "kubelet pulls it again");
    assert!(layers.iter().all(|layer| layer.is_dir()), "an overlay stands on them");
    let (_, anew) = pulled(&images, &fake).await;
    assert_ne!(anew[0], layers[0]);
    assert_eq!(anew[1], layers[1], "the layer below is whole");
    assert_eq!(std::fs::read(anew[0].join("etc/one")).unwrap(), b"1");
    assert!(images.check(false).await.unwrap().faults.is_empty());
    // Over a restart, too, what a container uses stays.
    drop(images);
    let images = super::store::reopen(root.path()).await;
    images.retain_holders(&HashSet::from(["running".to_owned()]));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(layers[0].is_dir());
    images.release("running");
    eventually(|| !layers[0].exists()).await;
    assert!(anew.iter().all(|layer| layer.is_dir()));
    assert!(images.check(false).await.unwrap().faults.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_a_daemon_is_checked_too() {
    let root = tempfile::tempdir().unwrap();
    let (fake, images) = (fake().await, open(root.path()).await);
    let (_, layers) = pulled(&images, &fake).await;
    drop(images);
    drop(super::store::reopen(root.path()).await);
    std::fs::remove_dir_all(layers[1].parent().unwrap()).unwrap();
    std::fs::remove_file(layers[0].parent().unwrap().join("manifest")).unwrap();
    let check = async |repair: bool| {
        // Background work of the store just dropped still has it open.
        for _ in 0..1000 {
            match check_offline(root.path(), repair) {
                Ok(report) => return report,
                Err(error) => assert!(error.message.contains("in use"), "{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the store stayed in use");
    };
    let report = check(true).await;
    assert_eq!((report.layers, report.unverified, report.faults.len()), (2, 1, 1));
    assert!(report.faults[0].found[0].contains("is missing"));
    assert!(check(false).await.faults.is_empty());
    assert!(super::store::reopen(root.path()).await.list(None).unwrap().is_empty());
    assert!(check_offline(&root.path().join("none"), false).is_err());
}

/// A layer that goes between two looks at it is no fault, and none that cannot be verified.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_beside_removals_finds_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (fake, images) = (Fake::plain().await, std::sync::Arc::new(open(root.path()).await));
    let layers: Vec<_> =
        (0..12).map(|n| layer(&[(format!("file{n}").as_str(), &[n as u8; 20_000][..])])).collect();
    fake.put_image("a/b", "v1", &layers);
    let name = fake.reference("a/b:v1");
    for round in 0..25 {
        images.pull(&name, Auth::default()).await.unwrap();
        let checker = std::sync::Arc::clone(&images);
        let checking = tokio::spawn(async move {
            let mut reports = Vec::new();
            while reports.last().is_none_or(|report: &Report| report.layers > 0) {
                reports.push(checker.check(false).await.unwrap());
            }
            reports
        });
        images.remove(&name).await.unwrap();
        for report in checking.await.unwrap() {
            assert_eq!((report.unverified, report.faults), (0, vec![]), "round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_layer_costs_its_images_and_not_the_start() {
    let root = tempfile::tempdir().unwrap();
    let (fake, images) = (fake().await, open(root.path()).await);
    let (name, layers) = pulled(&images, &fake).await;
    fake.put_image("a/other", "v1", &[layer(&[("other", b"1")])]);
    let other = fake.reference("a/other:v1");
    images.pull(&other, Auth::default()).await.unwrap();
    let usage = images.usage();
    drop(images);
    std::fs::remove_dir_all(layers[0].parent().unwrap()).unwrap();
    let images = super::store::reopen(root.path()).await;
    assert!(images.status(&name).unwrap().is_none());
    assert!(images.status(&other).unwrap().is_some());
    images.pull(&name, Auth::default()).await.unwrap();
    let layers = images.status(&name).unwrap().unwrap().layers;
    assert_eq!(std::fs::read(layers[0].join("etc/four")).unwrap(), b"4");
    eventually(|| images.usage() == usage).await;
    assert!(images.check(false).await.unwrap().faults.is_empty());
}

/// Attributes are compared as well, but of a layer whose manifest is from before they were noted.
#[tokio::test(flavor = "multi_thread")]
async fn attributes_that_differ_are_named() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut builder = tar::Builder::new(Vec::new());
    for name in ["capable", "other", "plain", "same", "dir/.wh..wh..opq"] {
        if name != "plain" && !name.starts_with("dir") {
            let records: [(&str, &[u8]); 2] = [
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.trusted.kind", b"of test"),
            ];
            builder.append_pax_extensions(records).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    let plain = builder.into_inner().unwrap();
    let fake = Fake::plain().await;
    fake.put_image("a/b", "v1", &[(super::fake::gzip(&plain), plain)]);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    let (_, layers) = pulled(&images, &fake).await;
    assert_eq!(images.check(false).await.unwrap().faults, []);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::removexattr(layers[0].join("capable"), "security.capability").unwrap();
    rustix::fs::setxattr(layers[0].join("other"), "trusted.kind", b"of other", flags).unwrap();
    rustix::fs::setxattr(layers[0].join("plain"), "trusted.new", b"", flags).unwrap();
    rustix::fs::removexattr(layers[0].join("dir"), "trusted.overlay.opaque").unwrap();
    let report = images.check(false).await.unwrap();
    let [fault] = &report.faults[..] else { panic!("{report:?}") };
    let mut found = fault.found.clone();
    found.sort();
    assert_eq!(
        found,
        [
            "\"capable\" has no attribute security.capability",
            "\"dir\" has no attribute trusted.overlay.opaque",
            "\"other\" has another attribute trusted.kind",
            "\"plain\" has the foreign attribute trusted.new",
        ]
    );
    let manifest = layers[0].parent().unwrap().join("manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    let version = b"podwright layer ".len();
    assert_eq!(std::mem::replace(&mut bytes[version], b'1'), b'2');
    std::fs::write(&manifest, bytes).unwrap();
    assert_eq!(images.check(false).await.unwrap().faults, []);
}
