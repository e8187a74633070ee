//! Which capabilities a container holds. Pure.

use std::collections::HashSet;

use oci_spec::runtime::Capability;
use runtime_cri_api::v1::Capability as Wanted;

use super::SpecError;

/// What containers get unless they ask for other; the set that Docker began with and every runtime keeps.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability up to the newest the kernel has (`CAP_CHECKPOINT_RESTORE`, 5.9).
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) held: HashSet<Capability>,
    pub(super) ambient: HashSet<Capability>,
}

/// `ALL` first, then single names: so "drop ALL, add X" leaves X, in whatever order they were written.
pub(super) fn plan(wanted: &Wanted, privileged: bool) -> Result<Planned, SpecError> {
    if privileged {
        return Ok(Planned { held: host_supported(), ambient: HashSet::new() });
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    let mut held = HashSet::from(DEFAULT);
    if wanted.add_capabilities.iter().any(is_all) {
        held = host_supported();
    }
    if wanted.drop_capabilities.iter().any(is_all) {
        held.clear();
    }
    for name in wanted.add_capabilities.iter().filter(|name| !is_all(name)) {
        held.insert(parse("add_capabilities", name)?);
    }
    for name in wanted.drop_capabilities.iter().filter(|name| !is_all(name)) {
        held.remove(&parse("drop_capabilities", name)?);
    }
    let mut ambient = HashSet::new();
    for name in &wanted.add_ambient_capabilities {
        let capability = parse("add_ambient_capabilities", name)?;
        held.insert(capability);
        ambient.insert(capability);
    }
    Ok(Planned { held, ambient })
}

/// `ALL` means all that this code and the kernel know; the runtime drops what the kernel does not.
fn host_supported() -> HashSet<Capability> {
    HashSet::from(ALL)
}

/// `NET_ADMIN` or `CAP_NET_ADMIN`.
fn parse(field: &'static str, name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare.parse().map_err(|_| SpecError::field(field, format!("{name:?} is no capability")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let check = |add: &[&str], drop: &[&str], expect: HashSet<Capability>| {
            let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let wanted = Wanted { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() };
            assert_eq!(plan(&wanted, false).unwrap().held, expect, "+{add:?} -{drop:?}");
        };
        let default = || HashSet::from(DEFAULT);
        check(&[], &[], default());
        check(&["NET_ADMIN"], &[], &default() | &HashSet::from([Capability::NetAdmin]));
        check(&[], &["CAP_CHOWN"], &default() - &HashSet::from([Capability::Chown]));
        check(&[], &["ALL"], HashSet::new());
        check(&["NET_BIND_SERVICE"], &["ALL"], HashSet::from([Capability::NetBindService]));
        check(&["ALL"], &["sys_admin"], &HashSet::from(ALL) - &HashSet::from([Capability::SysAdmin]));
    }

    #[test]
    fn ambient_is_held_too_and_unknown_names_are_refused() {
        let wanted = Wanted { add_ambient_capabilities: vec!["SYS_TIME".into()], ..Default::default() };
        let planned = plan(&wanted, false).unwrap();
        assert!(planned.held.contains(&Capability::SysTime));
        assert_eq!(planned.ambient, HashSet::from([Capability::SysTime]));
        let wanted = Wanted { add_capabilities: vec!["FLY".into()], ..Default::default() };
        assert!(plan(&wanted, false).unwrap_err().to_string().contains("\"FLY\""));
    }
}
