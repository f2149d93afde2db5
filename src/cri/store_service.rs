//! What `podwright image` asks beyond the CRI, on the same socket.

use std::io::{self, Read};
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::cri::wire::store::store_server::Store;
use crate::cri::wire::store::*;
use crate::image;
use crate::node::Node;

/// Parts of an archive that may wait to be read.
const PARTS: usize = 4;

pub(super) struct StoreService {
    node: Arc<Node>,
}

impl StoreService {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[async_trait]
impl Store for StoreService {
    async fn pulls(&self, _: Request<PullsRequest>) -> Result<Response<PullsResponse>, Status> {
        let pulls = self.node.images.pulling().into_iter().map(pull).collect();
        Ok(Response::new(PullsResponse { pulls }))
    }

    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.unwrap_or_default();
        let name = (!first.name.is_empty()).then_some(first.name);
        let (sender, receiver) = mpsc::channel(PARTS);
        let forward = tokio::spawn(async move {
            let _ = sender.send(Ok(first.part)).await;
            while let Some(part) = parts.next().await {
                let part = part.map(|part| part.part).map_err(|e| e.message().to_owned());
                // The reader has failed and says why.
                if sender.send(part).await.is_err() {
                    return;
                }
            }
        });
        let archive = Parts { receiver, part: Vec::new(), at: 0 };
        let imported = self.node.images.import(Box::new(archive), name).await;
        forward.abort();
        let images = imported?.into_iter().map(|image| ImportedImage { id: image.id, names: image.names });
        Ok(Response::new(ImportResponse { images: images.collect() }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let report = self.node.images.check(request.into_inner().repair).await?;
        Ok(Response::new(report.into()))
    }
}

/// An archive as it comes in. Read on a blocking thread.
struct Parts {
    receiver: mpsc::Receiver<Result<Vec<u8>, String>>,
    part: Vec<u8>,
    at: usize,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(part)) => (self.part, self.at) = (part, 0),
                Some(Err(error)) => return Err(io::Error::other(error)),
            }
        }
        let len = (&self.part[self.at..]).read(buffer)?;
        self.at += len;
        Ok(len)
    }
}

fn pull(pull: image::PullStatus) -> Pull {
    let layer = |layer: image::LayerStatus| PullLayer {
        digest: layer.digest,
        size: layer.size,
        fetched: layer.fetched,
        done: layer.done,
    };
    Pull {
        reference: pull.reference,
        milliseconds: u64::try_from(pull.running.as_millis()).unwrap_or(u64::MAX),
        layers: pull.layers.into_iter().map(layer).collect(),
        archive: pull.archive,
    }
}

impl From<image::Report> for CheckResponse {
    fn from(report: image::Report) -> Self {
        let fault = |fault: image::Fault| Fault {
            what: fault.what,
            found: fault.found,
            images: fault.images,
            remedy: fault.remedy,
        };
        Self {
            layers: report.layers as u64,
            unverified: report.unverified as u64,
            repaired: report.repaired,
            faults: report.faults.into_iter().map(fault).collect(),
        }
    }
}
