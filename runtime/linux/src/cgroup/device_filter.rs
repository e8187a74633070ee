//! The OCI device list on cgroup v2: a BPF program built here, loaded and attached with bpf(2).
//!
//! The program walks the rules from the last to the first and keeps, in a register, which of the requested accesses are still undecided:
//! an allowing rule strikes its own, a denying rule that meets an undecided one refuses; what no rule speaks of is refused.
//!
//! Invariant: the new program is attached before the old one is detached, so no access ever goes unchecked.

use super::Error;
use super::device::{ALL, Kind, Rule};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

// linux/bpf.h
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;
const DEVCG_DEV_BLOCK: i32 = 1;
const DEVCG_DEV_CHAR: i32 = 2;

/// As many programs as the kernel attaches to one cgroup (`BPF_CGROUP_MAX_PROGS`).
const PROGRAMS_MAX: usize = 64;
/// A program of this many instructions is refused by kernels before 5.2.
const INSTRUCTIONS_MAX: usize = 4096;

/// linux/bpf.h, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Opcodes: class, size or operation, source; Documentation/bpf/standardization/instruction-set.rst.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, RESULT, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// Pure: rules in, program out.
fn build(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, UNDECIDED, KIND, 0, 0),
        instruction(SHIFT_RIGHT, UNDECIDED, 0, 0, 16),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        let condition = |register, value: i32| instruction(JUMP_NOT_EQUAL, register, 0, 0, value);
        match rule.kind {
            Kind::Any => {}
            Kind::Block => block.push(condition(KIND, DEVCG_DEV_BLOCK)),
            Kind::Character => block.push(condition(KIND, DEVCG_DEV_CHAR)),
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number {
                block.push(condition(register, number.cast_signed()));
            }
        }
        let unconditional = block.is_empty() && rule.access == ALL;
        if rule.access == ALL {
            block.extend(answer(rule.allow));
        } else if rule.allow {
            block.push(instruction(AND, UNDECIDED, 0, 0, i32::from(ALL & !rule.access)));
            block.push(condition(UNDECIDED, 0));
            block.extend(answer(true));
        } else {
            block.push(instruction(MOVE_REGISTER, SCRATCH, UNDECIDED, 0, 0));
            block.push(instruction(AND, SCRATCH, 0, 0, i32::from(rule.access)));
            block.push(instruction(JUMP_EQUAL, SCRATCH, 0, 0, 0));
            block.extend(answer(false));
        }
        // Every jump in the block goes to its end.
        let length = block.len();
        for (index, item) in block.iter_mut().enumerate() {
            if item.code == JUMP_NOT_EQUAL || item.code == JUMP_EQUAL {
                item.offset = i16::try_from(length - index - 1).unwrap_or(i16::MAX);
            }
        }
        program.extend(block);
        if unconditional {
            // Earlier rules can never be reached, and the verifier refuses such code.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// Makes `rules` the device filter of the cgroup at `directory`, in place of the one it has.
pub(super) fn apply(directory: &Path, rules: &[Rule]) -> Result<(), Error> {
    let program = build(rules);
    if program.len() > INSTRUCTIONS_MAX {
        let problem = format!("{} rules are more than a device filter can hold", rules.len());
        return Err(Error::Value { field: "devices".into(), problem });
    }
    let cgroup = File::open(directory).map_err(|source| Error::Read { path: directory.to_owned(), source })?;
    let failed = |source| Error::DeviceAttach { path: directory.to_owned(), source };
    let before = query(&cgroup).map_err(failed)?;
    let filter = load(&program).map_err(Error::DeviceLoad)?;
    attach(&cgroup, &filter).map_err(failed)?;
    for id in before {
        match open(id).and_then(|old| detach(&cgroup, &old)) {
            // Gone meanwhile is what was wanted.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

/// `union bpf_attr` as words; the members in use here lie within the first 72 bytes, the rest must be zero.
#[repr(C, align(8))]
struct Attributes([u32; 18]);

impl Attributes {
    fn new() -> Self {
        Self([0; _])
    }

    fn set(mut self, byte: usize, value: u32) -> Self {
        self.0[byte / 4] = value;
        self
    }

    #[expect(clippy::cast_possible_truncation, reason = "split into its two halves")]
    fn set_pointer<T>(self, byte: usize, pointer: *const T) -> Self {
        let address = pointer.expose_provenance() as u64;
        let halves = [address as u32, (address >> 32) as u32];
        let [first, second] = if cfg!(target_endian = "little") { halves } else { [halves[1], halves[0]] };
        self.set(byte, first).set(byte + 4, second)
    }

    fn call(&mut self, command: libc::c_long) -> Result<i32, Errno> {
        // SAFETY: the attributes have the kernel's layout and size, and pointers put into them are alive in the callers.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of_val(&self.0)) };
        i32::try_from(Errno::result(answer)?).map_err(|_| Errno::EOVERFLOW)
    }
}

fn raw(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let count = u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let fd = Attributes::new()
        .set(0, PROG_TYPE_CGROUP_DEVICE)
        .set(4, count)
        .set_pointer(8, program.as_ptr())
        // Calls no GPL-only function of the kernel, but must name a licence.
        .set_pointer(16, c"Apache-2.0".as_ptr())
        .call(PROG_LOAD)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(cgroup: &File, program: &OwnedFd) -> Result<(), Errno> {
    Attributes::new()
        .set(0, raw(cgroup))
        .set(4, raw(program))
        .set(8, ATTACH_CGROUP_DEVICE)
        .set(12, F_ALLOW_MULTI)
        .call(PROG_ATTACH)?;
    Ok(())
}

fn detach(cgroup: &File, program: &OwnedFd) -> Result<(), Errno> {
    Attributes::new().set(0, raw(cgroup)).set(4, raw(program)).set(8, ATTACH_CGROUP_DEVICE).call(PROG_DETACH)?;
    Ok(())
}

fn open(id: u32) -> Result<OwnedFd, Errno> {
    let fd = Attributes::new().set(0, id).call(PROG_GET_FD_BY_ID)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the device programs attached to this very cgroup.
fn query(cgroup: &File) -> Result<Vec<u32>, Errno> {
    let mut ids = vec![0u32; PROGRAMS_MAX];
    let mut attributes = Attributes::new()
        .set(0, raw(cgroup))
        .set(4, ATTACH_CGROUP_DEVICE)
        .set_pointer(16, ids.as_mut_ptr())
        .set(24, u32::try_from(ids.len()).map_err(|_| Errno::E2BIG)?);
    attributes.call(PROG_QUERY)?;
    ids.truncate(attributes.0[6] as usize);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::super::device::{MKNOD, READ, WRITE};
    use super::*;

    /// Runs a program as the kernel would, for any access: the test's oracle is the plain reading of the rules.
    fn run(program: &[Instruction], kind: u32, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | kind, major, minor];
        let mut registers = [0u32; 10];
        let mut at = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (destination, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            let immediate = immediate.cast_unsigned();
            at += 1;
            let jump = match code {
                LOAD_WORD => {
                    registers[destination] = context[usize::try_from(offset).unwrap() / 4];
                    false
                }
                MOVE => {
                    registers[destination] = immediate;
                    false
                }
                MOVE_REGISTER => {
                    registers[destination] = registers[source];
                    false
                }
                AND => {
                    registers[destination] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[destination] >>= immediate;
                    false
                }
                JUMP_EQUAL => registers[destination] == immediate,
                JUMP_NOT_EQUAL => registers[destination] != immediate,
                EXIT => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    /// The plain reading: each access bit by itself is decided by the last rule that speaks of it.
    fn oracle(rules: &[Rule], kind: u32, access: u8, major: u32, minor: u32) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    let kind_fits = match rule.kind {
                        Kind::Any => true,
                        Kind::Block => kind == 1,
                        Kind::Character => kind == 2,
                    };
                    kind_fits
                        && rule.access & bit != 0
                        && rule.major.is_none_or(|number| number == major)
                        && rule.minor.is_none_or(|number| number == minor)
                })
                .is_some_and(|rule| rule.allow)
        })
    }

    proptest::proptest! {
        #[test]
        fn a_program_decides_as_its_rules_read(
            raw in proptest::collection::vec((proptest::bool::ANY, 0..3u8, 0..4u32, 0..4u32, 1..8u8), 0..8),
            kind in 1..3u32, access in 1..8u8, major in 0..3u32, minor in 0..3u32,
        ) {
            let number = |value| if value == 3 { None } else { Some(value) };
            let rules: Vec<Rule> = raw.into_iter().map(|(allow, kind, major, minor, access)| Rule {
                allow,
                kind: [Kind::Any, Kind::Block, Kind::Character][usize::from(kind)],
                major: number(major),
                minor: number(minor),
                access,
            }).collect();
            proptest::prop_assert_eq!(
                run(&build(&rules), kind, access, major, minor),
                oracle(&rules, kind, access, major, minor)
            );
        }
    }
}
