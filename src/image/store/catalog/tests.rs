use super::*;

fn digest(of: &str) -> Digest {
    Digest::of(of.as_bytes())
}

fn image(id: &str, tag: Option<&str>, layers: &[&str]) -> NewImage {
    NewImage {
        id: digest(id),
        tag: tag.map(str::to_owned),
        digest: Some(format!("a.b/c@{}", digest(&format!("manifest of {id}")))),
        layers: layers.iter().map(|l| digest(l)).collect(),
        user: String::new(),
    }
}

fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    for (number, name) in ["base", "one", "two"].into_iter().enumerate() {
        let usage = Usage { bytes: 100, inodes: 2 };
        catalog.add_layer(digest(name), number as u64, usage, LayerState::Indexed);
    }
    catalog.put_image(image("1", Some("a.b/c:x"), &["base", "one"])).unwrap();
    catalog.put_image(image("2", Some("a.b/c:y"), &["base", "two"])).unwrap();
    catalog
}

fn find(catalog: &Catalog, text: &str) -> Option<Digest> {
    catalog.find(&Query::parse(text)).unwrap()
}

#[test]
fn behaviour_7_digests_survive_retagging() {
    let mut catalog = catalog();
    let new = image("2", Some("a.b/c:x"), &["base", "two"]);
    let records = catalog.records_for(&new);
    assert_eq!(records.len(), 2);
    assert!(records.iter().any(|(id, r)| *id == digest("1") && r.tags.is_empty() && r.digests.len() == 1));
    catalog.put_image(new).unwrap();
    let (first, second) = (catalog.image(digest("1")).unwrap(), catalog.image(digest("2")).unwrap());
    assert!(first.repo_tags.is_empty());
    assert_eq!(first.repo_digests.len(), 1);
    assert_eq!(second.repo_tags, ["a.b/c:x", "a.b/c:y"]);
    assert_eq!(find(&catalog, "a.b/c:x"), Some(digest("2")));
    assert_eq!(catalog.images().len(), 2);
}

#[test]
fn behaviour_6_removal_drops_all_names_and_unshared_layers() {
    let mut catalog = catalog();
    catalog.put_image(image("1", Some("a.b/c:z"), &["base", "one"])).unwrap();
    catalog.unname(digest("1"));
    assert_eq!(catalog.drop_unused_images(), [digest("1")]);
    let doomed: Vec<_> = catalog.drop_unused_layers().iter().map(|d| d.diff_id).collect();
    assert_eq!(doomed, [digest("one")]);
    assert_eq!(find(&catalog, "a.b/c:z"), None);
    assert_eq!(catalog.usage(), Usage { bytes: 200, inodes: 4 });
}

#[test]
fn behaviour_6_an_image_in_use_keeps_its_layers_until_the_last_release() {
    let mut catalog = catalog();
    assert!(catalog.hold(digest("1"), "p"));
    assert!(catalog.hold(digest("1"), "q"));
    assert!(!catalog.hold(digest("none"), "r"));
    let left = catalog.nameless_record(digest("1")).unwrap();
    catalog.unname(digest("1"));
    assert!(left.tags.is_empty() && left.digests.is_empty());
    assert!(catalog.drop_unused_images().is_empty());
    assert!(catalog.drop_unused_layers().is_empty());
    assert_eq!(catalog.images().len(), 1);
    assert_eq!(find(&catalog, &digest("1").to_string()), None);
    assert!(catalog.hold(digest("1"), "late"), "a removed image can be held while its layers stay");
    assert!(!catalog.release("p"));
    assert!(!catalog.release("q"));
    assert!(catalog.release("late"));
    assert_eq!(catalog.drop_unused_images(), [digest("1")]);
    assert_eq!(catalog.drop_unused_layers().len(), 1);
}

#[test]
fn a_pull_keeps_the_layers_it_needs() {
    let mut catalog = catalog();
    catalog.pin(digest("one"));
    catalog.pin(digest("not here yet"));
    catalog.unname(digest("1"));
    catalog.drop_unused_images();
    assert!(catalog.drop_unused_layers().is_empty());
    catalog.unpin(digest("one"));
    assert_eq!(catalog.drop_unused_layers().len(), 1);
}

#[test]
fn ids_are_found_by_prefix_unless_it_fits_several() {
    let mut catalog = Catalog::default();
    let many: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    for id in &many {
        catalog.put_image(image(id, None, &[])).unwrap();
    }
    let id = digest("7");
    assert_eq!(find(&catalog, &id.to_string()), Some(id));
    assert_eq!(find(&catalog, &id.hex()), Some(id));
    assert_eq!(find(&catalog, &id.hex()[..16]), Some(id));
    let shared = many.iter().map(|n| digest(n).hex()[..1].to_owned());
    let doubled = shared.clone().find(|c| shared.clone().filter(|d| c == d).count() > 1).unwrap();
    assert!(catalog.find(&Query::parse(&doubled)).is_err());
}

#[test]
fn pinned_images_are_known_by_pattern() {
    let mut catalog = catalog();
    catalog.pin_patterns(vec!["a.b/c:x".into(), "registry.k8s.io/pause:*".into()]);
    assert!(catalog.image(digest("1")).unwrap().pinned);
    assert!(!catalog.image(digest("2")).unwrap().pinned);
    assert!(fits("*", "a") && fits("a*", "a") && fits("*c", "abc") && fits("a*b*c", "a-b-b-c"));
    assert!(!fits("a", "ab") && !fits("a*b", "b") && !fits("ab*bc", "abc") && !fits("", "a"));
}

#[test]
fn a_withdrawn_layer_stays_for_its_holders_and_comes_anew_for_others() {
    let mut catalog = catalog();
    catalog.hold(digest("1"), "running");
    let images = catalog.images_with(digest("base"));
    assert_eq!(images.len(), 2);
    let kept = catalog.kept_by_holders(&images);
    let doomed = catalog.withdraw(&images, Some(digest("base")));
    assert_eq!((kept, doomed), (vec![("running".to_owned(), vec![0, 1])], None), "it is in use");
    assert!(catalog.images().is_empty() && !catalog.has_layer(digest("base")));
    // Of the others, what the container uses stays, and serves the next pull.
    let doomed: Vec<_> = catalog.drop_unused_layers().iter().map(|d| d.diff_id).collect();
    assert_eq!(doomed, [digest("two")]);
    catalog.add_layer(digest("base"), 7, Usage::default(), LayerState::Indexed);
    catalog.put_image(image("1", Some("a.b/c:x"), &["base", "one"])).unwrap();
    assert_eq!(catalog.stack(digest("1")).unwrap(), [1, 7]);
    assert!(catalog.layer_numbers().contains(&0));
    // As at a restart, when the image is here again.
    assert!(catalog.hold(digest("1"), "running") && catalog.drop_released().1.is_empty());
    // And withdrawn once more: what it really uses is what it had first.
    let images = catalog.images_with(digest("base"));
    let kept = catalog.kept_by_holders(&images);
    let doomed = catalog.withdraw(&images, Some(digest("base")));
    assert_eq!((kept, doomed), (vec![("running".to_owned(), vec![0, 1, 7])], None));
    assert!(catalog.release("running"));
    let (released, mut unused) = catalog.drop_released();
    unused.sort_unstable();
    assert_eq!((released, unused), (vec!["running".to_owned()], vec![0, 7]), "1 is still a layer");
    assert!(!catalog.layer_numbers().contains(&0) && catalog.holders().is_empty());
}

#[test]
fn users_are_numbers_or_names() {
    assert_eq!(user_of(""), (None, String::new()));
    assert_eq!(user_of("1002:1003"), (Some(1002), String::new()));
    assert_eq!(user_of("www-data:x"), (None, "www-data".into()));
}
