//! The steps from the inherited mounts to the new root: propagation, root file system, mounts with every option, masks.

use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Spec};
use runtime_linux::idmap::Maps;
use runtime_linux::mount::attribute;

use super::namespaces::ranges;
use super::steps::{BindMount, CgroupMount, Data, FilesystemMount, IdMapping, MountAttributes, MountStep, Step};
use super::{CgroupView, Context, Plan, Source, invalid};
use crate::error::Error;
use crate::options::RootChange;

/// Options that are attributes of a mount: (name, set, clear). With `r` in front they reach everything below.
const ATTRIBUTES: [(&str, u64, u64); 16] = [
    ("ro", attribute::RDONLY, 0),
    ("rw", 0, attribute::RDONLY),
    ("nosuid", attribute::NOSUID, 0),
    ("suid", 0, attribute::NOSUID),
    ("nodev", attribute::NODEV, 0),
    ("dev", 0, attribute::NODEV),
    ("noexec", attribute::NOEXEC, 0),
    ("exec", 0, attribute::NOEXEC),
    ("noatime", attribute::NOATIME, attribute::ATIME),
    ("relatime", 0, attribute::ATIME),
    ("strictatime", attribute::STRICTATIME, attribute::ATIME),
    ("atime", 0, attribute::ATIME),
    ("nodiratime", attribute::NODIRATIME, 0),
    ("diratime", 0, attribute::NODIRATIME),
    ("nosymfollow", attribute::NOSYMFOLLOW, 0),
    ("symfollow", 0, attribute::NOSYMFOLLOW),
];

/// Flags of the superblock, as fsconfig takes them.
const SUPERBLOCK: [&str; 8] = ["sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime", "silent"];

/// What the kernel takes in mount options but nobody acts on since mount(8) reads them from fstab only.
const MEANINGLESS: [&str; 10] =
    ["defaults", "auto", "noauto", "user", "nouser", "_netdev", "nofail", "loud", "norelatime", "nostrictatime"];

/// Files of /proc that may be mounted over: what lxcfs provides, and what only reports.
const PROC_ALLOWED: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

pub(super) fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let flag = match name {
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "private" => MsFlags::MS_PRIVATE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag.bits(), recursive))
}

/// A mount's options, sorted by what they are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub attributes: MountAttributes,
    pub data: Vec<Data>,
    /// `Some(true)` for rbind.
    pub bind: Option<bool>,
    /// `Some(true)` for ridmap.
    pub idmap: Option<bool>,
    pub copy_up: bool,
}

impl Options {
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.take(option);
        }
        parsed
    }

    fn take(&mut self, option: &str) {
        match option {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = self.idmap.or(Some(false)),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "" => {}
            _ if MEANINGLESS.contains(&option) => {}
            _ if SUPERBLOCK.contains(&option) => self.data.push(Data::Flag(option.to_owned())),
            _ => self.take_attribute(option),
        }
    }

    fn take_attribute(&mut self, option: &str) {
        if let Some(propagation) = propagation(option) {
            self.attributes.propagation.push(propagation);
            return;
        }
        let find = |name: &str| ATTRIBUTES.iter().find(|(known, _, _)| *known == name).copied();
        let attributes = &mut self.attributes;
        if let Some((_, set, clear)) = find(option) {
            (attributes.set, attributes.clear) = apply(attributes.set, attributes.clear, set, clear);
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(find) {
            (attributes.recursive_set, attributes.recursive_clear) =
                apply(attributes.recursive_set, attributes.recursive_clear, set, clear);
        } else {
            self.data.push(match option.split_once('=') {
                Some((key, value)) => Data::Value(key.to_owned(), value.to_owned()),
                None => Data::Flag(option.to_owned()),
            });
        }
    }
}

/// The last of two options that contradict each other holds.
fn apply(old_set: u64, old_clear: u64, set: u64, clear: u64) -> (u64, u64) {
    ((old_set & !clear) | set, (old_clear & !set) | clear)
}

impl Plan {
    pub(super) fn mounts(&mut self, spec: &Spec, linux: &Linux, context: &Context<'_>) -> Result<(), Error> {
        let root = spec.root().as_ref();
        let path = root.map(|root| context.bundle.join(root.path()));
        let mounts = spec.mounts().as_deref().unwrap_or(&[]);
        let own_mounts = self.namespaces.has(LinuxNamespaceType::Mount);
        if !own_mounts {
            let restricted = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
            if !mounts.is_empty() || restricted(linux.masked_paths()) || restricted(linux.readonly_paths()) {
                return Err(invalid("linux.namespaces", "mounts and masked paths need a mount namespace"));
            }
            let path = path.ok_or_else(|| invalid("root", "is missing"))?;
            self.setup.push(Step::RootDirectory(path));
            return Ok(());
        }
        let root_propagation = match linux.rootfs_propagation().as_deref() {
            None | Some("") => None,
            Some(name) => Some(
                propagation(name)
                    .ok_or_else(|| invalid("linux.rootfsPropagation", &format!("\"{name}\" is not a propagation")))?,
            ),
        };
        // Shared would hand our own mounts to the host; the host's mounts still reach us as a slave's, and / is set at the end.
        let inherited = match root_propagation {
            Some((flag, _)) if flag != MsFlags::MS_SHARED.bits() => flag,
            _ => MsFlags::MS_SLAVE.bits(),
        };
        let keep_shared = root_propagation.is_some_and(|(flag, _)| flag == MsFlags::MS_SHARED.bits());
        if self.namespaces.is_new(LinuxNamespaceType::Mount) {
            self.setup.push(Step::Propagation(inherited));
        }
        match (context.rootfs, path) {
            (Some(overlay), _) => self.setup.push(Step::RootOverlay(overlay.clone())),
            (None, Some(path)) => {
                let source = self.source(path, true);
                self.setup.push(Step::RootBind { source });
            }
            (None, None) => return Err(invalid("root", "is missing")),
        }
        for (index, mount) in mounts.iter().enumerate() {
            let default = if keep_shared { None } else { Some(inherited) };
            self.mount(mount, default, context).map_err(|error| match error {
                Error::InvalidConfig { field, reason } => {
                    Error::InvalidConfig { field: format!("mounts[{index}].{field}"), reason }
                }
                other => other,
            })?;
        }
        self.devices(spec, linux)
    }

    pub(super) fn source(&mut self, path: PathBuf, recursive: bool) -> usize {
        self.sources.push(Source { path, recursive });
        self.sources.len() - 1
    }

    fn mount(&mut self, mount: &Mount, default_propagation: Option<u64>, context: &Context<'_>) -> Result<(), Error> {
        let destination = Path::new("/").join(mount.destination());
        if destination.components().any(|component| component == Component::ParentDir) {
            return Err(invalid("destination", "must not hold .."));
        }
        let destination: PathBuf = destination.components().collect();
        let mut options = Options::parse(mount.options().as_deref().unwrap_or(&[]));
        let kind = mount.typ().as_deref().unwrap_or("");
        let is_bind = options.bind.is_some() || kind == "bind" || kind == "none";
        check_proc(&destination, kind, is_bind)?;
        if options.idmap.is_some() && !is_bind {
            return Err(invalid("options", "idmap is for bind mounts only"));
        }
        let step = if is_bind {
            let source = mount.source().as_ref().ok_or_else(|| invalid("source", "a bind mount needs one"))?;
            let recursive = options.bind == Some(true);
            if let Some(propagation) = default_propagation {
                options.attributes.propagation.insert(0, (propagation, true));
            }
            // What is left names no attribute; a bind has no superblock of its own to configure.
            for data in options.data.drain(..) {
                let name = match data {
                    Data::Flag(name) | Data::Value(name, _) => name,
                };
                self.warnings.push(format!("mount {}: option {name} has no meaning for a bind", destination.display()));
            }
            if destination == Path::new("/sys") && options.attributes.set & attribute::RDONLY != 0 {
                // "ro" alone would leave /sys/fs/cgroup below it writable to who owns cgroups there (CVE-2023-25809).
                options.attributes.recursive_set |= attribute::RDONLY;
            }
            let source = self.source(context.bundle.join(source), recursive);
            MountStep::Bind(BindMount { source, idmap: self.idmap(mount, options.idmap)? })
        } else if kind == "cgroup" || kind == "cgroup2" {
            MountStep::Cgroup(self.cgroup(context))
        } else if kind.is_empty() {
            return Err(invalid("type", "is missing, and the options hold neither bind nor rbind"));
        } else {
            MountStep::Filesystem(FilesystemMount {
                kind: kind.to_owned(),
                source: mount.source().as_ref().map(|source| source.to_string_lossy().into_owned()),
                data: options.data,
                copy_up: options.copy_up && kind == "tmpfs",
            })
        };
        self.setup.push(Step::Mount { destination, attributes: options.attributes, mount: step });
        Ok(())
    }

    fn idmap(&self, mount: &Mount, option: Option<bool>) -> Result<Option<IdMapping>, Error> {
        let maps = Maps { uids: ranges(mount.uid_mappings()), gids: ranges(mount.gid_mappings()) };
        let own = !maps.uids.is_empty() || !maps.gids.is_empty();
        let recursive = option.unwrap_or(false);
        match (own, option) {
            (false, None) => Ok(None),
            (true, _) if maps.uids.is_empty() || maps.gids.is_empty() => {
                Err(invalid("uidMappings", "uidMappings and gidMappings come together"))
            }
            (true, _) => Ok(Some(IdMapping { maps, recursive })),
            // runtime-spec 1.3, "idmap": without mappings of its own, the container's user namespace's.
            (false, Some(_)) if !self.namespaces.maps.uids.is_empty() => {
                Ok(Some(IdMapping { maps: self.namespaces.maps.clone(), recursive }))
            }
            (false, Some(_)) => Err(invalid("options", "idmap needs mappings, or a new user namespace that has them")),
        }
    }

    fn cgroup(&mut self, context: &Context<'_>) -> CgroupMount {
        let own_namespace = self.namespaces.has(LinuxNamespaceType::Cgroup);
        match &context.cgroup {
            CgroupView::V2 { .. } if own_namespace => CgroupMount::V2,
            CgroupView::V2 { own } => CgroupMount::Bound { source: self.source(own.clone(), true) },
            CgroupView::V1 { hierarchies } => CgroupMount::V1 {
                hierarchies: hierarchies
                    .iter()
                    .map(|(name, controllers, own)| {
                        let source = (!own_namespace).then(|| self.source(own.clone(), false));
                        (name.clone(), controllers.clone(), source)
                    })
                    .collect(),
            },
        }
    }

    pub(super) fn change_root(&mut self, spec: &Spec, linux: &Linux, context: &Context<'_>) -> Result<(), Error> {
        if !self.namespaces.has(LinuxNamespaceType::Mount) {
            self.setup.push(Step::Chroot);
            return Ok(());
        }
        // Masks go on before the root changes, while the host's /dev/null is at hand; a later remount cannot lift them.
        for path in linux.readonly_paths().iter().flatten() {
            self.setup.push(Step::ReadonlyPath(PathBuf::from(path)));
        }
        for path in linux.masked_paths().iter().flatten() {
            self.setup.push(Step::MaskedPath(PathBuf::from(path)));
        }
        self.setup.push(match context.root_change {
            RootChange::Pivot => Step::PivotRoot,
            RootChange::Chroot => Step::Chroot,
        });
        if let Some((flag, recursive)) = linux.rootfs_propagation().as_deref().and_then(propagation) {
            self.setup.push(Step::RootPropagation(flag | if recursive { MsFlags::MS_REC.bits() } else { 0 }));
        }
        if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
            self.setup.push(Step::RootReadonly);
        }
        Ok(())
    }
}

/// Nothing but a procfs on /proc, and nothing below it but what only reports (CVE-2019-16884).
fn check_proc(destination: &Path, kind: &str, is_bind: bool) -> Result<(), Error> {
    if destination == Path::new("/proc") {
        // A bound one is looked at when it is attached.
        return if kind == "proc" || is_bind {
            Ok(())
        } else {
            Err(invalid("destination", "only a proc file system may be mounted on /proc"))
        };
    }
    if destination.starts_with("/proc") && !PROC_ALLOWED.iter().any(|allowed| destination == Path::new(allowed)) {
        return Err(invalid("destination", &format!("{} is inside /proc", destination.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_by_what_they_are() {
        let options = parse(&["rbind", "ro", "nosuid", "rro", "rprivate", "size=64k", "noatime", "strictatime", "rw"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.attributes.set, attribute::NOSUID | attribute::STRICTATIME);
        assert_eq!(options.attributes.clear, attribute::RDONLY | attribute::ATIME);
        assert_eq!(options.attributes.recursive_set, attribute::RDONLY);
        assert_eq!(options.attributes.propagation, [(MsFlags::MS_PRIVATE.bits(), true)]);
        assert_eq!(options.data, [Data::Value("size".to_owned(), "64k".to_owned())]);
    }

    #[test]
    fn proc_is_guarded() {
        for (destination, kind, bind, good) in [
            ("/proc", "proc", false, true),
            ("/proc", "tmpfs", false, false),
            ("/proc", "bind", true, true),
            ("/proc/self/attr", "tmpfs", false, false),
            ("/proc/sys", "bind", true, false),
            ("/proc/uptime", "bind", true, true),
            ("/process", "tmpfs", false, true),
        ] {
            assert_eq!(check_proc(Path::new(destination), kind, bind).is_ok(), good, "{destination} {kind}");
        }
    }
}
