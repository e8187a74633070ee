//! events: statistics once or at an interval, and out-of-memory kills as they happen, as JSON lines, until the container ends.

mod statistics;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtime_linux::cgroup::{Cgroup, OomWatch};
use runtime_linux::pidfd;
use runtime_oci::{ContainerId, StateRoot, Status};

use super::arguments::Events;
use super::lifecycle::parse_id;
use super::{Error, interval, print};

pub(crate) fn events(root: &StateRoot, events: &Events) -> Result<u8, Error> {
    let id = parse_id(&events.id)?;
    let interval = interval::parse("interval", &events.interval)?;
    let state = runtime_oci::state(root, &id)?;
    if state.status == Status::Stopped {
        return Err(Error::Usage(format!("container with id {id} is not running: it has no statistics")));
    }
    let cgroup = runtime_oci::cgroup(root, &id)?;
    let process = pidfd::open(state.pid).map_err(Error::errno("open the container's init"))?;
    print_statistics(&id, &cgroup)?;
    if events.stats {
        return Ok(0);
    }
    watch(&id, &cgroup, &process, interval)
}

fn print_statistics(id: &ContainerId, cgroup: &Cgroup) -> Result<(), Error> {
    let details = cgroup.details().map_err(runtime_oci::Error::from)?;
    // By hand, because a reader may rely on runc's order of the fields.
    let data = statistics::json(&details);
    print(&format!("{{\"type\":\"stats\",\"id\":\"{id}\",\"data\":{data}}}\n"))
}

/// Cgroup v1 tells of the shortage, once, and counts the kill when that is done.
const KILL_TAKES_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Each time something happens or the interval is over, until the container ends.
fn watch(id: &ContainerId, cgroup: &Cgroup, process: &OwnedFd, interval: PollTimeout) -> Result<u8, Error> {
    // A host without the memory controller has no such events; statistics it has all the same.
    let watch = cgroup.watch_oom().ok();
    let mut kills = cgroup.oom_kills().map_err(runtime_oci::Error::from)?;
    let mut last = Instant::now();
    let mut uncounted_since: Option<Instant> = None;
    loop {
        let mut left = duration(interval).saturating_sub(last.elapsed());
        if uncounted_since.is_some() {
            left = left.min(LOOK_AGAIN);
        }
        let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        let (has_ended, has_event) = wait(process, watch.as_ref(), timeout)?;
        let now = Instant::now();
        if has_event {
            uncounted_since = Some(now);
        }
        if (has_ended || uncounted_since.is_some())
            && let Some(counted) = watch.as_ref().and_then(|watch| watch.kills().ok().flatten())
        {
            for _ in kills..counted {
                print(&format!("{{\"type\":\"oom\",\"id\":\"{id}\"}}\n"))?;
                uncounted_since = None;
            }
            kills = kills.max(counted);
        }
        uncounted_since = uncounted_since.filter(|since| now.duration_since(*since) < KILL_TAKES_MAX);
        if has_ended {
            return Ok(0);
        }
        if now.duration_since(last) >= duration(interval) {
            print_statistics(id, cgroup)?;
            last = now;
        }
    }
}

fn duration(timeout: PollTimeout) -> Duration {
    timeout.duration().unwrap_or_default()
}

fn wait(process: &OwnedFd, watch: Option<&OomWatch>, timeout: PollTimeout) -> Result<(bool, bool), Error> {
    let mut descriptors = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    if let Some(watch) = watch {
        let flags = if watch.is_priority() { PollFlags::POLLPRI } else { PollFlags::POLLIN };
        descriptors.push(PollFd::new(watch.as_fd(), flags));
    }
    match poll(&mut descriptors, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Error::errno("wait for events")(errno)),
    }
    let ready = |index: usize| descriptors.get(index).is_some_and(|fd| fd.any() == Some(true));
    Ok((ready(0), ready(1)))
}
