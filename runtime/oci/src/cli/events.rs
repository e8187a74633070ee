//! events: statistics once or at an interval, as JSON lines, until the container ends.

use nix::poll::PollTimeout;
use runtime_linux::pidfd;
use runtime_oci::{StateRoot, Status};
use serde_json::json;

use super::arguments::Events;
use super::lifecycle::parse_id;
use super::{Error, print};

pub(crate) fn events(root: &StateRoot, events: &Events) -> Result<u8, Error> {
    let id = parse_id(&events.id)?;
    let interval = interval(&events.interval)?;
    let state = runtime_oci::state(root, &id)?;
    if state.status == Status::Stopped {
        return Err(Error::Usage(format!("container {id} is stopped: it has no statistics")));
    }
    let cgroup = runtime_oci::cgroup(root, &id)?;
    let process = pidfd::open(state.pid).map_err(Error::errno("open the container's init"))?;
    let mut kills = 0;
    loop {
        let stats = cgroup.stats().map_err(runtime_oci::Error::from)?;
        if stats.memory.oom_kills > kills && !events.stats {
            print(&format!("{}\n", json!({ "type": "oom", "id": id.as_str() })))?;
            kills = stats.memory.oom_kills;
        }
        let line = json!({ "type": "stats", "id": id.as_str(), "data": data(&stats) });
        print(&format!("{line}\n"))?;
        if events.stats || pidfd::wait_ended(&process, interval).map_err(Error::errno("wait"))? {
            return Ok(0);
        }
    }
}

/// `5`, `5s`, `500ms`, `1m`; not nothing.
fn interval(text: &str) -> Result<PollTimeout, Error> {
    let bad = || Error::Usage(format!("--interval \"{text}\" is not a time like 5s, and more than nothing"));
    let (number, unit) = match text {
        text if text.ends_with("ms") => (&text[..text.len() - 2], 1),
        text if text.ends_with('s') => (&text[..text.len() - 1], 1000),
        text if text.ends_with('m') => (&text[..text.len() - 1], 60_000),
        text => (text, 1000),
    };
    let milliseconds = number.parse::<i32>().ok().and_then(|number| number.checked_mul(unit)).filter(|ms| *ms > 0);
    PollTimeout::try_from(milliseconds.ok_or_else(bad)?).map_err(|_| bad())
}

/// The shape of runc's events, with what we know.
fn data(stats: &runtime_linux::cgroup::Stats) -> serde_json::Value {
    let io = |pick: fn(&runtime_linux::cgroup::IoDeviceStats) -> [(&'static str, u64); 2]| {
        let entries = stats.io.iter().flat_map(|device| {
            pick(device)
                .map(|(op, value)| json!({ "major": device.major, "minor": device.minor, "op": op, "value": value }))
        });
        entries.collect::<Vec<_>>()
    };
    json!({
        "cpu": {
            "usage": { "total": stats.cpu.usage_ns, "kernel": stats.cpu.system_ns, "user": stats.cpu.user_ns },
            "throttling": {
                "periods": stats.cpu.periods,
                "throttledPeriods": stats.cpu.throttled_periods,
                "throttledTime": stats.cpu.throttled_ns,
            },
        },
        "memory": {
            "usage": { "usage": stats.memory.usage_bytes, "limit": stats.memory.limit_bytes.unwrap_or(u64::MAX) },
            "swap": { "usage": stats.memory.swap_usage_bytes, "limit": stats.memory.swap_limit_bytes.unwrap_or(u64::MAX) },
            "raw": {
                "anon": stats.memory.anonymous_bytes,
                "file": stats.memory.file_bytes,
                "inactive_file": stats.memory.inactive_file_bytes,
                "pgfault": stats.memory.page_faults,
                "pgmajfault": stats.memory.major_page_faults,
            },
        },
        "pids": { "current": stats.pids.current, "limit": stats.pids.limit.unwrap_or(0) },
        "blkio": {
            "ioServiceBytesRecursive": io(|device| [("Read", device.read_bytes), ("Write", device.write_bytes)]),
            "ioServicedRecursive": io(|device| [("Read", device.read_operations), ("Write", device.write_operations)]),
        },
    })
}
