//! Keeps the node from filling up: rotates container logs by size, evicts pods that write more than they may (storage.rs), and
//! removes images that nothing uses, at once when the disk is nearly full. The one place with a clock of its own, for no event tells that a file has grown. Not the containers of a pod; its task tidies them (worker.rs).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Retention;
use crate::kit::Kit;
use crate::pods::Registry;
use crate::worker::Event;
use crate::{machine, storage};

/// Upstream looks at logs and at what pods use every 10 seconds, and at images every 5 minutes.
const LOGS_EVERY: Duration = Duration::from_secs(10);
const IMAGES_EVERY_ROUNDS: u32 = 30;
/// From here on images are not left until their time comes: the node soon says DiskPressure (10 % of bytes or 5 % of inodes left).
const PRESSED_PERCENT: u64 = 90;

/// Runs until shutdown.
pub async fn run(kit: Arc<Kit>, registry: Registry, retention: Retention, shutdown: CancellationToken) {
    let mut round: u32 = 0;
    let mut next_try: u32 = 0;
    loop {
        if tokio::time::timeout(LOGS_EVERY, shutdown.cancelled()).await.is_ok() {
            return;
        }
        rotate_logs(&kit, &registry, &retention).await;
        evict_greedy(&kit, &registry).await;
        round = round.wrapping_add(1);
        // Between its times only where the node is about to say that its disk is full, and has not just failed at it.
        let is_pressed = used_percent(&kit) >= PRESSED_PERCENT && round >= next_try;
        if round.is_multiple_of(IMAGES_EVERY_ROUNDS) || is_pressed {
            let freed = collect_images(&kit, &registry, &retention).await;
            next_try = if freed { round } else { round.wrapping_add(IMAGES_EVERY_ROUNDS) };
        }
    }
}

async fn rotate_logs(kit: &Kit, registry: &Registry, retention: &Retention) {
    for handle in registry.all() {
        let snapshot = handle.snapshot.borrow().clone();
        for container in snapshot.containers.iter().filter(|c| c.is_running()) {
            let name = crate::container_config::log_path(&container.name, container.attempt);
            let path = kit.host.log_dir(&snapshot.pod).join(name);
            let size = tokio::fs::metadata(&path).await.map_or(0, |m| m.len());
            if size < retention.log_size_bytes_max {
                continue;
            }
            if let Err(error) = rotate(&path, retention.log_files_max) {
                tracing::warn!(path = %path.display(), %error, "log not rotated");
                continue;
            }
            if let Err(error) = kit.runtime.reopen_log(&container.id).await {
                // Without a new file the runtime writes on into the old one: put it back.
                tracing::warn!(container = container.id, %error, "log not reopened");
                if let Err(error) = std::fs::rename(numbered(&path, 1), &path) {
                    tracing::warn!(path = %path.display(), %error, "rotated log not put back");
                }
            }
        }
    }
}

async fn evict_greedy(kit: &Kit, registry: &Registry) {
    for handle in registry.all() {
        let snapshot = handle.snapshot.borrow().clone();
        let is_over = matches!(snapshot.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if is_over || !storage::is_limited(&snapshot.pod) {
            continue;
        }
        let usage = storage::measure(kit, &snapshot).await;
        if let Some(failed) = storage::judge(&snapshot.pod, &usage) {
            tracing::info!(pod = %snapshot.pod.key, message = failed.message, "pod evicted");
            // A task that has ended needs no eviction.
            let _ = handle.events.send(Event::Evict(Box::new(failed)));
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// `0.log` becomes `0.log.1`, which became `0.log.2`; the last falls off.
fn rotate(path: &Path, files_max: u32) -> std::io::Result<()> {
    let oldest = files_max.max(2) - 1;
    for number in (1..oldest).rev() {
        match std::fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(path, 1))
}

/// How full the file system of the data directory is, in bytes or in inodes, whichever is worse.
fn used_percent(kit: &Kit) -> u64 {
    percent(&machine::disk(&kit.host.data_dir))
}

fn percent(disk: &machine::Disk) -> u64 {
    let of = |left: u64, all: u64| {
        let used = u128::from(all.saturating_sub(left)) * 100;
        // A file system without a number of inodes never runs out of them.
        if all == 0 { 0 } else { u64::try_from(used / u128::from(all)).unwrap_or(100) }
    };
    of(disk.available_bytes, disk.total_bytes).max(of(disk.inodes_free, disk.inodes))
}

/// Removes unused images, the largest first, until enough room is free. False if it is not.
async fn collect_images(kit: &Kit, registry: &Registry, retention: &Retention) -> bool {
    if used_percent(kit) < u64::from(retention.image_high_percent) {
        return true;
    }
    let mut used: BTreeSet<String> = BTreeSet::new();
    for handle in registry.all() {
        let snapshot = handle.snapshot.borrow().clone();
        used.extend(snapshot.containers.iter().flat_map(|c| [c.image_ref.clone(), c.image.clone()]));
        used.extend(snapshot.pod.members.iter().map(|m| m.image().to_owned()));
    }
    let Ok(mut images) = kit.runtime.list_images().await else { return false };
    images.sort_by_key(|i| std::cmp::Reverse(i.size));
    for image in images {
        let names = || std::iter::once(&image.id).chain(&image.repo_tags).chain(&image.repo_digests);
        if image.pinned || names().any(|n| used.contains(n)) {
            continue;
        }
        tracing::info!(image = image.id, bytes = image.size, "unused image removed: the disk is filling up");
        if let Err(error) = kit.runtime.remove_image(&image.id).await {
            tracing::warn!(image = image.id, %error, "unused image not removed");
        }
        if used_percent(kit) < u64::from(retention.image_low_percent) {
            return true;
        }
    }
    let text = "Failed to garbage collect required amount of images: too few are unused";
    kit.recorder.node(&kit.node_name, crate::events::Severity::Warning, "FreeDiskSpaceFailed", text);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_as_full_as_the_worse_of_bytes_and_inodes() {
        let check = |available_bytes, inodes, inodes_free, expect| {
            let disk = machine::Disk { total_bytes: 200, available_bytes, inodes, inodes_free };
            assert_eq!(percent(&disk), expect);
        };
        check(100, 10, 9, 50);
        check(100, 10, 1, 90);
        check(0, 0, 0, 100);
        check(200, 0, 0, 0);
    }

    #[test]
    fn logs_move_up_and_fall_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for text in ["a", "b", "c", "d"] {
            std::fs::write(&path, text).unwrap();
            rotate(&path, 3).unwrap();
        }
        let read = |n| std::fs::read_to_string(numbered(&path, n)).ok();
        assert_eq!((read(1), read(2), read(3)), (Some("d".into()), Some("c".into()), None));
    }
}
