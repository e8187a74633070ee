//! mounts: what comes into a running container, or leaves it.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::Mount;
use runtime_oci::StateRoot;

use super::Error;
use super::arguments::{Change, Mounts};
use super::lifecycle::{parse_id, secure_self};
use super::report::Reporter;

pub(crate) fn mounts(root: &StateRoot, mounts: &Mounts, reporter: &Reporter) -> Result<u8, Error> {
    let id = parse_id(&mounts.id)?;
    secure_self(0)?;
    let list = read(&mounts.file)?;
    match mounts.change {
        Change::Add => reporter.warnings(&runtime_oci::add_mounts(root, &id, &list)?),
        Change::Remove => runtime_oci::remove_mounts(root, &id, &list)?,
    }
    Ok(0)
}

fn read(path: &Path) -> Result<Vec<Mount>, Error> {
    let what = || format!("read mounts {}", path.display());
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text).map_err(Error::io(what()))?;
    } else {
        text = std::fs::read(path).map_err(Error::io(what()))?;
    }
    serde_json::from_slice(&text).map_err(|source| Error::Json { what: what(), source })
}
