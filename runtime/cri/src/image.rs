//! The image service: one file per RPC over `runtime_images`.

pub(crate) mod fs_info;
pub(crate) mod list;
pub(crate) mod pull;
pub(crate) mod remove;

use runtime_cri_api::v1::{Image as ImageItem, ImageSpec, Int64Value};
use runtime_images::Image;

use crate::status::Error;

pub(crate) fn item(image: &Image) -> ImageItem {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default().to_owned();
    let (uid, username) = match user.parse::<i64>() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_) if user.is_empty() => (Some(Int64Value { value: 0 }), String::new()),
        Err(_) => (None, user),
    };
    ImageItem {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size_bytes,
        uid,
        username,
        spec: Some(ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// What an image is asked for by.
pub(crate) fn name(spec: Option<ImageSpec>) -> Result<String, Error> {
    let name = spec.unwrap_or_default().image;
    if name.is_empty() { Err(Error::invalid("image", "is missing")) } else { Ok(name) }
}
