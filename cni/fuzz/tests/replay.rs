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
    replay("config", cni_fuzz::config);
}

#[test]
fn netlink() {
    replay("netlink", cni_fuzz::netlink);
}

#[cfg(feature = "dns")]
#[test]
fn dns() {
    replay("dns", cni_fuzz::dns);
}
