//! `create`: a bundle becomes a process that waits to be started. Created, or fully undone.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::SockType;
use oci_spec::runtime::{Hook, LinuxNamespace, LinuxNamespaceType, Process, Spec};
use runtime_linux::cgroup::{Cgroup, Mode};
use runtime_linux::idmap::{self, Maps, Setgroups};
use runtime_linux::local_socket;
use runtime_linux::namespace::{self, Kind};
use runtime_linux::network::Moved;
use runtime_linux::pidfd::Exit;
use runtime_linux::proc::Proc;

use crate::cgroup_view::view;
use crate::child::{Child, Join, TerminalUser, Watch};
use crate::confine::Confinement;
use crate::conversation::{Allowed, Conversation, Heard, Talk, drive};
use crate::error::{Error, Failure};
use crate::explain::{HostStep, Observer};
use crate::hooks::{self, Kind as HookKind, Surroundings};
use crate::plan::{CgroupView, Context, Plan, Step};
use crate::record::{self, Lock, Place, Record};
use crate::spawn::{Spawn, begin};
use crate::status::{State, Status};
use crate::sync::{Fault, Order, Report};
use crate::{Bundle, ContainerId, CreateOptions, Created, StateRoot};
use crate::{host_mounts, net_devices, notify, resctrl, sources, streams, subordinate};

pub(crate) fn parent(step: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Parent(Failure::new(step, errno))
}

/// Creates a container whose init waits for [`crate::start`]; on an error everything is undone.
pub fn create(root: &StateRoot, id: &ContainerId, bundle: &Bundle, options: CreateOptions) -> Result<Created, Error> {
    create_observed(root, id, bundle, options, None)
}

/// [`create`], with somebody who hears of each step.
pub fn create_observed(
    root: &StateRoot,
    id: &ContainerId,
    bundle: &Bundle,
    options: CreateOptions,
    mut observer: Option<&mut Observer<'_>>,
) -> Result<Created, Error> {
    let mut creating = Creating::begin(root, id, Cow::Borrowed(bundle), options, &mut observer)?;
    drive(&mut creating, &mut observer)
}

/// A container on its way: its process is there, or is being made. Dropped, it is killed and undone.
#[derive(Debug)]
pub struct Creating<'b> {
    talk: Talk,
    moved: Vec<Moved>,
    resctrl: Option<resctrl::Joined>,
    undo: Undo,
    bundle: Cow<'b, Bundle>,
    plan: Plan,
    record: Record,
    is_in_cgroup: bool,
    /// To be given to the user that the process becomes in its user namespace.
    streams: Vec<OwnedFd>,
    warnings: Vec<String>,
    console: Option<OwnedFd>,
    _lock: Lock,
}

impl<'b> Creating<'b> {
    /// Everything up to the clone, of which none waits for anybody.
    pub fn begin(
        root: &StateRoot,
        id: &ContainerId,
        bundle: Cow<'b, Bundle>,
        options: CreateOptions,
        observer: &mut Option<&mut Observer<'_>>,
    ) -> Result<Self, Error> {
        let host_socket = options.notify_socket.as_deref();
        let bundle = match host_socket {
            Some(host) => Cow::Owned(notifying(root, id, &bundle, host)),
            None => bundle,
        };
        let with_notify = host_socket.is_some();
        let limit = options.limit;
        let spec = bundle.spec();
        let confinement = Confinement::plan(root, spec, id, options.cgroups)?;
        let plan = plan(root, &bundle, id, &options, confinement.cgroup())?;
        if let Some(observer) = observer.as_deref_mut() {
            observer.begin(&plan, confinement.cgroup().path());
        }
        let place = Place::new(root, id);
        let lock = place.take()?;
        let mut undo = Undo::new(place, confinement);
        let mut record = new_record(&bundle, id, &plan, &options, &undo.confinement);
        undo.host_mounts.clone_from(&record.host_mounts);
        undo.rootfs.clone_from(&record.rootfs);
        let resctrl = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
        let resctrl = resctrl.map(|rdt| resctrl::Joined::prepare(rdt, id.as_str())).transpose()?;
        record.resctrl = resctrl.as_ref().and_then(resctrl::Joined::membership).cloned();
        if with_notify {
            notify::make_directory(&undo.place)?;
        }
        undo.place.write_config(bundle.raw())?;
        undo.place.write(&record)?;
        note(observer, HostStep::Record)?;
        let mut warnings = bundle.warnings.clone();
        warnings.extend(plan.warnings.iter().cloned());
        undo.confinement.prepare(spec, &mut warnings)?;
        record.cgroup = undo.confinement.recorded_path();
        note(observer, HostStep::Cgroup)?;

        let socket = undo.place.socket();
        let listener = local_socket::listen_at(&socket, SockType::SeqPacket).map_err(parent("listen for start"))?;
        let (ours, theirs) = local_socket::pair().map_err(parent("socketpair"))?;
        let in_user_namespace = plan.namespaces.has(LinuxNamespaceType::User);
        let streams = if in_user_namespace { streams::pipes(&options.stdio) } else { Ok(Vec::new()) };
        let streams = streams.map_err(parent("copy the standard streams"))?;
        let mut child = prepare(spec, &plan, options, record.state(Status::Creating), theirs, listener)?;
        child.watch = Watch::of(observer.as_deref());
        note(observer, HostStep::Sources)?;
        let mut how = how(&plan, &undo.confinement)?;
        take_pid_namespace(&mut child, &mut how, &plan);
        let allowed = Allowed {
            console: plan.setup.iter().any(|step| matches!(step, Step::Console { .. })),
            hooks: plan.setup.iter().any(|step| matches!(step, Step::RuntimeHooks)),
            trees: plan.sources.len(),
            steps: child.watch != Watch::Nobody,
            runs_on: false,
        };
        let (begun, ours, lock) = begin(&how, child, ours, lock).map_err(parent("clone into namespaces"))?;
        let is_there = begun.spawned().is_some();
        let mut creating = Self {
            talk: Talk::new(ours, begun, allowed, limit),
            moved: Vec::new(),
            resctrl,
            undo,
            bundle,
            plan,
            record,
            is_in_cgroup: how.cgroup.is_some(),
            streams,
            warnings,
            console: None,
            _lock: lock,
        };
        if is_there && let Err(error) = creating.meet(observer) {
            creating.abandon(error, Instant::now());
        }
        Ok(creating)
    }

    /// The process is there and waits: its ids, its cgroup, its devices, and its word to go on.
    fn meet(&mut self, observer: &mut Option<&mut Observer<'_>>) -> Result<(), Error> {
        self.record.pid = self.talk.pid().ok_or_else(|| Error::ChildVanished("at once".to_owned()))?;
        let (pid, spec) = (self.record.pid, self.bundle.spec());
        if let Some(observer) = observer.as_deref_mut() {
            observer.container_is(pid);
        }
        note(observer, HostStep::Clone)?;
        if let Some(membership) = &self.record.resctrl {
            membership.add(pid)?;
        }
        self.moved = net_devices::move_in(&self.plan, pid)?;
        if !self.moved.is_empty() {
            note(observer, HostStep::NetDevices)?;
        }
        if self.plan.namespaces.is_new(LinuxNamespaceType::User) {
            let maps = &self.plan.namespaces.maps;
            if subordinate::needs_helpers(maps) {
                subordinate::write_maps(pid, maps)?;
            } else {
                // user_namespaces(7): who has no CAP_SETGID in the parent namespace must deny setgroups first.
                let is_root = nix::unistd::geteuid().is_root();
                let setgroups = if is_root { Setgroups::Allow } else { Setgroups::Deny };
                let proc = Proc::host().map_err(parent("open /proc"))?;
                idmap::write(&proc, pid, maps, setgroups).map_err(parent("write id maps"))?;
            }
            note(observer, HostStep::IdMaps)?;
        }
        let user = spec.process().as_ref().map(Process::user);
        let (uid, gid) = user.map_or((0, 0), |user| (user.uid(), user.gid()));
        streams::give(&self.streams, pid, uid, gid).map_err(parent("give the standard streams to the user"))?;
        self.streams.clear();
        if !self.is_in_cgroup {
            self.undo.confinement.admit(pid, spec, &mut self.warnings)?;
        }
        note(observer, HostStep::EnterCgroup)?;
        // A child that died has said why, if it could; its report is worth more than our EPIPE.
        let _dead = self.talk.order(Order::Go(pid));
        Ok(())
    }

    fn go_on(&mut self, now: Instant, observer: &mut Option<&mut Observer<'_>>) -> Result<Option<Created>, Error> {
        loop {
            match self.talk.hear(now)? {
                Heard::Nothing => return Ok(None),
                Heard::Spawned => self.meet(observer)?,
                Heard::Said(Report::Ready) => return self.commit(observer).map(Some),
                Heard::Said(Report::Done { step, nanoseconds }) => self.done(step, nanoseconds, observer)?,
                Heard::Said(Report::Console(master)) => self.console = Some(master),
                Heard::Said(Report::Warning(text)) => self.warnings.push(text),
                Heard::Said(Report::Failed(fault)) => {
                    return Err(child_error(&fault, &self.plan.setup, &self.plan.start));
                }
                Heard::Said(Report::NeedHooks) => {
                    runtime_hooks(self.bundle.spec(), &self.record)?;
                    self.talk.order(Order::HooksDone).map_err(parent("go on after hooks"))?;
                }
                Heard::Said(Report::NeedIds { source, tree }) => {
                    let source = usize::try_from(source).unwrap_or(usize::MAX);
                    sources::map_ids_of(&self.plan, source, &tree)?;
                    self.talk.order(Order::IdsMapped).map_err(parent("go on after mapping ids"))?;
                }
                Heard::Said(Report::Spawned { .. }) | Heard::Runs => {
                    return Err(parent("set up the container")(Errno::EPROTO));
                }
            }
        }
    }

    fn done(&self, step: u32, nanoseconds: u64, observer: &mut Option<&mut Observer<'_>>) -> Result<(), Error> {
        let Some(observer) = observer.as_deref_mut() else { return Ok(()) };
        observer.container(step, Duration::from_nanos(nanoseconds))?;
        if observer.pauses() {
            self.talk.order(Order::Continue).map_err(parent("go on to the next step"))?;
        }
        Ok(())
    }

    /// It waits for start: the record says who it is, then it may stay.
    fn commit(&mut self, observer: &mut Option<&mut Observer<'_>>) -> Result<Created, Error> {
        let pid = self.record.pid;
        self.record.pid_started = record::start_time(pid).ok_or_else(|| Error::ChildVanished("at once".to_owned()))?;
        self.undo.place.write(&self.record)?;
        note(observer, HostStep::Commit)?;
        self.talk.order(Order::Commit).map_err(parent("commit"))?;
        self.undo.is_armed = false;
        self.moved.drain(..).for_each(Moved::settle);
        self.resctrl.take().into_iter().for_each(resctrl::Joined::keep);
        let pidfd = self.talk.release().ok_or_else(|| Error::ChildVanished("at once".to_owned()))?;
        let (console, warnings) = (self.console.take(), std::mem::take(&mut self.warnings));
        Ok(Created { pid, pidfd, console, warnings })
    }
}

impl Conversation for Creating<'_> {
    type Done = Created;

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.talk.descriptor()
    }

    fn due(&self) -> Option<Instant> {
        self.talk.due()
    }

    fn pid(&self) -> Option<i32> {
        self.talk.pid()
    }

    fn advance(&mut self, now: Instant, observer: &mut Option<&mut Observer<'_>>) -> Result<Option<Created>, Error> {
        if !self.talk.is_given_up() {
            match self.go_on(now, observer) {
                Ok(done) => return Ok(done),
                Err(error) => self.talk.give_up(error, now),
            }
        }
        let Some((error, has_ended)) = self.talk.ended(now) else { return Ok(None) };
        // With a process that does not even die there is nothing to take away; `delete` finds it by the record.
        self.undo.is_armed &= has_ended;
        Err(error)
    }

    fn reaped(&mut self, exit: Exit) {
        self.talk.reaped(exit);
    }

    fn abandon(&mut self, error: Error, now: Instant) {
        self.talk.give_up(error, now);
    }
}

/// The bundle with a socket's directory, and the variable that names it.
fn notifying(root: &StateRoot, id: &ContainerId, bundle: &Bundle, host: &Path) -> Bundle {
    let mut bundle = bundle.clone();
    bundle.add_directory(&notify::directory(&Place::new(root, id)), notify::inside(host));
    bundle.add_environment(&[notify::variable(host)]);
    bundle
}

/// To whoever watches; nothing otherwise.
fn note(observer: &mut Option<&mut Observer<'_>>, step: HostStep) -> Result<(), Error> {
    observer.as_deref_mut().map_or(Ok(()), |observer| observer.host(step))
}

/// The plan and the cgroup's path, with nothing touched.
pub(crate) fn dry_run(
    root: &StateRoot,
    id: &ContainerId,
    bundle: &Bundle,
    options: &CreateOptions,
) -> Result<(Plan, String), Error> {
    let confinement = Confinement::plan(root, bundle.spec(), id, options.cgroups)?;
    let cgroup = confinement.cgroup();
    Ok((plan(root, bundle, id, options, cgroup)?, cgroup.path().to_owned()))
}

fn plan(
    root: &StateRoot,
    bundle: &Bundle,
    id: &ContainerId,
    options: &CreateOptions,
    cgroup: &Cgroup,
) -> Result<Plan, Error> {
    let wants_cgroup_mount = bundle
        .spec()
        .mounts()
        .iter()
        .flatten()
        .any(|mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")));
    let linux = bundle.spec().linux().as_ref();
    let context = Context {
        bundle: bundle.dir(),
        rootfs: options.rootfs.as_ref(),
        root_change: options.root_change,
        keyring: (!options.keep_keyring).then(|| format!("_ses.{id}")),
        cgroup: if wants_cgroup_mount { view(root, cgroup)? } else { CgroupView::V1 { hierarchies: Vec::new() } },
        preserve_fds: &options.preserve_fds,
        default_maps: default_maps(bundle.spec()),
        mount_label: linux.and_then(|linux| linux.mount_label().as_deref()).filter(|label| !label.is_empty()),
    };
    Plan::new(bundle.spec(), &context)
}

/// For a new user namespace whose configuration brings no maps; empty for any other.
pub(crate) fn default_maps(spec: &Spec) -> Maps {
    let lacks_maps = spec.linux().as_ref().is_some_and(|linux| {
        let is_new =
            |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none();
        linux.namespaces().iter().flatten().any(is_new) && linux.uid_mappings().iter().flatten().count() == 0
    });
    if lacks_maps { subordinate::default_maps() } else { Maps::default() }
}

fn new_record(
    bundle: &Bundle,
    id: &ContainerId,
    plan: &Plan,
    options: &CreateOptions,
    confinement: &Confinement,
) -> Record {
    let mut record = Record::new(bundle, id, SystemTime::now());
    if options.rootfs.is_some() {
        record.rootfs = bundle.dir().join("rootfs");
    }
    record.cgroup = confinement.recorded_path();
    record.unit = confinement.unit().cloned();
    record.namespaces = plan.namespaces.all().into_iter().map(|kind| kind.file_name().to_owned()).collect();
    record.shares_pids = !plan.namespaces.is_new(LinuxNamespaceType::Pid);
    record.host_mounts = host_mounts::of(plan);
    record.lacks_program = bundle.spec().process().is_none();
    record.chroot = plan.setup.iter().any(|step| matches!(step, Step::Chroot));
    record
}

/// What is undone when `create` fails, in this order after the process itself.
#[derive(Debug)]
pub(crate) struct Undo {
    pub place: Place,
    pub confinement: Confinement,
    rootfs: PathBuf,
    host_mounts: Vec<PathBuf>,
    pub is_armed: bool,
}

impl Undo {
    pub(crate) fn new(place: Place, confinement: Confinement) -> Self {
        Self { place, confinement, rootfs: PathBuf::new(), host_mounts: Vec::new(), is_armed: true }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.is_armed {
            // The first error is the one that matters; what stays is what `delete --force` finds by the record.
            let unmounted = host_mounts::remove(&self.rootfs, &self.host_mounts);
            if self.confinement.undo().is_ok() && unmounted.is_ok() {
                let _kept = self.place.remove();
            }
        }
    }
}

/// Connected to the agent that answers a filter's notifications, with the agent's metadata; `None` where no filter asks.
pub(crate) fn seccomp_agent(spec: &Spec, start: &[Step]) -> Result<Option<(OwnedFd, String)>, Error> {
    let notifies = start.iter().any(|step| matches!(step, Step::Seccomp(filter) if filter.notifies()));
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()).filter(|_| notifies);
    let Some((profile, path)) = profile.and_then(|profile| Some((profile, profile.listener_path().as_ref()?))) else {
        return Ok(None);
    };
    let step = format!("failed to connect with seccomp agent at {}", path.display());
    let socket = local_socket::connect_to(path, SockType::Stream).map_err(parent(step))?;
    Ok(Some((socket, profile.listener_metadata().clone().unwrap_or_default())))
}

fn prepare<'plan>(
    spec: &'plan Spec,
    plan: &'plan Plan,
    options: CreateOptions,
    state: State,
    sync: OwnedFd,
    listener: OwnedFd,
) -> Result<Child<'plan>, Error> {
    let process = spec.process().as_ref();
    let agent = seccomp_agent(spec, &plan.start)?;
    let mut joins = Vec::new();
    for (kind, path) in &plan.namespaces.join {
        let step = format!("open {} namespace {}", kind.file_name(), path.display());
        let fd = namespace::open_path(path).map_err(parent(step))?;
        joins.push(Join { fd, flags: kind.flag() });
    }
    let stdio = options.stdio;
    Ok(Child {
        sync,
        listener: Some(listener),
        joins,
        joins_mounts: plan.namespaces.join.iter().any(|(kind, _)| *kind == Kind::Mount),
        chroot: None,
        sources: sources::open(plan)?,
        source_paths: &plan.sources,
        stdio: [stdio.stdin, stdio.stdout, stdio.stderr],
        setup: &plan.setup,
        start: &plan.start,
        arguments: process.and_then(|process| process.args().as_deref()).unwrap_or(&[]),
        environment: process.and_then(|process| process.env().as_deref()).unwrap_or(&[]),
        terminal: TerminalUser { uid: process.map_or(0, |process| process.user().uid()) },
        hooks: spec.hooks().as_ref(),
        state,
        watch: Watch::Nobody,
        agent,
    })
}

fn how(plan: &Plan, confinement: &Confinement) -> Result<Spawn, Error> {
    let joins_others = plan.namespaces.join.iter().any(|(kind, _)| !matches!(kind, Kind::Pid | Kind::User));
    let joins_user = plan.namespaces.join.iter().any(|(kind, _)| *kind == Kind::User);
    let has_process_between = joins_user || joins_others && plan.namespaces.is_new(LinuxNamespaceType::User);
    let cgroup = confinement.cgroup();
    let unified = cgroup.hierarchy().mode() == Mode::Unified && confinement.is_there_first();
    Ok(Spawn {
        flags: plan.namespaces.clone_flags(),
        pid_namespace: None,
        has_process_between,
        cgroup: if unified && !has_process_between { cgroup.open_dir_fd()? } else { None },
    })
}

/// Only children enter a PID namespace, so it is joined by who clones.
fn take_pid_namespace(child: &mut Child<'_>, how: &mut Spawn, plan: &Plan) {
    if let Some(index) = plan.namespaces.join.iter().position(|(kind, _)| *kind == Kind::Pid) {
        how.pid_namespace = Some(child.joins.remove(index).fd);
    }
}

/// prestart and createRuntime: once the namespaces are there.
pub(crate) fn runtime_hooks(spec: &Spec, record: &Record) -> Result<(), Error> {
    let Some(all) = spec.hooks() else { return Ok(()) };
    // runtime-spec 1.3, "State": created is what comes after step 2 of the lifecycle, and these hooks are steps 3 and 4.
    let state = record.state(Status::Created);
    let run = |kind, list: &Option<Vec<Hook>>| {
        let around = Surroundings { directory: Some(&record.bundle), environment: None };
        let list = list.as_deref().unwrap_or(&[]);
        hooks::run(kind, list, &state, around).map_err(|error| Error::Hook(error.to_string()))
    };
    #[allow(deprecated, reason = "runtime-spec 1.3 still has prestart hooks, and callers still use them")]
    run(HookKind::Prestart, all.prestart())?;
    run(HookKind::CreateRuntime, all.create_runtime())
}

/// The step's own words around what the child reported.
pub(crate) fn child_error(fault: &Fault, setup: &[Step], start: &[Step]) -> Error {
    let index = usize::try_from(fault.step).unwrap_or(usize::MAX);
    let step = setup.iter().chain(start).nth(index);
    let (mut words, mut detail) =
        (step.map_or_else(|| "enter the container".to_owned(), ToString::to_string), &*fault.detail);
    let mut path = step.and_then(Step::path);
    if matches!(step, Some(Step::Exec)) && !detail.is_empty() {
        // runc's words: "exec /program: no such file".
        words = format!("{words} {detail}");
        (path, detail) = (Some(PathBuf::from(detail)), "");
    }
    Error::Child(Failure { step: words, errno: fault.errno, detail: detail.to_owned(), path })
}

/// The terminal's master to whoever listens at `--console-socket`.
pub fn send_console(socket: &Path, console: &OwnedFd) -> Result<(), Error> {
    // runc's protocol: the name of the slave as the message, which nobody needs.
    send_descriptor("terminal", socket, b"/dev/pts/ptmx", console)
}

/// A process's pidfd to whoever listens at `--pidfd-socket`.
pub fn send_pidfd(socket: &Path, pidfd: &OwnedFd) -> Result<(), Error> {
    send_descriptor("pidfd", socket, b"pidfd", pidfd)
}

fn send_descriptor(what: &str, socket: &Path, message: &[u8], descriptor: &OwnedFd) -> Result<(), Error> {
    let step = || format!("send the {what} to {}", socket.display());
    let stream = local_socket::connect_to(socket, SockType::Stream).map_err(parent(step()))?;
    runtime_linux::fd_passing::send(&stream, message, &[descriptor.as_fd()]).map(drop).map_err(parent(step()))
}
