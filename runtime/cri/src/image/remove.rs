//! RemoveImage: by id all its names, else the one name. Idempotent.

use runtime_cri_api::v1::{RemoveImageRequest, RemoveImageResponse};

use crate::node::Node;
use crate::status::Error;

pub(crate) async fn run(node: &Node, request: RemoveImageRequest) -> Result<RemoveImageResponse, Error> {
    let name = super::name(request.image)?;
    // CRI: removing what is gone is success.
    if node.images.resolve(&name).is_some() {
        node.images.remove(&name).await?;
    }
    Ok(RemoveImageResponse {})
}
