//! Streams a blob, taking up the thread where a connection broke.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use tokio::sync::mpsc;

use super::client::transport;
use super::host::Host;
use super::{Ask, FIRST_DELAY, Failures, Session, jitter};
use crate::image::digest::Digest;
use crate::{Error, Result};

/// Attempts in a row, for each host, without progress.
const MAX_BARREN: usize = 4;
/// Bytes; with less a registry could keep a pull busy for ever.
const MIN_PROGRESS: u64 = 64 << 10;
const MAX_DELAY: Duration = Duration::from_secs(8);

impl Session {
    /// Sends the blob's bytes to `sink`: `size` of them, neither more nor less. The receiver
    /// verifies the digest; when it goes away, so does the download. Where one host fails, the
    /// next goes on with the byte that it failed at.
    pub async fn blob(
        &self,
        digest: Digest,
        size: u64,
        sink: &mpsc::Sender<Result<Bytes>>,
        fetched: &AtomicU64,
    ) -> Result<()> {
        let what = format!("blob {digest}");
        let mut failures = Failures::new(self, false);
        let mut offset = 0;
        let mut barren = 0;
        let mut delay = FIRST_DELAY;
        while let Some(&at) = failures.open().first() {
            let host = &self.hosts[at];
            tokio::time::sleep(host.pause()).await;
            let before = offset;
            let streamed = self.stream(host, (digest, size), &mut offset, sink, fetched).await;
            let error = match streamed {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if offset - before >= MIN_PROGRESS {
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
        offset: &mut u64,
        sink: &mpsc::Sender<Result<Bytes>>,
        fetched: &AtomicU64,
    ) -> Result<()> {
        let path = format!("blobs/{digest}");
        let what = format!("blob {digest}");
        let ask = Ask { path: &path, what: &what, accept: "*/*", offset: *offset, resolves: false };
        let mut response = host.send(&self.registries, &ask).await?;
        // A server may ignore the range: then the first bytes come again.
        let mut skip = *offset;
        if *offset > 0 && response.status() == StatusCode::PARTIAL_CONTENT {
            let range =
                response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            if !range.starts_with(&format!("bytes {offset}-")) {
                return Err(Error::internal(format!(
                    "asked for bytes from {offset}, the answer is {range:?}"
                )));
            }
            skip = 0;
        }
        while let Some(mut chunk) = response.chunk().await.map_err(transport)? {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            chunk = chunk.split_off(skipped);
            if chunk.is_empty() {
                continue;
            }
            if *offset + chunk.len() as u64 > size {
                return Err(Error::internal(format!(
                    "it is longer than the {size} bytes that its manifest says"
                )));
            }
            *offset += chunk.len() as u64;
            fetched.store(*offset, Ordering::Relaxed);
            if sink.send(Ok(chunk)).await.is_err() {
                // The receiver has failed and knows better why.
                return Ok(());
            }
        }
        match *offset == size {
            true => Ok(()),
            false => Err(Error::unavailable(format!("it ended after {offset} of {size} bytes"))),
        }
    }
}
