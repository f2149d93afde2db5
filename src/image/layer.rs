//! One layer's way from the registry to a directory:
//!
//! ```text
//! download → sha256 ─bytes▶ inflate ─blocks▶ sha256 → untar → files
//!      (async)             (a thread)              (a thread)
//! ```
//!
//! Both arrows are bounded: memory does not depend on the layer's size. Nothing is in the store
//! before both digests are right.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::digest::Digest;
use super::inflate::{self, Block};
use super::manifest::Descriptor;
use super::registry::{Served, Session};
use super::store::{Staging, Store};
use super::unpack::{self, Applied, Limits};
use crate::error::Kind;
use crate::{Error, Result};

/// Chunks from the network that may wait.
const CHUNKS: usize = 4;
/// Blocks of inflated bytes that may wait, and their size.
const BLOCKS: usize = 4;
const BLOCK: usize = 128 << 10;
/// Bytes that one entry of an archive may cost besides its data: headers, long names, padding.
const ENTRY: u64 = 8 << 10;

/// Bytes that [`looks_like_one`] looks at.
pub const HEAD: usize = 512;

/// A layer in a directory that nothing refers to yet. Dropped, it is deleted.
pub struct Unpacked {
    staging: Staging,
    applied: Applied,
    pub diff_id: Digest,
}

impl Unpacked {
    /// Gives it to the store: pulls can use it, and the next commit makes it durable.
    pub async fn stage(self, store: &Arc<Store>) -> Result<()> {
        let store = Arc::clone(store);
        let staged =
            tokio::task::spawn_blocking(move || store.staged(self.staging, self.diff_id, self.applied)).await;
        staged.unwrap_or_else(|e| Err(Error::internal(format!("staging a layer ended: {e}"))))
    }
}

/// Fetches, unpacks and verifies the layer, and stages it in the store. `fetched` counts the bytes that
/// came in.
pub async fn fetch(
    (session, fetched): (&Session, &AtomicU64),
    layer: &Descriptor,
    diff_id: Digest,
    store: Arc<Store>,
    limits: Limits,
) -> Result<()> {
    let failed = |e: Error| session.failed(&format!("blob {}", layer.digest), e);
    layer.check_layer().map_err(failed)?;
    let elsewhere = session.elsewhere(&layer.urls).map_err(failed)?;
    let unpacked = match (download(session, fetched, layer, diff_id, &store, limits).await, elsewhere) {
        // Registries are not given what may not be distributed.
        (Err(error), Some(session)) if error.kind == Kind::NotFound => {
            download(&session, fetched, layer, diff_id, &store, limits).await
        }
        (unpacked, _) => unpacked,
    };
    unpacked?.stage(&store).await
}

/// From the first of the session's hosts that has the right bytes.
async fn download(
    session: &Session,
    fetched: &AtomicU64,
    layer: &Descriptor,
    diff_id: Digest,
    store: &Arc<Store>,
    limits: Limits,
) -> Result<Unpacked> {
    let mut served = Served::default();
    let mut said = Vec::new();
    loop {
        let Failed { error, anothers_may_do } =
            match attempt(session, fetched, layer, diff_id, store, limits, &mut served).await {
                Ok(unpacked) => return Ok(unpacked),
                Err(failed) => failed,
            };
        let who = session.first_of(&served).filter(|_| anothers_may_do);
        said.push(who.map_or(error.message.clone(), |who| format!("{who}: {error}")));
        if !anothers_may_do || !session.distrust(&mut served) {
            return Err(Error::new(error.kind, said.join("; ")));
        }
        tracing::warn!(error = said.last(), "a registry's host gave wrong bytes: asking the next one");
    }
}

struct Failed {
    error: Error,
    /// The bytes were wrong, and another host may have the right ones.
    anothers_may_do: bool,
}

/// One attempt at a layer, from the hosts that are trusted so far.
async fn attempt(
    session: &Session,
    fetched: &AtomicU64,
    layer: &Descriptor,
    diff_id: Digest,
    store: &Arc<Store>,
    limits: Limits,
    served: &mut Served,
) -> std::result::Result<Unpacked, Failed> {
    let (sink, source) = mpsc::channel(CHUNKS);
    let fetching = async {
        let fetching = session.blob((layer.digest, layer.size), &sink, fetched, served).await;
        if let Err(error) = &fetching {
            // The unpacking thread fails with the same error.
            let _ = sink.send(Err(error.clone())).await;
        }
        drop(sink);
        fetching
    };
    let unpacking = unpack_apart(source, diff_id, store, limits);
    let (fetching, unpacked) = tokio::join!(fetching, unpacking);
    let verified = match fetching {
        Ok(verified) => verified,
        Err(error) => return Err(Failed { anothers_may_do: error.kind == Kind::WrongBytes, error }),
    };
    unpacked.map_err(|error| {
        let blob = format!("blob {}", layer.digest);
        // What is wrong here, and not with what came in, is no matter of who sent it.
        let theirs = matches!(error.kind, Kind::WrongBytes | Kind::InvalidArgument);
        let error =
            if theirs { session.failed(&blob, error) } else { error.during(format!("unpacking {blob}")) };
        Failed { error, anothers_may_do: theirs && !verified }
    })
}

async fn unpack_apart(
    source: mpsc::Receiver<Result<Bytes>>,
    diff_id: Digest,
    store: &Arc<Store>,
    limits: Limits,
) -> Result<Unpacked> {
    let store = Arc::clone(store);
    let unpacking = tokio::task::spawn_blocking(move || {
        let unpacked = unpack_from(Input::Channel(source), &store, limits)?;
        match unpacked.diff_id {
            found if found == diff_id => Ok(unpacked),
            found => {
                let text = format!("its diff ID is {found}, but the image's config says {diff_id}");
                Err(Error::wrong_bytes(text))
            }
        }
    });
    unpacking.await.unwrap_or_else(|e| Err(Error::internal(format!("unpacking ended: {e}"))))
}

/// Unpacks what `source` reads. Blocking.
pub fn unpack(source: Box<dyn Read + Send + '_>, store: &Store, limits: Limits) -> Result<Unpacked> {
    unpack_from(Input::Reader(source), store, limits)
}

/// Whether a file that begins with `head` may be a layer: compressed, an archive, or nothing but the end of
/// one.
pub fn looks_like_one(head: &[u8]) -> bool {
    let archive = |block: &[u8; HEAD]| unpack::archive::is_header(block) || block.iter().all(|b| *b == 0);
    Form::of(head) != Form::Plain || head.first_chunk().is_some_and(archive)
}

/// Whether the compressed form had the right digest is for those to say who sent it.
fn unpack_from(source: Input<'_>, store: &Store, limits: Limits) -> Result<Unpacked> {
    let staging = store.stage()?;
    let (full, blocks) = sync_channel(BLOCKS);
    let (empty, spare) = sync_channel(BLOCKS + 2);
    // Headers of entries count, and what follows an archive's end.
    let most = limits.bytes.saturating_add(limits.entries.saturating_mul(ENTRY));
    let (applied, diff_id) = thread::scope(|scope| {
        let blocks_to = Blocks { full, spare, inflated: 0, most };
        let inflating = thread::Builder::new()
            .name("inflate".into())
            .spawn_scoped(scope, move || inflate(Download { source, chunk: Bytes::new() }, blocks_to));
        let inflating = inflating.map_err(|e| Error::io("starting a thread", e))?;
        let mut pipe = Pipe { blocks, empty, block: Vec::new(), at: 0, hasher: Sha256::new() };
        let applied = unpack::apply(&mut pipe, &staging.fs(), Some(&staging.manifest()), limits);
        let found = Digest::finish(std::mem::take(&mut pipe.hasher));
        // Without a reader the other thread ends.
        drop(pipe);
        let inflated = inflating.join().map_err(|_| Error::internal("decompressing a layer panicked"))?;
        let applied = applied?;
        inflated?;
        Ok::<_, Error>((applied, found))
    })?;
    Ok(Unpacked { staging, applied, diff_id })
}

/// Where compressed bytes come from.
enum Input<'a> {
    Channel(mpsc::Receiver<Result<Bytes>>),
    Reader(Box<dyn Read + Send + 'a>),
}

/// What a layer is compressed with, as its first bytes tell: media types are known to lie.
#[derive(PartialEq, Eq)]
enum Form {
    Gzip,
    Zstd,
    Plain,
}

impl Form {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // Also frames that are to be skipped, which chunked zstd begins with.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// The compressed bytes as they come in.
struct Download<'a> {
    source: Input<'a>,
    chunk: Bytes,
}

impl Download<'_> {
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
        Ok(match &mut self.source {
            Input::Channel(source) => source.blocking_recv().transpose().map_err(io::Error::other)?,
            Input::Reader(reader) => {
                let mut chunk = vec![0; BLOCK];
                let len = reader.read(&mut chunk)?;
                chunk.truncate(len);
                (len > 0).then(|| chunk.into())
            }
        })
    }
}

impl BufRead for Download<'_> {
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
        self.chunk.advance(len);
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.fill_buf()?.read(buffer)?;
        self.consume(len);
        Ok(len)
    }
}

/// Where inflated bytes go.
struct Blocks {
    full: SyncSender<io::Result<Block>>,
    spare: Receiver<Vec<u8>>,
    inflated: u64,
    most: u64,
}

impl Blocks {
    fn spare(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_default()
    }

    /// Returns a buffer for the next block.
    fn put(&mut self, block: Block) -> io::Result<Vec<u8>> {
        self.inflated += block.fresh().len() as u64;
        if self.inflated > self.most {
            let error = Error::invalid(format!("the layer is larger than {} bytes", self.most));
            return Err(io::Error::other(error));
        }
        let ended = |_| io::Error::other(Error::internal("unpacking has ended"));
        self.full.send(Ok(block)).map_err(ended)?;
        Ok(self.spare())
    }
}

/// Reads all the compressed bytes.
fn inflate(mut download: Download<'_>, mut blocks: Blocks) -> Result<()> {
    let inflated = inflate_into(&mut download, &mut blocks);
    let drained = inflated.and_then(|()| io::copy(&mut download, &mut io::sink()).map(drop));
    drained.map_err(|error| pass_on(error, &blocks.full))
}

fn inflate_into(download: &mut Download<'_>, blocks: &mut Blocks) -> io::Result<()> {
    match Form::of(download.peek(4)?) {
        Form::Gzip => inflate::gunzip(download, BLOCK, |block| blocks.put(block)),
        Form::Zstd => copy(zstd::stream::read::Decoder::with_buffer(download)?, blocks),
        Form::Plain => copy(download, blocks),
    }
}

fn copy(mut reader: impl Read, blocks: &mut Blocks) -> io::Result<()> {
    let mut bytes = blocks.spare();
    loop {
        bytes.resize(BLOCK, 0);
        match fill(&mut reader, &mut bytes)? {
            0 => return Ok(()),
            len => bytes.truncate(len),
        }
        bytes = blocks.put(Block { bytes, from: 0 })?;
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
fn pass_on(error: io::Error, full: &SyncSender<io::Result<Block>>) -> Error {
    let ours = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned();
    let error = ours.unwrap_or_else(|| match error.raw_os_error() {
        // What comes from a registry fails in words of our own.
        Some(_) => Error::io("reading the layer", error),
        None => Error::invalid(format!("decompressing the layer: {error}")),
    });
    let _ = full.send(Err(io::Error::other(error.clone())));
    error
}

/// The inflated bytes, hashed.
struct Pipe {
    blocks: Receiver<io::Result<Block>>,
    empty: SyncSender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    hasher: Sha256,
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.block.len() {
            // The sender has gone: the end.
            let Ok(block) = self.blocks.recv() else { break };
            let block = block?;
            self.hasher.update(block.fresh());
            self.at = block.from;
            let used = std::mem::replace(&mut self.block, block.bytes);
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
