//! Streams a blob, taking up the thread where a connection broke.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use tokio::sync::mpsc;

use super::{Ask, FIRST_DELAY, Session, jitter, transport};
use crate::error::Kind;
use crate::image::digest::Digest;
use crate::{Error, Result};

/// Attempts in a row without a byte of progress.
const MAX_BARREN: u32 = 4;
const MAX_DELAY: Duration = Duration::from_secs(8);

impl Session {
    /// Sends the blob's bytes to `sink`: `size` of them, neither more nor less. The receiver
    /// verifies the digest; when it goes away, so does the download.
    pub async fn blob(&self, digest: Digest, size: u64, sink: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let what = format!("blob {digest}");
        let mut offset = 0;
        let mut barren = 0;
        let mut delay = FIRST_DELAY;
        loop {
            let before = offset;
            let error = match self.stream(digest, size, &mut offset, sink).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if offset > before {
                (barren, delay) = (0, FIRST_DELAY);
            }
            barren += 1;
            if error.kind != Kind::Unavailable || barren >= MAX_BARREN {
                return Err(self.failed(&what, error));
            }
            tracing::debug!(%digest, offset, %error, "the download of a blob broke; resuming");
            tokio::time::sleep(jitter(delay)).await;
            delay = (delay * 2).min(MAX_DELAY);
        }
    }

    async fn stream(
        &self,
        digest: Digest,
        size: u64,
        offset: &mut u64,
        sink: &mpsc::Sender<Result<Bytes>>,
    ) -> Result<()> {
        let path = format!("blobs/{digest}");
        let what = format!("blob {digest}");
        let ask = Ask { path: &path, what: &what, accept: "*/*", offset: *offset };
        let mut response = self.send(&ask).await?;
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
