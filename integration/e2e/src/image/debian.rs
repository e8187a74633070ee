//! The images that tests run: busybox, nginx and redis, from the packages `busybox-static`, `nginx` and `redis-server`.
//! Each has busybox's shell and tools, so that `exec`, `cp` and probes find what they find in the images people use.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::ImageBuilder;

const NGINX_UID: u32 = 101;
const REDIS_UID: u32 = 999;

/// In the foreground, logs to the container's output, and pages that tell who answered and who asked.
const NGINX_CONF: &str = "user nginx;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
    access_log /dev/stdout;
    types { text/html html; text/plain txt; }
    include /etc/nginx/conf.d/*.conf;
    server {
        listen 80 default_server;
        root /usr/share/nginx/html;
        location = /hostname { default_type text/plain; return 200 \"$hostname\\n\"; }
        location = /peer { default_type text/plain; return 200 \"$remote_addr\\n\"; }
        location = /server { default_type text/plain; return 200 \"$server_addr\\n\"; }
    }
}
";

const NGINX_PAGE: &str = "<!DOCTYPE html>\n<html>\n<head><title>Welcome to nginx!</title></head>\n\
                          <body><h1>Welcome to nginx!</h1></body>\n</html>\n";

/// A static busybox with all its applets; runs a shell.
pub fn busybox() -> Result<ImageBuilder> {
    with_busybox(ImageBuilder::new()).map(|image| image.command(&["sh"]))
}

/// Listens on 80 as root and serves as user `nginx`. `/hostname`, `/peer` and `/server` answer with the container's host name,
/// the address of whoever asks, and the address that was asked.
pub fn nginx() -> Result<ImageBuilder> {
    let image = with_busybox(ImageBuilder::new())?.next_layer().program(installed("/usr/sbin/nginx", "nginx")?)?;
    Ok(image
        .next_layer()
        .user("nginx", NGINX_UID, NGINX_UID)
        .file("/etc/nginx/nginx.conf", 0o644, NGINX_CONF)
        .directory("/etc/nginx/conf.d", 0o755)
        .file("/usr/share/nginx/html/index.html", 0o644, NGINX_PAGE)
        .directory_of("/var/lib/nginx", 0o755, NGINX_UID)
        .directory("/var/log/nginx", 0o755)
        .directory("/run", 0o755)
        .entrypoint(&["/usr/sbin/nginx"])
        .command(&["-c", "/etc/nginx/nginx.conf"])
        .exposed_port("80/tcp")
        .stop_signal("SIGQUIT"))
}

/// Listens on 6379 on all addresses, without a password, as user `redis`; `redis-cli` is there too.
pub fn redis() -> Result<ImageBuilder> {
    // In Debian the server's file is a check tool, a sentinel and the server at once, told by its name.
    let server = installed("/usr/bin/redis-server", "redis-server")?;
    let image = with_busybox(ImageBuilder::new())?.next_layer().program(server)?;
    let image = image.program(installed("/usr/bin/redis-cli", "redis-tools")?)?;
    Ok(image
        .next_layer()
        .user("redis", REDIS_UID, REDIS_UID)
        .directory_of("/data", 0o755, REDIS_UID)
        .working_directory("/data")
        .run_as("redis")
        .entrypoint(&["/usr/bin/redis-server"])
        .command(&["--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"])
        .exposed_port("6379/tcp"))
}

fn with_busybox(image: ImageBuilder) -> Result<ImageBuilder> {
    let program = installed("/bin/busybox", "busybox-static")?;
    let output = Command::new(program).arg("--list").output().context("list the applets of busybox")?;
    let mut image = image.program(program)?.directory("/root", 0o700);
    // Where a Debian machine keeps busybox once all links are followed.
    let bin = Path::new(program).canonicalize()?;
    let bin = bin.parent().context("busybox lies in a directory")?;
    for applet in String::from_utf8_lossy(&output.stdout).lines().filter(|applet| *applet != "busybox") {
        image = image.symlink(bin.join(applet), "busybox");
    }
    Ok(image)
}

fn installed<'a>(program: &'a str, package: &str) -> Result<&'a str> {
    if !Path::new(program).exists() {
        bail!("{program} is missing: install the Debian package {package}");
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Each image's own programs start in nothing but the image.
    #[test]
    fn images_hold_all_their_programs_need() {
        let check = |image: ImageBuilder, words: &[&str], expect: &str| {
            let built = image.build().unwrap();
            assert_eq!(built.manifest, image.build().unwrap().manifest, "not reproducible");
            let root = tempfile::tempdir().unwrap();
            for layer in layers_of(&built) {
                let plain = flate2::read::GzDecoder::new(&built.blobs[&layer][..]);
                let mut archive = tar::Archive::new(plain);
                archive.set_overwrite(true);
                archive.set_preserve_permissions(true);
                archive.unpack(root.path()).unwrap();
            }
            let output = Command::new("chroot").arg(root.path()).args(words).output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(output.status.success() && text.contains(expect), "{words:?}: {text}");
        };
        check(busybox().unwrap(), &["/bin/sh", "-c", "echo $((6*7)) | cat"], "42");
        check(nginx().unwrap(), &["/usr/sbin/nginx", "-V"], "nginx version");
        check(nginx().unwrap(), &["/bin/id", "nginx"], "uid=101(nginx)");
        check(redis().unwrap(), &["/usr/bin/redis-server", "--version"], "Redis server");
        check(redis().unwrap(), &["/usr/bin/redis-cli", "--version"], "redis-cli");
    }

    fn layers_of(built: &super::super::Built) -> Vec<String> {
        let manifest: serde_json::Value = serde_json::from_slice(&built.manifest).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }
}
