//! Every kept input goes through its target, without any engine.

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut replayed = 0;
    for entry in std::fs::read_dir(&dir).expect("the corpus").flatten() {
        run(&std::fs::read(entry.path()).expect("an input"));
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", dir.display());
}

#[test]
fn config() {
    replay("config", runtime_fuzz::config);
}

#[test]
fn seccomp() {
    replay("seccomp", runtime_fuzz::seccomp);
}

#[test]
fn accounts() {
    replay("accounts", runtime_fuzz::accounts);
}

#[test]
fn wire() {
    replay("wire", runtime_fuzz::wire);
}

#[test]
fn report() {
    replay("report", runtime_fuzz::report);
}

#[test]
fn record() {
    replay("record", runtime_fuzz::record);
    let left = std::env::temp_dir().join(format!("sampan-fuzz-{}", std::process::id()));
    std::fs::remove_dir_all(left).expect("the target's own directory");
}
