//! One layer's way from the registry to a directory:
//!
//! ```text
//! download ─bytes▶ sha256 → inflate ─blocks▶ sha256 → untar → files
//!   (async)          (a thread)                (a thread)
//! ```
//!
//! Both arrows are bounded: memory does not depend on the layer's size.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::digest::Digest;
use super::manifest::Descriptor;
use super::registry::Session;
use super::store::Store;
use super::unpack::{self, Limits};
use crate::error::Step;
use crate::{Error, Result};

/// Chunks from the network that may wait.
const CHUNKS: usize = 4;
/// Blocks of inflated bytes that may wait, and their size.
const BLOCKS: usize = 4;
const BLOCK: usize = 128 << 10;
/// Bytes that one entry of an archive may cost besides its data: headers, long names, padding.
const ENTRY: u64 = 8 << 10;

/// Where a layer comes from.
pub enum Source<'a> {
    /// A registry; the number counts the bytes that came in.
    Registry(&'a Session, &'a AtomicU64),
    /// A file of an archive, and the archive's name for messages.
    File(PathBuf, &'a str),
}

/// Fetches, unpacks and verifies the layer, and stages it in the store.
pub async fn fetch(
    from: Source<'_>,
    layer: &Descriptor,
    diff_id: Digest,
    store: Arc<Store>,
    limits: Limits,
) -> Result<()> {
    let (session, fetched) = match from {
        Source::Registry(session, fetched) => (session, fetched),
        Source::File(path, archive) => {
            let failed = |e: Error| e.during(format!("{archive}, layer {diff_id}"));
            let file = File::open(&path).step(|| format!("opening {}", path.display())).map_err(failed)?;
            let unpacking = move || unpack(Input::File(file), None, diff_id, &store, limits);
            let unpacked = tokio::task::spawn_blocking(unpacking).await;
            return unpacked
                .unwrap_or_else(|e| Err(Error::internal(format!("unpacking ended: {e}"))))
                .map_err(failed);
        }
    };
    let what = format!("blob {}", layer.digest);
    layer.check_layer().map_err(|e| session.failed(&what, e))?;
    let (sink, source) = mpsc::channel(CHUNKS);
    let (source, digest) = (Input::Channel(source), Some(layer.digest));
    let unpacking = tokio::task::spawn_blocking(move || unpack(source, digest, diff_id, &store, limits));
    if let Err(error) = session.blob(layer.digest, layer.size, &sink, fetched).await {
        // The unpacking thread fails with the same error.
        let _ = sink.send(Err(error)).await;
    }
    drop(sink);
    let unpacked = unpacking.await.unwrap_or_else(|e| Err(Error::internal(format!("unpacking ended: {e}"))));
    unpacked.map_err(|e| if e.message.starts_with("registry ") { e } else { session.failed(&what, e) })
}

fn unpack(
    source: Input,
    digest: Option<Digest>,
    diff_id: Digest,
    store: &Store,
    limits: Limits,
) -> Result<()> {
    let staging = store.stage()?;
    let (full, blocks) = sync_channel(BLOCKS);
    let (empty, spare) = sync_channel(BLOCKS + 2);
    // Headers of entries count, and what follows an archive's end.
    let most = limits.bytes.saturating_add(limits.entries.saturating_mul(ENTRY));
    let (applied, found, found_compressed) = thread::scope(|scope| {
        let inflating = thread::Builder::new()
            .name("inflate".into())
            .spawn_scoped(scope, move || inflate(Download::new(source), &full, &spare, most));
        let inflating = inflating.map_err(|e| Error::io("starting a thread", e))?;
        let mut pipe = Pipe { blocks, empty, block: Vec::new(), at: 0, hasher: Sha256::new() };
        let applied = unpack::apply(&mut pipe, &staging.fs(), Some(&staging.manifest()), limits);
        let found = Digest::finish(std::mem::take(&mut pipe.hasher));
        // Without a reader the other thread ends.
        drop(pipe);
        let compressed = inflating.join().map_err(|_| Error::internal("decompressing a layer panicked"))?;
        Ok::<_, Error>((applied?, found, compressed?))
    })?;
    if digest.is_some_and(|digest| found_compressed != digest) {
        return Err(Error::internal(format!("its digest is {found_compressed}: not what was asked for")));
    }
    if found != diff_id {
        return Err(Error::internal(format!(
            "its diff ID is {found}, but the image's config says {diff_id}"
        )));
    }
    store.staged(staging, diff_id, applied)
}

/// Where compressed bytes come from.
enum Input {
    Channel(mpsc::Receiver<Result<Bytes>>),
    File(File),
}

/// The compressed bytes as they come in, hashed.
struct Download {
    source: Input,
    chunk: Bytes,
    hasher: Sha256,
}

impl Download {
    fn new(source: Input) -> Self {
        Self { source, chunk: Bytes::new(), hasher: Sha256::new() }
    }

    /// Joins the first chunks until there are `len` bytes to look at, or all.
    fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        self.fill_buf()?;
        while self.chunk.len() < len {
            let Some(more) = self.receive()? else { break };
            self.chunk = [&self.chunk[..], &more].concat().into();
        }
        Ok(&self.chunk)
    }

    fn receive(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = match &mut self.source {
            Input::Channel(source) => source.blocking_recv().transpose().map_err(io::Error::other)?,
            Input::File(file) => {
                let mut chunk = vec![0; BLOCK];
                let len = file.read(&mut chunk)?;
                chunk.truncate(len);
                (len > 0).then(|| chunk.into())
            }
        };
        if let Some(chunk) = &chunk {
            self.hasher.update(chunk);
        }
        Ok(chunk)
    }
}

impl BufRead for Download {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.receive()? {
                Some(chunk) => self.chunk = chunk,
                None => break,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, len: usize) {
        let _ = self.chunk.split_to(len);
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

/// Returns the digest of the compressed bytes, all of them. What a layer is compressed with is
/// told by its first bytes: media types are known to lie.
fn inflate(
    mut download: Download,
    full: &SyncSender<io::Result<Vec<u8>>>,
    spare: &Receiver<Vec<u8>>,
    most: u64,
) -> Result<Digest> {
    let mut inflated = 0;
    let magic: Vec<u8> = match download.peek(4) {
        Ok(bytes) => bytes.iter().take(4).copied().collect(),
        Err(error) => return Err(pass_on(error, full)),
    };
    let mut reader: Box<dyn Read + '_> = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(&mut download)),
        // Also frames that are to be skipped, which chunked zstd begins with.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            match zstd::stream::read::Decoder::with_buffer(&mut download) {
                Ok(decoder) => Box::new(decoder),
                Err(error) => return Err(pass_on(error, full)),
            }
        }
        _ => Box::new(&mut download),
    };
    loop {
        let mut block = spare.try_recv().unwrap_or_default();
        block.resize(BLOCK, 0);
        match fill(&mut reader, &mut block) {
            Ok(0) => break,
            Ok(len) => {
                inflated += len as u64;
                if inflated > most {
                    let error = Error::invalid(format!("the layer is larger than {most} bytes"));
                    return Err(pass_on(io::Error::other(error), full));
                }
                block.truncate(len);
            }
            Err(error) => return Err(pass_on(error, full)),
        }
        if full.send(Ok(block)).is_err() {
            return Err(Error::internal("unpacking has ended"));
        }
    }
    drop(reader);
    match io::copy(&mut download, &mut io::sink()) {
        Ok(_) => Ok(Digest::finish(download.hasher)),
        Err(error) => Err(pass_on(error, full)),
    }
}

fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..])? {
            0 => break,
            len => filled += len,
        }
    }
    Ok(filled)
}

/// Gives the reading thread the error, in our own words unless it is ours already.
fn pass_on(error: io::Error, full: &SyncSender<io::Result<Vec<u8>>>) -> Error {
    let ours = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned();
    let error = ours.unwrap_or_else(|| Error::invalid(format!("decompressing the layer: {error}")));
    let _ = full.send(Err(io::Error::other(error.clone())));
    error
}

/// The inflated bytes, hashed.
struct Pipe {
    blocks: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    hasher: Sha256,
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.block.len() {
            // The sender has gone: the end.
            let Ok(block) = self.blocks.recv() else { break };
            let block = block?;
            self.hasher.update(&block);
            let used = std::mem::replace(&mut self.block, block);
            self.at = 0;
            let _ = self.empty.try_send(used);
        }
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at += len;
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}
