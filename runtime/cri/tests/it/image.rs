//! The image of these tests: busybox, a user, and declared volumes, as an OCI layout.

use std::fs;
use std::path::Path;

use runtime_images::Digest;
use serde_json::json;
use tar::{Builder, EntryType, Header};

pub(crate) const NAME: &str = "test.local/busybox:1";

const APPLETS: [&str; 30] = [
    "sh", "sleep", "cat", "echo", "true", "false", "kill", "dd", "stty", "tty", "printf", "ps", "head", "hostname",
    "id", "tail", "ls", "stat", "touch", "mkdir", "nc", "wc", "seq", "yes", "env", "grep", "mkfifo", "rm", "df", "ln",
];

struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn entry(&mut self, kind: EntryType, path: &str, mode: u32, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        self.0.append_data(&mut header, path, data).unwrap();
    }

    fn link(&mut self, path: &str, target: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
    }
}

/// Below a directory that is made.
pub(crate) fn write_layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "digest": digest.to_string(), "size": bytes.len() })
    };
    let mut layer = Layer(Builder::new(Vec::new()));
    for (path, mode) in
        [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("data", 0o750), ("proc", 0o755), ("sys", 0o755)]
    {
        layer.entry(EntryType::Directory, path, mode, b"");
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    layer.entry(EntryType::Regular, "bin/busybox", 0o755, &fs::read(busybox.expect("install busybox-static")).unwrap());
    for applet in APPLETS {
        layer.link(&format!("bin/{applet}"), "busybox");
    }
    layer.entry(EntryType::Regular, "etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var:/bin/sh\n");
    layer.entry(EntryType::Regular, "data/seed", 0o640, b"planted");
    let layer = layer.0.into_inner().unwrap();
    let mut descriptor = put(&layer);
    descriptor["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar");
    let config = json!({
        "os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer).to_string()] },
        "config": {
            "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "StopSignal": "SIGUSR1",
            "Volumes": { "/data": {}, "/fresh": {} },
        },
    });
    let mut configured = put(config.to_string().as_bytes());
    configured["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": configured, "layers": [descriptor],
    });
    let mut named = put(manifest.to_string().as_bytes());
    named["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    fs::write(dir.join("index.json"), json!({ "schemaVersion": 2, "manifests": [named] }).to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
