//! What the store holds, in memory: every list, status and count is answered from here.
//!
//! Pure bookkeeping: nothing here touches the disk, so that no reader waits for one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::index::{Contents, ImageRecord, LayerRecord};
use crate::image::digest::Digest;
use crate::image::reference::Query;
use crate::image::{Image, Usage};
use crate::{Error, Result};

/// Holders, and the numbers of the layers that they use of images that were withdrawn.
pub type Kept = Vec<(String, Vec<u64>)>;

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
#[derive(Clone)]
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
        if let Ok(id) = Digest::parse(&format!("sha256:{prefix}")) {
            return Ok(self.images.get(&id).filter(|image| image.is_named()).map(|_| id));
        }
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

    /// The numbers of the image's layers' directories, the topmost first. None: no such image, or it is
    /// not whole.
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
            self.let_go(holder);
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
        self.let_go(holder) || kept
    }

    /// What it uses of a withdrawn image stays its own.
    fn let_go(&mut self, holder: &str) -> bool {
        let Some(image) = self.holders.remove(holder).and_then(|id| self.images.get_mut(&id)) else {
            return false;
        };
        image.holders.remove(holder);
        image.holders.is_empty() && !image.is_named()
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

    pub fn place_of(&self, diff_id: Digest) -> Option<(u64, LayerState)> {
        self.layers.get(&diff_id).map(|layer| (layer.number, layer.state))
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

    /// Drops the images, whose holders go on using what they have, and the layer. Returns the layer's number
    /// where nobody uses it.
    pub fn withdraw(&mut self, images: &[Digest], diff_id: Option<Digest>) -> Option<u64> {
        let kept = self.kept_by_holders(images);
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
        let layer = diff_id.and_then(|diff_id| self.layers.remove(&diff_id))?;
        self.usage.bytes -= layer.usage.bytes;
        self.usage.inodes -= layer.usage.inodes;
        let unused = !self.layer_numbers().contains(&layer.number);
        unused.then_some(layer.number)
    }

    /// What the holders of `images` go on using when those are withdrawn; what they use of an earlier one
    /// stays theirs, too.
    pub fn kept_by_holders(&self, images: &[Digest]) -> Kept {
        let images = images.iter().filter_map(|id| self.images.get(id));
        let kept = images.flat_map(|image| {
            let of_it: Vec<_> = image.layers.iter().filter_map(|l| self.number_of(*l)).collect();
            image.holders.iter().map(move |holder| {
                let mut numbers = self.kept.get(holder).cloned().unwrap_or_default();
                numbers.extend(&of_it);
                numbers.sort_unstable();
                numbers.dedup();
                (holder.clone(), numbers)
            })
        });
        kept.collect()
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
mod tests;
