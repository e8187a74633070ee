//! Pulling: a reference -> verified, unpacked and recorded.

use std::path::Path;

use crate::{Auth, Error, ExportFormat, Image, Images, Progress, Reference};

#[expect(clippy::unused_async, reason = "the door is landed before the room behind it")]
impl Images {
    /// Fetches an image and unpacks it. Callers that ask for the same image with the same credentials share one pull;
    /// it ends when the last of them gives up.
    pub async fn pull(&self, reference: &Reference, auth: Option<Auth>, progress: Progress) -> Result<Image, Error> {
        let _ = (auth, progress);
        Err(Error::NoImage { name: reference.to_string() })
    }

    /// Sends an image that is here to a registry under `reference`.
    pub async fn push(&self, name: &str, reference: &Reference, auth: Option<Auth>) -> Result<(), Error> {
        let _ = (reference, auth);
        Err(Error::NoImage { name: name.to_owned() })
    }

    /// Imports every image of an OCI layout (directory or tar) or docker-archive. `name` names the image when the
    /// archive holds one without a name of its own.
    pub async fn import(&self, path: &Path, name: Option<&Reference>) -> Result<Vec<Image>, Error> {
        let _ = name;
        Err(Error::NoImage { name: path.display().to_string() })
    }

    /// Writes images into one archive or directory.
    pub async fn export(&self, names: &[&str], path: &Path, format: ExportFormat) -> Result<(), Error> {
        let _ = (names, format);
        Err(Error::NoImage { name: path.display().to_string() })
    }
}
