//! What the store holds, in memory: every list, status and count is answered from here.
//!
//! Pure bookkeeping: nothing here touches the disk, so that no reader waits for one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::index::{Contents, ImageRecord, LayerRecord};
use crate::image::digest::Digest;
use crate::image::reference::Query;
use crate::image::{Image, Usage};
use crate::{Error, Result};

#[derive(Default)]
pub struct Catalog {
    images: BTreeMap<Digest, ImageEntry>,
    /// `HOST/REPOSITORY:TAG` and `HOST/REPOSITORY@DIGEST`.
    names: HashMap<String, Digest>,
    layers: HashMap<Digest, LayerEntry>,
    holders: HashMap<String, Digest>,
    /// Numbers of layers that holders use of images that were withdrawn.
    kept: HashMap<String, Vec<u64>>,
    /// Holders whose record of the same in the index is to go.
    released: Vec<String>,
    /// How many pulls need a layer, which may not be here yet.
    pins: HashMap<Digest, usize>,
    usage: Usage,
    /// Names with `*`: images that are not to be collected.
    pinned: Vec<String>,
}

struct ImageEntry {
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
    layers: Vec<Digest>,
    user: String,
    holders: HashSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Unpacked under `staging/`; perhaps not yet on the disk itself.
    Staged,
    /// Durable under `layers/`, but not yet in the index.
    Placed,
    Indexed,
}

struct LayerEntry {
    number: u64,
    usage: Usage,
    state: LayerState,
    /// Images that have it.
    images: usize,
}

/// A layer that is to be deleted: its directory's number, and where that is.
#[derive(Debug, Clone, Copy)]
pub struct Doomed {
    pub diff_id: Digest,
    pub number: u64,
    pub state: LayerState,
}

/// A new or newly named image.
pub struct NewImage {
    pub id: Digest,
    pub tag: Option<String>,
    /// `HOST/REPOSITORY@DIGEST`; an archive may know none.
    pub digest: Option<String>,
    pub layers: Vec<Digest>,
    pub user: String,
}

impl ImageEntry {
    fn record(&self) -> ImageRecord {
        ImageRecord {
            tags: self.tags.iter().cloned().collect(),
            digests: self.digests.iter().cloned().collect(),
            layers: self.layers.iter().map(Digest::to_string).collect(),
            user: self.user.clone(),
        }
    }

    fn is_named(&self) -> bool {
        !self.tags.is_empty() || !self.digests.is_empty()
    }
}

impl Catalog {
    pub fn load(contents: Contents) -> Result<Self> {
        let mut catalog = Self { kept: contents.kept.into_iter().collect(), ..Self::default() };
        for (diff_id, LayerRecord { number, bytes, inodes }) in contents.layers {
            catalog.add_layer(diff_id, number, Usage { bytes, inodes }, LayerState::Indexed);
        }
        for (id, record) in contents.images {
            let layers = record.layers.iter().map(|l| Digest::parse(l)).collect::<Result<Vec<_>>>()?;
            for name in record.tags.iter().chain(&record.digests) {
                catalog.names.insert(name.clone(), id);
            }
            let (tags, digests) = (record.tags.into_iter().collect(), record.digests.into_iter().collect());
            let entry = ImageEntry { tags, digests, layers, user: record.user, holders: HashSet::new() };
            catalog.insert_image(id, entry)?;
        }
        Ok(catalog)
    }

    fn insert_image(&mut self, id: Digest, entry: ImageEntry) -> Result<()> {
        for layer in &entry.layers {
            let layer = self.layers.get_mut(layer).ok_or_else(|| {
                Error::precondition(format!(
                    "the image index is damaged: image {id} needs layer {layer}, which it lacks"
                ))
            })?;
            layer.images += 1;
        }
        self.images.insert(id, entry);
        Ok(())
    }

    /// The image that `query` means: by name first, then by ID or a prefix of just one ID.
    pub fn find(&self, query: &Query) -> Result<Option<Digest>> {
        if let Some(name) = &query.name
            && let Some(id) = self.names.get(&name.to_string())
        {
            return Ok(Some(*id));
        }
        let Some(prefix) = &query.id_prefix else { return Ok(None) };
        let named = self.images.iter().filter(|(_, image)| image.is_named());
        let mut matching = named.map(|(id, _)| *id).filter(|id| id.hex().starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(Error::invalid(format!("several image IDs begin with {prefix}"))),
            (first, _) => Ok(first),
        }
    }

    pub fn images(&self) -> Vec<Image> {
        let named = self.images.iter().filter(|(_, image)| image.is_named());
        named.map(|(id, image)| self.shown(*id, image)).collect()
    }

    pub fn image(&self, id: Digest) -> Option<Image> {
        self.images.get(&id).map(|image| self.shown(id, image))
    }

    fn shown(&self, id: Digest, image: &ImageEntry) -> Image {
        let (uid, username) = user_of(&image.user);
        Image {
            id: id.to_string(),
            repo_tags: image.tags.iter().cloned().collect(),
            repo_digests: image.digests.iter().cloned().collect(),
            size: image.layers.iter().filter_map(|l| self.layers.get(l)).map(|l| l.usage.bytes).sum(),
            uid,
            username,
            pinned: image.tags.iter().chain(&image.digests).any(|name| self.is_pinned(name)),
        }
    }

    pub fn pin_patterns(&mut self, patterns: Vec<String>) {
        self.pinned = patterns;
    }

    fn is_pinned(&self, name: &str) -> bool {
        self.pinned.iter().any(|pattern| fits(pattern, name))
    }

    /// The numbers of the image's layers' directories, the topmost first.
    pub fn stack(&self, id: Digest) -> Option<Vec<u64>> {
        let image = self.images.get(&id)?;
        image.layers.iter().rev().map(|l| self.layers.get(l).map(|l| l.number)).collect()
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    pub fn add_layer(&mut self, diff_id: Digest, number: u64, usage: Usage, state: LayerState) {
        self.usage.bytes += usage.bytes;
        self.usage.inodes += usage.inodes;
        self.layers.insert(diff_id, LayerEntry { number, usage, state, images: 0 });
    }

    pub fn has_layer(&self, diff_id: Digest) -> bool {
        self.layers.contains_key(&diff_id)
    }

    /// Keeps a layer for a pull, now or as soon as it is here.
    pub fn pin(&mut self, diff_id: Digest) {
        *self.pins.entry(diff_id).or_default() += 1;
    }

    pub fn unpin(&mut self, diff_id: Digest) {
        let Some(pins) = self.pins.get_mut(&diff_id) else { return };
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&diff_id);
        }
    }

    /// Of `layers`, those that are not in the index yet.
    pub fn unindexed(&self, layers: &[Digest]) -> Vec<(Digest, LayerRecord, LayerState)> {
        let entry = |id: &Digest| {
            let layer = self.layers.get(id).filter(|l| l.state != LayerState::Indexed)?;
            let Usage { bytes, inodes } = layer.usage;
            Some((*id, LayerRecord { number: layer.number, bytes, inodes }, layer.state))
        };
        layers.iter().filter_map(entry).collect()
    }

    pub fn set_state(&mut self, diff_id: Digest, state: LayerState) {
        if let Some(layer) = self.layers.get_mut(&diff_id) {
            layer.state = state;
        }
    }

    /// The records that the index gets for `new`: its own, and that of an image which loses the
    /// tag to it. The latter keeps its digests (BEHAVIOUR 7).
    pub fn records_for(&self, new: &NewImage) -> Vec<(Digest, ImageRecord)> {
        let mut records = Vec::new();
        let mut record = self.images.get(&new.id).map(ImageEntry::record).unwrap_or_default();
        record.layers = new.layers.iter().map(Digest::to_string).collect();
        record.user.clone_from(&new.user);
        for (list, name) in [(&mut record.tags, new.tag.as_ref()), (&mut record.digests, new.digest.as_ref())]
        {
            let Some(name) = name else { continue };
            if !list.contains(name) {
                list.push(name.clone());
            }
            if let Some(other) = self.names.get(name).filter(|id| **id != new.id)
                && let Some(image) = self.images.get(other)
            {
                let mut loser = image.record();
                loser.tags.retain(|tag| tag != name);
                loser.digests.retain(|digest| digest != name);
                records.push((*other, loser));
            }
        }
        records.push((new.id, record));
        records
    }

    /// Takes in `new`, as [`Self::records_for`] said. Its layers must be here.
    pub fn put_image(&mut self, new: NewImage) -> Result<()> {
        if !self.images.contains_key(&new.id) {
            let (tags, digests) = (BTreeSet::new(), BTreeSet::new());
            let entry =
                ImageEntry { tags, digests, layers: new.layers, user: new.user, holders: HashSet::new() };
            self.insert_image(new.id, entry)?;
        }
        let tag = new.tag.map(|tag| (tag, true));
        for (name, is_tag) in tag.into_iter().chain(new.digest.map(|digest| (digest, false))) {
            if let Some(other) = self.names.insert(name.clone(), new.id)
                && let Some(image) = self.images.get_mut(&other)
            {
                image.tags.remove(&name);
                image.digests.remove(&name);
            }
            if let Some(image) = self.images.get_mut(&new.id) {
                if is_tag {
                    image.tags.insert(name)
                } else {
                    image.digests.insert(name)
                };
            }
        }
        Ok(())
    }

    /// The image's record without its names.
    pub fn nameless_record(&self, id: Digest) -> Option<ImageRecord> {
        let record = self.images.get(&id)?.record();
        Some(ImageRecord { tags: Vec::new(), digests: Vec::new(), ..record })
    }

    /// Takes all names from the image: it is listed no more.
    pub fn unname(&mut self, id: Digest) {
        let Some(image) = self.images.get_mut(&id) else { return };
        for name in image.tags.iter().chain(&image.digests) {
            self.names.remove(name);
        }
        image.tags.clear();
        image.digests.clear();
    }

    /// Whether the image has all these names already.
    pub fn is_named(&self, new: &NewImage) -> bool {
        let mut names = new.tag.iter().chain(&new.digest);
        names.all(|name| self.names.get(name) == Some(&new.id))
    }

    /// Images that neither a name nor a container keeps leave the catalog.
    pub fn drop_unused_images(&mut self) -> Vec<Digest> {
        let unused = |image: &ImageEntry| !image.is_named() && image.holders.is_empty();
        let doomed: Vec<_> =
            self.images.iter().filter(|(_, image)| unused(image)).map(|(id, _)| *id).collect();
        for id in &doomed {
            for layer in self.images.remove(id).map(|image| image.layers).unwrap_or_default() {
                if let Some(layer) = self.layers.get_mut(&layer) {
                    layer.images = layer.images.saturating_sub(1);
                }
            }
        }
        doomed
    }

    /// Layers that neither an image nor a pull needs leave the catalog.
    pub fn drop_unused_layers(&mut self) -> Vec<Doomed> {
        let kept: HashSet<_> = self.kept.values().flatten().copied().collect();
        let unused = self.layers.iter().filter(|(id, layer)| {
            layer.images == 0 && !self.pins.contains_key(*id) && !kept.contains(&layer.number)
        });
        let doom = |(id, layer): (&Digest, &LayerEntry)| Doomed {
            diff_id: *id,
            number: layer.number,
            state: layer.state,
        };
        let doomed: Vec<_> = unused.map(doom).collect();
        for layer in &doomed {
            if let Some(layer) = self.layers.remove(&layer.diff_id) {
                self.usage.bytes -= layer.usage.bytes;
                self.usage.inodes -= layer.usage.inodes;
            }
        }
        doomed
    }

    /// False where there is no such image.
    pub fn hold(&mut self, id: Digest, holder: &str) -> bool {
        if !self.images.contains_key(&id) {
            return false;
        }
        if self.holders.get(holder) != Some(&id) {
            self.release(holder);
        }
        if let Some(image) = self.images.get_mut(&id) {
            image.holders.insert(holder.to_owned());
            self.holders.insert(holder.to_owned(), id);
        }
        true
    }

    /// True where the image that was held has nothing left that keeps it.
    pub fn release(&mut self, holder: &str) -> bool {
        let kept = self.kept.contains_key(holder);
        if kept {
            self.released.push(holder.to_owned());
        }
        let Some(image) = self.holders.remove(holder).and_then(|id| self.images.get_mut(&id)) else {
            return kept;
        };
        image.holders.remove(holder);
        kept || (image.holders.is_empty() && !image.is_named())
    }

    /// All that have a directory: of layers, and withdrawn ones.
    pub fn layer_numbers(&self) -> HashSet<u64> {
        self.layers.values().map(|layer| layer.number).chain(self.kept.values().flatten().copied()).collect()
    }

    /// Diff IDs and numbers of the layers that the index has.
    pub fn indexed_layers(&self) -> Vec<(Digest, u64)> {
        let indexed = self.layers.iter().filter(|(_, layer)| layer.state == LayerState::Indexed);
        indexed.map(|(id, layer)| (*id, layer.number)).collect()
    }

    pub fn number_of(&self, diff_id: Digest) -> Option<u64> {
        self.layers.get(&diff_id).map(|layer| layer.number)
    }

    pub fn image_ids(&self) -> Vec<Digest> {
        self.images.keys().copied().collect()
    }

    pub fn images_with(&self, diff_id: Digest) -> Vec<Digest> {
        let with = self.images.iter().filter(|(_, image)| image.layers.contains(&diff_id));
        with.map(|(id, _)| *id).collect()
    }

    pub fn names_with(&self, diff_id: Digest) -> Vec<String> {
        let with = self.images.values().filter(|image| image.layers.contains(&diff_id));
        with.flat_map(|image| image.tags.iter().chain(&image.digests)).cloned().collect()
    }

    /// What the holders of `images` go on using when those are withdrawn.
    pub fn kept_by_holders(&self, images: &[Digest]) -> Vec<(String, Vec<u64>)> {
        let images = images.iter().filter_map(|id| self.images.get(id));
        let kept = images.flat_map(|image| {
            let numbers: Vec<_> = image.layers.iter().filter_map(|l| self.number_of(*l)).collect();
            image.holders.iter().map(move |holder| (holder.clone(), numbers.clone()))
        });
        kept.collect()
    }

    /// Drops the images, and the layer. Returns its number where nobody uses it.
    pub fn withdraw(
        &mut self,
        images: &[Digest],
        diff_id: Option<Digest>,
        kept: Vec<(String, Vec<u64>)>,
    ) -> Option<u64> {
        for id in images {
            self.unname(*id);
            for layer in self.images.remove(id).map(|image| image.layers).unwrap_or_default() {
                if let Some(layer) = self.layers.get_mut(&layer) {
                    layer.images = layer.images.saturating_sub(1);
                }
            }
        }
        for (holder, numbers) in kept {
            self.holders.remove(&holder);
            self.kept.insert(holder, numbers);
        }
        let layer = self.layers.remove(&diff_id?)?;
        self.usage.bytes -= layer.usage.bytes;
        self.usage.inodes -= layer.usage.inodes;
        (!self.layer_numbers().contains(&layer.number)).then_some(layer.number)
    }

    /// Holders that let go of withdrawn layers, and the numbers that nobody uses any more.
    pub fn drop_released(&mut self) -> (Vec<String>, Vec<u64>) {
        let released = std::mem::take(&mut self.released);
        let numbers: HashSet<_> = released.iter().filter_map(|h| self.kept.remove(h)).flatten().collect();
        let used = self.layer_numbers();
        (released, numbers.difference(&used).copied().collect())
    }

    /// The holders that hold images for a container's volumes: `CONTAINER.NUMBER`.
    pub fn volume_holders(&self, container: &str) -> Vec<String> {
        let of_it =
            |holder: &&String| holder.strip_prefix(container).is_some_and(|rest| rest.starts_with('.'));
        self.holders.keys().chain(self.kept.keys()).filter(of_it).cloned().collect()
    }

    pub fn holders(&self) -> Vec<String> {
        self.holders.keys().chain(self.kept.keys()).cloned().collect()
    }
}

/// Whether `pattern`, in which `*` stands for any characters, fits the whole name.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The config's User, `USER[:GROUP]`: a number or a name.
fn user_of(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
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
        assert!(
            records.iter().any(|(id, r)| *id == digest("1") && r.tags.is_empty() && r.digests.len() == 1)
        );
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
        assert_eq!(kept, [("running".to_owned(), vec![0, 1])]);
        assert_eq!(catalog.withdraw(&images, Some(digest("base")), kept), None, "it is in use");
        assert!(catalog.images().is_empty() && !catalog.has_layer(digest("base")));
        // Of the others, what the container uses stays, and serves the next pull.
        let doomed: Vec<_> = catalog.drop_unused_layers().iter().map(|d| d.diff_id).collect();
        assert_eq!(doomed, [digest("two")]);
        catalog.add_layer(digest("base"), 7, Usage::default(), LayerState::Indexed);
        catalog.put_image(image("1", Some("a.b/c:x"), &["base", "one"])).unwrap();
        assert_eq!(catalog.stack(digest("1")).unwrap(), [1, 7]);
        assert!(catalog.layer_numbers().contains(&0));
        assert!(catalog.release("running"));
        assert_eq!(catalog.drop_released(), (vec!["running".to_owned()], vec![0]));
        assert!(!catalog.layer_numbers().contains(&0) && catalog.holders().is_empty());
    }

    #[test]
    fn users_are_numbers_or_names() {
        assert_eq!(user_of(""), (None, String::new()));
        assert_eq!(user_of("1002:1003"), (Some(1002), String::new()));
        assert_eq!(user_of("www-data:x"), (None, "www-data".into()));
    }
}
