//! update: limits of a running container.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use runtime_oci::{Schemata, StateRoot};
use serde_json::Value;

use super::arguments::{Limits, Update};
use super::lifecycle::parse_id;
use super::report::Reporter;
use super::{Error, bytes};

pub(crate) fn update(root: &StateRoot, update: &Update, reporter: &Reporter) -> Result<u8, Error> {
    let id = parse_id(&update.id)?;
    let mut warnings = Vec::new();
    let resources = match &update.resources {
        Some(_) if update.limits != Limits::default() => {
            return Err(Error::Usage("--resources goes with no other limit: put them all into that file".to_owned()));
        }
        Some(path) => read(path, &mut warnings)?,
        None => resources(&update.limits)?,
    };
    let schemata = Schemata {
        l3_cache: update.limits.l3_cache_schema.clone(),
        memory_bandwidth: update.limits.mem_bw_schema.clone(),
    };
    let is_empty = resources == LinuxResources::default() && schemata == Schemata::default();
    // What is in a file and not known has been told.
    if is_empty && warnings.is_empty() {
        return Err(Error::Usage("nothing to update: give a limit, or --resources".to_owned()));
    }
    warnings.extend(runtime_oci::update(root, &id, &resources, &schemata)?);
    reporter.warnings(&warnings);
    Ok(0)
}

/// A resources object; what is in it and has no meaning is told.
fn read(path: &Path, warnings: &mut Vec<String>) -> Result<LinuxResources, Error> {
    let what = || format!("read resources {}", path.display());
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text).map_err(Error::io(what()))?;
    } else {
        text = std::fs::read(path).map_err(Error::io(what()))?;
    }
    let json = |source| Error::Json { what: what(), source };
    let typed: Value = serde_json::from_slice(&text).map_err(json)?;
    let resources: LinuxResources = serde_json::from_slice(&text).map_err(json)?;
    unknown(&typed, &serde_json::to_value(&resources).map_err(json)?, "", warnings);
    Ok(resources)
}

/// The keys that did not come through.
fn unknown(typed: &Value, known: &Value, path: &str, warnings: &mut Vec<String>) {
    let Some(members) = typed.as_object() else { return };
    for (key, value) in members {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(known) => unknown(value, known, &path, warnings),
            None if is_nothing(value) => {}
            None => warnings.push(format!("{path} in the resources is not known and has no effect")),
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null()
        || value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(|object| object.values().all(is_nothing))
}

fn resources(limits: &Limits) -> Result<LinuxResources, Error> {
    let mut resources = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(limits.cpu_share)
        .set_quota(limits.cpu_quota)
        .set_period(limits.cpu_period)
        .set_burst(limits.cpu_burst)
        .set_realtime_period(limits.cpu_rt_period)
        .set_realtime_runtime(limits.cpu_rt_runtime)
        .set_idle(limits.cpu_idle)
        .set_cpus(limits.cpuset_cpus.clone())
        .set_mems(limits.cpuset_mems.clone());
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    let size = |flag: &str, text: &Option<String>| text.as_ref().map(|text| bytes::parse(flag, text)).transpose();
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(size("memory", &limits.memory)?)
        .set_reservation(size("memory-reservation", &limits.memory_reservation)?)
        .set_swap(size("memory-swap", &limits.memory_swap)?)
        .set_kernel(size("kernel-memory", &limits.kernel_memory)?)
        .set_kernel_tcp(size("kernel-memory-tcp", &limits.kernel_memory_tcp)?);
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = limits.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if limits.blkio_weight.is_some() {
        let mut block = LinuxBlockIo::default();
        block.set_weight(limits.blkio_weight);
        resources.set_block_io(Some(block));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_told() {
        let typed: Value = serde_json::from_str(
            r#"{"CPU": {"Cpus": "1"}, "cpu": {"shares": 5, "shars": 6, "mems": ""}, "memory": {}, "pids": {"limit": 3}, "network": null}"#,
        )
        .expect("json");
        let known: LinuxResources = serde_json::from_value(typed.clone()).expect("resources");
        let mut warnings = Vec::new();
        unknown(&typed, &serde_json::to_value(known).expect("json"), "", &mut warnings);
        let fields: Vec<_> = warnings.iter().filter_map(|warning| warning.split(' ').next()).collect();
        assert_eq!(fields, ["CPU", "cpu.shars"]);
    }
}
