//! The products on pure cgroup v2, in a virtual machine, since the machine of the tests may have any layout.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_e2e::cluster::dist;
use integration_e2e::vm::{Layout, Report, Vm};

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn containers_and_their_cgroups() -> Result<()> {
    let mut vm = oci_guest()?;
    vm.program(Path::new(env!("CARGO_BIN_EXE_unified-guest")), "/unified-guest")?;
    vm.program(&built_test("runtime_linux-", "cgroup::tests::")?, "/cgroup-tests")?;
    let script = "code=0\n/unified-guest || code=1\n/cgroup-tests cgroup:: || code=1\n/oci-tests limits:: || code=1\nexit $code\n";
    passed(&vm.run(script, DEADLINE)?)
}

/// What changes while a container runs.
#[test]
fn updates() -> Result<()> {
    passed(&oci_guest()?.run("exec /oci-tests resources::\n", 3 * DEADLINE)?)
}

/// With a real systemd, which owns the cgroups.
#[test]
fn under_systemd() -> Result<()> {
    let script = "exec /oci-tests --include-ignored systemd:: --skip on_v1\n";
    passed(&oci_guest()?.run_under_systemd(Layout::Unified, script, DEADLINE)?)
}

/// The same on cgroup v1, where it takes more upon itself.
#[test]
fn under_systemd_on_v1() -> Result<()> {
    let script = "exec /oci-tests --include-ignored systemd::on_v1\n";
    passed(&oci_guest()?.run_under_systemd(Layout::Legacy, script, DEADLINE)?)
}

/// By a real criu, which may be older than the kernel of this machine.
#[test]
fn checkpoints() -> Result<()> {
    let mut vm = oci_guest()?;
    // criu saves file systems with the one and networks with the other; busybox's know too little for it.
    for name in ["criu", "tar", "ip"] {
        vm.program(&on_path(name)?, &format!("/bin/{name}"))?;
    }
    // Nobody has rules or sends anything meanwhile, so a firewall that says yes to everything will do.
    let script = "for name in iptables-save iptables-restore ip6tables-save ip6tables-restore; do\n\
                  printf '#!/bin/sh\\n' > /sbin/$name\nchmod +x /sbin/$name\ndone\n\
                  exec /oci-tests --include-ignored checkpoint::\n";
    passed(&vm.run(script, DEADLINE)?)
}

/// With the tests of `sampan-oci`, and the program where they look for it.
fn oci_guest() -> Result<Vm> {
    let mut vm = Vm::new()?;
    vm.program(&dist()?.join("sampan-oci"), "/dist/sampan-oci")?;
    // Their paths were fixed when they were built.
    let profile = own_directory()?.parent().context("a profile directory above the tests")?.to_owned();
    vm.program(&built_test("it-", "limits::a_cgroup_of_others")?, "/oci-tests")?;
    vm.symlink(&profile.join("sampan-oci").to_string_lossy(), "/dist/sampan-oci");
    Ok(vm)
}

#[test]
fn a_whole_node() -> Result<()> {
    let mut vm = Vm::new()?;
    vm.program(Path::new(env!("CARGO_BIN_EXE_unified-guest")), "/unified-guest")?;
    for name in ["sampan", "sampan-shim", "sampan-oci", "sampan-cni", "sampan-demo"] {
        vm.program(&dist()?.join(name), &format!("/dist/{name}"))?;
    }
    // The guest's own `timeout` is busybox's, which knows no --foreground.
    for name in ["kubectl", "timeout"] {
        vm.program(&on_path(name)?, &format!("/bin/{name}"))?;
    }
    passed(&vm.run("export SAMPAN_DIST=/dist\nexec /unified-guest cluster\n", DEADLINE)?)
}

fn on_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH")?;
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is not on the PATH"))
}

fn passed(report: &Report) -> Result<()> {
    ensure!(report.code == 0, "ended with {}:\n{}", report.code, report.console);
    // A name that no test has any more would pass.
    ensure!(!report.console.contains("running 0 tests"), "no test of that name:\n{}", report.console);
    Ok(())
}

/// The newest test program of another package that was built together with this one, and has tests of that name.
fn built_test(prefix: &str, tests: &str) -> Result<PathBuf> {
    let directory = own_directory()?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && !name.contains('.') {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    found.sort();
    for (_, path) in found.into_iter().rev() {
        let listed = Command::new(&path).args(["--list", tests]).output()?;
        if String::from_utf8_lossy(&listed.stdout).contains(": test") {
            return Ok(path);
        }
    }
    anyhow::bail!(
        "no test program {prefix}* with {tests} in {}: build all tests of the workspace first, `cargo nextest run --workspace --no-run`",
        directory.display()
    )
}

fn own_directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this test")?;
    own.parent().map(Path::to_owned).context("this test lies in a directory")
}
