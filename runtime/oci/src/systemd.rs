//! The systemd cgroup driver: a container's cgroup is a transient unit's, asked for over D-Bus.
//!
//! Speaks the few calls that this takes over a unix socket; no library of D-Bus and no async runtime. Invariant: every wait has a deadline,
//! and a job's end is heard from its signal, not polled.

mod annotations;
mod bus;
mod devices;
mod message;
mod names;
mod properties;

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;
use runtime_linux::cgroup::{Cgroup, Hierarchy};
use serde::{Deserialize, Serialize};

use crate::ContainerId;
use crate::error::Error;
use bus::{Bus, MANAGER};
use message::{Value, Writer};
use names::Names;
pub(crate) use properties::as_rounded;

/// A unit that is a container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    pub name: String,
    slice: String,
    /// Below each hierarchy's mount.
    cgroup: String,
    /// `org.systemd.property.NAME` annotations: name and text.
    #[serde(default)]
    annotations: Vec<(String, String)>,
}

impl Unit {
    /// `linux.cgroupsPath` as `slice:prefix:name`. Who is not root asks the user's own systemd where its units are.
    pub(crate) fn plan(
        path: Option<&str>,
        id: &ContainerId,
        annotations: &HashMap<String, String>,
    ) -> Result<Self, Error> {
        let is_users = bus::is_users();
        let names = Names::parse(path, id.as_str(), !is_users)?;
        let above = if is_users { Bus::open()?.manager_cgroup()? } else { String::new() };
        let prefix = "org.systemd.property.";
        let mut annotations: Vec<_> = annotations
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())))
            .collect();
        annotations.sort();
        for (name, text) in &annotations {
            annotations::parse(name, text)?;
        }
        let cgroup = names.cgroup(&above);
        Ok(Self { name: names.unit, slice: names.slice, cgroup, annotations })
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Makes the unit around a process, and waits until it is there.
    pub(crate) fn start(&self, pid: i32, resources: &LinuxResources, hierarchy: &Hierarchy) -> Result<(), Error> {
        let mut bus = Bus::open()?;
        let mut all = vec![("Description".to_owned(), Value::String(format!("container {}", self.name)))];
        if self.name.ends_with(".slice") {
            all.push(("Wants".to_owned(), Value::Strings(vec![self.slice.clone()])));
        } else {
            all.push(("Slice".to_owned(), Value::String(self.slice.clone())));
            // What is below, and its files, are the container's and ours.
            all.push(("Delegate".to_owned(), Value::Bool(true)));
            all.push(("PIDs".to_owned(), Value::Numbers(vec![pid.cast_unsigned()])));
        }
        for accounting in ["MemoryAccounting", "CPUAccounting", "TasksAccounting"] {
            all.push((accounting.to_owned(), Value::Bool(true)));
        }
        let io = if hierarchy.is_unified("blkio") { "IOAccounting" } else { "BlockIOAccounting" };
        all.push((io.to_owned(), Value::Bool(true)));
        all.push(("DefaultDependencies".to_owned(), Value::Bool(false)));
        all.extend(properties::of(resources, hierarchy)?);
        all.extend(devices::of(resources, hierarchy)?);
        for (name, text) in &self.annotations {
            all.push(annotations::parse(name, text)?);
        }
        // One of that name that failed is in the way until it is forgotten.
        bus.forget_failed(&self.name)?;
        let mut body = Writer::default();
        body.string(&self.name).string("replace").properties(&all).no_auxiliary_units();
        bus.run_job(&self.name, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body)
    }

    /// Tells systemd of changed limits, so that it does not set the old ones again.
    pub(crate) fn update(&self, resources: &LinuxResources, hierarchy: &Hierarchy) -> Result<(), Error> {
        let mut all = properties::of(resources, hierarchy)?;
        all.extend(devices::of(resources, hierarchy)?);
        if all.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.string(&self.name).bool(true).properties(&all);
        Bus::open()?.call(MANAGER, "SetUnitProperties", "sba(sv)", &body).map(drop)
    }

    /// Ends the unit with what is in it; one that is gone is fine.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        let mut bus = Bus::open()?;
        let mut body = Writer::default();
        body.string(&self.name).string("replace");
        match bus.run_job(&self.name, "StopUnit", "ss", &body) {
            Err(error) if bus::is_no_such_unit(&error) => {}
            other => other?,
        }
        bus.forget_failed(&self.name)
    }
}

/// systemd has one number for quota and period, so whoever changes one has to say the other too.
pub(crate) fn with_whole_quota(resources: &LinuxResources, cgroup: &Cgroup) -> Result<LinuxResources, Error> {
    let mut resources = resources.clone();
    let cpu = resources.cpu_mut().as_mut();
    let (Some(cpu), Some((quota, period))) = (cpu, cgroup.cpu_quota()?) else { return Ok(resources) };
    match (cpu.quota().filter(|&quota| quota != 0), cpu.period().filter(|&period| period != 0)) {
        (None, Some(_)) => drop(cpu.set_quota(Some(quota))),
        (Some(_), None) => drop(cpu.set_period(Some(period))),
        _ => {}
    }
    Ok(resources)
}

/// An error of this module, in words.
fn said(what: impl Into<String>) -> Error {
    Error::Systemd { what: what.into(), source: None }
}
