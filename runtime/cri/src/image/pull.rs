//! PullImage, with the credentials of the request.

use runtime_cri_api::v1::{PullImageRequest, PullImageResponse};
use runtime_images::{Auth, AuthFields, Progress, Reference};

use crate::node::Node;
use crate::status::Error;

pub(crate) async fn run(node: &Node, request: PullImageRequest) -> Result<PullImageResponse, Error> {
    let reference = Reference::parse(&super::name(request.image)?)?;
    let auth = request.auth.unwrap_or_default();
    let auth = Auth::from_fields(
        AuthFields {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identity_token: auth.identity_token,
            registry_token: auth.registry_token,
            server_address: auth.server_address,
        },
        reference.registry(),
    )?;
    let image = node.images.pull(&reference, auth, Progress::silent()).await?;
    Ok(PullImageResponse { image_ref: image.id.to_string() })
}
