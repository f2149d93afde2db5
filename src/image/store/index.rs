//! The index on disk: which images there are, and in which directory each layer lies.
//!
//! A redb file, `ROOT/index.redb`, changed by durable transactions only:
//!
//! ```text
//! meta     "layout" → "1"            this drawing's version
//!          "store"  → HEX            the same as in ROOT/store: file and directory belong together
//! images   "sha256:…" (config digest) → ImageRecord, JSON
//! configs  "sha256:…" (config digest) → the config's bytes, verbatim
//! layers   "sha256:…" (diff ID)       → LayerRecord, JSON
//! kept     a container's ID           → numbers of withdrawn layers that it still uses, JSON
//! ```

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;
use crate::{Error, Result};

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const CONFIGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("configs");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");
const KEPT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kept");
const LAYOUT: &str = "1";
/// Bytes that redb may cache: the index is read at start-up and then by single records.
const CACHE: usize = 1 << 20;

/// An image. Without any name it only stays for the containers that hold it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Diff IDs, the bottom layer first, each once.
    pub layers: Vec<String>,
    /// The config's User.
    pub user: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The layer lies in `ROOT/layers/NUMBER/fs`.
    pub number: u64,
    pub bytes: u64,
    pub inodes: u64,
}

pub struct Index {
    database: Database,
    path: String,
}

/// A change of the index: all of it happens, or nothing.
#[derive(Default)]
pub struct Change {
    pub put_images: Vec<(Digest, ImageRecord)>,
    pub put_configs: Vec<(Digest, Vec<u8>)>,
    pub put_layers: Vec<(Digest, LayerRecord)>,
    pub delete_images: Vec<Digest>,
    pub delete_layers: Vec<Digest>,
    pub put_kept: Vec<(String, Vec<u64>)>,
    pub delete_kept: Vec<String>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.put_images.is_empty()
            && self.put_configs.is_empty()
            && self.put_layers.is_empty()
            && self.delete_images.is_empty()
            && self.delete_layers.is_empty()
            && self.put_kept.is_empty()
            && self.delete_kept.is_empty()
    }
}

pub struct Contents {
    pub images: Vec<(Digest, ImageRecord)>,
    pub layers: Vec<(Digest, LayerRecord)>,
    pub kept: Vec<(String, Vec<u64>)>,
}

impl Index {
    pub fn create(path: &Path, store: &str) -> Result<Self> {
        let result = Database::builder().set_cache_size(CACHE).create(path);
        let index = Self { database: result.map_err(|e| broken(path, e))?, path: path.display().to_string() };
        index.write(|tx| {
            let mut meta = tx.open_table(META)?;
            meta.insert("layout", LAYOUT)?;
            meta.insert("store", store)?;
            tx.open_table(IMAGES)?;
            tx.open_table(CONFIGS)?;
            tx.open_table(LAYERS)?;
            Ok(())
        })?;
        Ok(index)
    }

    /// Opens the index of `store`. A damaged one is an error: nobody starts afresh by itself.
    pub fn open(path: &Path, store: &str) -> Result<Self> {
        let result = Database::builder().set_cache_size(CACHE).open(path);
        let index = Self { database: result.map_err(|e| broken(path, e))?, path: path.display().to_string() };
        let (layout, of) = index.read(|tx| {
            let meta = tx.open_table(META)?;
            let get =
                |key| Ok::<_, redb::Error>(meta.get(key)?.map(|v| v.value().to_owned()).unwrap_or_default());
            Ok((get("layout")?, get("store")?))
        })?;
        if layout != LAYOUT {
            return Err(Error::precondition(format!(
                "the image index {} has layout {layout:?}; this podwright reads {LAYOUT:?}",
                path.display()
            )));
        }
        if of != store {
            return Err(Error::precondition(format!(
                "the image index {} belongs to another store ({of}, not {store})",
                path.display()
            )));
        }
        Ok(index)
    }

    pub fn contents(&self) -> Result<Contents> {
        let (images, layers, kept) = self.read(|tx| {
            let mut images = Vec::new();
            for row in tx.open_table(IMAGES)?.iter()? {
                let (key, value) = row?;
                images.push((key.value().to_owned(), value.value().to_owned()));
            }
            let mut layers = Vec::new();
            for row in tx.open_table(LAYERS)?.iter()? {
                let (key, value) = row?;
                layers.push((key.value().to_owned(), value.value().to_owned()));
            }
            let mut kept = Vec::new();
            // A store from before this table has none.
            match tx.open_table(KEPT) {
                Ok(table) => {
                    for row in table.iter()? {
                        let (key, value) = row?;
                        kept.push((key.value().to_owned(), value.value().to_owned()));
                    }
                }
                Err(redb::TableError::TableDoesNotExist(_)) => {}
                Err(error) => return Err(error.into()),
            }
            Ok((images, layers, kept))
        })?;
        let kept = kept.into_iter().map(|(holder, value)| {
            let numbers = serde_json::from_slice(&value);
            let numbers = numbers.map_err(|e| {
                Error::internal(format!("the image index {}: record {holder}: {e}", self.path))
            })?;
            Ok((holder, numbers))
        });
        let kept = kept.collect::<Result<_>>()?;
        Ok(Contents { images: self.decode(images)?, layers: self.decode(layers)?, kept })
    }

    pub fn config(&self, id: Digest) -> Result<Vec<u8>> {
        let id = id.to_string();
        let config =
            self.read(|tx| Ok(tx.open_table(CONFIGS)?.get(id.as_str())?.map(|v| v.value().to_owned())))?;
        config.ok_or_else(|| Error::internal(format!("the image index {} has no config of {id}", self.path)))
    }

    /// Durable when it returns.
    pub fn apply(&self, change: &Change) -> Result<()> {
        let encode = |e: serde_json::Error| Error::internal(format!("encoding an index record: {e}"));
        let mut images = Vec::new();
        for (id, record) in &change.put_images {
            images.push((id.to_string(), serde_json::to_vec(record).map_err(encode)?));
        }
        let mut layers = Vec::new();
        for (id, record) in &change.put_layers {
            layers.push((id.to_string(), serde_json::to_vec(record).map_err(encode)?));
        }
        let mut kept = Vec::new();
        for (holder, numbers) in &change.put_kept {
            kept.push((holder, serde_json::to_vec(numbers).map_err(encode)?));
        }
        self.write(|tx| {
            let mut table = tx.open_table(KEPT)?;
            for (holder, bytes) in &kept {
                table.insert(holder.as_str(), bytes.as_slice())?;
            }
            for holder in &change.delete_kept {
                table.remove(holder.as_str())?;
            }
            let mut table = tx.open_table(IMAGES)?;
            let mut configs = tx.open_table(CONFIGS)?;
            for (id, bytes) in &images {
                table.insert(id.as_str(), bytes.as_slice())?;
            }
            for (id, bytes) in &change.put_configs {
                configs.insert(id.to_string().as_str(), bytes.as_slice())?;
            }
            for id in &change.delete_images {
                table.remove(id.to_string().as_str())?;
                configs.remove(id.to_string().as_str())?;
            }
            let mut table = tx.open_table(LAYERS)?;
            for (id, bytes) in &layers {
                table.insert(id.as_str(), bytes.as_slice())?;
            }
            for id in &change.delete_layers {
                table.remove(id.to_string().as_str())?;
            }
            Ok(())
        })
    }

    fn decode<T: serde::de::DeserializeOwned>(
        &self,
        rows: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<(Digest, T)>> {
        let decode = |(key, value): (String, Vec<u8>)| {
            let record = serde_json::from_slice(&value);
            let record = record
                .map_err(|e| Error::internal(format!("the image index {}: record {key}: {e}", self.path)))?;
            Ok((Digest::parse(&key)?, record))
        };
        rows.into_iter().map(decode).collect()
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> std::result::Result<T, redb::Error>,
    ) -> Result<T> {
        let result = self.database.begin_read().map_err(redb::Error::from).and_then(|tx| read(&tx));
        result.map_err(|e| Error::internal(format!("reading the image index {}: {e}", self.path)))
    }

    fn write(
        &self,
        write: impl FnOnce(&WriteTransaction) -> std::result::Result<(), redb::Error>,
    ) -> Result<()> {
        let result = (|| {
            let tx = self.database.begin_write()?;
            write(&tx)?;
            Ok(tx.commit()?)
        })();
        result.map_err(|e: redb::Error| match e {
            redb::Error::Io(e) => Error::io(format!("writing the image index {}", self.path), e),
            e => Error::internal(format!("writing the image index {}: {e}", self.path)),
        })
    }
}

fn broken(path: &Path, error: redb::DatabaseError) -> Error {
    let path = path.display();
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            Error::precondition(format!("the image index {path} is in use by another podwright"))
        }
        e => Error::precondition(format!(
            "the image index {path} cannot be opened ({e}); nothing was changed: restore the file, or move the \
             whole store away to start with an empty one"
        )),
    }
}
