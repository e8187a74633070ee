//! A static program as an image: one layer with the program, and a configuration that runs it.
//!
//! Written as an OCI layout in a tar file (image-spec, "image-layout"). Equal programs make equal images: no times inside.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Who runs it unless told otherwise: nobody that owns anything, as other minimal images have it.
const USER: &str = "65532:65532";

/// The archive, which goes when the value does.
pub(super) fn archive(program: &Path) -> Result<tempfile::NamedTempFile> {
    let shown = program.display();
    let bytes = fs::read(program).with_context(|| format!("read {shown}"))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{shown} is no ELF program; --binary takes a statically linked one");
    }
    if has_interpreter(&bytes) {
        bail!("{shown} needs a dynamic loader, which an image of the program alone does not have: link it statically");
    }
    let name = program.file_name().context("the program needs a name")?.to_string_lossy().into_owned();
    let layer = layer(&name, &bytes)?;
    let layer_digest = digest(&layer);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [format!("/{name}")], "WorkingDir": "/", "User": USER},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    let file =
        tempfile::Builder::new().prefix("sampan-import-").suffix(".tar").tempfile().context("make a temporary file")?;
    let mut archive = Builder::new(file.reopen().context("open the temporary file")?);
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add(&mut archive, "index.json", index.to_string().as_bytes())?;
    for blob in [&config, &manifest, &layer] {
        add(&mut archive, &format!("blobs/sha256/{}", &digest(blob)["sha256:".len()..]), blob)?;
    }
    archive.finish().context("write the archive")?;
    Ok(file)
}

fn layer(name: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for (path, mode) in [("etc/", 0o755), ("tmp/", 0o1777)] {
        let mut header = header(EntryType::Directory, mode, 0);
        layer.append_data(&mut header, path, std::io::empty()).context("write a directory")?;
    }
    let passwd = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
    let group = "root:x:0:\nnonroot:x:65532:\n";
    for (path, mode, bytes) in
        [("etc/passwd", 0o644, passwd.as_bytes()), ("etc/group", 0o644, group.as_bytes()), (name, 0o755, program)]
    {
        let mut header = header(EntryType::Regular, mode, bytes.len());
        layer.append_data(&mut header, path, bytes).with_context(|| format!("write {path}"))?;
    }
    layer.into_inner().context("write the layer")
}

fn add(archive: &mut Builder<File>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, 0o644, bytes.len());
    archive.append_data(&mut header, path, bytes).with_context(|| format!("write {path}"))
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(u64::try_from(size).unwrap_or(u64::MAX));
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// Whether a 64-bit ELF file has a `PT_INTERP` header (elf(5)): it asks for a dynamic loader.
fn has_interpreter(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |offset: usize, length: usize| -> Option<u64> {
        let mut value = [0; 8];
        BufReader::new(bytes.get(offset..offset.checked_add(length)?)?).read_exact(value.get_mut(..length)?).ok()?;
        Some(u64::from_le_bytes(value))
    };
    let headers = || {
        let start = usize::try_from(number(32, 8)?).ok()?;
        let (size, count) = (usize::try_from(number(54, 2)?).ok()?, usize::try_from(number(56, 2)?).ok()?);
        Some((0..count).any(|index| {
            let offset = index.checked_mul(size).and_then(|offset| offset.checked_add(start));
            offset.and_then(|offset| number(offset, 4)) == Some(u64::from(PT_INTERP))
        }))
    };
    headers().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_run_alone() {
        let check = |path: &str, expect: &str| {
            let error = archive(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(expect), "{path}: {error}");
        };
        check("/etc/passwd", "no ELF program");
        check("/bin/ls", "link it statically");
        check("/nowhere", "read /nowhere");
    }

    #[test]
    fn equal_programs_make_equal_layers() {
        assert_eq!(digest(&layer("a", b"x").unwrap()), digest(&layer("a", b"x").unwrap()));
    }
}
