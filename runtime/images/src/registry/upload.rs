//! Pushing: blobs that the registry does not have, then the manifest (distribution-spec, "Push").

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::Error;
use super::session::{Ask, Live, Session, resolve_location};
use super::transport::{RequestBody, full_body, no_body};
use crate::digest::Digest;

const PIECE_BYTES: usize = 128 << 10;

impl Session {
    /// Sends the file at `path` as `blob` unless the registry has it.
    pub(crate) async fn push_blob(&self, blob: &Digest, path: &Path) -> Result<(), crate::Error> {
        let live = self.push_endpoint()?;
        let what = format!("blob {blob}");
        let target = format!("blobs/{blob}");
        let ask = Ask { method: Method::HEAD, target: &target, headers: &[], body: &no_body, what: &what };
        if self.send(live, &ask).await?.status().is_success() {
            return Ok(());
        }
        let headers = [(CONTENT_LENGTH, "0".to_owned())];
        let ask =
            Ask { method: Method::POST, target: "blobs/uploads/", headers: &headers, body: &no_body, what: &what };
        let answer = self.send(live, &ask).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.push_refusal(live, &what, answer).await.into());
        }
        let address = self.upload_address(live, &what, answer.headers().get(LOCATION), blob)?;
        let open = |path: &Path| std::fs::File::open(path).map_err(|source| crate::Error::io("open", path, source));
        let size = open(path)?.metadata().map_err(|source| crate::Error::io("look at", path, source))?.len();
        let body = || match open(path) {
            Ok(file) => file_body(tokio::fs::File::from_std(file)),
            Err(error) => failed_body(error.to_string()),
        };
        let headers = [(CONTENT_LENGTH, size.to_string()), (CONTENT_TYPE, "application/octet-stream".to_owned())];
        let ask = Ask { method: Method::PUT, target: &address, headers: &headers, body: &body, what: &what };
        let answer = self.send(live, &ask).await?;
        if answer.status().is_success() { Ok(()) } else { Err(self.push_refusal(live, &what, answer).await.into()) }
    }

    pub(crate) async fn push_manifest(&self, target: &str, media_type: &str, bytes: Bytes) -> Result<(), crate::Error> {
        let live = self.push_endpoint()?;
        let what = format!("manifest {}:{target}", self.repository);
        let path = format!("manifests/{target}");
        let body = || full_body(bytes.clone());
        let headers = [(CONTENT_TYPE, media_type.to_owned())];
        let ask = Ask { method: Method::PUT, target: &path, headers: &headers, body: &body, what: &what };
        let answer = self.send(live, &ask).await?;
        if answer.status().is_success() { Ok(()) } else { Err(self.push_refusal(live, &what, answer).await.into()) }
    }

    /// Never a mirror: what is pushed must be where everybody looks.
    fn push_endpoint(&self) -> Result<&Live, Error> {
        self.endpoints.iter().rev().find(|live| live.endpoint.push).ok_or_else(|| Error::Configuration {
            registry: self.registry.clone(),
            path: "its directory".to_owned(),
            reason: "no endpoint has the capability push".to_owned(),
        })
    }

    async fn push_refusal(&self, live: &Live, what: &str, answer: http::Response<hyper::body::Incoming>) -> Error {
        let unknown = Error::Status {
            host: live.endpoint.authority.clone(),
            what: what.to_owned(),
            status: answer.status(),
            detail: format!("repository {} cannot be pushed to", self.repository),
        };
        self.refusal(live, what, answer, unknown).await
    }

    fn upload_address(
        &self,
        live: &Live,
        what: &str,
        location: Option<&http::HeaderValue>,
        blob: &Digest,
    ) -> Result<String, Error> {
        let protocol = |reason: &str| Error::Protocol {
            host: live.endpoint.authority.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        };
        let location = location.and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| protocol("it did not say where to upload to"))?;
        let base = format!(
            "{}://{}{}/{}/blobs/uploads/",
            live.scheme(),
            live.endpoint.authority,
            live.endpoint.path,
            self.repository
        );
        let base: Uri = base.parse().map_err(|_| protocol("its address cannot be joined with an upload"))?;
        let location = resolve_location(&base, location).ok_or_else(|| protocol("it gave no address to upload to"))?;
        let separator = if location.query().is_some() { '&' } else { '?' };
        Ok(format!("{location}{separator}digest={blob}"))
    }
}

fn file_body(file: tokio::fs::File) -> RequestBody {
    StreamBody::new(ReaderStream::with_capacity(file, PIECE_BYTES).map_ok(Frame::data)).boxed()
}

fn failed_body(reason: String) -> RequestBody {
    let failed = futures::stream::once(async move { Err(io::Error::other(reason)) });
    StreamBody::new(failed).boxed()
}
