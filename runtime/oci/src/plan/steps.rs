//! The steps themselves, and how each is printed. A printed step is what an error message names.

use std::fmt;
use std::path::PathBuf;

use runtime_linux::capability::Sets;
use runtime_linux::idmap::Maps;
use runtime_linux::mount::Overlay;
use runtime_linux::process::Scheduling;
use runtime_linux::rlimit::Resource;
use runtime_linux::seccomp::Filter;

/// When the container's own hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    CreateContainer,
    StartContainer,
}

/// Attributes of one mount, and of it with everything below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    pub set: u64,
    pub clear: u64,
    /// Cleared too, where the kernel lets us: what a bind's source has and its options do not ask for.
    pub clear_unasked: u64,
    pub recursive_set: u64,
    pub recursive_clear: u64,
    /// `MS_SHARED` and so on with true for recursive, in the order given.
    pub propagation: Vec<(u64, bool)>,
}

/// One option of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Flag(String),
    /// A flag that means nothing to the file systems that do not know it.
    Hint(String),
    Value(String, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMapping {
    /// `None`: those of the user namespace that the container joins.
    pub maps: Option<Maps>,
    pub recursive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilesystemMount {
    pub kind: String,
    pub source: Option<String>,
    pub data: Vec<Data>,
    /// tmpfs: starts with a copy of what it hides.
    pub copy_up: bool,
    /// Read-only, but not before everything in it is made; see `Step::MountsReadonly`.
    pub readonly_at_last: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BindMount {
    /// Into `Plan::sources`.
    pub source: usize,
    pub idmap: Option<IdMapping>,
    /// A source that is a symlink is not bound but copied.
    pub copy_symlink: bool,
    /// A symlink at the destination is not followed.
    pub nofollow: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupMount {
    /// cgroup2 as the cgroup namespace shows it.
    V2 { data: Vec<Data> },
    /// The container's own directory, bound.
    Bound { source: usize },
    /// A tmpfs with one mount per hierarchy: (directory, `Some(controllers)` to mount or `None` to bind the source).
    V1 { hierarchies: Vec<(String, String, Option<usize>)> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountStep {
    Filesystem(FilesystemMount),
    Bind(BindMount),
    Cgroup(CgroupMount),
    /// Changes what is mounted already: its attributes, and with options its superblock too.
    Remount {
        superblock: Option<Vec<Data>>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub path: PathBuf,
    /// `b`, `c`, `p`.
    pub letter: char,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of runtime-spec's, not the configuration's own.
    pub is_default: bool,
    /// In a user namespace, where mknod is forbidden: a node from outside, into `Plan::sources`.
    pub bind: Option<usize>,
}

/// What the container's init does, in order.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Session,
    Keyring(String),
    /// Becomes the root of the user namespace.
    NamespaceRoot,
    /// A new network namespace's own interface is of no use while it is down.
    Loopback,
    CgroupNamespace,
    TimeNamespace(String),
    OomScoreAdjust(i32),
    /// Of everything inherited, so that nothing of ours reaches the host.
    Propagation(u64),
    /// Over the old root, or at a host path where hooks look for it.
    RootBind {
        source: usize,
        at: Option<PathBuf>,
    },
    RootOverlay(Overlay),
    /// No mount namespace: only the root directory changes.
    RootDirectory(PathBuf),
    Mount {
        destination: PathBuf,
        attributes: MountAttributes,
        mount: MountStep,
    },
    Device(DeviceNode),
    /// A symlink of /dev: (path, target).
    Link(PathBuf, PathBuf),
    /// A terminal from the container's devpts, bound on /dev/console where the container has its own /dev.
    Console {
        bind: bool,
        columns: u16,
        rows: u16,
    },
    /// Of a running container.
    Unmount(PathBuf),
    /// What was mounted for reading only and had to be written to until here: `/dev`, and what other mounts lie in.
    MountsReadonly,
    /// A directory of the container that is made where it is missing.
    EnsureDirectory(PathBuf),
    RuntimeHooks,
    Hooks(Moment),
    PivotRoot,
    Chroot,
    RootPropagation(u64),
    RootReadonly,
    ReadonlyPath(PathBuf),
    MaskedPath(PathBuf),
    Hostname(String),
    Domainname(String),
    Sysctl {
        key: String,
        path: PathBuf,
        value: String,
    },
    AppArmor(String),
    Selinux(String),
    /// Those that are the host's /dev/null become the container's; the others get an owner, where one is named.
    Stdio {
        owner: Option<(u32, u32)>,
    },
    Rlimit {
        name: String,
        resource: Resource,
        soft: u64,
        hard: u64,
    },
    Scheduler(Scheduling),
    IoPriority {
        class: u8,
        level: u8,
    },
    Affinity(Vec<usize>),
    MemoryPolicy {
        mode: i32,
        nodes: Vec<usize>,
    },
    Personality(u64),
    NoNewPrivileges,
    /// Bounding set, identity, the other sets; `keep_admin` holds CAP_SYS_ADMIN until the seccomp filter is loaded.
    Identity {
        uid: u32,
        gid: u32,
        /// `None` keeps the runtime's own.
        groups: Option<Vec<u32>>,
        capabilities: Sets,
        keep_admin: bool,
    },
    Umask(u32),
    WorkingDirectory(PathBuf),
    FindProgram,
    /// All but the standard streams, at exec.
    CloseDescriptors,
    /// Descriptors from 3 on that the program gets all the same.
    KeepDescriptors(Vec<i32>),
    Seccomp(Box<Filter>),
    /// The sets as they are to be, once CAP_SYS_ADMIN has served.
    FinalCapabilities(Sets),
    Exec,
}

impl Step {
    /// The file that the step is about, as the configuration names it.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::RootDirectory(path)
            | Self::Link(path, _)
            | Self::ReadonlyPath(path)
            | Self::MaskedPath(path)
            | Self::WorkingDirectory(path)
            | Self::Sysctl { path, .. }
            | Self::Unmount(path)
            | Self::Mount { destination: path, .. } => Some(path.clone()),
            Self::Device(node) => Some(node.path.clone()),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str("start a new session"),
            Self::Keyring(name) => write!(f, "join new session keyring {name}"),
            Self::NamespaceRoot => f.write_str("become root of the user namespace"),
            Self::Loopback => f.write_str("bring up the loopback interface"),
            Self::CgroupNamespace => f.write_str("unshare the cgroup namespace"),
            Self::TimeNamespace(_) => f.write_str("unshare the time namespace and set its offsets"),
            Self::OomScoreAdjust(value) => write!(f, "set oom_score_adj to {value}"),
            Self::Propagation(_) => f.write_str("cut mount propagation to the host"),
            Self::RootBind { .. } => f.write_str("bind the root file system"),
            Self::RootOverlay(overlay) => write!(f, "mount overlay of {} layers as root", overlay.lower.len()),
            Self::RootDirectory(path) => write!(f, "open root directory {}", path.display()),
            Self::Mount { destination, mount, .. } => match mount {
                MountStep::Filesystem(mount) => write!(f, "mount {} at {}", mount.kind, destination.display()),
                MountStep::Bind(_) => write!(f, "bind mount at {}", destination.display()),
                MountStep::Cgroup(_) => write!(f, "mount cgroup at {}", destination.display()),
                MountStep::Remount { .. } => write!(f, "remount {}", destination.display()),
            },
            Self::Device(node) => write!(f, "create device {}", node.path.display()),
            Self::Link(path, target) => write!(f, "link {} to {}", path.display(), target.display()),
            Self::Console { .. } => f.write_str("open a terminal"),
            Self::Unmount(path) => write!(f, "unmount {}", path.display()),
            Self::MountsReadonly => f.write_str("make mounts read-only"),
            Self::EnsureDirectory(path) => write!(f, "make directory {} where it is missing", path.display()),
            Self::RuntimeHooks => f.write_str("run prestart and createRuntime hooks"),
            Self::Hooks(Moment::CreateContainer) => f.write_str("run createContainer hooks"),
            Self::Hooks(Moment::StartContainer) => f.write_str("run startContainer hooks"),
            Self::PivotRoot => f.write_str("pivot_root"),
            Self::Chroot => f.write_str("chroot"),
            Self::RootPropagation(_) => f.write_str("set propagation of /"),
            Self::RootReadonly => f.write_str("make / read-only"),
            Self::ReadonlyPath(path) => write!(f, "make {} read-only", path.display()),
            Self::MaskedPath(path) => write!(f, "mask {}", path.display()),
            Self::Hostname(name) => write!(f, "set hostname {name}"),
            Self::Domainname(name) => write!(f, "set domainname {name}"),
            Self::Sysctl { key, value, .. } => write!(f, "set sysctl {key} to {value}"),
            Self::AppArmor(profile) => write!(f, "set AppArmor profile {profile} for exec"),
            Self::Selinux(label) => write!(f, "set SELinux label {label} for exec"),
            Self::Stdio { owner: Some((uid, gid)) } => write!(f, "give the standard streams to {uid}:{gid}"),
            Self::Stdio { owner: None } => f.write_str("hand over the standard streams"),
            Self::Rlimit { name, soft, hard, .. } => write!(f, "set {name} to {soft}:{hard}"),
            Self::Scheduler(_) => f.write_str("set the scheduler"),
            Self::IoPriority { class, level } => write!(f, "set I/O priority class {class} level {level}"),
            Self::Affinity(cpus) => write!(f, "set CPU affinity {cpus:?}"),
            Self::MemoryPolicy { .. } => f.write_str("set the memory policy"),
            Self::Personality(value) => write!(f, "set personality {value:#x}"),
            Self::NoNewPrivileges => f.write_str("set no_new_privs"),
            Self::Identity { uid, gid, .. } => write!(f, "set capabilities and become uid {uid} gid {gid}"),
            Self::Umask(mask) => write!(f, "set umask {mask:04o}"),
            Self::WorkingDirectory(path) => write!(f, "chdir to working directory {}", path.display()),
            // runc's words, which podman and the kubelet look for.
            Self::FindProgram | Self::Exec => f.write_str("exec"),
            Self::CloseDescriptors => f.write_str("close descriptors from 3 on at exec"),
            Self::KeepDescriptors(numbers) => write!(f, "keep descriptors {numbers:?}"),
            Self::Seccomp(filter) => write!(f, "load seccomp filter of {} instructions", filter.program.len()),
            Self::FinalCapabilities(_) => f.write_str("drop CAP_SYS_ADMIN"),
        }
    }
}
