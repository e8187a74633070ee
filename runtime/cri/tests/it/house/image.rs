//! An image of one static busybox, as a docker-archive.

use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const NAME: &str = "docker.io/test/busybox:1";

const APPLETS: [&str; 20] = [
    "sh", "cat", "echo", "sleep", "ls", "id", "true", "false", "nc", "ip", "hostname", "env", "touch", "head", "grep",
    "kill", "stat", "pwd", "stty", "wc",
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:40:web\n";

pub(crate) fn write(path: &Path) {
    let layer = layer();
    let diff_id = format!("sha256:{}", hex(&Sha256::digest(&layer)));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh", "-c", "echo default"], "WorkingDir": "/tmp" },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["test/busybox:1"], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in [
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().into_bytes()),
    ] {
        append(&mut archive, name, &bytes, 0o644);
    }
    archive.finish().unwrap();
}

fn layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, mode) in
        [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        layer.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    append(&mut layer, "bin/busybox", &std::fs::read("/bin/busybox").expect("busybox-static is installed"), 0o755);
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    append(&mut layer, "etc/passwd", PASSWD.as_bytes(), 0o644);
    append(&mut layer, "etc/group", GROUP.as_bytes(), 0o644);
    layer.into_inner().unwrap()
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
