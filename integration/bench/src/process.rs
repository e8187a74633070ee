//! What processes cost: CPU of a command with everything it starts, memory and CPU of one that runs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// What a command cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) cpu_ms: f64,
    pub(crate) wall_ms: f64,
}

/// One of a cost's quantities.
pub(crate) type Of = fn(&Cost) -> f64;

/// Both quantities, as figures name them.
pub(crate) const QUANTITIES: [(&str, Of); 2] = [("CPU", |cost| cost.cpu_ms), ("wall", |cost| cost.wall_ms)];

/// Runs a command to its end, which must be a good one.
///
/// The CPU time is that of all descendants that somebody waited for. Nothing else may end meanwhile: the kernel counts by parent.
pub(crate) fn cost(command: &mut Command) -> Result<Cost> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let before = children_cpu()?;
    let started = Instant::now();
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let wall = started.elapsed();
    let cpu = children_cpu()?.saturating_sub(before);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said.trim());
    Ok(Cost { cpu_ms: milliseconds(cpu), wall_ms: milliseconds(wall) })
}

/// What GNU time and its like print; BusyBox takes the kernel's kilobytes for pages of four.
const PEAK_LINE: &str = "Maximum resident set size (kbytes):";
const BUSYBOX_FACTOR: f64 = 4.0;

/// The most memory that a command, or any process it waited for, had at once, in MB (10^6 bytes).
///
/// Started by a small program: until its exec a process counts with the memory of who started it.
pub(crate) fn peak_memory(command: &Command) -> Result<f64> {
    let mut timed = Command::new("busybox");
    timed.args(["time", "-v"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(directory) = command.get_current_dir() {
        timed.current_dir(directory);
    }
    let output = timed.output().context("start busybox; it is in the Debian package busybox-static")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said.trim());
    let kilobytes = said.lines().find_map(|line| line.trim().strip_prefix(PEAK_LINE)?.trim().parse::<f64>().ok());
    Ok(kilobytes.with_context(|| format!("busybox time printed no peak: {said}"))? / BUSYBOX_FACTOR * 1024.0 / 1e6)
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok(duration(usage.user_time()).saturating_add(duration(usage.system_time())))
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let rest = Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0));
    Duration::from_secs(seconds).saturating_add(rest)
}

/// CPU time of a process since it began, in nanoseconds, with that of threads that have ended.
pub(crate) fn cpu(pid: i32) -> Result<Duration> {
    let time = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime);
    Ok(time.with_context(|| format!("read the CPU time of process {pid}"))?.into())
}

/// Memory in MB (10^6 bytes).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Pages of its own, and its share of pages that others map too.
    pub(crate) proportional: f64,
    /// Pages that would be free if it ended.
    pub(crate) private: f64,
}

pub(crate) fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| -> Result<f64> {
        let found =
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(found.with_context(|| format!("{name} in {path}"))? * 1024.0 / 1e6)
    };
    Ok(Memory { proportional: field("Pss:")?, private: field("Private_Clean:")? + field("Private_Dirty:")? })
}

/// Processes of this program file that were started with `word` somewhere in their arguments.
pub(crate) fn find(program: &Path, word: &Path) -> Result<Vec<i32>> {
    // By file, not by name: a program that runs from a detached mount of its own file has none.
    let file = |path: &Path| fs::metadata(path).map(|status| (status.dev(), status.ino()));
    let wanted = file(program).with_context(|| format!("look at {}", program.display()))?;
    let word = word.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let is_it = file(&entry.path().join("exe")).is_ok_and(|exe| exe == wanted)
            && fs::read(entry.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*word));
        if is_it {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_grandchild_is_counted() {
        let busy = "sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; true";
        let busy = cost(Command::new("sh").args(["-c", busy])).unwrap();
        let idle = cost(Command::new("sh").args(["-c", "true"])).unwrap();
        assert!(busy.cpu_ms > idle.cpu_ms, "{busy:?} {idle:?}");
        assert!(cost(Command::new("sh").args(["-c", "echo why >&2; false"])).unwrap_err().to_string().contains("why"));
    }

    #[test]
    fn this_process_has_memory_and_cpu() {
        let own = i32::try_from(std::process::id()).unwrap();
        let memory = memory(own).unwrap();
        assert!(memory.private > 0.0 && memory.proportional >= memory.private, "{memory:?}");
        assert!(cpu(own).unwrap() > Duration::ZERO);
        let program = std::env::current_exe().unwrap();
        assert!(find(&program, &program).unwrap().contains(&own));
        assert!(!find(&program, Path::new("/no/such/word")).unwrap().contains(&own));
    }
}
