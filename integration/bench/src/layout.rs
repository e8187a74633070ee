//! The order in which `sampan-oci` runs its functions, as a script for the linker: `runtime/oci/layout.ld`.
//!
//! Each command is executed instruction by instruction, its children up to the program of the container (ptrace(2)); what ran is named by
//! the symbol table. Hashes in names are left open, so that the script serves other builds too: what it does not know stays where
//! it was. It measures nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::container::{Ground, Runtime};

/// In this order, by what a function is first run for.
const COMMANDS: [&[&str]; 8] = [
    &["run", "--bundle", "true", "once"],
    &["create", "--bundle", "sleep", "held"],
    &["start", "held"],
    &["state", "held"],
    &["exec", "held", "/bin/true"],
    &["kill", "held", "KILL"],
    &["delete", "--force", "held"],
    &["list"],
];
/// Functions of one name and several types share a pattern. Where less than a part of this many is ever run they come last.
const SPARSE: u64 = 2;

/// Address, size and name of each function.
type Symbols = BTreeMap<u64, (u64, String)>;

/// The script's text.
pub(crate) fn script(program: &Path) -> Result<String> {
    let symbols = symbols(program)?;
    let ground = Ground::prepare()?;
    let runtime = Runtime::prepare("sampan", program.to_owned(), &ground)?;
    let mut order = Vec::new();
    let mut known = HashSet::new();
    for words in COMMANDS {
        let mut command = runtime.command(words);
        for address in trace(&mut command).with_context(|| format!("step through {command:?}"))? {
            let found = symbols.range(..=address).next_back();
            if let Some((at, (size, _))) = found.filter(|(at, (size, _))| address < **at + size.max(&1))
                && known.insert(*at)
            {
                order.push((*at, *size));
            }
        }
    }
    ensure!(!order.is_empty(), "no function of {} ran: is it built at a fixed address?", program.display());
    Ok(text(&symbols, &order))
}

fn text(symbols: &Symbols, order: &[(u64, u64)]) -> String {
    let (mut all, mut run): (HashMap<String, u64>, HashMap<String, u64>) = Default::default();
    for (size, name) in symbols.values() {
        *all.entry(pattern(name)).or_default() += size;
    }
    let mut patterns = Vec::new();
    for (at, size) in order {
        let pattern = pattern(&symbols[at].1);
        if !run.contains_key(&pattern) {
            patterns.push(pattern.clone());
        }
        *run.entry(pattern).or_default() += size;
    }
    let (dense, sparse): (Vec<_>, Vec<_>) =
        patterns.into_iter().partition(|pattern| run[pattern] * SPARSE >= all[pattern]);
    let mut lines = vec![
        "/* What the commands of sampan-oci run, in that order. Written by `bench --layout`; see integration/bench/src/layout.rs. */"
            .to_owned(),
        "SECTIONS".to_owned(),
        "{".to_owned(),
        "    .text.often :".to_owned(),
        "    {".to_owned(),
    ];
    lines.extend(dense.iter().map(|pattern| format!("        *(.text.{pattern})")));
    // musl's functions have no sections of their own.
    lines.push("        *libc.a:*(.text .text.*)".to_owned());
    lines.extend(sparse.iter().map(|pattern| format!("        *(.text.{pattern})")));
    lines.extend(["    }", "}", "INSERT BEFORE .text;", ""].map(str::to_owned));
    lines.join("\n")
}

/// A symbol's name without what another compiler, or another build, would name otherwise.
fn pattern(name: &str) -> String {
    let mut pattern = String::new();
    let mut rest = name;
    while let Some(next) = rest.chars().next() {
        let (hash, kept) = if let Some(tail) = rest.strip_prefix("17h") {
            (tail.find('E').filter(|length| *length == 16).map(|length| 3 + length), "17h")
        } else if let Some(tail) = rest.strip_prefix("Cs") {
            let length =
                tail.find('_').filter(|length| tail[..*length].bytes().all(|byte| byte.is_ascii_alphanumeric()));
            (length.map(|length| 2 + length), "Cs")
        } else if rest.starts_with(".llvm.") {
            (Some(rest.len()), ".llvm.")
        } else {
            (None, "")
        };
        match hash {
            Some(length) => {
                pattern.push_str(kept);
                pattern.push('*');
                rest = &rest[length..];
            }
            None => {
                pattern.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    pattern
}

fn symbols(program: &Path) -> Result<Symbols> {
    let output = Command::new("nm").args(["--defined-only", "--print-size"]).arg(program).output();
    let output = output.context("start nm; it is in the Debian package binutils")?;
    let table = String::from_utf8_lossy(&output.stdout);
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let line = |line: &str| {
        let [address, size, kind, name] = line.splitn(4, ' ').collect::<Vec<_>>()[..] else { return None };
        let is_function = matches!(kind, "t" | "T" | "w" | "W");
        is_function.then_some((number(address)?, (number(size)?, name.to_owned())))
    };
    let symbols: Symbols = table.lines().filter_map(line).collect();
    if symbols.is_empty() {
        bail!("{} has no symbols: build it with CARGO_PROFILE_TINY_STRIP=none", program.display());
    }
    Ok(symbols)
}

/// Every address that was executed, by when it was first.
fn trace(command: &mut Command) -> Result<Vec<u64>> {
    // A shell that stops before it becomes the program, so that there is somebody to attach to.
    let mut stopped = Command::new("/bin/sh");
    stopped.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        stopped.current_dir(directory);
    }
    stopped.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = stopped.spawn().context("start a shell")?;
    let seen = step_through(&child);
    if seen.is_err() {
        child.kill()?;
        child.wait()?;
    }
    seen
}

fn step_through(child: &Child) -> Result<Vec<u64>> {
    let main = Pid::from_raw(i32::try_from(child.id())?);
    waitpid(main, Some(WaitPidFlag::WUNTRACED))?;
    ptrace::attach(main)?;
    waitpid(main, Some(WaitPidFlag::__WALL))?;
    let children = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    ptrace::setoptions(main, children | Options::PTRACE_O_TRACEEXEC)?;
    kill(main, Signal::SIGCONT)?;
    ptrace::cont(main, None)?;
    let (mut seen, mut order, mut is_running) = (HashSet::new(), Vec::new(), false);
    loop {
        let (pid, signal) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(pid, code) if pid == main => {
                ensure!(code == 0, "it ended with {code}");
                return Ok(order);
            }
            WaitStatus::Signaled(pid, signal, _) if pid == main => bail!("it was killed by {signal}"),
            // The container's own program is none of ours.
            WaitStatus::PtraceEvent(pid, _, event)
                if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 && pid != main =>
            {
                ptrace::detach(pid, None)?;
                continue;
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                is_running |= event == ptrace::Event::PTRACE_EVENT_EXEC as i32;
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP | Signal::SIGSTOP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        if !is_running {
            ptrace::cont(pid, signal)?;
            continue;
        }
        let address = ptrace::getregs(pid)?.rip;
        if seen.insert(address) {
            order.push(address);
        }
        match ptrace::step(pid, signal) {
            // Killed meanwhile; its end comes next.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_left_open() {
        for (name, expect) in [
            ("_ZN3std4once17h04ac174e92b5756aE", "_ZN3std4once17h*E"),
            ("_ZN1a17h04ac174e92b5756aE.llvm.123", "_ZN1a17h*E.llvm.*"),
            ("_RNvNtCs2Nb3gJ4iU0I_5alloc7raw_vec", "_RNvNtCs*_5alloc7raw_vec"),
            ("memcpy", "memcpy"),
            ("_ZN4Csv217hash", "_ZN4Csv217hash"),
        ] {
            assert_eq!(pattern(name), expect);
        }
    }

    #[test]
    fn what_is_mostly_run_comes_first() {
        let function = |name: &str| (10, name.to_owned());
        let symbols = BTreeMap::from([
            (0, function("a")),
            (10, function("g17h0000000000000000E")),
            (20, function("g17h0000000000000001E")),
            (30, function("g17h0000000000000002E")),
        ]);
        let text = text(&symbols, &[(10, 10), (0, 10)]);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("(.text")).map(str::trim).collect();
        assert_eq!(lines, ["*(.text.a)", "*libc.a:*(.text .text.*)", "*(.text.g17h*E)"]);
    }
}
