//! ContainerStats and ListContainerStats: from the container's cgroup and its snapshot.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use runtime_cri_api::v1::{
    ContainerAttributes, ContainerState, ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier,
    FilesystemUsage, MemoryUsage, SwapUsage, UInt64Value,
};
use runtime_images::Usage;
use runtime_linux::cgroup::{Cgroup, Stats};

use crate::facts;
use crate::node::{Container, Node, now_ns};
use crate::sandbox::selected;
use crate::status::Error;

pub(crate) fn one(node: &Node, id: &str) -> Result<ContainerStats, Error> {
    stats(node, &*node.container(id)?)
}

/// Those that run: what has no processes uses nothing.
pub(crate) fn list(node: &Node, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let filter = filter.unwrap_or_default();
    let wanted = |container: &Container| {
        container.read(|record| {
            facts::container_state(record) == ContainerState::ContainerRunning
                && (filter.id.is_empty() || record.id.starts_with(&filter.id))
                && (filter.pod_sandbox_id.is_empty() || record.sandbox_id.starts_with(&filter.pod_sandbox_id))
                && selected(&filter.label_selector, &record.config.labels)
        })
    };
    let found = node.containers();
    // One that ends while we look is left out.
    found.iter().filter(|container| wanted(container)).filter_map(|container| stats(node, container).ok()).collect()
}

pub(crate) fn stats(node: &Node, container: &Container) -> Result<ContainerStats, Error> {
    let record = container.facts();
    let timestamp = now_ns();
    let used = usage(node, container)?;
    let writable_layer = FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint: node.config.images.dir.display().to_string() }),
        used_bytes: value(used.bytes),
        inodes_used: value(used.inodes),
    };
    let attributes = ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    };
    let running = facts::container_state(&record) == ContainerState::ContainerRunning;
    let usage = if running { cgroup(node, &record.cgroup)? } else { None };
    Ok(ContainerStats {
        attributes: Some(attributes),
        cpu: usage.as_ref().map(|usage| cpu(usage, timestamp)),
        memory: usage.as_ref().map(|usage| memory(usage, timestamp)),
        writable_layer: Some(writable_layer),
        swap: usage.as_ref().map(|usage| swap(usage, timestamp)),
        io: None,
    })
}

/// The size of a writable layer, and how old that is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    at: Instant,
    took: Duration,
    usage: Usage,
}

impl Measured {
    /// Measuring walks the whole layer, so it is done no more often than containerd does, and takes no more than a twentieth of a
    /// processor's time.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < FRESH_FOR.max(self.took.saturating_mul(20))
    }
}

/// containerd's `stats_collect_period`.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// What the container has written. Whoever comes while it is measured waits for that, and does not measure again.
fn usage(node: &Node, container: &Container) -> Result<Usage, Error> {
    let mut measured = container.measured.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    if let Some(known) = measured.as_ref().filter(|known| known.is_fresh(begun)) {
        return Ok(known.usage);
    }
    let usage = node.tokio.block_on(node.images.usage(&container.id))?;
    let now = Instant::now();
    *measured = Some(Measured { at: now, took: now.saturating_duration_since(begun), usage });
    Ok(usage)
}

/// `None` where the cgroup is gone.
pub(crate) fn cgroup(node: &Node, path: &str) -> Result<Option<Stats>, Error> {
    let failed = |source: runtime_linux::cgroup::Error| Error::Cgroup { path: path.to_owned(), source };
    let cgroup = Cgroup::new(&node.hierarchy, path).map_err(failed)?;
    if cgroup.exists() { cgroup.stats().map(Some).map_err(failed) } else { Ok(None) }
}

#[expect(clippy::unnecessary_wraps, reason = "every use is an optional field")]
pub(crate) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub(crate) fn cpu(stats: &Stats, timestamp: i64) -> CpuUsage {
    CpuUsage { timestamp, usage_core_nano_seconds: value(stats.cpu.usage_ns), usage_nano_cores: None, psi: None }
}

pub(crate) fn memory(stats: &Stats, timestamp: i64) -> MemoryUsage {
    let memory = stats.memory;
    MemoryUsage {
        timestamp,
        working_set_bytes: value(memory.working_set_bytes),
        available_bytes: memory
            .limit_bytes
            .map(|limit| UInt64Value { value: limit.saturating_sub(memory.working_set_bytes) }),
        usage_bytes: value(memory.usage_bytes),
        rss_bytes: value(memory.anonymous_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: None,
    }
}

fn swap(stats: &Stats, timestamp: i64) -> SwapUsage {
    let limit = stats.memory.swap_limit_bytes;
    SwapUsage {
        timestamp,
        swap_available_bytes: limit
            .map(|limit| UInt64Value { value: limit.saturating_sub(stats.memory.swap_usage_bytes) }),
        swap_usage_bytes: value(stats.memory.swap_usage_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_measured_no_more_often_than_it_is_worth() {
        let at = Instant::now();
        let check = |took: u64, age: u64, fresh: bool| {
            let measured = Measured { at, took: Duration::from_millis(took), usage: Usage::default() };
            let now = at.checked_add(Duration::from_millis(age)).unwrap();
            assert_eq!(measured.is_fresh(now), fresh, "{took} {age}");
        };
        check(1, 9_999, true);
        check(1, 10_001, false);
        check(2_000, 39_999, true);
        check(2_000, 40_001, false);
    }
}
