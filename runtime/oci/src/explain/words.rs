//! The words for each step. Pure; a new step does not compile before it has its words.

use runtime_linux::namespace::Kind;

use super::{Explained, Side};
use crate::plan::{CgroupMount, Moment, MountStep, Plan, Step};

/// What the runtime itself does around the container's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostStep {
    Record,
    Cgroup,
    Sources,
    Clone,
    NetDevices,
    IdMaps,
    EnterCgroup,
    Commit,
}

impl HostStep {
    /// Those that this container needs, in order.
    pub(super) fn of(plan: &Plan) -> Vec<Self> {
        let mut steps = vec![Self::Record, Self::Cgroup];
        if !plan.sources.is_empty() {
            steps.push(Self::Sources);
        }
        steps.push(Self::Clone);
        if !plan.net_devices.is_empty() {
            steps.push(Self::NetDevices);
        }
        if plan.namespaces.new.contains(&Kind::User) {
            steps.push(Self::IdMaps);
        }
        steps.extend([Self::EnterCgroup, Self::Commit]);
        steps
    }

    pub(super) fn is_before_init(self) -> bool {
        self != Self::Commit
    }
}

/// What is said of a step beyond its name: call, what it isolates, why, where to look.
type Words = (&'static str, &'static str, &'static str, &'static str);

pub(super) fn host(host: HostStep, plan: &Plan, cgroup: &str) -> Explained {
    let step = match host {
        HostStep::Record => "take the id and write the record".to_owned(),
        HostStep::Cgroup => format!("make cgroup {cgroup} and set its limits"),
        HostStep::Sources => format!("open the mount sources ({})", plan.sources.len()),
        HostStep::Clone => plan.namespaces.to_string().trim_end().replace('\n', ", "),
        HostStep::NetDevices => {
            let names: Vec<_> = plan.net_devices.iter().map(|(name, inside)| format!("{name} as {inside}")).collect();
            format!("move network devices into the container: {}", names.join(", "))
        }
        HostStep::IdMaps => "write the id maps of the user namespace".to_owned(),
        HostStep::EnterCgroup => format!("move the process into cgroup {cgroup}"),
        HostStep::Commit => "write the record with the process, and let it wait for start".to_owned(),
    };
    let (call, isolates, why, look) = match host {
        HostStep::Record => (
            "mkdir(2), flock(2), rename(2)",
            "",
            "of two creators one wins, and whoever finds the directory later can clean up, whenever this process was killed",
            "",
        ),
        HostStep::Cgroup => (
            "mkdir(2), write(2)",
            "memory, CPU time, I/O and number of processes",
            "limits hold for the container as a whole, and are there before its first instruction",
            "",
        ),
        HostStep::Sources => (
            "open_tree(2) OPEN_TREE_CLONE",
            "",
            "copies of the host's trees, detached from every path: no symlink that a container makes can lead a mount astray",
            "",
        ),
        HostStep::Clone => (
            "clone3(2) CLONE_NEW*, setns(2)",
            "what the new process sees of each kind of kernel object",
            "a namespace is the kernel's own private copy of one kind of name; the process is in all of them from its first instruction",
            "lsns -p PID",
        ),
        HostStep::NetDevices => (
            "sendto(2) RTM_NEWLINK with IFLA_NET_NS_FD, on a netlink socket of either namespace",
            "network devices",
            "a device belongs to one network namespace; its lasting addresses go along, and it is up again",
            "nsenter -t PID -n ip address",
        ),
        HostStep::IdMaps => (
            "write(2) to /proc/PID/uid_map, gid_map",
            "user and group ids",
            "root inside is somebody without rights outside",
            "cat /proc/PID/uid_map /proc/PID/gid_map",
        ),
        HostStep::EnterCgroup => (
            "clone3(2) CLONE_INTO_CGROUP on cgroup v2, else write(2) to cgroup.procs",
            "",
            "from here on all that it and its children use is counted",
            "cat /proc/PID/cgroup",
        ),
        HostStep::Commit => (
            "rename(2), sendmsg(2)",
            "",
            "a process that no record tells of could never be cleaned up, so it goes on only when its record is there",
            "cat /proc/PID/status",
        ),
    };
    let mut told = explained((call, isolates, why, look), step, Side::Runtime);
    if host == HostStep::Cgroup {
        // One directory on cgroup v2, one in each hierarchy on v1.
        told.look_template = format!("ls -d /sys/fs/cgroup{{,/*}}{cgroup}");
    }
    told
}

pub(super) fn container(step: &Step, side: Side) -> Explained {
    let words = match step {
        Step::Session | Step::Keyring(_) | Step::NamespaceRoot | Step::OomScoreAdjust(_) => process_of_its_own(step),
        Step::Loopback | Step::CgroupNamespace | Step::TimeNamespace(_) | Step::Hostname(_) | Step::Domainname(_) => {
            names(step)
        }
        Step::Propagation(_)
        | Step::RootBind { .. }
        | Step::RootOverlay(_)
        | Step::RootDirectory(_)
        | Step::EnsureDirectory(_)
        | Step::Unmount(_)
        | Step::MountsReadonly
        | Step::PivotRoot
        | Step::Chroot
        | Step::RootPropagation(_)
        | Step::RootReadonly
        | Step::ReadonlyPath(_)
        | Step::MaskedPath(_) => root(step),
        Step::Mount { mount, .. } => mount_words(mount),
        Step::Device(_) | Step::Link(..) | Step::Console { .. } | Step::Stdio { .. } => devices(step),
        Step::RuntimeHooks | Step::Hooks(_) => hooks(step),
        Step::Sysctl { .. } => (
            "openat2(2), write(2) on a procfs of the runtime's own",
            "kernel parameters of the namespaces",
            "only those that belong to a namespace of the container: the host's stay as they are",
            "nsenter -t PID -a sysctl -a",
        ),
        Step::Rlimit { .. }
        | Step::Scheduler(_)
        | Step::IoPriority { .. }
        | Step::Affinity(_)
        | Step::MemoryPolicy { .. }
        | Step::Personality(_) => limits(step),
        Step::AppArmor(_)
        | Step::Selinux(_)
        | Step::NoNewPrivileges
        | Step::Identity { .. }
        | Step::FinalCapabilities(_)
        | Step::Seccomp(_) => privileges(step),
        Step::Umask(_)
        | Step::WorkingDirectory(_)
        | Step::FindProgram
        | Step::CloseDescriptors
        | Step::KeepDescriptors(_)
        | Step::Exec => program(step, side),
    };
    explained(words, step.to_string(), side)
}

fn explained((call, isolates, why, look): Words, step: String, side: Side) -> Explained {
    Explained { number: 0, side, step, call: call.to_owned(), isolates, why, look_template: look.to_owned() }
}

fn process_of_its_own(step: &Step) -> Words {
    match step {
        Step::Session => (
            "setsid(2)",
            "the caller's terminal",
            "no key typed at the caller's terminal becomes a signal for the container",
            "ps -o pid,sid,pgid,tty -p PID",
        ),
        Step::Keyring(_) => (
            "keyctl(2) KEYCTL_JOIN_SESSION_KEYRING",
            "kernel keys",
            "keys of the caller's session, for instance of an encrypted disk, are not the container's",
            "cat /proc/keys",
        ),
        Step::OomScoreAdjust(_) => (
            "write(2) to /proc/self/oom_score_adj",
            "",
            "says how soon this process is chosen when the host runs out of memory",
            "cat /proc/PID/oom_score_adj",
        ),
        _ => (
            "setresuid(2), setresgid(2)",
            "user and group ids",
            "what is made from now on belongs to the container's root, not to an id that has no name inside",
            "grep -E '^[UG]id' /proc/PID/status",
        ),
    }
}

fn names(step: &Step) -> Words {
    match step {
        Step::Loopback => (
            "ioctl(2) SIOCSIFFLAGS",
            "network devices",
            "a new network namespace has one device, lo, which is down; programs expect 127.0.0.1 to work",
            "nsenter -t PID -n ip link",
        ),
        Step::CgroupNamespace => (
            "unshare(2) CLONE_NEWCGROUP",
            "where in the host's cgroups it is",
            "now that the process is in its cgroup, that cgroup looks like the root of the tree from inside",
            "nsenter -t PID -C cat /proc/PID/cgroup",
        ),
        Step::TimeNamespace(_) => (
            "unshare(2) CLONE_NEWTIME, write(2) to /proc/self/timens_offsets, setns(2)",
            "the boot and monotonic clocks",
            "a container that moves to another host keeps its uptime",
            "cat /proc/PID/timens_offsets",
        ),
        Step::Hostname(_) => (
            "sethostname(2)",
            "the host's name",
            "seen by uname(2) inside, and by nobody else",
            "nsenter -t PID -u hostname",
        ),
        _ => (
            "setdomainname(2)",
            "the NIS domain's name",
            "seen by uname(2) inside, and by nobody else",
            "nsenter -t PID -u cat /proc/sys/kernel/domainname",
        ),
    }
}

fn root(step: &Step) -> Words {
    match step {
        Step::Propagation(_) => (
            "mount_setattr(2) on /, recursively",
            "mounts",
            "the namespace began as a copy of the host's mounts; after this nothing mounted here appears on the host",
            "findmnt -N PID -o TARGET,PROPAGATION",
        ),
        Step::RootBind { .. } => {
            ("move_mount(2)", "", "pivot_root takes only a directory that is a mount of its own", "findmnt -N PID")
        }
        Step::RootOverlay(_) => (
            "fsopen(2), fsconfig(2), fsmount(2), move_mount(2)",
            "files of the image",
            "read-only layers of the image below, one writable layer of this container on top; made inside its mount namespace, so that it ends with it",
            "findmnt -N PID -t overlay",
        ),
        Step::RootDirectory(_) => (
            "openat(2) O_PATH",
            "",
            "every path of the container is resolved below this one descriptor",
            "ls -l /proc/PID/root",
        ),
        Step::EnsureDirectory(_) => (
            "openat2(2) RESOLVE_IN_ROOT, mkdirat(2)",
            "",
            "the working directory, where the image does not have it",
            "ls -l /proc/PID/cwd",
        ),
        Step::PivotRoot => (
            "pivot_root(2), umount2(2) MNT_DETACH",
            "the host's files",
            "the root is exchanged and the old one detached: unlike after a chroot there is no way back, since the host's mounts are not there any more",
            "findmnt -N PID",
        ),
        Step::Chroot => (
            "chroot(2)",
            "the host's files, in part",
            "the root directory changes; the mounts outside of it stay, so this is for kernels and hosts where pivot_root cannot work",
            "ls -l /proc/PID/root",
        ),
        Step::RootPropagation(_) => (
            "mount_setattr(2)",
            "",
            "says whether mounts of the host below this root come in, and ours go out, as asked for by rootfsPropagation",
            "findmnt -N PID -o TARGET,PROPAGATION",
        ),
        Step::Unmount(_) => (
            "umount2(2) MNT_DETACH",
            "",
            "takes away what `mounts add` has mounted; who has files of it open keeps them",
            "findmnt -N PID",
        ),
        Step::MountsReadonly => (
            "mount_setattr(2) MOUNT_ATTR_RDONLY",
            "",
            "nodes and mount points had to be made in them first; now what was asked to be read-only is so",
            "findmnt -N PID -O ro",
        ),
        Step::RootReadonly => (
            "mount_setattr(2) MOUNT_ATTR_RDONLY",
            "files of the image",
            "nothing of the image can be changed, whatever ids the container has",
            "findmnt -N PID -o TARGET,OPTIONS /",
        ),
        Step::ReadonlyPath(_) => (
            "open_tree(2), mount_setattr(2) MOUNT_ATTR_RDONLY, move_mount(2)",
            "kernel settings",
            "files of /proc and /sys reach the whole kernel; these can be read but not written",
            "findmnt -N PID -O ro",
        ),
        _ => (
            "move_mount(2) of an empty read-only tmpfs, or of /dev/null",
            "what the kernel tells of the host",
            "the files below can be neither read nor written; the cover is checked by its device number, not by its name",
            "findmnt -N PID",
        ),
    }
}

fn mount_words(mount: &MountStep) -> Words {
    match mount {
        MountStep::Bind(_) => (
            "mount_setattr(2), move_mount(2) of a tree opened before",
            "",
            "a part of the host, and only this part, is seen at another place; the target is looked up with openat2(2) RESOLVE_IN_ROOT",
            "findmnt -N PID",
        ),
        MountStep::Remount { .. } => (
            "fspick(2), fsconfig(2) FSCONFIG_CMD_RECONFIGURE, mount_setattr(2)",
            "",
            "options of what is mounted already change, as mount -o remount changes them",
            "findmnt -N PID",
        ),
        MountStep::Cgroup(CgroupMount::V2 { .. }) => (
            "fsopen(2) cgroup2, fsmount(2), move_mount(2)",
            "other cgroups",
            "the mount shows the tree from where its cgroup namespace begins: its own cgroup, or the root where it shares the host's",
            "findmnt -N PID -t cgroup2",
        ),
        MountStep::Cgroup(_) => (
            "move_mount(2) of the container's own cgroup directories",
            "other cgroups",
            "the container sees its own limits and nobody else's",
            "findmnt -N PID /sys/fs/cgroup",
        ),
        MountStep::Filesystem(filesystem) => filesystem_words(&filesystem.kind),
    }
}

fn filesystem_words(kind: &str) -> Words {
    const CALL: &str = "fsopen(2), fsconfig(2), fsmount(2), move_mount(2)";
    match kind {
        "proc" => (
            CALL,
            "processes",
            "a procfs shows the PID namespace that it is mounted from: inside, only the container's processes exist",
            "nsenter -t PID -m -p ps",
        ),
        "sysfs" => (
            CALL,
            "network devices",
            "a sysfs shows the network namespace that it is mounted from",
            "nsenter -t PID -m -n ls /sys/class/net",
        ),
        "devpts" => (
            CALL,
            "terminals",
            "a new instance of devpts: terminals inside are numbered from 0, and the host's cannot be opened",
            "findmnt -N PID -t devpts",
        ),
        "mqueue" => (
            CALL,
            "POSIX message queues",
            "shows the queues of the IPC namespace that it is mounted from",
            "findmnt -N PID -t mqueue",
        ),
        "tmpfs" => (
            CALL,
            "",
            "files in memory, counted against the container's memory limit, that end with the container",
            "findmnt -N PID -t tmpfs -o TARGET,SIZE,OPTIONS",
        ),
        _ => (CALL, "", "a file system of the container's own", "findmnt -N PID"),
    }
}

fn devices(step: &Step) -> Words {
    match step {
        Step::Device(_) => (
            "mknodat(2), or move_mount(2) of the host's node in a user namespace",
            "devices",
            "the container's /dev holds what runtime-spec promises and what was asked for; the cgroup decides which may be opened",
            "ls -l /proc/PID/root/dev",
        ),
        Step::Link(..) => ("symlinkat(2)", "", "names in /dev that programs expect", "ls -l /proc/PID/root/dev"),
        Step::Console { .. } => (
            "openat2(2) on the container's ptmx, ioctl(2) TIOCGPTPEER and TIOCSCTTY, sendmsg(2) SCM_RIGHTS",
            "the caller's terminal",
            "a terminal of the container's own; its other end goes to the caller over a socket",
            "ls -l /proc/PID/fd",
        ),
        _ => (
            "fchown(2), dup3(2) of the container's /dev/null in place of the host's",
            "",
            "lets a program that is not root open /dev/stdout again, and leaves nothing of the host's open",
            "ls -lL /proc/PID/fd",
        ),
    }
}

fn hooks(step: &Step) -> Words {
    match step {
        Step::Hooks(Moment::StartContainer) => {
            ("fork(2), execve(2)", "", "programs of the container that run in it before its own", "")
        }
        Step::Hooks(Moment::CreateContainer) => (
            "fork(2), execve(2)",
            "",
            "programs of the host that run in the container's namespaces, before its root changes",
            "",
        ),
        _ => (
            "fork(2), execve(2), by the runtime",
            "",
            "programs of the host, with the container's state on standard input: networks are made here",
            "nsenter -t PID -n ip address",
        ),
    }
}

fn limits(step: &Step) -> Words {
    match step {
        Step::Rlimit { .. } => (
            "setrlimit(2)",
            "resources of one process",
            "what cgroups do not count, such as open files and core dumps",
            "cat /proc/PID/limits",
        ),
        Step::Scheduler(_) => ("sched_setattr(2)", "", "when this process runs, compared with others", "chrt -p PID"),
        Step::IoPriority { .. } => ("ioprio_set(2)", "", "whose I/O goes first", "ionice -p PID"),
        Step::Affinity(_) => ("sched_setaffinity(2)", "CPUs", "the CPUs that this process may use", "taskset -cp PID"),
        Step::MemoryPolicy { .. } => {
            ("set_mempolicy(2)", "NUMA nodes", "from which nodes memory comes", "cat /proc/PID/numa_maps")
        }
        _ => (
            "personality(2)",
            "",
            "uname(2) and the layout of memory as a program expects them",
            "cat /proc/PID/personality",
        ),
    }
}

fn privileges(step: &Step) -> Words {
    match step {
        Step::AppArmor(_) => (
            "write(2) to /proc/thread-self/attr/apparmor/exec, on a procfs that is checked to be one",
            "files and capabilities, by profile",
            "the profile holds from the exec on",
            "cat /proc/PID/attr/current",
        ),
        Step::Selinux(_) => (
            "write(2) to /proc/self/attr/exec, on a procfs that is checked to be one",
            "files and processes, by label",
            "the label holds from the exec on",
            "cat /proc/PID/attr/current",
        ),
        Step::NoNewPrivileges => (
            "prctl(2) PR_SET_NO_NEW_PRIVS",
            "privileges",
            "no set-user-id program gives back what was taken away, now or in any child",
            "grep NoNewPrivs /proc/PID/status",
        ),
        Step::Identity { .. } => (
            "prctl(2) PR_CAPBSET_DROP and PR_CAP_AMBIENT, setgroups(2), setresgid(2), setresuid(2), capset(2)",
            "privileges",
            "root's might is cut into capabilities; only those that were asked for stay, in all five sets",
            "grep -E '^(Cap|[UG]id|Groups)' /proc/PID/status",
        ),
        Step::FinalCapabilities(_) => (
            "capset(2)",
            "privileges",
            "CAP_SYS_ADMIN was kept for loading the filter, and goes now",
            "grep ^Cap /proc/PID/status",
        ),
        _ => (
            "seccomp(2) SECCOMP_SET_MODE_FILTER",
            "system calls",
            "a program in the kernel looks at every system call first; loaded last, so that it need not allow what the runtime itself did",
            "grep Seccomp /proc/PID/status",
        ),
    }
}

fn program(step: &Step, side: Side) -> Words {
    match (step, side) {
        (Step::Umask(_), _) => ("umask(2)", "", "permissions that new files do not get", "grep Umask /proc/PID/status"),
        (Step::WorkingDirectory(_), _) => (
            "chdir(2), getcwd(2)",
            "the host's files",
            "looked at after the change: a directory outside of the root would be a way out",
            "ls -l /proc/PID/cwd",
        ),
        (Step::KeepDescriptors(_), _) => (
            "fcntl(2) F_SETFD",
            "",
            "what the caller asked to hand on; only now, so that no hook gets it",
            "ls -l /proc/PID/fd",
        ),
        (Step::CloseDescriptors, _) => (
            "close_range(2) CLOSE_RANGE_CLOEXEC",
            "the host's files",
            "an open descriptor of the host's would be a way around every other step",
            "ls -l /proc/PID/fd",
        ),
        (Step::Exec, Side::Start) => (
            "execve(2)",
            "",
            "the runtime's own program is replaced by the container's; the process and all that was set stay",
            "cat /proc/PID/cmdline",
        ),
        _ => (
            "access(2), stat(2)",
            "",
            "finds the program in the container's $PATH now, so that create fails and not start",
            "",
        ),
    }
}
