//! ImageService: each RPC handed to its file. No work is done here.

use std::pin::Pin;

use futures::Stream;
use runtime_cri_api::v1::image_service_server::ImageService;
use runtime_cri_api::v1::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse,
};
use tonic::{Request, Response, Status};

use super::{Server, pieces};
use crate::image;

#[tonic::async_trait]
impl ImageService for Server {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        self.answer(request, |node, request| Ok(ListImagesResponse { images: image::list::run(node, request.filter) }))
    }

    type StreamImagesStream = Pin<Box<dyn Stream<Item = Result<StreamImagesResponse, Status>> + Send>>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let all = image::list::run(&self.node(), request.into_inner().filter);
        Ok(Response::new(pieces(all, |images| StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        self.answer(request, image::list::status)
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let answer = image::pull::run(&self.node(), request.into_inner()).await;
        self.told("pull_image", answer)
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let answer = image::remove::run(&self.node(), request.into_inner()).await;
        self.told("remove_image", answer)
    }

    async fn image_fs_info(
        &self,
        request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        self.work(request, |node, _request| image::fs_info::run(node)).await
    }
}
