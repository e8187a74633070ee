//! `sampan images`, `pull`, `rmi`, `import` and `export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use runtime_cri_api::v1;
use serde_json::json;

use super::list::{Output, columns};
use super::session::{Session, said};
use crate::image_door::{self, Request};
use crate::report::{print, say};

mod program;

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// Image by name, like nginx:1.27 or registry.example/team/app@sha256:...
    image: String,
    /// Credentials for the registry: USER:PASSWORD
    #[arg(long, value_name = "USER:PASSWORD", env = "SAMPAN_REGISTRY_CREDENTIALS", hide_env_values = true)]
    creds: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    /// Images by name or id
    #[arg(required = true)]
    images: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// An OCI layout (directory or tar) or a docker-archive
    #[arg(required_unless_present = "binary")]
    path: Option<PathBuf>,
    /// A static program instead: it becomes an image of one layer that runs it
    #[arg(long, value_name = "PROGRAM", conflicts_with = "path", requires = "name")]
    binary: Option<PathBuf>,
    /// What to call the image
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Images by name or id
    #[arg(required = true)]
    images: Vec<String>,
    /// The tar file to write: an OCI layout and a docker-archive in one
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

/// When `run` fetches an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum When {
    Missing,
    Always,
    Never,
}

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: image.into(), ..v1::ImageSpec::default() })
}

/// The id of an image that is here after this.
pub(super) async fn ensure(session: &Session, image: &str, when: When) -> Result<String> {
    if when != When::Always {
        let request = v1::ImageStatusRequest { image: spec(image), verbose: false };
        let found = session.images().image_status(request).await.map_err(said)?.into_inner().image;
        if let Some(found) = found {
            return Ok(found.id);
        }
    }
    if when == When::Never {
        bail!("image {image} is not here, and --pull=never says not to fetch it: `sampan pull {image}`");
    }
    say(&format!("pulling {image}"));
    fetch(session, image, None).await
}

async fn fetch(session: &Session, image: &str, auth: Option<v1::AuthConfig>) -> Result<String> {
    let request = v1::PullImageRequest { image: spec(image), auth, sandbox_config: None };
    // The answer names the image.
    let answer = session.images().pull_image(request).await.map_err(said)?;
    Ok(answer.into_inner().image_ref)
}

pub(super) async fn pull(session: &Session, args: &PullArgs) -> Result<()> {
    let auth = match &args.creds {
        None => None,
        Some(text) => {
            let (username, password) = text.split_once(':').context("--creds: write USER:PASSWORD")?;
            Some(v1::AuthConfig { username: username.into(), password: password.into(), ..v1::AuthConfig::default() })
        }
    };
    let id = fetch(session, &args.image, auth).await?;
    print(&format!("{id}\n")).context("write to standard output")
}

pub(super) async fn list(session: &Session, args: &ListArgs) -> Result<()> {
    let listed = session.images().list_images(v1::ListImagesRequest::default()).await.map_err(said)?;
    let mut images = listed.into_inner().images;
    images.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags));
    let text = match (args.quiet, args.output) {
        (true, _) => images.iter().map(|image| format!("{}\n", image.id)).collect(),
        (false, Output::Json) => {
            let as_json = |image: &v1::Image| json!({"id": image.id, "tags": image.repo_tags, "digests": image.repo_digests, "bytes": image.size});
            format!("{:#}\n", json!(images.iter().map(as_json).collect::<Vec<_>>()))
        }
        (false, Output::Table) => table(&images),
    };
    print(&text).context("write to standard output")
}

fn table(images: &[v1::Image]) -> String {
    let mut rows = vec![["IMAGE", "ID", "SIZE"].map(String::from)];
    for image in images {
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let row = |name: &str| [name.to_owned(), id.get(..12).unwrap_or(id).to_owned(), size(image.size)];
        if names.is_empty() {
            rows.push(row("<none>"));
        }
        rows.extend(names.iter().map(|name| row(name)));
    }
    columns(&rows)
}

/// `512 B`, `1.4 MB`: powers of 1000, as registries count.
fn size(bytes: u64) -> String {
    let mut whole = bytes;
    let mut tenths = 0;
    for unit in ["B", "kB", "MB", "GB"] {
        if whole < 1000 {
            return if unit == "B" { format!("{whole} B") } else { format!("{whole}.{tenths} {unit}") };
        }
        tenths = whole % 1000 / 100;
        whole /= 1000;
    }
    format!("{whole}.{tenths} TB")
}

pub(super) async fn remove(session: &Session, args: &RemoveArgs) -> Result<()> {
    for image in &args.images {
        let status = v1::ImageStatusRequest { image: spec(image), verbose: false };
        if session.images().image_status(status).await.map_err(said)?.into_inner().image.is_none() {
            bail!("there is no image {image}; `sampan images` lists all of them");
        }
        let request = v1::RemoveImageRequest { image: spec(image) };
        session.images().remove_image(request).await.map_err(said).with_context(|| format!("remove {image}"))?;
        print(&format!("{image}\n")).context("write to standard output")?;
    }
    Ok(())
}

pub(super) async fn import(session: &Session, args: &ImportArgs) -> Result<()> {
    let built = args.binary.as_deref().map(program::archive).transpose()?;
    let path = match (&built, &args.path) {
        (Some(built), _) => built.path().to_owned(),
        (None, Some(path)) => absolute(path)?,
        (None, None) => bail!("give a file to import, or --binary PROGRAM"),
    };
    let request = Request::Import { path, name: args.name.clone() };
    let names = image_door::ask(&session.layout.image_socket(), &request).await.context("import")?;
    print(&names.iter().map(|name| format!("{name}\n")).collect::<String>()).context("write to standard output")
}

pub(super) async fn export(session: &Session, args: &ExportArgs) -> Result<()> {
    let path = std::path::absolute(&args.file).context("find the file's directory")?;
    let request = Request::Export { path, names: args.images.clone() };
    image_door::ask(&session.layout.image_socket(), &request).await.context("export")?;
    print(&format!("{}\n", args.file.display())).context("write to standard output")
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |bytes: u64, expect: &str| assert_eq!(size(bytes), expect);
        check(512, "512 B");
        check(1_400, "1.4 kB");
        check(1_499_999, "1.4 MB");
        check(25_000_000_000, "25.0 GB");
    }
}
