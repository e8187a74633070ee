//! Coverage-guided fuzzing of what the OCI runtime and the shim parse: config.json to plan, seccomp profiles, user strings with passwd and
//! group files, state files, frames on the shim's socket, reports of a child.
//!
//! Not a test of what a kernel does: nothing here makes a container. `runtime/fuzz/run SECONDS` builds the engine's programs and runs all
//! of them at once; `corpus/TARGET` is what they start from, and what `tests/replay.rs` goes through without any engine. Invariant: a
//! target returns for every input, whatever is wrong with it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use runtime_linux::cgroup::Hierarchy;
use runtime_oci::{Bundle, ContainerId, CreateOptions, StateRoot, accounts};
use runtime_shim::protocol::{Call, Message};
use runtime_shim::wire::{Decoder, WireError, encode};

/// linux/bpf_common.h, BPF_MAXINSNS.
const INSTRUCTIONS_MAX: usize = 4096;

fn id() -> ContainerId {
    ContainerId::parse("fuzz").expect("a good id")
}

/// A configuration becomes a plan in words, or an error in words.
pub fn config(data: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    let Ok(bundle) = Bundle::from_spec(Path::new("/nonexistent/bundle"), spec) else { return };
    // A pure v2 host that is not there, so that nothing of this one is looked at.
    let root = StateRoot::with_hierarchy("/nonexistent/state", Hierarchy::unified("/nonexistent/cgroup"));
    match runtime_oci::explain(&root, &id(), &bundle, &CreateOptions::default()) {
        Ok((steps, _)) => assert!(!steps.is_empty(), "a plan of nothing"),
        Err(error) => assert!(!error.to_string().is_empty(), "an error without words"),
    }
}

/// A profile becomes a program that the kernel would load: short enough, no jump beyond its end, and a return at the end.
pub fn seccomp(data: &[u8]) {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(data) else { return };
    let Ok(filter) = runtime_linux::seccomp::compile(&profile) else { return };
    let program = &filter.program;
    assert!(!program.is_empty() && program.len() <= INSTRUCTIONS_MAX, "{} instructions", program.len());
    for (at, instruction) in program.iter().enumerate() {
        let reach = match instruction.code & 0x07 {
            // BPF_JMP: JA by its value, the others by their two offsets.
            0x05 if instruction.code & 0xf0 == 0 => instruction.value as usize,
            0x05 => usize::from(instruction.if_true.max(instruction.if_false)),
            _ => 0,
        };
        assert!(at + 1 + reach < program.len() || instruction.code == 0x06, "instruction {at} leads out");
    }
    assert_eq!(program.last().map(|last| last.code), Some(0x06), "the last instruction is no return");
}

/// First line: a user string, `USER` or `USER:GROUP`. Then a passwd file, and after an empty line a group file.
pub fn accounts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (wanted, files) = text.split_once('\n').unwrap_or((&text, ""));
    let (passwd, group) = files.split_once("\n\n").unwrap_or((files, ""));
    let (user, group_name) = wanted.split_once(':').unwrap_or((wanted, ""));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(account) = accounts::account(user, passwd) {
        assert!(account.uid != u32::MAX && account.gid != u32::MAX, "an id that means no change");
        let number = user.parse::<u64>().ok().filter(|_| is_number(user));
        assert!(number.is_none_or(|number| number == u64::from(account.uid)), "{user} became {}", account.uid);
        assert!(is_number(user) || account.name == user, "{user} became {}", account.name);
    }
    if let Some(gid) = accounts::group_id(group_name, group) {
        assert_ne!(gid, u32::MAX, "an id that means no change");
        let number = group_name.parse::<u64>().ok().filter(|_| is_number(group_name));
        assert!(number.is_none_or(|number| number == u64::from(gid)), "{group_name} became {gid}");
    }
    assert!(accounts::groups(group).all(|(_, gid, _)| gid != u32::MAX), "an id that means no change");
}

/// A state file is a state, or an error in words; `state` never hurts what it cannot read.
pub fn record(data: &[u8]) {
    let root = state_root();
    let file = root.join("fuzz/state.json");
    std::fs::write(&file, data).expect("write the state");
    let root = StateRoot::with_hierarchy(root, Hierarchy::unified("/nonexistent/cgroup"));
    match runtime_oci::state(&root, &id()) {
        Ok(state) => assert!(state.pid >= 0, "process {}", state.pid),
        Err(error) => assert!(!error.to_string().is_empty(), "an error without words"),
    }
    assert_eq!(runtime_oci::list(&root).map(|all| all.len()).ok(), Some(1));
}

/// A stream of frames, as a shim and as a client read them: what is understood is said again and understood the same way, and no more is
/// kept than came.
pub fn wire(data: &[u8]) {
    fn read<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) {
        // In two parts, as a socket may bring them.
        let (first, second) = data.split_at(data.len() / 2);
        let mut decoder = Decoder::default();
        for part in [first, second] {
            decoder.push(part);
            loop {
                match decoder.decode::<T>() {
                    Ok(None) => break,
                    // The frame was whole, so the next one is in step.
                    Err(WireError::Parse(_)) => {}
                    Err(_) => return,
                    Ok(Some(message)) => {
                        let Ok(bytes) = encode(&message) else { continue };
                        let mut again = Decoder::default();
                        again.push(&bytes);
                        let said =
                            again.decode::<T>().ok().flatten().map(|message| encode(&message).unwrap_or_default());
                        assert_eq!(said.as_deref(), Some(&*bytes), "said again, it is another message");
                    }
                }
            }
            assert!(decoder.buffered() <= data.len(), "more is kept than came");
        }
    }
    read::<Call>(data);
    read::<Message>(data);
}

/// A child's report, whoever wrote it.
pub fn report(data: &[u8]) {
    // Those that carry a descriptor are refused without one.
    if runtime_oci::is_report(data) {
        assert!(matches!(data.first(), Some(b'H' | b'W' | b'F' | b'D' | b'R')), "{data:?}");
    }
}

/// One directory for the life of this process; `run` says where and removes it.
fn state_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let base = std::env::var_os("SAMPAN_FUZZ_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let root = base.join(format!("sampan-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(root.join("fuzz")).expect("make a state root");
        root
    })
}
