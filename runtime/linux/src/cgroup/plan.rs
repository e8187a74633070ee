//! From OCI `linux.resources` to a list of writes, and their execution. Planning looks only at which controller has which version.

use super::hierarchy::{Hierarchy, Version};
use super::{Cgroup, Error, device, device_filter, device_list, file, legacy, lifecycle, unified};
use oci_spec::runtime::{LinuxResources, LinuxThrottleDevice};
use std::fmt;
use std::path::{Path, PathBuf};

/// Something asked for that this host cannot do and a container can go without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// By its path in the OCI configuration, e.g. `memory.swappiness`.
    pub field: String,
    pub why: String,
}

impl fmt::Display for Ignored {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} has no effect: {}", self.field, self.why)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A file that must be there. The alternatives are tried in turn until one exists.
    Write {
        controller: &'static str,
        field: &'static str,
        alternatives: Vec<(String, String)>,
    },
    /// A file that may be missing; then the reason is told, unless it is empty and nobody misses the file.
    Optional {
        controller: &'static str,
        field: &'static str,
        file: String,
        value: String,
        why: &'static str,
    },
    /// Files that depend on each other: written in this order, and where the kernel says EINVAL, once more in reverse.
    Pair {
        controller: &'static str,
        field: &'static str,
        first: (String, String),
        second: (String, String),
    },
    /// `cpu.max` of v2 with a new period and the quota that it has.
    Period(u64),
    /// The OCI device list.
    Devices(Vec<device::Rule>),
    Ignore(Ignored),
}

impl Step {
    #[expect(clippy::needless_pass_by_value, reason = "numbers and literals are passed as they are")]
    pub(super) fn write(controller: &'static str, field: &'static str, file: &str, value: impl ToString) -> Self {
        Self::Write { controller, field, alternatives: vec![(file.to_owned(), value.to_string())] }
    }

    pub(super) fn ignore(field: &str, why: &str) -> Self {
        Self::Ignore(Ignored { field: field.to_owned(), why: why.to_owned() })
    }
}

pub(super) fn plan(hierarchy: &Hierarchy, resources: &LinuxResources) -> Result<Vec<Step>, Error> {
    let is_unified = |controller: &str| matches!(hierarchy.locate(controller), Some((_, Version::Unified)));
    let mut steps = Vec::new();
    if let Some(memory) = resources.memory() {
        let plan = if is_unified("memory") { unified::memory } else { legacy::memory };
        plan(memory, &mut steps)?;
    }
    if let Some(cpu) = resources.cpu() {
        let plan = if is_unified("cpu") { unified::cpu } else { legacy::cpu };
        plan(cpu, &mut steps)?;
        // The files of cpuset have the same names in both versions.
        for (field, name, value) in [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                steps.push(Step::write("cpuset", field, name, value));
            }
        }
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            // No process at all could not even start; runc and systemd say 1 as well.
            0 => steps.push(Step::write("pids", "pids.limit", "pids.max", 1)),
            limit if limit < 0 => steps.push(Step::write("pids", "pids.limit", "pids.max", "max")),
            limit => steps.push(Step::write("pids", "pids.limit", "pids.max", limit)),
        }
    }
    if let Some(io) = resources.block_io() {
        // v1 calls the controller blkio, v2 io.
        let plan = if is_unified("blkio") { unified::io } else { legacy::io };
        plan(io, &mut steps)?;
    }
    let hugetlb_unified = is_unified("hugetlb");
    for limit in resources.hugepage_limits().iter().flatten() {
        hugetlb(limit.page_size(), limit.limit(), hugetlb_unified, &mut steps)?;
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let mut value = device.clone();
        for (key, limit) in [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())] {
            if let Some(limit) = limit {
                value.push_str(&format!(" {key}={limit}"));
            }
        }
        steps.push(Step::write("rdma", "rdma", "rdma.max", value));
    }
    if let Some(network) = resources.network() {
        legacy::network(hierarchy, network, &mut steps);
    }
    if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
        steps.push(Step::Devices(device::parse(rules)?));
    }
    unified_keys(hierarchy, resources, &mut steps)?;
    Ok(steps)
}

fn hugetlb(size: &str, limit: i64, unified: bool, steps: &mut Vec<Step>) -> Result<(), Error> {
    if !size.ends_with(['B']) || size.contains('/') {
        let problem = format!("page size {size:?} is not written as 2MB or 1GB");
        return Err(Error::Value { field: "hugepageLimits".into(), problem });
    }
    let (name, reserved) = if unified { ("max", "rsvd.max") } else { ("limit_in_bytes", "rsvd.limit_in_bytes") };
    let value = if limit < 0 { if unified { "max".to_owned() } else { "-1".to_owned() } } else { limit.to_string() };
    let file = format!("hugetlb.{size}.{name}");
    if limit == 0 {
        // The kubelet sends 0 for every page size of every pod; where there are no huge pages the wish is met already.
        let why = "this host has no huge pages of that size";
        steps.push(Step::Optional { controller: "hugetlb", field: "hugepageLimits", file, value: value.clone(), why });
    } else {
        steps.push(Step::write("hugetlb", "hugepageLimits", &file, &value));
    }
    let file = format!("hugetlb.{size}.{reserved}");
    let why = "reservations are limited since kernel 5.7";
    steps.push(Step::Optional { controller: "hugetlb", field: "hugepageLimits", file, value, why });
    Ok(())
}

fn unified_keys(hierarchy: &Hierarchy, resources: &LinuxResources, steps: &mut Vec<Step>) -> Result<(), Error> {
    let mut keys: Vec<_> = resources.unified().iter().flatten().collect();
    keys.sort();
    for (key, value) in keys {
        let wrong = |problem: &str| Err(Error::Value { field: format!("unified.{key}"), problem: problem.to_owned() });
        if !key.contains('.') {
            // crun's words, for who looks for them.
            return wrong(&format!("the specified key has not the form CONTROLLER.VALUE `{key}`"));
        }
        if key.contains('/') || key.starts_with("cgroup.") {
            return wrong("must be the name of a controller's file");
        }
        let controller = key.split('.').next().unwrap_or_default();
        if hierarchy.unified_root().is_none() || matches!(hierarchy.locate(controller), Some((_, Version::Legacy))) {
            return wrong(
                "invalid configuration: this host has that controller as cgroup v1, whose limits have fields of their own",
            );
        }
        for line in value.lines() {
            steps.push(Step::write("unified", "unified", key, line));
        }
    }
    Ok(())
}

/// `maj:min value` for each throttled device, ready for either version.
pub(super) fn throttle(devices: Option<&Vec<LinuxThrottleDevice>>) -> impl Iterator<Item = (String, u64)> + '_ {
    devices.into_iter().flatten().map(|device| (format!("{}:{}", device.major(), device.minor()), device.rate()))
}

/// OCI `memory.checkBeforeUpdate`: refuse a limit below what is in use now, which would end in an OOM kill.
pub(super) fn check_before_update(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Error> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    let stats = cgroup.stats()?.memory;
    let set = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|&value| value > 0);
    let reject = |field: &str, what: &str, limit: u64, used: u64| {
        let problem = format!(
            "rejecting {what} limit of {limit} bytes, less than the {used} bytes in use (memory.checkBeforeUpdate)"
        );
        Err(Error::Value { field: field.to_owned(), problem })
    };
    if let Some(swap) = set(memory.swap()) {
        let used = stats.usage_bytes + stats.swap_usage_bytes;
        if swap < used {
            return reject("memory.swap", "memory+swap", swap, used);
        }
    }
    match set(memory.limit()) {
        Some(limit) if limit < stats.usage_bytes => reject("memory.limit", "memory", limit, stats.usage_bytes),
        _ => Ok(()),
    }
}

/// A file of `unified` that is not there: because its controller is not, or because no controller of this kernel has it.
fn no_such_file(name: &str, directory: &Path) -> Error {
    let controller = name.split('.').next().unwrap_or_default();
    let available = file::read(&directory.join("cgroup.controllers")).unwrap_or_default();
    let problem = if available.split_whitespace().any(|known| known == controller) {
        format!("no such file or directory in {}", directory.display())
    } else {
        format!("controller `{controller}` is not available under {}", directory.display())
    };
    Error::Value { field: format!("unified.{name}"), problem }
}

pub(super) fn execute(cgroup: &Cgroup, step: &Step, ignored: &mut Vec<Ignored>) -> Result<(), Error> {
    let directory = |controller: &str, field: &str| match cgroup.directory_of(controller) {
        Some(directory) => Ok(directory),
        None => Err(Error::NoController {
            field: field.to_owned(),
            controller: controller.to_owned(),
            path: cgroup.main_directory(),
        }),
    };
    match step {
        Step::Ignore(what) => ignored.push(what.clone()),
        Step::Write { controller, field, alternatives } => {
            let directory = match *controller {
                "unified" => cgroup.main_directory(),
                controller => directory(controller, field)?,
            };
            for (name, value) in alternatives {
                if file::write_if_present(&directory.join(name), value)? {
                    return Ok(());
                }
            }
            if *controller == "unified" {
                return Err(no_such_file(alternatives.first().map_or("", |(name, _)| name), &directory));
            }
            return Err(missing(cgroup, controller, field, directory));
        }
        Step::Optional { controller, field, file: name, value, why } => {
            let written = match cgroup.directory_of(controller) {
                Some(directory) => file::write_if_present(&directory.join(name), value)?,
                None => false,
            };
            if !written && !why.is_empty() {
                ignored.push(Ignored { field: (*field).to_owned(), why: (*why).to_owned() });
            }
        }
        Step::Pair { controller, field, first, second } => {
            let directory = directory(controller, field)?;
            if !directory.join(&first.0).exists() {
                return Err(missing(cgroup, controller, field, directory));
            }
            let write = |(name, value): &(String, String)| file::write(&directory.join(name), value);
            match write(first) {
                Ok(()) => write(second)?,
                // The kernel refuses a limit that contradicts its partner's present value: change the partner first.
                Err(Error::Write { source, .. }) if is_contradiction(&source) => {
                    write(second)?;
                    write(first)?;
                }
                Err(error) => return Err(error),
            }
        }
        Step::Period(period) => {
            let path = directory("cpu", "cpu.period")?.join("cpu.max");
            let now = file::read_if_present(&path)?;
            let quota = now.as_deref().and_then(|text| text.split_whitespace().next()).unwrap_or("max");
            file::write(&path, &format!("{quota} {period}"))?;
        }
        Step::Devices(rules) => match cgroup.hierarchy.locate("devices") {
            Some((place, Version::Legacy)) => device_list::apply(&place.join(&cgroup.path), rules)?,
            Some((place, Version::Unified)) => device_filter::apply(&place.join(&cgroup.path), rules)?,
            None => {
                directory("devices", "devices")?;
            }
        },
    }
    Ok(())
}

/// Why a controller's file is not there.
fn missing(cgroup: &Cgroup, controller: &str, field: &str, directory: PathBuf) -> Error {
    let (field, controller) = (field.to_owned(), controller.to_owned());
    // The nearest ancestor that has the controller is the one that does not hand it down. The root may, whatever sits there.
    let root = cgroup.hierarchy.unified_root().unwrap_or(&directory);
    let offers = |place: &Path| {
        let offered = file::read(&place.join("cgroup.controllers")).unwrap_or_default();
        offered.split_whitespace().any(|name| name == controller)
    };
    let holder = directory.ancestors().take_while(|place| *place != root).find(|place| offers(place));
    if let Some(path) = holder.map(Path::to_owned)
        && let Ok(pids) = lifecycle::pids(&path)
        && !pids.is_empty()
    {
        return Error::BusyParent { field, controller, path, pids };
    }
    Error::NoController { field, controller, path: directory }
}

fn is_contradiction(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
}
