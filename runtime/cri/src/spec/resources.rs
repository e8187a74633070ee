//! CRI resources -> OCI resources. Pure; used at creation and for live updates.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};
use runtime_cri_api::v1::LinuxContainerResources;

use super::SpecError;
use super::host::Host;

/// Zero and empty mean "not said" in every field of the interface.
pub(crate) fn plan(wanted: &LinuxContainerResources, host: &Host) -> Result<LinuxResources, SpecError> {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(wanted.cpu_shares))
        .set_quota((wanted.cpu_quota != 0).then_some(wanted.cpu_quota))
        .set_period(positive(wanted.cpu_period))
        .set_cpus(text(&wanted.cpuset_cpus))
        .set_mems(text(&wanted.cpuset_mems));
    let mut memory = LinuxMemory::default();
    let limit = (wanted.memory_limit_in_bytes != 0).then_some(wanted.memory_limit_in_bytes);
    memory.set_limit(limit).set_swap(swap(wanted, host)?);
    let hugepages = wanted
        .hugepage_limits
        .iter()
        .map(|wanted| {
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(wanted.page_size.clone()).set_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
            limit
        })
        .collect();
    let mut resources = LinuxResources::default();
    resources
        .set_cpu(Some(cpu))
        .set_memory(Some(memory))
        .set_hugepage_limits(Some(hugepages))
        .set_unified((!wanted.unified.is_empty()).then(|| wanted.unified.clone()));
    Ok(resources)
}

/// Memory and swap together. Without a word about swap a container gets none, where the host can say so.
fn swap(wanted: &LinuxContainerResources, host: &Host) -> Result<Option<i64>, SpecError> {
    match (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) {
        (0, 0) => Ok(None),
        (limit, 0) => Ok(host.swap_limits.then_some(limit)),
        (limit, swap) if limit == swap && !host.swap_limits => Ok(None),
        (_, swap) if host.swap_limits => Ok(Some(swap)),
        _ => Err(SpecError::field(
            "memory_swap_limit_in_bytes",
            "is given, but this host does not account swap (boot with swapaccount=1)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_follows_memory_where_the_host_accounts_it() {
        let check = |limit, swap, accounts, expect: Result<Option<i64>, ()>| {
            let wanted = LinuxContainerResources {
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: swap,
                ..Default::default()
            };
            let host = Host { swap_limits: accounts, ..Host::bare() };
            let planned = plan(&wanted, &host).map(|resources| resources.memory().as_ref().unwrap().swap());
            assert_eq!(planned.map_err(drop), expect, "{limit} {swap} {accounts}");
        };
        check(0, 0, true, Ok(None));
        check(100, 0, true, Ok(Some(100)));
        check(100, 0, false, Ok(None));
        check(100, 200, true, Ok(Some(200)));
        check(100, 100, false, Ok(None));
        check(100, 200, false, Err(()));
    }

    #[test]
    fn zero_is_not_said() {
        let resources = plan(&LinuxContainerResources { cpu_quota: -1, ..Default::default() }, &Host::bare()).unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period(), cpu.cpus().as_deref()), (None, Some(-1), None, None));
    }
}
