//! ImageService: each call decodes, asks the image store one thing, and encodes.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};

use crate::cri::encode::pieces::{Pieces, pieces};
use crate::cri::wire::image_service_server::ImageService;
use crate::cri::wire::*;
use crate::cri::{decode, encode, error};
use crate::node::Node;

pub(super) struct Images {
    node: Arc<Node>,
}

impl Images {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn list(&self, filter: Option<&ImageFilter>) -> Result<Vec<Image>, Status> {
        let images = self.node.images.list(decode::image::filter(filter))?;
        Ok(images.into_iter().map(encode::image::image).collect())
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let images = self.list(request.get_ref().filter.as_ref())?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    type StreamImagesStream = Pieces<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = self.list(request.get_ref().filter.as_ref())?;
        Ok(Response::new(pieces(images, |images| StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        let reference = decode::image::reference(request.image.as_ref())?;
        let found = self.node.images.status(reference)?;
        Ok(Response::new(encode::image::status(found, request.verbose)?))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        let auth = decode::image::auth(request.auth);
        let reference = decode::image::reference(request.image.as_ref())?;
        let image_ref = self.node.images.pull(reference, auth).await.map_err(error::pull)?;
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let request = request.into_inner();
        self.node.images.remove(decode::image::reference(request.image.as_ref())?).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let usage = self.node.images.usage();
        Ok(Response::new(encode::image::fs_info(usage, &self.node.config.root)))
    }
}
