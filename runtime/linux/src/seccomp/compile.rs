//! From an OCI profile to a program: pure, deterministic.
//!
//! Meaning, as libseccomp has it under runc: a rule without arguments decides its call alone; otherwise the first rule whose arguments
//! all match decides, else the default action. A rule that names one argument twice means any of its conditions. A call number above
//! every number in the profile answers ENOSYS where the default is a refusal, so that a libc falls back from a call that the profile's
//! author did not know yet.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::architecture::{self, X32_BIT};
use super::program::{self, Instruction, branch, instruction};
use super::{FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV, Filter};

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// What ERRNO and TRACE can carry.
const DATA: u32 = 0xffff;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("SCMP_ACT_NOTIFY cannot be the default action: nobody could answer for the process's own start")]
    NotifyByDefault,
    #[error("{call}: argument index {index} is not in 0..6")]
    ArgumentIndex { call: String, index: usize },
    #[error("{action} takes no errno, and the configuration gives {errno}")]
    NoErrno { action: String, errno: u32 },
    #[error("a rule with {action} names no system call")]
    NoNames { action: String },
    #[error("errno {errno} is larger than 4095")]
    Errno { errno: u32 },
    #[error("architecture {architecture} is not supported")]
    Architecture { architecture: String },
    #[error("the compiled filter has {length} instructions, the kernel takes 4096")]
    TooLong { length: usize },
    #[error("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY")]
    WaitKillableWithoutNotify,
}

/// What becomes of one call number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Always(u32),
    /// The first whose conditions all hold, else the default.
    First(Vec<(Vec<LinuxSeccompArg>, u32)>),
}

pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    if default == NOTIFY {
        return Err(Error::NotifyByDefault);
    }
    let rules = profile.syscalls().as_deref().unwrap_or(&[]);
    let mut blocks: BTreeMap<u32, BTreeMap<u32, Decision>> = BTreeMap::new();
    let mut native_x86_64 = false;
    let mut x32 = false;
    let mut known = HashSet::new();
    for architecture in architectures(profile) {
        native_x86_64 |= architecture == Arch::ScmpArchX86_64;
        x32 |= architecture == Arch::ScmpArchX32;
        let numbers = architecture::numbers(architecture)
            .ok_or_else(|| Error::Architecture { architecture: architecture.to_string() })?;
        let block = blocks.entry(architecture::audit_number(architecture)).or_default();
        for rule in rules {
            let decision = action(rule.action(), rule.errno_ret())?;
            if rule.names().is_empty() {
                return Err(Error::NoNames { action: rule.action().to_string() });
            }
            for name in rule.names() {
                check_rule(name, rule)?;
                if let Some(number) = numbers.get(name.as_str()) {
                    known.insert(name.as_str());
                    add(block, *number, rule, decision);
                }
            }
        }
    }
    let mut program = vec![instruction(program::RETURN, KILL_PROCESS)];
    for (audit, decisions) in blocks.iter().rev() {
        let is_x86_64 = *audit == architecture::audit_number(Arch::ScmpArchX86_64);
        let mut ranges = ranges(decisions, default);
        if is_x86_64 {
            forbid_missing_abi(&mut ranges, native_x86_64, x32);
        }
        let mut block = vec![instruction(program::LOAD, program::NUMBER)];
        block.extend(tree(&ranges, default));
        program = branch(program::EQUAL, *audit, block, program);
    }
    program.insert(0, instruction(program::LOAD, program::ARCHITECTURE));
    if program.len() > program::LENGTH_MAX {
        return Err(Error::TooLong { length: program.len() });
    }
    let unknown: BTreeSet<_> =
        rules.iter().flat_map(LinuxSyscall::names).filter(|name| !known.contains(name.as_str())).cloned().collect();
    Ok(Filter { flags: flags(profile, rules)?, program, unknown: unknown.into_iter().collect() })
}

fn architectures(profile: &LinuxSeccomp) -> Vec<Arch> {
    let listed = profile.architectures().as_deref().unwrap_or(&[]);
    let mut all: Vec<Arch> = Vec::new();
    // The native architecture is always there, as with libseccomp: else the runtime could not even exec.
    for architecture in std::iter::once(&Arch::ScmpArchNative).chain(listed) {
        let architecture = architecture::resolve(*architecture);
        if !all.contains(&architecture) {
            all.push(architecture);
        }
    }
    all
}

/// As the kernel gets them. Where the profile says nothing, speculation stays as it is, as with runc and crun: a filter alone must not
/// slow a program down.
fn flags(profile: &LinuxSeccomp, rules: &[LinuxSyscall]) -> Result<u32, Error> {
    let mut flags = match profile.flags() {
        None => FLAG_SPEC_ALLOW,
        Some(flags) => flags.iter().fold(0, |flags, flag| flags | super::flag(*flag)),
    };
    if rules.iter().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify) {
        flags |= FLAG_NEW_LISTENER;
    } else if flags & FLAG_WAIT_KILLABLE_RECV != 0 {
        return Err(Error::WaitKillableWithoutNotify);
    }
    Ok(flags)
}

fn check_rule(name: &str, rule: &LinuxSyscall) -> Result<(), Error> {
    match rule.args().iter().flatten().find(|argument| argument.index() > 5) {
        Some(argument) => Err(Error::ArgumentIndex { call: name.to_owned(), index: argument.index() }),
        None => Ok(()),
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    let eperm = u32::try_from(libc::EPERM).unwrap_or(1);
    let takes_errno = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    // runtime-spec 1.3, "Seccomp": when the action doesn't support an errno, the runtime must fail.
    if let Some(errno) = errno.filter(|_| !takes_errno) {
        return Err(Error::NoErrno { action: action.to_string(), errno });
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActErrno => match errno.unwrap_or(eperm) {
            errno @ 0..=4095 => ERRNO | errno,
            errno => return Err(Error::Errno { errno }),
        },
        LinuxSeccompAction::ScmpActTrace => TRACE | errno.unwrap_or(eperm) & DATA,
        LinuxSeccompAction::ScmpActNotify => NOTIFY,
        LinuxSeccompAction::ScmpActLog => LOG,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
    })
}

fn add(block: &mut BTreeMap<u32, Decision>, number: u32, rule: &LinuxSyscall, action: u32) {
    let arguments = rule.args().as_deref().unwrap_or(&[]);
    if arguments.is_empty() {
        match block.get(&number) {
            Some(Decision::Always(_)) => {}
            _ => drop(block.insert(number, Decision::Always(action))),
        }
        return;
    }
    let entry = block.entry(number).or_insert_with(|| Decision::First(Vec::new()));
    let Decision::First(list) = entry else { return };
    let indices: BTreeSet<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
    if indices.len() == arguments.len() {
        list.push((arguments.to_vec(), action));
    } else {
        list.extend(arguments.iter().map(|argument| (vec![*argument], action)));
    }
}

/// Call numbers as ranges, each from its first number to the next range's, that cover everything.
///
/// x86_64 and x32, which share a block, each end at their own last number.
fn ranges(decisions: &BTreeMap<u32, Decision>, default: u32) -> Vec<(u32, Decision)> {
    let enosys = ERRNO | u32::try_from(libc::ENOSYS).unwrap_or(38);
    let refuses = !matches!(default, ALLOW | LOG) && default & 0xffff_0000 != TRACE;
    let beyond = if refuses { enosys } else { default };
    let mut ranges: Vec<(u32, Decision)> = Vec::new();
    let push = |ranges: &mut Vec<(u32, Decision)>, from: u32, decision: Decision| match ranges.last() {
        Some((_, last)) if *last == decision => {}
        _ => ranges.push((from, decision)),
    };
    let mut next = 0;
    for (number, decision) in decisions {
        if next > 0 && next <= X32_BIT && *number >= X32_BIT {
            push(&mut ranges, next, Decision::Always(beyond));
            next = X32_BIT;
        }
        if *number > next {
            push(&mut ranges, next, Decision::Always(default));
        }
        push(&mut ranges, *number, decision.clone());
        next = number + 1;
    }
    push(&mut ranges, next, Decision::Always(if decisions.is_empty() { default } else { beyond }));
    ranges
}

/// x86_64 and x32 share an audit number: what is not listed of the two must not be reachable.
fn forbid_missing_abi(ranges: &mut Vec<(u32, Decision)>, x86_64: bool, x32: bool) {
    if !x32 {
        ranges.retain(|(from, _)| *from < X32_BIT);
        ranges.push((X32_BIT, Decision::Always(KILL_PROCESS)));
    } else if !x86_64 {
        ranges.retain(|(from, _)| *from >= X32_BIT);
        ranges.insert(0, (0, Decision::Always(KILL_PROCESS)));
    }
}

fn tree(ranges: &[(u32, Decision)], default: u32) -> Vec<Instruction> {
    match ranges {
        [] => vec![instruction(program::RETURN, default)],
        [(_, Decision::Always(action))] => vec![instruction(program::RETURN, *action)],
        [(_, Decision::First(list))] => {
            let mut block = vec![instruction(program::RETURN, default)];
            for (arguments, action) in list.iter().rev() {
                block = conditions(arguments, *action, &block);
            }
            block
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(program::GREATER_EQUAL, high[0].0, tree(high, default), tree(low, default))
        }
    }
}

/// `if all arguments match { return action } else { otherwise }`.
fn conditions(arguments: &[LinuxSeccompArg], action: u32, otherwise: &[Instruction]) -> Vec<Instruction> {
    let mut block = vec![instruction(program::RETURN, action)];
    for argument in arguments.iter().rev() {
        block = comparison(argument, block, otherwise.to_vec());
    }
    block
}

fn halves(value: u64) -> (u32, u32) {
    (u32::try_from(value & 0xffff_ffff).unwrap_or(0), u32::try_from(value >> 32).unwrap_or(0))
}

/// `if argument op value { yes } else { no }` on 64 bits, in halves.
fn comparison(argument: &LinuxSeccompArg, yes: Vec<Instruction>, no: Vec<Instruction>) -> Vec<Instruction> {
    use program::{AND, EQUAL, GREATER, GREATER_EQUAL, LOAD};
    let (low_at, high_at) = program::argument(u32::try_from(argument.index()).unwrap_or(0));
    let (low, high) = halves(argument.value());
    let equal = |low: u32, high: u32, mask: Option<(u32, u32)>, yes: Vec<Instruction>, no: Vec<Instruction>| {
        let mut inner = vec![instruction(LOAD, low_at)];
        inner.extend(mask.map(|(low, _)| instruction(AND, low)));
        inner.extend(branch(EQUAL, low, yes, no.clone()));
        let mut block = vec![instruction(LOAD, high_at)];
        block.extend(mask.map(|(_, high)| instruction(AND, high)));
        block.extend(branch(EQUAL, high, inner, no));
        block
    };
    let above = |test: u16, yes: Vec<Instruction>, no: Vec<Instruction>| {
        let mut inner = vec![instruction(LOAD, low_at)];
        inner.extend(branch(test, low, yes.clone(), no.clone()));
        let mut block = vec![instruction(LOAD, high_at)];
        block.extend(branch(GREATER, high, yes, branch(EQUAL, high, inner, no)));
        block
    };
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => equal(low, high, None, yes, no),
        LinuxSeccompOperator::ScmpCmpNe => equal(low, high, None, no, yes),
        LinuxSeccompOperator::ScmpCmpGt => above(GREATER, yes, no),
        LinuxSeccompOperator::ScmpCmpGe => above(GREATER_EQUAL, yes, no),
        LinuxSeccompOperator::ScmpCmpLe => above(GREATER, no, yes),
        LinuxSeccompOperator::ScmpCmpLt => above(GREATER_EQUAL, no, yes),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (wanted_low, wanted_high) = halves(argument.value_two().unwrap_or(0));
            equal(wanted_low, wanted_high, Some((low, high)), yes, no)
        }
    }
}

#[cfg(test)]
mod tests;
