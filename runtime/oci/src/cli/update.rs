//! update: limits of a running container.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use runtime_oci::StateRoot;

use super::arguments::Update;
use super::lifecycle::parse_id;
use super::report::Reporter;
use super::{Error, bytes};

pub(crate) fn update(root: &StateRoot, update: &Update, reporter: &Reporter) -> Result<u8, Error> {
    let resources = match &update.resources {
        Some(path) => read(path)?,
        None => resources(update)?,
    };
    let warnings = runtime_oci::update(root, &parse_id(&update.id)?, &resources)?;
    reporter.warnings(&warnings);
    Ok(0)
}

fn read(path: &Path) -> Result<LinuxResources, Error> {
    let what = || format!("read resources {}", path.display());
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text).map_err(Error::io(what()))?;
    } else {
        text = std::fs::read(path).map_err(Error::io(what()))?;
    }
    serde_json::from_slice(&text).map_err(|source| Error::Json { what: what(), source })
}

fn resources(update: &Update) -> Result<LinuxResources, Error> {
    if update.l3_cache_schema.is_some() || update.mem_bw_schema.is_some() {
        return Err(Error::Usage(
            "--l3-cache-schema and --mem-bw-schema are not supported: there is no intelRdt".to_owned(),
        ));
    }
    let mut resources = LinuxResources::default();
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(update.cpu_share)
        .set_quota(update.cpu_quota)
        .set_period(update.cpu_period)
        .set_burst(update.cpu_burst)
        .set_realtime_period(update.cpu_rt_period)
        .set_realtime_runtime(update.cpu_rt_runtime)
        .set_idle(update.cpu_idle)
        .set_cpus(update.cpuset_cpus.clone())
        .set_mems(update.cpuset_mems.clone());
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    let size = |flag: &str, text: &Option<String>| text.as_ref().map(|text| bytes::parse(flag, text)).transpose();
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(size("memory", &update.memory)?)
        .set_reservation(size("memory-reservation", &update.memory_reservation)?)
        .set_swap(size("memory-swap", &update.memory_swap)?);
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    if let Some(limit) = update.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if update.blkio_weight.is_some() {
        let mut block = LinuxBlockIo::default();
        block.set_weight(update.blkio_weight);
        resources.set_block_io(Some(block));
    }
    if resources == LinuxResources::default() {
        return Err(Error::Usage("nothing to update: give a limit, or --resources".to_owned()));
    }
    Ok(resources)
}
