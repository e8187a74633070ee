//! Architectures as seccomp sees them: the audit number, and each call's number by name.

use std::collections::HashMap;

use oci_spec::runtime::Arch;

/// Added to the numbers of the x32 ABI, which shares x86_64's audit number.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The x32 ABI's own numbers; its other calls have x86_64's.
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// The numbers of one architecture's calls.
pub(super) type Numbers = HashMap<&'static str, u32>;

macro_rules! table {
    ($module:ident) => {{
        let mut numbers = Numbers::with_capacity(512);
        for call in syscalls::$module::Sysno::iter() {
            numbers.insert(call.name(), u32::try_from(call.id()).unwrap_or(u32::MAX));
        }
        numbers
    }};
}

/// `SCMP_ARCH_NATIVE` as the architecture that it stands for.
pub(super) fn resolve(architecture: Arch) -> Arch {
    if architecture != Arch::ScmpArchNative {
        return architecture;
    }
    match std::env::consts::ARCH {
        "aarch64" => Arch::ScmpArchAarch64,
        "arm" => Arch::ScmpArchArm,
        "x86" => Arch::ScmpArchX86,
        "riscv64" => Arch::ScmpArchRiscv64,
        "s390x" => Arch::ScmpArchS390x,
        "powerpc64" => Arch::ScmpArchPpc64le,
        "loongarch64" => Arch::ScmpArchLoongarch64,
        _ => Arch::ScmpArchX86_64,
    }
}

/// linux/audit.h, AUDIT_ARCH_*.
pub(super) fn audit_number(architecture: Arch) -> u32 {
    match architecture {
        // The enumeration's values are the audit numbers but for this one.
        Arch::ScmpArchX32 => Arch::ScmpArchX86_64 as u32,
        other => other as u32,
    }
}

/// The calls of an architecture; `None` where no table of it is known.
pub(super) fn numbers(architecture: Arch) -> Option<Numbers> {
    Some(match architecture {
        Arch::ScmpArchX86_64 => table!(x86_64),
        Arch::ScmpArchX32 => {
            let mut numbers = table!(x86_64);
            numbers.extend(X32_OWN);
            numbers.values_mut().for_each(|number| *number |= X32_BIT);
            numbers
        }
        Arch::ScmpArchX86 => table!(x86),
        Arch::ScmpArchAarch64 => table!(aarch64),
        Arch::ScmpArchArm => table!(arm),
        Arch::ScmpArchRiscv64 => table!(riscv64),
        Arch::ScmpArchS390x => table!(s390x),
        Arch::ScmpArchPpc => table!(powerpc),
        Arch::ScmpArchPpc64 | Arch::ScmpArchPpc64le => table!(powerpc64),
        Arch::ScmpArchLoongarch64 => table!(loongarch64),
        Arch::ScmpArchMips | Arch::ScmpArchMipsel => table!(mips),
        Arch::ScmpArchMips64 | Arch::ScmpArchMipsel64 => table!(mips64),
        _ => return None,
    })
}
