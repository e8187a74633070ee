//! The scheduler of a process: names to numbers, and what the kernel would refuse with EINVAL alone.

use oci_spec::runtime::{LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler};
use runtime_linux::process::Scheduling;

use super::invalid;
use crate::error::Error;

/// sched(7): a deadline task's times are at least 1024 ns, and below 2^63 ns.
const TIME_MIN: u64 = 1024;
const TIME_MAX: u64 = 1 << 63;

pub(super) fn attributes(scheduler: &Scheduler) -> Result<Scheduling, Error> {
    if scheduler.policy() == &LinuxSchedulerPolicy::SchedDeadline {
        check_deadline(scheduler)?;
    }
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    Ok(Scheduling {
        size: 0,
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().and_then(|priority| u32::try_from(priority).ok()).unwrap_or(0),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    })
}

/// sched(7), SCHED_DEADLINE: runtime <= deadline <= period, where a period of 0 means the deadline's.
fn check_deadline(scheduler: &Scheduler) -> Result<(), Error> {
    let bad = |reason: String| Err(invalid("process.scheduler", &format!("sched_setattr: `SCHED_DEADLINE` {reason}")));
    let Some(runtime) = *scheduler.runtime() else { return bad("requires `runtime`".to_owned()) };
    let Some(deadline) = *scheduler.deadline() else { return bad("requires `deadline`".to_owned()) };
    if runtime == 0 {
        return bad("runtime must be greater than 0".to_owned());
    }
    if !(TIME_MIN..TIME_MAX).contains(&runtime) {
        return bad(format!("runtime {runtime} must be between {TIME_MIN} and {} ns", TIME_MAX - 1));
    }
    if runtime > deadline {
        return bad(format!("runtime {runtime} must be <= deadline {deadline}"));
    }
    match scheduler.period().filter(|period| *period != 0) {
        Some(period) if deadline > period => bad(format!("deadline {deadline} must be <= period {period}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Scheduling, String> {
        let scheduler: Scheduler = serde_json::from_str(json).expect("scheduler");
        attributes(&scheduler).map_err(|error| error.to_string())
    }

    #[test]
    fn policies_and_flags_have_the_kernels_numbers() {
        let found =
            check(r#"{"policy":"SCHED_BATCH","nice":5,"flags":["SCHED_RESET_ON_FORK","SCHED_FLAG_UTIL_CLAMP_MIN"]}"#);
        assert_eq!(found, Ok(Scheduling { policy: 3, nice: 5, flags: 0x21, ..Scheduling::default() }));
        let found =
            check(r#"{"policy":"SCHED_DEADLINE","runtime":2000,"deadline":3000,"flags":["SCHED_FLAG_D_L_OVERRUN"]}"#);
        let deadline = Scheduling { policy: 6, runtime: 2000, deadline: 3000, flags: 4, ..Scheduling::default() };
        assert_eq!(found, Ok(deadline));
    }

    #[test]
    fn deadlines_that_cannot_be_are_named() {
        for (json, words) in [
            (r#"{"policy":"SCHED_DEADLINE","deadline":3000}"#, "requires `runtime`"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":3000}"#, "requires `deadline`"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":0,"deadline":3000}"#, "greater than 0"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":1023,"deadline":3000}"#, "must be between 1024 and"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":4000,"deadline":3000}"#, "must be <= deadline 3000"),
            (r#"{"policy":"SCHED_DEADLINE","runtime":2000,"deadline":3000,"period":2500}"#, "must be <= period 2500"),
        ] {
            assert!(check(json).expect_err(json).contains(words), "{json}");
        }
    }
}
