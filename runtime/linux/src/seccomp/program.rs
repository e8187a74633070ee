//! Classic BPF over `struct seccomp_data`: instructions, and a builder that resolves long jumps.
//!
//! Knows no profile. Jumps only lead forward, so programs are put together from blocks, last block first.

/// linux/filter.h, `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

pub(super) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const GREATER_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets into `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The most that the kernel loads, BPF_MAXINSNS.
pub(super) const LENGTH_MAX: usize = 4096;

pub(super) fn instruction(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

/// Where the (low, high) halves of argument `index` lie.
pub(super) fn argument(index: u32) -> (u32, u32) {
    let at = ARGUMENTS + 8 * index;
    if cfg!(target_endian = "little") { (at, at + 4) } else { (at + 4, at) }
}

/// `if A test value { yes } else { no }`, both blocks ending in a return.
pub(super) fn branch(test: u16, value: u32, yes: Vec<Instruction>, no: Vec<Instruction>) -> Vec<Instruction> {
    let mut block = Vec::with_capacity(yes.len() + no.len() + 2);
    match u8::try_from(no.len()) {
        Ok(skip) => block.push(Instruction { code: test, if_true: skip, if_false: 0, value }),
        // Conditional jumps reach 255 instructions, JA any number.
        Err(_) => {
            block.push(Instruction { code: test, if_true: 0, if_false: 1, value });
            block.push(instruction(JUMP, u32::try_from(no.len()).unwrap_or(u32::MAX)));
        }
    }
    block.extend(no);
    block.extend(yes);
    block
}

/// Runs a program as the kernel would; `None` for one that the kernel would not load.
#[cfg(test)]
pub(super) fn interpret(program: &[Instruction], number: u32, architecture: u32, arguments: [u64; 6]) -> Option<u32> {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    for argument in arguments {
        data.extend(argument.to_ne_bytes());
    }
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let instruction = program.get(at)?;
        at += 1;
        let jump = |taken: bool| usize::from(if taken { instruction.if_true } else { instruction.if_false });
        match instruction.code {
            LOAD => {
                let offset = instruction.value as usize;
                accumulator = u32::from_ne_bytes(data.get(offset..offset + 4)?.try_into().ok()?);
            }
            AND => accumulator &= instruction.value,
            JUMP => at += instruction.value as usize,
            EQUAL => at += jump(accumulator == instruction.value),
            GREATER => at += jump(accumulator > instruction.value),
            GREATER_EQUAL => at += jump(accumulator >= instruction.value),
            RETURN => return Some(instruction.value),
            _ => return None,
        }
    }
}
