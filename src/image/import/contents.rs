//! An archive's contents: read in one go, layers unpacked as they come.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use crate::error::{Kind, Step};
use crate::image::digest::Digest;
use crate::image::layer::{self, Unpacked};
use crate::image::manifest::Platform;
use crate::image::pull::Pins;
use crate::image::store::Store;
use crate::image::unpack::Limits;
use crate::image::unpack::archive::{self, Archive};
use crate::{Error, Result};

/// Bytes of a document, and of all of them together.
const MAX_DOCUMENT: u64 = 8 << 20;
const MAX_DOCUMENTS: u64 = 64 << 20;
const MAX_FILES: usize = 100_000;
/// Links to links: older `docker save`s have one.
const MAX_LINKS: usize = 8;
const BUFFER: usize = 128 << 10;

/// The files of an archive, by their clean names.
pub struct Contents {
    files: HashMap<Vec<u8>, File>,
    links: HashMap<Vec<u8>, Vec<u8>>,
    /// Of all documents.
    bytes: u64,
    /// By diff ID. What no image takes from here is deleted.
    pub unpacked: HashMap<Digest, Unpacked>,
    /// Layers that were here already stay until the archive's images are taken in.
    pins: Pins,
}

enum File {
    Document(Vec<u8>),
    /// Neither a layer nor short enough for a document.
    TooLong,
    /// Its diff ID.
    Layer(Digest),
    /// A layer that no image for this platform has.
    Passed,
    /// It looks like a layer, but is none: an error only where an image wants it.
    Damaged(Error),
}

impl Contents {
    /// Reads the archive to its end; of layers nothing is kept but what is unpacked.
    pub fn read(
        input: Box<dyn Read + Send>,
        store: &Arc<Store>,
        host: &Platform,
        limits: Limits,
    ) -> Result<Self> {
        let mut input = BufReader::with_capacity(BUFFER, input);
        let magic = input.fill_buf().step(|| "reading the archive")?.get(..4).unwrap_or_default().to_vec();
        let plain: Box<dyn Read + Send> = match magic[..] {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Box::new(zstd::stream::read::Decoder::with_buffer(input).step(|| "reading the archive")?)
            }
            _ => Box::new(input),
        };
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, plain));
        let mut contents = Self {
            files: HashMap::new(),
            links: HashMap::new(),
            bytes: 0,
            unpacked: HashMap::new(),
            pins: Pins::new(store),
        };
        while let Some(entry) = archive.next_entry().map_err(unreadable)? {
            let Some(name) = clean(&entry.path) else {
                return Err(Error::invalid("the archive has a name that leads out of it"));
            };
            if contents.files.len() + contents.links.len() >= MAX_FILES {
                return Err(Error::invalid(format!("the archive has more than {MAX_FILES} files")));
            }
            match entry.kind {
                archive::Kind::File => {
                    let file = contents.file(&mut Body(&mut archive), &name, (store, host), limits)?;
                    contents.files.insert(name, file);
                }
                archive::Kind::Symlink => {
                    let parent = name.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &name[..at]);
                    if let Some(target) = clean(&[parent, b"/", &entry.link].concat()) {
                        contents.links.insert(name, target);
                    }
                }
                archive::Kind::HardLink => {
                    if let Some(target) = clean(&entry.link) {
                        contents.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(contents)
    }

    fn file(
        &mut self,
        body: &mut (impl Read + Send),
        name: &[u8],
        (store, host): (&Store, &Platform),
        limits: Limits,
    ) -> Result<File> {
        let mut head = Vec::new();
        body.take(layer::HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
        if !layer::looks_like_one(&head) {
            let mut bytes = head;
            body.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
            let len = bytes.len() as u64;
            self.bytes += len.min(MAX_DOCUMENT);
            return match len {
                len if len > MAX_DOCUMENT => Ok(File::TooLong),
                _ if self.bytes > MAX_DOCUMENTS => Err(Error::invalid(format!(
                    "the archive has more than {MAX_DOCUMENTS} bytes of documents"
                ))),
                _ => Ok(File::Document(bytes)),
            };
        }
        if self.wanted(host).is_some_and(|wanted| !wanted.contains(name)) {
            return Ok(File::Passed);
        }
        // `docker save` and others name a layer that is not compressed by what is its diff ID.
        if let Some(diff_id) = named_by(name) {
            self.pins.add(&[diff_id]);
            if store.catalog().has_layer(diff_id) {
                return Ok(File::Layer(diff_id));
            }
        }
        match layer::unpack(Box::new(head.chain(body)), store, limits) {
            Ok(unpacked) => {
                let diff_id = unpacked.diff_id;
                self.unpacked.insert(diff_id, unpacked);
                Ok(File::Layer(diff_id))
            }
            Err(error) if matches!(error.kind, Kind::InvalidArgument | Kind::WrongBytes) => {
                Ok(File::Damaged(error))
            }
            Err(error) => Err(error.during(format!("the archive's {:?}", String::from_utf8_lossy(name)))),
        }
    }

    /// The files that are layers of images for this host; None as long as that is not known, which
    /// depends on the order of the archive.
    fn wanted(&self, host: &Platform) -> Option<HashSet<Vec<u8>>> {
        if !self.has("index.json") || !self.has("oci-layout") {
            return None;
        }
        let images = self.images(host).ok()?;
        images.iter().flat_map(|image| &image.layers).map(|name| clean(name.as_bytes())).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &str) -> Result<&File> {
        let missing = || Error::invalid(format!("the archive has no {name:?}"));
        let mut key = clean(name.as_bytes()).ok_or_else(missing)?;
        for _ in 0..MAX_LINKS {
            if let Some(file) = self.files.get(&key) {
                return Ok(file);
            }
            key = self.links.get(&key).ok_or_else(missing)?.clone();
        }
        Err(missing())
    }

    pub fn document(&self, name: &str) -> Result<&[u8]> {
        match self.find(name)? {
            File::Document(bytes) => Ok(bytes),
            File::TooLong => Err(Error::invalid(format!("{name} is longer than {MAX_DOCUMENT} bytes"))),
            _ => Err(Error::invalid(format!("{name} is an archive, not a document"))),
        }
    }

    /// The diff ID of the layer that the file is.
    pub fn layer(&self, name: &str) -> Result<Digest> {
        match self.find(name)? {
            File::Layer(diff_id) => Ok(*diff_id),
            File::Damaged(error) => Err(error.clone().during(format!("layer {name}"))),
            File::Passed | File::TooLong | File::Document(_) => {
                Err(Error::invalid(format!("{name} is no layer")))
            }
        }
    }
}

/// The body of the archive's present entry.
struct Body<'a, R>(&'a mut Archive<R>);

impl<R: BufRead> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.0.fill_body()?.read(buffer)?;
        self.0.consume(len);
        Ok(len)
    }
}

/// The digest that a file's name ends in: `…/HEX` or `HEX.tar`.
fn named_by(name: &[u8]) -> Option<Digest> {
    let last = std::str::from_utf8(name.rsplit(|b| *b == b'/').next()?).ok()?;
    Digest::parse(&format!("sha256:{}", last.strip_suffix(".tar").unwrap_or(last))).ok()
}

fn unreadable(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(ours) => ours.clone(),
        None => Error::invalid(format!("reading the archive: {error}")),
    }
}

/// Components joined by slashes, `..` resolved; None where it leads out.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(clean(b"./a//b/../c").unwrap(), b"a/c");
        assert_eq!(clean(b"a/../../x"), None);
        assert_eq!(clean(b"").unwrap(), b"");
    }

    #[test]
    fn a_name_may_be_a_digest() {
        let digest = Digest::of(b"");
        for name in [format!("blobs/sha256/{}", digest.hex()), format!("{}.tar", digest.hex())] {
            assert_eq!(named_by(name.as_bytes()), Some(digest));
        }
        assert_eq!(named_by(b"x/layer.tar"), None);
    }
}
