//! ListImages and ImageStatus.

use std::collections::HashMap;

use runtime_cri_api::v1::{Image, ImageFilter, ImageStatusRequest, ImageStatusResponse};
use serde_json::json;

use crate::node::Node;
use crate::status::Error;

pub(crate) fn run(node: &Node, filter: Option<ImageFilter>) -> Vec<Image> {
    let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
    if wanted.is_empty() {
        return node.images.list().iter().map(super::item).collect();
    }
    node.images.resolve(&wanted).iter().map(super::item).collect()
}

/// CRI: an image that is not here is an empty answer, no error.
pub(crate) fn status(node: &Node, request: ImageStatusRequest) -> Result<ImageStatusResponse, Error> {
    let name = super::name(request.image)?;
    let Some(image) = node.images.resolve(&name) else { return Ok(ImageStatusResponse::default()) };
    let info = if request.verbose {
        let info = json!({ "imageSpec": *image.config });
        HashMap::from([("info".to_owned(), info.to_string())])
    } else {
        HashMap::new()
    };
    Ok(ImageStatusResponse { image: Some(super::item(&image)), info })
}
