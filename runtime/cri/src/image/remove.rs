//! RemoveImage: by id all its names, else the one name. Idempotent.

use runtime_cri_api::v1::{RemoveImageRequest, RemoveImageResponse};

use runtime_images::Kind;

use crate::node::Node;
use crate::status::Error;

pub(crate) async fn run(node: &Node, request: RemoveImageRequest) -> Result<RemoveImageResponse, Error> {
    let name = super::name(request.image)?;
    // CRI: removing what is gone is success.
    if node.images.resolve(&name).is_some() {
        match node.images.remove(&name).await {
            // Another removal came in between.
            Err(error) if error.kind() == Kind::NotFound => {}
            removed => {
                removed?;
            }
        }
    }
    Ok(RemoveImageResponse {})
}
