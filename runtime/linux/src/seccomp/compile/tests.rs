//! The compiled program, interpreted, decides as the profile says.

use proptest::prelude::*;

use super::super::program::interpret;
use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).expect("profile")
}

fn check(json: &str, calls: &[(u32, u32, [u64; 6], u32)]) {
    let filter = compile(&profile(json)).expect("compile");
    for (architecture, number, arguments, expect) in calls {
        let answer = interpret(&filter.program, *number, *architecture, *arguments);
        assert_eq!(answer, Some(*expect), "call {number} of {architecture:#x} with {arguments:x?}");
    }
}

const NONE: [u64; 6] = [0; 6];

#[test]
fn default_unknown_numbers_and_architectures() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
        "syscalls":[{"names":["read","write","nonsense"],"action":"SCMP_ACT_ALLOW"}]}"#;
    let calls = [
        (X86_64, 0, NONE, ALLOW),
        (X86_64, 1, NONE, ALLOW),
        (X86_64, 2, NONE, ERRNO | 38),
        (X86, 3, NONE, ALLOW),
        (X86, 2, NONE, ERRNO | 1),
        (X86, 4000, NONE, ERRNO | 38),
        (X86_64, X32_BIT, NONE, KILL_PROCESS),
        (0xc000_00b7, 0, NONE, KILL_PROCESS),
    ];
    check(json, &calls);
    assert_eq!(compile(&profile(json)).expect("compile").unknown, ["nonsense"]);
}

#[test]
fn x32_has_its_own_numbers() {
    let json = r#"{"defaultAction":"SCMP_ACT_KILL","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"],
        "syscalls":[{"names":["ioctl"],"action":"SCMP_ACT_ALLOW"}]}"#;
    check(
        json,
        &[(X86_64, 16, NONE, ALLOW), (X86_64, X32_BIT | 514, NONE, ALLOW), (X86_64, X32_BIT | 16, NONE, KILL_THREAD)],
    );
}

/// The usual profiles list both, so that a call newer than the profile must not fall between their numbers.
#[test]
fn calls_that_are_newer_than_the_profile_are_unknown_to_each_abi() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
        "syscalls":[{"names":["read","write","mkdir"],"action":"SCMP_ACT_ALLOW"}]}"#;
    let calls = [
        (X86_64, 1, NONE, ALLOW),
        (X86_64, 2, NONE, ERRNO | 1),
        (X86_64, 83, NONE, ALLOW),
        (X86_64, 84, NONE, ERRNO | 38),
        (X86_64, 1000, NONE, ERRNO | 38),
        (X86_64, X32_BIT | 1, NONE, ALLOW),
        (X86_64, X32_BIT | 2, NONE, ERRNO | 1),
        (X86_64, X32_BIT | 1000, NONE, ERRNO | 38),
    ];
    check(json, &calls);
}

#[test]
fn every_operator_on_both_halves() {
    for (operator, two, matching, missing) in [
        ("EQ", 0, vec![0x1_0000_0005], vec![5, 0x1_0000_0004, 0x2_0000_0005]),
        ("NE", 0, vec![5, 0x1_0000_0004], vec![0x1_0000_0005]),
        ("LT", 0, vec![0, 0xffff_ffff, 0x1_0000_0004], vec![0x1_0000_0005, 0x2_0000_0000]),
        ("LE", 0, vec![0, 0x1_0000_0005], vec![0x1_0000_0006, u64::MAX]),
        ("GT", 0, vec![0x1_0000_0006, 0x2_0000_0000], vec![0x1_0000_0005, 0xffff_ffff]),
        ("GE", 0, vec![0x1_0000_0005, u64::MAX], vec![0x1_0000_0004, 6]),
        ("MASKED_EQ", 4, vec![4, 0x2_0000_0004], vec![5, 0x1_0000_0004, 0]),
    ] {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["personality"],"action":"SCMP_ACT_ERRNO",
            "errnoRet":7,"args":[{{"index":2,"op":"SCMP_CMP_{operator}","value":4294967301,"valueTwo":{two}}}]}}]}}"#
        );
        let with = |value: u64| [9, 9, value, 9, 9, 9];
        let calls: Vec<_> = matching
            .into_iter()
            .map(|value| (X86_64, 135, with(value), ERRNO | 7))
            .chain(missing.into_iter().map(|value| (X86_64, 135, with(value), ALLOW)))
            .collect();
        check(&json, &calls);
    }
}

#[test]
fn conditions_are_all_of_different_arguments_and_any_of_one() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"op":"SCMP_CMP_EQ","value":1},{"index":1,"op":"SCMP_CMP_EQ","value":2}]},
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"op":"SCMP_CMP_EQ","value":1},{"index":0,"op":"SCMP_CMP_EQ","value":2}]},
        {"names":["dup"],"action":"SCMP_ACT_TRAP","args":[{"index":0,"op":"SCMP_CMP_EQ","value":1}]},
        {"names":["dup"],"action":"SCMP_ACT_LOG"}]}"#;
    let calls = [
        (X86_64, 41, [1, 2, 0, 0, 0, 0], ALLOW),
        (X86_64, 41, [1, 3, 0, 0, 0, 0], ERRNO | 1),
        (X86_64, 135, [1, 0, 0, 0, 0, 0], ALLOW),
        (X86_64, 135, [2, 0, 0, 0, 0, 0], ALLOW),
        (X86_64, 135, [3, 0, 0, 0, 0, 0], ERRNO | 1),
        (X86_64, 32, [1, 0, 0, 0, 0, 0], LOG),
    ];
    check(json, &calls);
}

#[test]
fn flags_are_the_profiles_or_those_of_the_peers() {
    for (flags, expect) in [
        ("", FLAG_SPEC_ALLOW),
        (r#","flags":[]"#, 0),
        (r#","flags":["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_LOG"]"#, super::super::FLAG_LOG),
        (r#","flags":["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]"#, FLAG_SPEC_ALLOW),
    ] {
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW"{flags}}}"#);
        assert_eq!(compile(&profile(&json)).expect("compile").flags, expect, "{flags}");
    }
}

#[test]
fn what_cannot_work_is_refused() {
    for (json, expect) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, Error::NotifyByDefault),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["dup"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            Error::ArgumentIndex { call: "dup".to_owned(), index: 6 },
        ),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, Error::Errno { errno: 5000 }),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#,
            Error::NoErrno { action: "SCMP_ACT_ALLOW".to_owned(), errno: 1 },
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[],"action":"SCMP_ACT_KILL"}]}"#,
            Error::NoNames { action: "SCMP_ACT_KILL".to_owned() },
        ),
    ] {
        assert_eq!(compile(&profile(json)), Err(expect));
    }
}

proptest! {
    /// Whatever set of calls is allowed, exactly they are.
    #[test]
    fn an_allow_list_allows_just_its_calls(numbers in proptest::collection::btree_set(0usize..335, 1..200)) {
        let names: Vec<_> = numbers.iter().filter_map(|number| syscalls::x86_64::Sysno::new(*number)).map(|call| call.name().to_owned()).collect();
        let mut rule = LinuxSyscall::default();
        rule.set_names(names).set_action(LinuxSeccompAction::ScmpActAllow);
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActKillProcess).set_syscalls(Some(vec![rule]));
        let filter = compile(&profile).expect("compile");
        for number in 0..500u32 {
            let allowed = interpret(&filter.program, number, X86_64, NONE) == Some(ALLOW);
            prop_assert_eq!(allowed, numbers.contains(&(number as usize)));
        }
    }
}

#[test]
fn a_loaded_filter_refuses() {
    let filter = compile(&profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getpriority"],"action":"SCMP_ACT_ERRNO","errnoRet":77}]}"#,
    ))
    .expect("compile");
    match crate::clone::clone(0, None).expect("clone") {
        crate::clone::Cloned::Child => {
            let loaded = super::super::load(&filter).is_ok();
            // SAFETY: getpriority takes two integers.
            let answer = unsafe { libc::syscall(libc::SYS_getpriority, 0, 0) };
            let refused = answer == -1 && nix::errno::Errno::last_raw() == 77;
            crate::clone::exit_now(i32::from(!(loaded && refused)))
        }
        crate::clone::Cloned::Parent { pidfd, .. } => {
            assert_eq!(crate::pidfd::wait(&pidfd).expect("wait"), crate::pidfd::Exit::Code(0));
        }
    }
}
