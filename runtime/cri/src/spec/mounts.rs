//! Mounts: what every container has, then what its configuration names, parents before children.
//!
//! `resolve` looks at the host (sources, their propagation); `plan` is pure. Invariant: paths of the host and of the container
//! are never joined here; the runtime opens targets inside the root.

use std::fs;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;
use runtime_cri_api::v1::{LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode};

use super::{Inputs, SpecError, sandbox_namespaces};
use crate::private;

/// A mount whose source has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMount {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) options: Vec<String>,
}

/// Checks the configuration's mounts and resolves their sources; a missing source becomes a directory, as Kubernetes has it.
pub(crate) fn resolve(wanted: &[Mount]) -> Result<Vec<HostMount>, SpecError> {
    let mut table = None;
    wanted.iter().map(|mount| resolve_one(mount, &mut table)).collect()
}

fn resolve_one(mount: &Mount, table: &mut Option<String>) -> Result<HostMount, SpecError> {
    let field = |problem: String| SpecError::field("mounts", problem);
    let target = clean(&mount.container_path);
    if mount.container_path.is_empty() || target == Path::new("/") {
        return Err(field(format!("{:?} is not a path to mount at", mount.container_path)));
    }
    if mount.image.as_ref().is_some_and(|image| !image.image.is_empty()) {
        return Err(field(format!("{}: image volumes are not supported by this runtime", target.display())));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(field(format!("{}: id-mapped mounts are not supported by this runtime", target.display())));
    }
    let host = Path::new(&mount.host_path);
    let failed = |source| SpecError::HostPath { path: host.to_owned(), target: mount.container_path.clone(), source };
    if !host.is_absolute() {
        return Err(field(format!("host path {:?} is not absolute", mount.host_path)));
    }
    if let Err(error) = fs::metadata(host)
        && error.kind() == std::io::ErrorKind::NotFound
    {
        private::public_directory(host).map_err(failed)?;
    }
    let source = fs::canonicalize(host).map_err(failed)?;
    let propagation = mount.propagation();
    let name = match propagation {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    if propagation != MountPropagation::PropagationPrivate {
        let table = match table {
            Some(table) => table,
            None => {
                let path = PathBuf::from("/proc/self/mountinfo");
                table.insert(fs::read_to_string(&path).map_err(|source| SpecError::Host { path, source })?)
            }
        };
        check_propagation(table, &source, propagation)?;
    }
    if mount.recursive_read_only {
        if !mount.readonly {
            return Err(field(format!("{}: recursive_read_only needs readonly", target.display())));
        }
        if propagation != MountPropagation::PropagationPrivate {
            return Err(field(format!("{}: recursive_read_only needs private propagation", target.display())));
        }
    }
    let access = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    Ok(HostMount { source, target, options: ["rbind", name, access].map(String::from).to_vec() })
}

/// An absolute path without `.`, `..` and double slashes, by its words alone, as runc and containerd clean it; a relative one is
/// taken from the root. The runtime resolves what is left inside the container's root.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            // Above the root is the root.
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// A mount cannot propagate what its host side does not: say so, rather than let it silently not work.
fn check_propagation(table: &str, source: &Path, wanted: MountPropagation) -> Result<(), SpecError> {
    let (shared, slave) = propagation_of(table, source);
    let problem = match wanted {
        MountPropagation::PropagationBidirectional if !shared => "a shared mount",
        MountPropagation::PropagationHostToContainer if !shared && !slave => "a shared or slave mount",
        _ => return Ok(()),
    };
    let problem = format!(
        "{} is not below {problem}, so nothing can propagate; run mount --make-rshared on it",
        source.display()
    );
    Err(SpecError::field("mounts.propagation", problem))
}

/// Whether the mount that holds `path` is shared, and whether it is a slave; proc_pid_mountinfo(5).
fn propagation_of(table: &str, path: &Path) -> (bool, bool) {
    let mut best: (usize, bool, bool) = (0, false, false);
    for line in table.lines() {
        let mut fields = line.split(' ');
        let Some(at) = fields.nth(4) else { continue };
        let at = at.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        if path.starts_with(&at) && at.len() >= best.0 {
            let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
            let has = |prefix: &str| optional.iter().any(|field| field.starts_with(prefix));
            best = (at.len(), has("shared:"), has("master:"));
        }
    }
    (best.1, best.2)
}

pub(super) fn plan(inputs: &Inputs<'_>, security: &LinuxContainerSecurityContext) -> Result<Vec<OciMount>, SpecError> {
    let mut mounts = standard(security.privileged);
    let named = |target: &str| inputs.mounts.iter().any(|mount| mount.target == Path::new(target));
    let access = if security.readonly_rootfs { "ro" } else { "rw" };
    for (target, file) in [("/etc/hostname", "hostname"), ("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf")]
    {
        if !named(target) {
            mounts.push(bind(target, &inputs.sandbox_dir.join(file), &["rbind", "rprivate", access]));
        }
    }
    if !named("/dev/shm") {
        let host_ipc = sandbox_namespaces(inputs.sandbox).ipc() == NamespaceMode::Node;
        let source = if host_ipc { PathBuf::from("/dev/shm") } else { inputs.sandbox_dir.join("shm") };
        mounts.push(bind("/dev/shm", &source, &["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"]));
    }
    let volumes = inputs.volumes.iter().map(|volume| HostMount {
        source: volume.source.clone(),
        target: volume.target.clone(),
        options: ["rbind", "rprivate", "rw"].map(String::from).to_vec(),
    });
    let mut own: Vec<HostMount> = volumes.chain(inputs.mounts.iter().cloned()).collect();
    // What the configuration mounts over a standard place replaces it.
    mounts.retain(|mount| !own.iter().any(|own| &own.target == mount.destination()));
    own.sort_by_key(|mount| mount.target.components().count());
    mounts.extend(own.into_iter().map(|own| {
        let mut mount = OciMount::default();
        mount
            .set_destination(own.target)
            .set_source(Some(own.source))
            .set_typ(Some("bind".into()))
            .set_options(Some(own.options));
        mount
    }));
    Ok(mounts)
}

fn standard(privileged: bool) -> Vec<OciMount> {
    let access = if privileged { "rw" } else { "ro" };
    let all: [(&str, &str, &[&str]); 6] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", access]),
        ("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    all.into_iter()
        .map(|(target, kind, options)| {
            let mut mount = OciMount::default();
            mount
                .set_destination(target.into())
                .set_source(Some(kind.into()))
                .set_typ(Some(kind.into()))
                .set_options(Some(options.iter().map(ToString::to_string).collect()));
            mount
        })
        .collect()
}

fn bind(target: &str, source: &Path, options: &[&str]) -> OciMount {
    let mut mount = OciMount::default();
    mount
        .set_destination(target.into())
        .set_source(Some(source.to_owned()))
        .set_typ(Some("bind".into()))
        .set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_is_that_of_the_deepest_mount() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n\
                     2 1 0:5 / /data rw master:3 - tmpfs t rw\n\
                     3 2 0:6 / /data/with\\040space rw - tmpfs t rw\n";
        assert_eq!(propagation_of(table, Path::new("/etc")), (true, false));
        assert_eq!(propagation_of(table, Path::new("/data/x")), (false, true));
        assert_eq!(propagation_of(table, Path::new("/database")), (true, false));
        assert_eq!(propagation_of(table, Path::new("/data/with space/y")), (false, false));
        let check = |path: &str, wanted| check_propagation(table, Path::new(path), wanted).is_ok();
        assert!(check("/etc", MountPropagation::PropagationBidirectional));
        assert!(!check("/data", MountPropagation::PropagationBidirectional));
        assert!(check("/data", MountPropagation::PropagationHostToContainer));
    }

    #[test]
    fn sources() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("new/deep");
        let mount = |change: fn(&mut Mount)| {
            let mut mount =
                Mount { container_path: "data".into(), host_path: missing.display().to_string(), ..Default::default() };
            change(&mut mount);
            resolve(&[mount])
        };
        let made = mount(|_| {}).unwrap().remove(0);
        assert!(missing.is_dir());
        assert_eq!((made.target.to_str().unwrap(), made.options[2].as_str()), ("/data", "rw"));
        let made = mount(|mount| (mount.readonly, mount.recursive_read_only) = (true, true)).unwrap().remove(0);
        assert_eq!(made.options, ["rbind", "rprivate", "rro"]);
        assert!(mount(|mount| mount.recursive_read_only = true).is_err());
        let made = mount(|mount| mount.container_path = "/a/../../etc/./x//".into()).unwrap().remove(0);
        assert_eq!(made.target, Path::new("/etc/x"));
        for wrong in ["", "/", "/a/..", "..", "//"] {
            let refused = resolve(&[Mount {
                container_path: wrong.into(),
                host_path: missing.display().to_string(),
                ..Default::default()
            }]);
            assert!(refused.is_err(), "{wrong:?}");
        }
        assert!(mount(|mount| mount.host_path = "relative".into()).is_err());
    }
}
