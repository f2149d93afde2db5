//! What runs beside each other in one store: pulls, imports, removals, repairs, containers that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{join_all, try_join_all};

use super::archives::{archive, config, import};
use super::fake::{Fake, layer, tar_of};
use super::*;
use crate::error::Kind;

type Layer = (Vec<u8>, Vec<u8>);

/// A layer of so many files, which takes its time to be deleted.
fn many_files(what: &str, count: usize) -> Layer {
    let names: Vec<_> = (0..count).map(|n| format!("{what}/{n}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), what.as_bytes())).collect();
    layer(&files)
}

/// Images `a/0` and on, of a common layer and one of their own; their references.
fn family(fake: &Fake, count: usize) -> Vec<String> {
    let base = layer(&[("base", b"base")]);
    let put = |n: usize| {
        fake.put_image(&format!("a/{n}"), "v1", &[base.clone(), many_files(&format!("own{n}"), 20)]);
        fake.reference(&format!("a/{n}:v1"))
    };
    (0..count).map(put).collect()
}

fn whole(images: &Images) {
    for image in images.list(None).unwrap() {
        let Some(resolved) = images.status(&image.id).unwrap() else { continue };
        assert_eq!(resolved.layers.len(), 2, "{image:?}");
        assert!(resolved.layers.iter().all(|layer| layer.is_dir()), "{image:?}");
        assert_eq!(std::fs::read(resolved.layers[1].join("base")).unwrap(), b"base", "{image:?}");
    }
}

async fn each_pulled(images: &Images, names: &[String]) {
    let pull = |name: &String| {
        let (images, name) = (images.clone(), name.clone());
        tokio::spawn(async move { images.pull(&name, Auth::default()).await })
    };
    let pulls = names.iter().map(pull).collect::<Vec<_>>();
    try_join_all(pulls).await.unwrap().into_iter().for_each(|pulled| drop(pulled.unwrap()));
}

/// A repair withdraws a layer that other pulls count on: they end all the same, and what there is afterwards
/// is whole, and opens again.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_beside_pulls_leaves_whole_images_and_a_sound_index() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let names = family(&fake, 8);
    let mut images = open(root.path()).await;
    for round in 0..12 {
        images.pull(&names[0], Auth::default()).await.unwrap();
        let base = images.status(&names[0]).unwrap().unwrap().layers.remove(1);
        std::fs::write(base.join("base"), "torn").unwrap();
        let repairs = async {
            for _ in 0..3 {
                images.check(true).await.unwrap();
            }
        };
        tokio::join!(each_pulled(&images, &names[1..]), repairs);
        whole(&images);
        assert_eq!(images.check(false).await.unwrap().faults, [], "round {round}");
        drop(images);
        images = super::store::reopen(root.path()).await;
        whole(&images);
        join_all(names.iter().map(|name| images.remove(name))).await;
    }
}

/// The same again and again, while images are committed one after the other: none is left behind that lacks the
/// layer that went.
#[tokio::test(flavor = "multi_thread")]
async fn repairs_beside_commits_leave_no_image_without_its_layers() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let names = family(&fake, 12);
    let mut images = open(root.path()).await;
    for _ in 0..4 {
        let pulls = names.iter().zip(0..).map(|(name, number)| {
            let (images, name) = (images.clone(), name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(4 * number)).await;
                match images.pull(&name, Auth::default()).await {
                    Err(error) if error.message.contains("was withdrawn") => {}
                    ended => drop(ended.unwrap()),
                }
            })
        });
        let pulls: Vec<_> = pulls.collect();
        while !pulls.iter().all(|pull| pull.is_finished()) {
            for image in images.list(None).unwrap() {
                let Some(resolved) = images.status(&image.id).unwrap() else { continue };
                assert_eq!(resolved.layers.len(), 2);
                // Gone already, perhaps.
                let _ = std::fs::write(resolved.layers[1].join("base"), "torn");
            }
            images.check(true).await.unwrap();
        }
        try_join_all(pulls).await.unwrap();
        images.check(true).await.unwrap();
        whole(&images);
        drop(images);
        images = super::store::reopen(root.path()).await;
        whole(&images);
        join_all(names.iter().map(|name| images.remove(name))).await;
    }
}

/// Whoever holds an image has its layers until he lets go of it, whatever a repair does meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_beside_a_repair_stays() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let names = family(&fake, 1);
    let images = open(root.path()).await;
    for round in 0..25 {
        let id = images.pull(&names[0], Auth::default()).await.unwrap();
        let own = images.status(&id).unwrap().unwrap().layers.remove(0);
        std::fs::write(own.join("own0/0"), "torn").unwrap();
        let holding = {
            let (images, id) = (images.clone(), id.clone());
            tokio::task::spawn_blocking(move || {
                let mut held = Vec::new();
                for number in 0.. {
                    let holder = format!("container{number}");
                    match images.hold(&id, &holder) {
                        Ok(resolved) => held.push((holder, resolved.layers)),
                        Err(error) if error.kind == Kind::NotFound => return (held, holder),
                        Err(error) => panic!("{error}"),
                    }
                }
                unreachable!()
            })
        };
        assert_eq!(images.check(true).await.unwrap().faults.len(), 1, "round {round}");
        let (held, refused) = holding.await.unwrap();
        images.release(&refused);
        for (holder, layers) in &held {
            assert!(layers.iter().all(|layer| layer.is_dir()), "round {round}, {holder}: {layers:?}");
        }
        held.iter().for_each(|(holder, _)| images.release(holder));
        eventually(|| entries(&root.path().join("layers")) == 0).await;
        eventually(|| entries(&root.path().join("staging")) == 0).await;
    }
}

/// The same beside removals, which a sweep follows.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_beside_a_removal_stays() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let names = family(&fake, 1);
    let images = open(root.path()).await;
    for round in 0..25 {
        let id = images.pull(&names[0], Auth::default()).await.unwrap();
        let holder = format!("container{round}");
        let holding = {
            let (images, id, holder) = (images.clone(), id.clone(), holder.clone());
            tokio::task::spawn_blocking(move || images.hold(&id, &holder))
        };
        images.remove(&names[0]).await.unwrap();
        match holding.await.unwrap() {
            Ok(resolved) => {
                images.sweep();
                assert!(resolved.layers.iter().all(|layer| layer.is_dir()), "round {round}");
            }
            Err(error) => assert_eq!(error.kind, Kind::NotFound, "round {round}: {error}"),
        }
        images.release(&holder);
        eventually(|| entries(&root.path().join("layers")) == 0).await;
    }
}

/// A directory that its last container lets go of is no stray one, whenever a check looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_beside_released_layers_finds_nothing() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let names = family(&fake, 10);
    let images = open(root.path()).await;
    for round in 0..8 {
        each_pulled(&images, &names).await;
        for (number, name) in names.iter().enumerate() {
            let resolved = images.hold(&images.status(name).unwrap().unwrap().image.id, &number.to_string());
            std::fs::write(resolved.unwrap().layers[0].join(format!("own{number}/0")), "torn").unwrap();
        }
        assert_eq!(images.check(true).await.unwrap().faults.len(), names.len());
        let done = Arc::new(AtomicBool::new(false));
        let checking = {
            let (images, done) = (images.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(images.check(false).await.unwrap().faults, [], "round {round}");
                }
            })
        };
        (0..names.len()).for_each(|number| images.release(&number.to_string()));
        eventually(|| entries(&root.path().join("layers")) == 0 || checking.is_finished()).await;
        done.store(true, Ordering::Relaxed);
        checking.await.unwrap();
    }
}

/// Status and list tell of what is there, or that it is not, and never fail in between.
#[tokio::test(flavor = "multi_thread")]
async fn status_beside_removals_and_pulls_is_one_or_the_other() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let names = family(&fake, 2);
    let images = open(root.path()).await;
    let done = Arc::new(AtomicBool::new(false));
    let asking = (0..2).map(|_| {
        let (images, names, done) = (images.clone(), names.clone(), Arc::clone(&done));
        tokio::task::spawn_blocking(move || {
            while !done.load(Ordering::Relaxed) {
                for name in &names {
                    if let Some(resolved) = images.status(name).unwrap() {
                        assert_eq!(resolved.layers.len(), 2);
                    }
                }
            }
        })
    });
    let asking: Vec<_> = asking.collect();
    for _ in 0..40 {
        each_pulled(&images, &names).await;
        join_all(names.iter().map(|name| images.remove(name))).await;
    }
    done.store(true, Ordering::Relaxed);
    try_join_all(asking).await.unwrap();
}

/// An archive and a registry that bring the same layers at the same time, and removals in between.
#[tokio::test(flavor = "multi_thread")]
async fn imports_beside_pulls_of_the_same_layers() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let plain = [tar_of(&[("base", b"base")]), tar_of(&[("own", b"own")])];
    fake.put_image("a/b", "v1", &plain.clone().map(|plain| (super::fake::gzip(&plain), plain)));
    let name = fake.reference("a/b:v1");
    // As `docker save` names them: layers that are here are passed over.
    let files = plain.clone().map(|plain| (format!("{}.tar", Digest::of(&plain).hex()), plain));
    let layers: Vec<_> = files.iter().map(|(name, _)| name).collect();
    let manifest =
        serde_json::json!([{"Config": "c.json", "RepoTags": ["a.b/imported:v1"], "Layers": layers}]);
    let mut files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    files.push(("c.json", config(&[&plain[0], &plain[1]])));
    files.push(("manifest.json", manifest.to_string().into_bytes()));
    let bytes = archive(&files, &[]);
    let images = open(root.path()).await;
    for round in 0..30 {
        let removals = async {
            for _ in 0..4 {
                images.remove(&name).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let pull = images.pull(&name, Auth::default());
        let (pulled, imported, ()) = tokio::join!(pull, import(&images, bytes.clone(), None), removals);
        pulled.unwrap_or_else(|e| panic!("round {round}: {e}"));
        imported.unwrap_or_else(|e| panic!("round {round}: {e}"));
        whole(&images);
        if round % 3 == 0 {
            images.remove("a.b/imported:v1").await.unwrap();
        }
        images.remove(&name).await.unwrap();
    }
    images.remove("a.b/imported:v1").await.unwrap();
    eventually(|| images.usage() == Usage::default() && entries(&root.path().join("layers")) == 0).await;
    eventually(|| entries(&root.path().join("staging")) == 0).await;
}

/// A layer that an import passes over, since it is here, stays until the import has ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_keeps_what_it_counts_on() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let images = open(root.path()).await;
    let plain = [tar_of(&[("base", b"base")]), tar_of(&[("new", b"new")])];
    fake.put_image("a/b", "v1", &[(super::fake::gzip(&plain[0]), plain[0].clone())]);
    let name = fake.reference("a/b:v1");
    images.pull(&name, Auth::default()).await.unwrap();
    let here = format!("{}.tar", Digest::of(&plain[0]).hex());
    let layers = [here.as_str(), "new.tar"];
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["a.b/c:v1"], "Layers": layers}]);
    let files = [
        (layers[0], plain[0].clone()),
        (layers[1], plain[1].clone()),
        ("c.json", config(&[&plain[0], &plain[1]])),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    let bytes = archive(&files, &[]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let importing = tokio::spawn({
        let images = images.clone();
        async move { images.import(Box::new(reader), None).await }
    });
    // Up to some bytes of the second layer: once that is being unpacked, the first was passed over.
    let (first, rest) = bytes.split_at(512 + plain[0].len() + 512 + 1024);
    std::io::Write::write_all(&mut writer, first).unwrap();
    eventually(|| entries(&root.path().join("staging")) == 1).await;
    images.remove(&name).await.unwrap();
    images.store.sweep().unwrap();
    std::io::Write::write_all(&mut writer, rest).unwrap();
    drop(writer);
    importing.await.unwrap().unwrap();
    whole(&images);
}
