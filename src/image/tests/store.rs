use super::fake::{Fake, layer};
use super::*;
use crate::error::Kind;

async fn pulled(
    images: &Images,
    fake: &Fake,
    repository: &str,
    tag: &str,
    files: &[(&str, &[u8])],
) -> String {
    fake.put_image(repository, tag, &[layer(&[("base", b"base")]), layer(files)]);
    images.pull(&fake.reference(&format!("{repository}:{tag}")), Auth::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_7_names_survive_retagging_and_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let old = pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    let new = pulled(&images, &fake, "a/b", "v1", &[("x", b"2")]).await;
    let before = images.list(None).unwrap();
    let usage = images.usage();
    let by_id = |id: &str| before.iter().find(|image| image.id == id).unwrap();
    assert_eq!((by_id(&old).repo_tags.len(), by_id(&old).repo_digests.len()), (0, 1));
    assert_eq!((by_id(&new).repo_tags.len(), by_id(&new).repo_digests.len()), (1, 1));
    drop(images);
    let images = reopen(root.path()).await;
    assert_eq!(images.list(None).unwrap(), before);
    assert_eq!(images.usage(), usage);
    assert_eq!(images.status(&fake.reference("a/b:v1")).unwrap().unwrap().image.id, new);
}

/// The index is free once the last task of the old one has ended.
pub async fn reopen(root: &Path) -> Images {
    for _ in 0..1000 {
        let config = super::Config { root: root.to_owned(), ..super::Config::default() };
        match Images::open(config).await {
            Ok(images) => return images,
            Err(error) => assert!(error.message.contains("in use"), "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the store stayed in use");
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_6_removal_drops_all_names_and_is_idempotent() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let id = pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    assert_eq!(pulled(&images, &fake, "a/b", "v2", &[("x", b"1")]).await, id);
    pulled(&images, &fake, "a/other", "v1", &[("y", b"1")]).await;
    let name = fake.reference("a/b:v2");
    let removals = (0..8).map(|_| images.remove(&name));
    futures_util::future::try_join_all(removals).await.unwrap();
    assert_eq!(images.list(None).unwrap().len(), 1);
    assert!(images.status(&id).unwrap().is_none());
    images.remove(&id).await.unwrap();
    images.remove("!").await.unwrap();
    // The shared layer stays.
    let layers = root.path().join("layers");
    eventually(|| entries(&layers) == 2 && entries(&root.path().join("staging")) == 0).await;
    let stack = images.status(&fake.reference("a/other:v1")).unwrap().unwrap().layers;
    assert!(stack.iter().all(|layer| layer.is_dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_6_a_held_image_keeps_its_layers_over_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let id = pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    let held = images.hold(&id, "container").unwrap();
    assert_eq!(images.hold(&id, "container").unwrap().layers, held.layers);
    images.hold(&id, "forgotten").unwrap();
    images.remove(&id).await.unwrap();
    assert!(images.list(None).unwrap().is_empty() && images.status(&id).unwrap().is_none());
    drop(images);
    let images = reopen(root.path()).await;
    assert!(images.list(None).unwrap().is_empty());
    assert_eq!(images.hold(&id, "container").unwrap().layers, held.layers, "held again at start-up");
    assert!(held.layers.iter().all(|layer| layer.is_dir()));
    images.retain_holders(&HashSet::from(["container".to_owned()]));
    assert!(images.usage().bytes > 0);
    images.release("container");
    images.release("container");
    eventually(|| entries(&root.path().join("layers")) == 0 && images.usage() == Usage::default()).await;
    assert_eq!(images.hold(&id, "container").unwrap_err().kind, Kind::NotFound);
    assert_eq!(entries(&root.path().join("holders")), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_pulled_again_while_held_is_listed_again() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let id = pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    images.hold(&id, "container").unwrap();
    images.remove(&id).await.unwrap();
    let fetched = fake.count("/blobs/");
    assert_eq!(pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await, id);
    assert_eq!(fake.count("/blobs/"), fetched + 1, "the config alone");
    images.release("container");
    assert_eq!(images.list(None).unwrap().len(), 1);
    assert!(images.status(&id).unwrap().unwrap().layers.iter().all(|layer| layer.is_dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_names_cannot_leave_their_directory() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let id = pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    for holder in ["", "..", "../x", "a/b", ".", "a\0"] {
        assert_eq!(images.hold(&id, holder).unwrap_err().kind, Kind::InvalidArgument);
        images.release(holder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_freed_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let id = pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    drop(images);
    for leftover in ["staging/900/fs/half", "layers/901/fs/placed but not indexed"] {
        std::fs::create_dir_all(root.path().join(leftover)).unwrap();
    }
    let images = reopen(root.path()).await;
    eventually(|| entries(&root.path().join("staging")) == 0 && entries(&root.path().join("layers")) == 2)
        .await;
    assert!(images.status(&id).unwrap().is_some());
    let other = pulled(&images, &fake, "a/c", "v1", &[("y", b"1")]).await;
    assert!(images.status(&other).unwrap().unwrap().layers[0].join("y").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_an_error_and_one_that_lacks_a_layer_serves_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    pulled(&images, &fake, "a/b", "v1", &[("x", b"1")]).await;
    let config = || super::Config { root: root.path().to_owned(), ..super::Config::default() };
    let refused = async || {
        let error = Images::open(config()).await.err().unwrap();
        assert_eq!(error.kind, Kind::FailedPrecondition, "{error}");
        assert_eq!(entries(&root.path().join("layers")), 2);
        error.message
    };
    assert!(refused().await.contains("in use by another"));
    drop(images);
    drop(reopen(root.path()).await);
    let index = root.path().join("index.redb");
    let good = loop {
        // Background work of the store just dropped still has it open.
        if Images::open(config()).await.is_ok() {
            break std::fs::read(&index).unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    std::fs::remove_file(&index).unwrap();
    assert!(refused().await.contains("has 2 layers but no"));
    std::fs::write(&index, vec![0x55; 8192]).unwrap();
    assert!(refused().await.contains("nothing was changed"));
    std::fs::write(&index, &good[..good.len() / 2]).unwrap();
    assert!(!refused().await.is_empty());
    std::fs::write(&index, &good).unwrap();
    let name = std::fs::read(root.path().join("store")).unwrap();
    std::fs::remove_file(root.path().join("store")).unwrap();
    assert!(refused().await.contains("has 2 layers but no"));
    std::fs::write(root.path().join("store"), "another").unwrap();
    assert!(refused().await.contains("belongs to another store"));
    std::fs::write(root.path().join("store"), name).unwrap();
    let gone = std::fs::read_dir(root.path().join("layers")).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(&gone, root.path().join("gone")).unwrap();
    let images = Images::open(config()).await.unwrap();
    assert!(images.list(None).unwrap().is_empty(), "its image cannot be used");
}

/// Pulls that end together are committed together; each gets its own names, also where they are
/// names of the same image, or the same name.
#[tokio::test(flavor = "multi_thread")]
async fn commits_at_once_keep_every_name() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let base = layer(&[("base", b"base")]);
    for number in 0..24 {
        let own = layer(&[("own", format!("{}", number % 8).as_bytes())]);
        fake.put_image("a/b", &format!("v{number}"), &[base.clone(), own]);
    }
    let names: Vec<_> = (0..24).map(|number| fake.reference(&format!("a/b:v{number}"))).collect();
    let pulls = names.iter().map(|name| images.pull(name, Auth::default()));
    let ids = futures_util::future::try_join_all(pulls).await.unwrap();
    let check = |images: &Images| {
        let list = images.list(None).unwrap();
        assert_eq!(list.len(), 8);
        for (name, id) in names.iter().zip(&ids) {
            let image = list.iter().find(|image| image.id == *id).unwrap();
            assert!(image.repo_tags.contains(name), "{name}: {image:?}");
            assert_eq!(image.repo_tags.len(), 3);
            assert_eq!(images.status(name).unwrap().unwrap().image.id, *id);
        }
    };
    check(&images);
    drop(images);
    check(&reopen(root.path()).await);
    assert_eq!(entries(&root.path().join("staging")), 0);
}

/// What could not be made durable is fetched anew: a second try of its commit would find nothing wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_leaves_nothing_to_a_second_try() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let layers = [layer(&[("base", b"base")]), layer(&[("own", b"own")])];
    let blobs = layers.each_ref().map(|(zipped, _)| format!("blobs/{}", Digest::of(zipped)));
    fake.put_image("a/b", "v1", &layers);
    let name = fake.reference("a/b:v1");
    // In the way of the layer that is placed last.
    let obstacle = root.path().join("layers/2");
    std::fs::create_dir(&obstacle).unwrap();
    let error = images.pull(&name, Auth::default()).await.unwrap_err();
    assert!(error.message.contains("renaming") && error.message.contains("layers/2"), "{error}");
    assert!(images.list(None).unwrap().is_empty());
    std::fs::remove_dir(&obstacle).unwrap();
    eventually(|| entries(&root.path().join("layers")) == 0 && entries(&root.path().join("staging")) == 0)
        .await;
    images.pull(&name, Auth::default()).await.unwrap();
    assert_eq!(blobs.map(|blob| fake.count(&blob)), [2, 2]);
    assert!(images.status(&name).unwrap().is_some());
}
