use super::fake::{Fake, layer};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_listed_and_resolved() {
    let root = tempfile::tempdir().unwrap();
    let fake = Fake::plain().await;
    let layers = [layer(&[("a/b", b"one"), ("x", b"1")]), layer(&[("a/c", b"two")])];
    let (id, manifest) = fake.put_image("some/image", "v1", &layers);
    let images = open(root.path()).await;
    let name = fake.reference("some/image:v1");
    let pulled = images.pull(&name, Auth::default()).await.unwrap();
    assert_eq!(pulled, id.to_string(), "BEHAVIOUR 5");
    let list = images.list(None).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].repo_tags, [name.clone()]);
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
}
