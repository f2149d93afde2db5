//! Streams a blob, taking up the thread where a connection broke.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use reqwest::Response;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::client::transport;
use super::host::Host;
use super::{Ask, FIRST_DELAY, Failures, Session, jitter, right};
use crate::image::digest::Digest;
use crate::{Error, Result};

/// Attempts in a row, for each host, without progress.
const MAX_BARREN: usize = 4;
/// Bytes; with less a registry could keep a pull busy for ever.
const MIN_PROGRESS: u64 = 64 << 10;
const MAX_DELAY: Duration = Duration::from_secs(8);

/// Which hosts of a session gave a blob's bytes.
#[derive(Default)]
pub struct Served {
    now: Vec<usize>,
    distrusted: Vec<usize>,
}

impl Session {
    /// Who of several hosts gave the first bytes.
    pub fn first_of(&self, served: &Served) -> Option<String> {
        let first = served.now.first().filter(|_| self.hosts.len() > 1);
        first.map(|at| self.hosts[*at].name())
    }

    /// The bytes were wrong: whoever gave the first of them is not asked again. Who went on behind them
    /// may be right. False where nobody did, or nobody is left.
    pub fn distrust(&self, served: &mut Served) -> bool {
        let Some(first) = std::mem::take(&mut served.now).first().copied() else { return false };
        served.distrusted.push(first);
        let mut failures = Failures::new(self, false);
        failures.leave_out(&served.distrusted);
        !failures.open().is_empty()
    }

    /// Sends the blob's bytes to `sink`: `size` of them, neither more nor less, and verifies the
    /// digest: true. When the receiver goes away, so does the download: false. Where one host fails, the next
    /// goes on with the byte that it failed at. Hosts that `served` distrusts are not asked.
    pub async fn blob(
        &self,
        (digest, size): (Digest, u64),
        sink: &mpsc::Sender<Result<Bytes>>,
        fetched: &AtomicU64,
        served: &mut Served,
    ) -> Result<bool> {
        let what = format!("blob {digest}");
        let mut failures = Failures::new(self, false);
        failures.leave_out(&served.distrusted);
        let mut taken = Taken { offset: 0, hasher: Sha256::new(), refused: false };
        let mut barren = 0;
        let mut delay = FIRST_DELAY;
        while let Some(&at) = failures.open().first() {
            let host = &self.hosts[at];
            tokio::time::sleep(host.pause()).await;
            let before = taken.offset;
            let streamed = self.stream(host, (digest, size), &mut taken, sink, fetched).await;
            if taken.offset > before {
                served.now.push(at);
            }
            let error = match streamed {
                Ok(()) if taken.refused => return Ok(false),
                Ok(()) => {
                    let verified = right(digest, Digest::finish(taken.hasher)).map(|()| true);
                    return verified.map_err(|e| self.failed(&what, e));
                }
                Err(error) => error,
            };
            if taken.offset - before >= MIN_PROGRESS {
                (barren, delay) = (0, FIRST_DELAY);
            }
            barren += 1;
            failures.add(at, error);
            if barren >= MAX_BARREN * self.hosts.len() {
                break;
            }
            // Another host is asked at once, the same one again only after a while.
            if barren >= self.hosts.len() {
                tokio::time::sleep(jitter(delay)).await;
                delay = (delay * 2).min(MAX_DELAY);
            }
        }
        Err(self.failed(&what, failures.error()))
    }

    async fn stream(
        &self,
        host: &Host,
        (digest, size): (Digest, u64),
        taken: &mut Taken,
        sink: &mpsc::Sender<Result<Bytes>>,
        fetched: &AtomicU64,
    ) -> Result<()> {
        let path = format!("blobs/{digest}");
        let what = format!("blob {digest}");
        let ask = Ask { path: &path, what: &what, accept: "*/*", offset: taken.offset, resolves: false };
        let mut response = host.send(&self.registries, &ask).await?;
        let mut skip = before(&response, taken.offset)?;
        let too_long =
            || Error::wrong_bytes(format!("it is longer than the {size} bytes that its manifest says"));
        let stated = response.content_length().unwrap_or_default();
        if stated.saturating_sub(skip) > size - taken.offset {
            return Err(too_long());
        }
        loop {
            let mut chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                // All of it is here, and its digest tells whether it is right.
                Err(_) if taken.offset == size => break,
                Err(error) => return Err(transport(error)),
            };
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            if taken.offset + chunk.len() as u64 > size {
                return Err(too_long());
            }
            taken.offset += chunk.len() as u64;
            taken.hasher.update(&chunk);
            fetched.store(taken.offset, Ordering::Relaxed);
            if sink.send(Ok(chunk)).await.is_err() {
                // The receiver has failed and knows better why.
                taken.refused = true;
                return Ok(());
            }
        }
        match taken.offset == size {
            true => Ok(()),
            false => Err(Error::unavailable(format!("it ended after {} of {size} bytes", taken.offset))),
        }
    }
}

/// How many of the answer's first bytes are here already. A server may ignore the range that begins at
/// `offset`: then they come again.
fn before(response: &Response, offset: u64) -> Result<u64> {
    if offset == 0 || response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(offset);
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match range.starts_with(&format!("bytes {offset}-")) {
        true => Ok(0),
        false => Err(Error::wrong_bytes(format!("asked for bytes from {offset}, the answer is {range:?}"))),
    }
}

/// What was sent on already.
struct Taken {
    offset: u64,
    hasher: Sha256,
    /// Nobody wants the rest.
    refused: bool,
}
