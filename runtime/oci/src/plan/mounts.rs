//! The steps from the inherited mounts to the new root: propagation, root file system, mounts with every option, masks.

use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Spec};
use runtime_linux::idmap::Maps;
use runtime_linux::mount::attribute;

use super::mount_options::{Options, propagation};
use super::namespaces::ranges;
use super::steps::{BindMount, CgroupMount, Data, FilesystemMount, IdMapping, MountStep, Step};
use super::{CgroupView, Context, Opener, Plan, Source, invalid};
use crate::error::Error;
use crate::options::RootChange;

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

impl Plan {
    pub(super) fn mounts(&mut self, spec: &Spec, linux: &Linux, context: &Context<'_>) -> Result<(), Error> {
        let root = spec.root().as_ref();
        let path = root.map(|root| context.bundle.join(root.path()));
        let mounts = spec.mounts().as_deref().unwrap_or(&[]);
        let own_mounts = self.namespaces.has(LinuxNamespaceType::Mount);
        if !own_mounts {
            let restricted = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
            if restricted(linux.masked_paths()) || restricted(linux.readonly_paths()) {
                return Err(invalid("linux.namespaces", "masked and read-only paths need a mount namespace"));
            }
            let path = path.ok_or_else(|| invalid("root", "is missing"))?;
            self.setup.push(Step::RootDirectory(path));
            self.warn_of_host_mounts(spec, linux, mounts);
            return self.mount_all(spec, linux, context, Some(MsFlags::MS_PRIVATE.bits()));
        }
        let (inherited, default) = inherited(linux)?;
        if self.namespaces.is_new(LinuxNamespaceType::Mount) {
            self.setup.push(Step::Propagation(inherited));
        }
        match (context.rootfs, path) {
            (Some(overlay), _) => self.setup.push(Step::RootOverlay(overlay.clone())),
            (None, Some(path)) => {
                // A createContainer hook finds the container's mounts where the bundle has its root file system.
                let wants_path = spec
                    .hooks()
                    .as_ref()
                    .is_some_and(|hooks| hooks.create_container().as_ref().is_some_and(|hooks| !hooks.is_empty()));
                let at = wants_path.then(|| path.clone());
                let source = self.source(Source { path, recursive: true, follow: true, by: Opener::Runtime });
                self.setup.push(Step::RootBind { source, at });
            }
            (None, None) => return Err(invalid("root", "is missing")),
        }
        self.mount_all(spec, linux, context, default)
    }

    /// runtime-spec 1.3, "Namespaces": a namespace that is not listed is inherited, the mount namespace too.
    fn warn_of_host_mounts(&mut self, spec: &Spec, linux: &Linux, mounts: &[Mount]) {
        if !mounts.is_empty() {
            let words = "without a mount namespace the container's mounts lie on the host, until it is deleted";
            self.warnings.push(words.to_owned());
        }
        let is_readonly = spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true));
        for (field, is_given) in
            [("root.readonly", is_readonly), ("linux.rootfsPropagation", linux.rootfs_propagation().is_some())]
        {
            if is_given {
                self.warnings.push(format!("{field} is not acted on without a mount namespace: / is the host's"));
            }
        }
    }

    fn mount_all(
        &mut self,
        spec: &Spec,
        linux: &Linux,
        context: &Context<'_>,
        default: Option<u64>,
    ) -> Result<(), Error> {
        self.mount_each(spec, spec.mounts().as_deref().unwrap_or_default(), context, default)?;
        self.devices(spec, linux)?;
        // Like runc and crun: images name directories that they do not have.
        if let Some(process) = spec.process().as_ref().filter(|process| process.cwd() != Path::new("/")) {
            self.setup.push(Step::EnsureDirectory(process.cwd().clone()));
        }
        self.readonly_at_last();
        Ok(())
    }

    pub(super) fn mount_each(
        &mut self,
        spec: &Spec,
        mounts: &[Mount],
        context: &Context<'_>,
        default: Option<u64>,
    ) -> Result<(), Error> {
        let root = spec.root().as_ref().map(|root| plain(&context.bundle.join(root.path())));
        // A destination in a root that is the host's own would be that root itself.
        let root = root.as_deref().filter(|root| *root != Path::new("/"));
        for (index, mount) in mounts.iter().enumerate() {
            self.mount(mount, default, root, context).map_err(|error| match error {
                Error::InvalidConfig { field, reason } => {
                    Error::InvalidConfig { field: format!("mounts[{index}].{field}"), reason }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    pub(super) fn readonly_at_last(&mut self) {
        let is_left_writable = |step: &Step| matches!(step, Step::Mount { mount: MountStep::Filesystem(mount), .. } if mount.readonly_at_last);
        if self.setup.iter().any(is_left_writable) {
            self.setup.push(Step::MountsReadonly);
        }
    }

    pub(super) fn source(&mut self, source: Source) -> usize {
        self.sources.push(source);
        self.sources.len() - 1
    }

    fn mount(
        &mut self,
        mount: &Mount,
        default_propagation: Option<u64>,
        root: Option<&Path>,
        context: &Context<'_>,
    ) -> Result<(), Error> {
        let destination = clean(mount.destination());
        // As with runc, a place in the root as the host names it is the same place as the container names it.
        let destination = root.and_then(|root| below(&destination, root)).unwrap_or_else(|| plain(&destination));
        let mut options = Options::parse(mount.options().as_deref().unwrap_or(&[]));
        let kind = mount.typ().as_deref().unwrap_or("");
        let is_bind = options.bind.is_some() || kind == "bind" || kind == "none";
        check_proc(&destination, kind, is_bind)?;
        if options.idmap.is_some() && !is_bind {
            return Err(invalid("options", "idmap is for bind mounts only"));
        }
        let step = if options.remount {
            self.check_remount(&destination, is_bind)?;
            MountStep::Remount { superblock: (!is_bind).then(|| std::mem::take(&mut options.data)) }
        } else if is_bind {
            let source = mount.source().as_ref().ok_or_else(|| invalid("source", "a bind mount needs one"))?;
            let idmap = self.idmap(mount, options.idmap)?;
            let path = context.bundle.join(source);
            let (path, by) = match root.and_then(|root| below(&path, root)) {
                Some(inside) => (inside, Opener::Root),
                None => {
                    let by = self.opener(&path, &options, default_propagation, idmap.is_some());
                    (path, by)
                }
            };
            // A slave that is shared again would have a peer group of its own. The root of a user namespace is no peer of the host's, though.
            let is_asked = options.attributes.propagation.iter().any(|(flag, _)| *flag == MsFlags::MS_SHARED.bits());
            let stays_peer = is_asked && !self.namespaces.has(LinuxNamespaceType::User);
            if let Some(propagation) = default_propagation.filter(|_| !stays_peer) {
                options.attributes.propagation.insert(0, (propagation, true));
            }
            self.warn_of_unused(&destination, &mut options);
            if options.has_attributes {
                options.attributes.clear_unasked = self.unasked() & !options.attributes.set;
            }
            if destination == Path::new("/sys") && options.attributes.set & attribute::RDONLY != 0 {
                // "ro" alone would leave /sys/fs/cgroup below it writable to who owns cgroups there (CVE-2023-25809).
                options.attributes.recursive_set |= attribute::RDONLY;
            }
            let source = self.source(Source {
                path,
                recursive: options.bind == Some(true),
                follow: !(options.source_nofollow || options.copy_symlink),
                by,
            });
            MountStep::Bind(BindMount {
                source,
                idmap,
                copy_symlink: options.copy_symlink,
                nofollow: options.destination_nofollow,
            })
        } else if kind == "cgroup" || kind == "cgroup2" {
            MountStep::Cgroup(self.cgroup(context, &destination, &mut options))
        } else if kind.is_empty() {
            return Err(invalid("type", "is missing, and the options hold neither bind nor rbind"));
        } else {
            let copy_up = options.copy_up && kind == "tmpfs";
            if copy_up && destination == Path::new("/") {
                return Err(invalid("options", "tmpcopyup on / has nothing below it to copy"));
            }
            if let Some(label) = context.mount_label.filter(|_| takes_label(kind)) {
                options.data.push(Data::Value("context".to_owned(), label.to_owned()));
            }
            // What lies on it is made afterwards: mount points of other entries, devices.
            let readonly_at_last = (kind == "tmpfs" || destination == Path::new("/dev"))
                && options.attributes.set & attribute::RDONLY != 0;
            if readonly_at_last {
                options.attributes.set &= !attribute::RDONLY;
            }
            MountStep::Filesystem(FilesystemMount {
                kind: kind.to_owned(),
                source: mount.source().as_ref().map(|source| source.to_string_lossy().into_owned()),
                data: options.data,
                copy_up,
                readonly_at_last,
            })
        };
        self.setup.push(Step::Mount { destination, attributes: options.attributes, mount: step });
        Ok(())
    }

    /// A tree that is to stay in touch with the host's mounts is taken from among those, and so is one whose rights the process lacks.
    fn opener(&self, path: &Path, options: &Options, inherited: Option<u64>, is_mapped: bool) -> Opener {
        let own_tree =
            self.namespaces.is_new(LinuxNamespaceType::Mount) && !self.namespaces.has(LinuxNamespaceType::User);
        let Some(inherited) = inherited.filter(|_| own_tree && !is_mapped) else { return Opener::Runtime };
        let asked = options.attributes.propagation.iter().map(|(flag, _)| *flag);
        let mut touching = asked.filter(|flag| {
            *flag == MsFlags::MS_SHARED.bits() || *flag == MsFlags::MS_SLAVE.bits() && *flag != inherited
        });
        // Below /proc a path may mean the runtime itself.
        if touching.next().is_some() || path.starts_with("/proc") { Opener::Runtime } else { Opener::Process }
    }

    /// As with runc and crun, a bind with options has just those, and one without any has those of its source. Access times stay the
    /// source's unless they are asked for. In a user namespace what the kernel could lock stays too; mount_namespaces(7).
    fn unasked(&self) -> u64 {
        let lockable = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
        let is_mapped = self.namespaces.has(LinuxNamespaceType::User);
        attribute::NOSYMFOLLOW | if is_mapped { 0 } else { lockable }
    }

    /// Only what an earlier entry made is changed; the file system behind a bind is the host's.
    fn check_remount(&self, destination: &Path, is_bind: bool) -> Result<(), Error> {
        let earlier = self.setup.iter().rev().find_map(|step| match step {
            Step::Mount { destination: known, mount, .. } if known == destination => Some(mount),
            _ => None,
        });
        match earlier {
            None => {
                Err(invalid("options", "remount changes what an earlier entry has mounted at the same destination"))
            }
            Some(MountStep::Bind(_)) if !is_bind => Err(invalid(
                "options",
                "remount of a bind needs the option bind, or the host's file system would change",
            )),
            Some(_) => Ok(()),
        }
    }

    /// What is left names no attribute; a bind has no superblock of its own to configure.
    fn warn_of_unused(&mut self, destination: &Path, options: &mut Options) {
        for data in options.data.drain(..) {
            let (Data::Flag(name) | Data::Hint(name) | Data::Value(name, _)) = data;
            self.warnings.push(format!("mount {}: option {name} has no meaning for a bind", destination.display()));
        }
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
            (true, _) => Ok(Some(IdMapping { maps: Some(maps), recursive })),
            // runtime-spec 1.3, "idmap": without mappings of its own, the container's user namespace's.
            (false, Some(_)) if !self.namespaces.maps.uids.is_empty() => {
                Ok(Some(IdMapping { maps: Some(self.namespaces.maps.clone()), recursive }))
            }
            (false, Some(_)) if self.namespaces.has(LinuxNamespaceType::User) => {
                Ok(Some(IdMapping { maps: None, recursive }))
            }
            (false, Some(_)) => Err(invalid("options", "idmap needs mappings, or a user namespace that has them")),
        }
    }

    fn cgroup(&mut self, context: &Context<'_>, destination: &Path, options: &mut Options) -> CgroupMount {
        let own_namespace = self.namespaces.has(LinuxNamespaceType::Cgroup);
        if context.cgroup.is_mounted_anew(|kind| self.namespaces.has(kind)) {
            return CgroupMount::V2 { data: std::mem::take(&mut options.data) };
        }
        // What is bound, or a v1 hierarchy that is mounted already, keeps the options that it has.
        self.warn_of_unused(destination, options);
        match &context.cgroup {
            CgroupView::V2 { own, .. } => CgroupMount::Bound { source: self.source(Source::below(own, true)) },
            CgroupView::V1 { hierarchies } => CgroupMount::V1 {
                hierarchies: hierarchies
                    .iter()
                    .map(|(name, controllers, own)| {
                        let source = (!own_namespace).then(|| self.source(Source::below(own, false)));
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
        // Once each: a second mask on top of the first hides nothing more.
        let mut masked = std::collections::HashSet::new();
        for path in linux.masked_paths().iter().flatten().filter(|path| masked.insert(*path)) {
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

/// What the mounts of the host become in the container, and what a bind does that says nothing of it: `None` for the source's own.
pub(super) fn inherited(linux: &Linux) -> Result<(u64, Option<u64>), Error> {
    let name = linux.rootfs_propagation().as_deref().filter(|name| !name.is_empty());
    let bad = |name: &str| invalid("linux.rootfsPropagation", &format!("\"{name}\" is not a propagation"));
    let flag = name.map(|name| propagation(name).ok_or_else(|| bad(name))).transpose()?.map(|(flag, _)| flag);
    // Shared would hand our own mounts to the host; the host's mounts still reach us as a slave's, and / is set at the end.
    let slave = MsFlags::MS_SLAVE.bits();
    Ok(match flag {
        Some(flag) if flag == MsFlags::MS_SHARED.bits() => (slave, None),
        Some(flag) => (flag, Some(flag)),
        None => (slave, Some(slave)),
    })
}

/// An absolute path without `.`, `..` and doubled slashes, as runc cleans one; no symlink is looked at, and nothing leads above the root.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Without `.` and doubled slashes; no symlink is looked at.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// A path of the host as the container sees it, where it lies in the container's root.
fn below(path: &Path, root: &Path) -> Option<PathBuf> {
    let path = plain(path);
    let leaves = path.components().any(|component| component == Component::ParentDir);
    path.strip_prefix(root).ok().filter(|_| !leaves).map(|rest| plain(&Path::new("/").join(rest)))
}

/// Whether the file system takes an SELinux context at all; those of the kernel itself label their files by policy.
fn takes_label(kind: &str) -> bool {
    !matches!(kind, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2")
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
