//! A real `docker-registry` (the Debian package) with storage of its own, and a plain client that pushes into it.
//! The client is deliberately not Sampan's: what Sampan pulls was written by somebody else's code.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::image::{Built, ImageBuilder, MANIFEST_TYPE};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A running registry; it and its content are gone when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: SocketAddr,
    storage: TempDir,
}

impl Registry {
    /// On a free port of 127.0.0.1, over plain HTTP.
    pub fn start() -> Result<Self> {
        Self::start_on(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// On a free port of another local address, for pods or other network namespaces to reach.
    pub fn start_on(ip: IpAddr) -> Result<Self> {
        let storage = tempfile::tempdir()?;
        let address = TcpListener::bind((ip, 0)).context("find a free port")?.local_addr()?;
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: \"{address}\"}}\n\
             storage: {{filesystem: {{rootdirectory: \"{}\"}}, delete: {{enabled: true}}}}\n",
            storage.path().join("content").display()
        );
        fs::write(&config, text)?;
        let log = fs::File::create(storage.path().join("log"))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry; it is in the Debian package docker-registry")?;
        let mut registry = Self { process, address, storage };
        registry.wait_until_it_listens()?;
        Ok(registry)
    }

    /// `127.0.0.1:41373`: the first part of every image's name.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Builds an image and pushes it as `name`, `nginx:1`. Returns the name to pull it by.
    pub fn push(&self, image: &ImageBuilder, name: &str) -> Result<String> {
        self.push_built(&image.build()?, name)
    }

    pub fn push_built(&self, image: &Built, name: &str) -> Result<String> {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        for (digest, bytes) in &image.blobs {
            let there = self.ask("HEAD", &format!("/v2/{repository}/blobs/{digest}"), "", &[])?;
            if there.status == 200 {
                continue;
            }
            let started = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
            let location = started.location.context("docker-registry gives no upload location")?;
            let path =
                location.split_once("://").map_or(location.as_str(), |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
            let separator = if path.contains('?') { '&' } else { '?' };
            let target = format!("{path}{separator}digest={digest}");
            self.ask("PUT", &target, "application/octet-stream", bytes)?.expect(201, digest)?;
        }
        self.put_manifest(repository, tag, MANIFEST_TYPE, &image.manifest)?;
        Ok(format!("{}/{repository}:{tag}", self.address))
    }

    /// Any manifest or index as it is, for what a builder does not make.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
        self.ask("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, bytes)?.expect(201, "the manifest")
    }

    /// Where the registry keeps a blob, for a test that damages it.
    pub fn blob_path(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.storage.path().join("content/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now().checked_add(START_TIMEOUT).expect("a clock that is not near its end");
        loop {
            if TcpStream::connect_timeout(&self.address, POLL).is_ok() {
                return Ok(());
            }
            let ended = self.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.storage.path().join("log")).unwrap_or_default();
                bail!("docker-registry does not listen on {}: {log}", self.address);
            }
            std::thread::park_timeout(POLL);
        }
    }

    fn ask(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> Result<Answer> {
        let what = || format!("{method} {target}");
        let mut stream = TcpStream::connect(self.address).with_context(what)?;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).with_context(what)?;
        stream.write_all(body).with_context(what)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).with_context(what)?;
        let status = line.split_whitespace().nth(1).and_then(|status| status.parse().ok()).with_context(what)?;
        let mut location = None;
        loop {
            line.clear();
            if reader.read_line(&mut line).with_context(what)? == 0 || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("location")
            {
                location = Some(value.trim().to_owned());
            }
        }
        let mut body = String::new();
        if method != "HEAD" {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).with_context(what)?;
            body = String::from_utf8_lossy(&bytes).into_owned();
        }
        Ok(Answer { status, location, body })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

impl Answer {
    fn expect(&self, status: u16, what: &str) -> Result<()> {
        if self.status == status {
            return Ok(());
        }
        bail!("docker-registry answers {} to {what}: {}", self.status, self.body.trim())
    }
}

#[cfg(test)]
mod tests {
    use runtime_images::{Config, Images, Progress, Reference};

    use super::*;
    use crate::image;

    #[test]
    fn what_is_pushed_can_be_pulled() {
        let registry = Registry::start().unwrap();
        let built = image::busybox().unwrap().env("WHO", "test").build().unwrap();
        let name = registry.push_built(&built, "team/busybox:1").unwrap();
        assert_eq!(registry.push_built(&built, "team/busybox:1").unwrap(), name);
        assert!(registry.blob_path(&built.id).exists());
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(Config::new(dir.path())).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let reference = Reference::parse(&name).unwrap();
        let pulled = runtime.block_on(images.pull(&reference, None, Progress::silent())).unwrap();
        assert_eq!(pulled.id.to_string(), built.id);
        let layout = tempfile::tempdir().unwrap();
        built.write_layout(layout.path(), "imported:1").unwrap();
        let imported = runtime.block_on(images.import(layout.path(), None)).unwrap();
        assert_eq!(imported[0].tags.len(), 2);
    }
}
