//! The store on disk.
//!
//! ```text
//! ROOT/store                the store's own name, 32 hex digits
//! ROOT/index.redb           see `index`
//! ROOT/layers/NUMBER/fs     a layer as overlay's lower directory; numbers keep mount options short
//! ROOT/layers/NUMBER/diff-id  which one it is, for people and for repair
//! ROOT/layers/NUMBER/manifest what it had when it was unpacked, see `unpack::record`
//! ROOT/staging/NUMBER       a layer being unpacked, or one being deleted; nothing refers to it
//! ROOT/holders/ID           a symbolic link whose target is the image that container ID uses, its
//!                           digest in base64
//! ROOT/empty                the lower directory of an image without layers
//! ROOT/bottom               below an image that is mounted without a writable layer
//! ```
//!
//! A commit, of all the images that wait for one, is: everything written → syncfs → rename
//! `staging/N` to `layers/N` → fsync of both → one index transaction. A cut in between leaves
//! directories that no index record names; they are found and deleted at the next start. A deletion
//! goes the same way backwards: transaction, rename, unlink. Holders are links because making one is a single atomic call, cheap enough for
//! every CreateContainer; what a power cut takes of them had no running container left.

mod catalog;
pub mod check;
mod commit;
mod index;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
pub use catalog::NewImage;
use catalog::{Catalog, Doomed, LayerState};
use commit::Commit;
use index::{Change, Index};
use rustix::fs::{IFlags, RenameFlags};

use super::digest::Digest;
use super::unpack::{self, Applied};
use crate::error::Step;
use crate::{Error, Result};

pub struct Store {
    root: PathBuf,
    /// Open since before anything was written: syncfs(2) tells an open file of each lost write once, and
    /// one that is opened afterwards of none.
    directory: File,
    index: Index,
    catalog: RwLock<Catalog>,
    /// One change of names and layers at a time.
    change: Mutex<()>,
    /// What the next change is to commit.
    commits: Mutex<Vec<Commit>>,
    next_number: AtomicU64,
    /// Of layers that are staged: directories without an entry of their own.
    implied: Mutex<HashMap<Digest, Vec<Vec<u8>>>>,
}

/// A directory to unpack a layer into. Dropped, it is deleted.
pub struct Staging {
    number: u64,
    path: PathBuf,
    keep: bool,
}

impl Staging {
    /// Overlay's lower directory to be.
    pub fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// What the layer had when it was unpacked.
    pub fn manifest(&self) -> PathBuf {
        self.path.join("manifest")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.keep {
            delete(&self.path);
        }
    }
}

impl Store {
    /// Opens the store, or makes an empty one where there is none. Blocking.
    pub fn open(root: &Path) -> Result<Self> {
        make_directory(root, 0o700)?;
        for (name, mode) in
            [("layers", 0o700), ("staging", 0o700), ("holders", 0o700), ("empty", 0o755), ("bottom", 0o755)]
        {
            make_directory(&root.join(name), mode)?;
        }
        let directory = File::open(root).step(|| format!("opening {}", root.display()))?;
        spread(&root.join("staging"));
        let index = open_index(root)?;
        let mut catalog = Catalog::load(index.contents()?)?;
        load_holders(&root.join("holders"), &mut catalog)?;
        let last = catalog.layer_numbers().into_iter().max().unwrap_or(0);
        let last = numbers(&root.join("staging"))?
            .into_iter()
            .chain(numbers(&root.join("layers"))?)
            .fold(last, u64::max);
        Ok(Self {
            root: root.to_owned(),
            directory,
            index,
            catalog: RwLock::new(catalog),
            change: Mutex::default(),
            commits: Mutex::default(),
            next_number: AtomicU64::new(last + 1),
            implied: Mutex::default(),
        })
    }

    /// Deletes what an interrupted pull or removal left. Blocking, perhaps for long; call it once,
    /// with what [`Self::leftovers`] found before the first pull.
    pub fn delete_leftovers(&self, leftovers: Vec<PathBuf>) {
        for path in leftovers {
            tracing::info!(path = %path.display(), "deleting what an interrupted pull or removal left");
            delete(&path);
        }
        self.sweep_logged();
    }

    /// A layer whose directory is not there is withdrawn with its images: they are pulled anew, and the
    /// others are served.
    pub fn withdraw_missing(&self) -> Result<()> {
        let indexed = self.catalog().indexed_layers();
        for (diff_id, number) in indexed {
            let path = self.layer_path(number);
            match fs::metadata(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let names = self.catalog().names_with(diff_id);
                    tracing::error!(path = %path.display(), %diff_id, ?names, "a layer is missing: withdrawing its images");
                    self.withdraw_layer(diff_id, number)?;
                }
                Err(e) => {
                    return Err(Error::io(format!("opening the image store: layer {}", path.display()), e));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Directories that nothing refers to.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let known = self.catalog().layer_numbers();
        let (staging, layers) = (self.root.join("staging"), self.root.join("layers"));
        let mut leftovers: Vec<_> =
            numbers(&staging)?.into_iter().map(|n| staging.join(n.to_string())).collect();
        let unknown = numbers(&layers)?.into_iter().filter(|n| !known.contains(n));
        leftovers.extend(unknown.map(|n| layers.join(n.to_string())));
        Ok(leftovers)
    }

    pub fn catalog(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn catalog_mut(&self) -> RwLockWriteGuard<'_, Catalog> {
        self.catalog.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The config's bytes, verbatim. Blocking, but short: a read of one record.
    pub fn config(&self, id: Digest) -> Result<Vec<u8>> {
        self.index.config(id)
    }

    /// Overlay's lower directories, the topmost first; at least one.
    pub fn lower_directories(&self, stack: &[u64]) -> Vec<PathBuf> {
        if stack.is_empty() {
            return vec![self.root.join("empty")];
        }
        stack.iter().map(|number| self.layer_path(*number)).collect()
    }

    /// An empty directory that no image's stack has.
    pub fn bottom(&self) -> PathBuf {
        self.root.join("bottom")
    }

    fn layer_path(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(number.to_string()).join("fs")
    }

    pub fn stage(&self) -> Result<Staging> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("staging").join(number.to_string());
        make_directory(&path, 0o700)?;
        make_directory(&path.join("fs"), 0o755)?;
        Ok(Staging { number, path, keep: false })
    }

    /// The layer is unpacked and verified: pulls can use it, and the next commit makes it durable.
    pub fn staged(&self, mut staging: Staging, diff_id: Digest, applied: Applied) -> Result<()> {
        let path = staging.path.join("diff-id");
        fs::write(&path, format!("{diff_id}\n")).step(|| format!("writing {}", path.display()))?;
        staging.keep = true;
        if !applied.implied.is_empty() {
            self.implied.lock().unwrap_or_else(PoisonError::into_inner).insert(diff_id, applied.implied);
        }
        self.catalog_mut().add_layer(diff_id, staging.number, applied.usage, LayerState::Staged);
        Ok(())
    }

    fn placed(&self, number: u64, state: LayerState) -> PathBuf {
        let parent = if state == LayerState::Staged { "staging" } else { "layers" };
        self.root.join(parent).join(number.to_string()).join("fs")
    }

    /// Takes the image's names, durably; [`Self::sweep`] frees the rest. Blocking.
    pub fn unname(&self, id: Digest) -> Result<()> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = self.catalog().nameless_record(id) else { return Ok(()) };
        self.index.apply(&Change { put_images: vec![(id, record)], ..Change::default() })?;
        self.catalog_mut().unname(id);
        Ok(())
    }

    /// Frees what nothing uses: images without names and holders, layers without images and pulls.
    /// Blocking, as long as deleting takes.
    pub fn sweep(&self) -> Result<()> {
        let change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let (images, (delete_kept, withdrawn), layers) = {
            let mut catalog = self.catalog_mut();
            let (images, released) = (catalog.drop_unused_images(), catalog.drop_released());
            (images, released, catalog.drop_unused_layers())
        };
        let indexed = layers.iter().filter(|l| l.state == LayerState::Indexed).map(|l| l.diff_id).collect();
        let change_of_index =
            Change { delete_images: images, delete_layers: indexed, delete_kept, ..Change::default() };
        if !change_of_index.is_empty() {
            // On an error the directories stay; the next start sweeps again.
            self.index.apply(&change_of_index)?;
        }
        let placed = layers.iter().filter(|l| l.state != LayerState::Staged).map(|l| l.number);
        let taken: Vec<_> = placed.chain(withdrawn.iter().copied()).map(|n| self.take_away(n)).collect();
        drop(change);
        let doomed = layers.iter().map(|Doomed { number, .. }| *number).chain(withdrawn);
        doomed.for_each(|number| delete(&self.root.join("staging").join(number.to_string())));
        taken.into_iter().collect()
    }

    pub fn sweep_logged(&self) {
        if let Err(error) = self.sweep() {
            tracing::error!(%error, "freeing unused image layers failed");
        }
    }

    fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.directory)
            .step(|| format!("syncing the filesystem of {}", self.root.display()))
    }

    /// What the filesystem has left for us.
    pub fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.root);
        let stat = stat.step(|| format!("asking how much is free in {}", self.root.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Notes that `holder` uses the image, in memory and for the next daemon.
    pub fn hold(&self, id: Digest, holder: &str) -> Result<()> {
        let link = self.holder_path(holder)?;
        if !self.catalog_mut().hold(id, holder) {
            return Err(Error::not_found(format!("image {id} is not here")));
        }
        let target = holder_target(id);
        let made = match symlink(&target, &link) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let same = fs::read_link(&link).is_ok_and(|there| there.as_os_str() == target.as_str());
                if same { Ok(()) } else { fs::remove_file(&link).and_then(|()| symlink(&target, &link)) }
            }
            other => other,
        };
        made.step(|| format!("making {}", link.display())).inspect_err(|_| {
            self.catalog_mut().release(holder);
        })
    }

    /// True where [`Self::sweep`] now has something to do.
    pub fn release(&self, holder: &str) -> bool {
        if let Ok(link) = self.holder_path(holder)
            && let Err(error) = fs::remove_file(&link)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %link.display(), %error, "removing an image's holder failed");
        }
        self.catalog_mut().release(holder)
    }

    fn holder_path(&self, holder: &str) -> Result<PathBuf> {
        if holder.is_empty() || holder.starts_with('.') || holder.contains(['/', '\0']) {
            return Err(Error::invalid(format!("{holder:?} cannot hold an image")));
        }
        Ok(self.root.join("holders").join(holder))
    }

    fn rename(&self, number: u64, from: &str, to: &str) -> Result<()> {
        let number = number.to_string();
        let (from, to) = (self.root.join(from).join(&number), self.root.join(to).join(&number));
        let result =
            rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, RenameFlags::NOREPLACE);
        result.step(|| format!("renaming {} to {}", from.display(), to.display()))
    }

    /// Moves a layer's directory, if it is still there, to where nothing refers to it. With the lock on
    /// changes: in between, a directory that the index has not would look like a stray one.
    fn take_away(&self, number: u64) -> Result<()> {
        match self.rename(number, "layers", "staging") {
            Err(_) if !self.root.join("layers").join(number.to_string()).exists() => Ok(()),
            other => other,
        }
    }

    fn sync_directories(&self) -> Result<()> {
        for name in ["staging", "layers"] {
            sync_directory(&self.root.join(name))?;
        }
        Ok(())
    }
}

fn open_index(root: &Path) -> Result<Index> {
    let (name, index) = (root.join("store"), root.join("index.redb"));
    let layers = numbers(&root.join("layers"))?.len();
    match fs::read_to_string(&name) {
        Ok(store) if index.exists() => Index::open(&index, store.trim()),
        Ok(_) => Err(missing(&index, layers)),
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(format!("reading {}", name.display()), e)),
        Err(_) if layers > 0 => Err(missing(&name, layers)),
        Err(_) => {
            // Never used, or cut off right here the first time.
            if index.exists() {
                fs::remove_file(&index).step(|| format!("removing {}", index.display()))?;
            }
            let mut random = [0_u8; 16];
            getrandom::fill(&mut random)
                .map_err(|e| Error::internal(format!("getting random bytes: {e}")))?;
            let store: String = random.iter().map(|b| format!("{b:02x}")).collect();
            let made = Index::create(&index, &store)?;
            sync_directory(root)?;
            let staged = root.join("store.new");
            fs::write(&staged, format!("{store}\n")).step(|| format!("writing {}", staged.display()))?;
            File::open(&staged)
                .and_then(|f| f.sync_all())
                .step(|| format!("syncing {}", staged.display()))?;
            fs::rename(&staged, &name).step(|| format!("making {}", name.display()))?;
            sync_directory(root)?;
            Ok(made)
        }
    }
}

/// Tells ext4 that what `directory` has has nothing to do with each other (chattr(1), attribute T): each
/// layer begins in a part of the disk with room. Else a new layer's inodes are looked for where those
/// of a deleted one were, and for five minutes ext4 passes over each of these, for each new file.
/// Other filesystems do not know it, which is no loss.
fn spread(directory: &Path) {
    let told = File::open(directory).and_then(|directory| {
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        Ok(rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)?)
    });
    if let Err(error) = told {
        tracing::debug!(path = %directory.display(), %error, "the filesystem takes no hint where layers go");
    }
}

fn missing(path: &Path, layers: usize) -> Error {
    Error::precondition(format!(
        "the image store has {layers} layers but no {}; nothing was changed: restore the file, or move the whole \
         store away to start with an empty one",
        path.display()
    ))
}

/// A link of up to 59 bytes is kept in its inode. ext4 gives a longer one a block, and to remove that
/// it waits for a commit of the journal: 1.5 ms.
fn holder_target(id: Digest) -> String {
    URL_SAFE_NO_PAD.encode(id.bytes())
}

fn held(link: &Path) -> Option<Digest> {
    let target = fs::read_link(link).ok()?;
    let bytes = URL_SAFE_NO_PAD.decode(target.as_os_str().as_encoded_bytes()).ok()?;
    Some(Digest::from_bytes(bytes.try_into().ok()?))
}

fn load_holders(directory: &Path, catalog: &mut Catalog) -> Result<()> {
    for entry in fs::read_dir(directory).step(|| format!("reading {}", directory.display()))? {
        let entry = entry.step(|| format!("reading {}", directory.display()))?;
        let target = held(&entry.path());
        let holder = entry.file_name();
        if let (Some(id), Some(holder)) = (target, holder.to_str())
            && catalog.hold(id, holder)
        {
            continue;
        }
        tracing::warn!(path = %entry.path().display(), "forgetting the holder of an image that is not here");
        fs::remove_file(entry.path()).step(|| format!("removing {}", entry.path().display()))?;
    }
    Ok(())
}

/// The numbers that name `directory`'s entries; other entries are not ours.
fn numbers(directory: &Path) -> Result<HashSet<u64>> {
    let mut numbers = HashSet::new();
    for entry in fs::read_dir(directory).step(|| format!("reading {}", directory.display()))? {
        let entry = entry.step(|| format!("reading {}", directory.display()))?;
        numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(numbers)
}

fn make_directory(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.step(|| format!("making {}", path.display()))
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).step(|| format!("syncing {}", path.display()))
}

fn delete(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "deleting a layer's directory failed");
    }
}
