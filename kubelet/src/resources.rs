//! What a pod may use: quantities, quality of service, and their translation into cgroup numbers. Pure.
//! Not the writing of cgroups; see pod_cgroup.rs.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime_cri_api::v1 as cri;

use crate::pod::{Kind, LocalPod};

/// Microseconds of one period of the CPU controller.
pub const CPU_PERIOD_MICROS: i64 = 100_000;
/// The kernel accepts no less.
const CPU_SHARES_MIN: i64 = 2;
const CPU_SHARES_MAX: i64 = 1 << 18;
const CPU_QUOTA_MIN: i64 = 1000;
/// Nor more: `max_bw_runtime_us` of kernel/sched/core.c.
const CPU_QUOTA_MAX: i64 = (1 << 44) - 1;
/// Priority from which a pod is vital to its node (system-node-critical is above).
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// Quantities are no larger than this, in thousandths: upstream's are 64 bits wide. Sums of many stay far from overflowing.
const MILLIS_MAX: i128 = (i64::MAX as i128) * 1000;

/// A quantity in thousandths, rounded up, at most [`MILLIS_MAX`]; `None` if it is none.
#[must_use]
pub fn millis(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let whole = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    if !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (times, over) = scale(suffix)?;
    // A number that is too large for the arithmetic is too large for everything: it counts as the largest, never as none.
    let nanos = nanos(whole, fraction)?;
    let millis = nanos
        .checked_mul(times)
        .zip(over.checked_mul(1_000_000))
        .map_or(if times > 1 { MILLIS_MAX } else { 1 }, |(scaled, unit)| {
            scaled.saturating_add(unit - 1).div_euclid(unit).min(MILLIS_MAX)
        });
    let millis = if nanos == 0 { 0 } else { millis };
    Some(if negative { -millis } else { millis })
}

/// The number in thousandths of a millionth. What is beyond nine digits after the point is rounded up.
fn nanos(whole: &str, fraction: &str) -> Option<i128> {
    const WHOLE_MAX: i128 = i128::MAX / 4_000_000_000;
    let whole = whole.trim_start_matches('0');
    let whole = if whole.len() > 28 { WHOLE_MAX } else { whole.parse::<i128>().unwrap_or(0).min(WHOLE_MAX) };
    let (fine, beyond) = fraction.split_at_checked(9).unwrap_or((fraction, ""));
    let digits: String = fine.chars().chain(std::iter::repeat('0')).take(9).collect();
    let more = i128::from(beyond.bytes().any(|b| b != b'0'));
    Some(whole * 1_000_000_000 + digits.parse::<i128>().ok()? + more)
}

/// What a suffix multiplies by, and divides by.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs()).unwrap_or(i128::MAX);
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    })
}

/// A quantity in whole units, rounded up.
#[must_use]
pub fn units(quantity: &Quantity) -> Option<i64> {
    i64::try_from((millis(quantity)? + 999).div_euclid(1000)).ok()
}

fn entry<'a>(map: Option<&'a BTreeMap<String, Quantity>>, name: &str) -> Option<&'a Quantity> {
    map?.get(name)
}

/// The request for a resource in thousandths; a limit alone stands for both.
#[must_use]
pub fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<i128> {
    let resources = resources?;
    entry(resources.requests.as_ref(), name).or_else(|| entry(resources.limits.as_ref(), name)).and_then(millis)
}

#[must_use]
pub fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<i128> {
    entry(resources?.limits.as_ref(), name).and_then(millis)
}

/// The class that decides who is killed first when memory runs out.
#[must_use]
pub fn qos(spec: &PodSpec) -> Qos {
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let positive = |value: Option<i128>| value.filter(|v| *v > 0);
    let mut anything = false;
    let mut guaranteed = true;
    for container in all() {
        for name in ["cpu", "memory"] {
            let resources = container.resources.as_ref();
            let (request, limit) = (positive(request(resources, name)), positive(limit(resources, name)));
            anything |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (anything, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// What the whole pod asks for: the larger of all containers together and of each init container with the sidecars before it.
#[must_use]
pub fn pod_total(pod: &LocalPod, of: impl Fn(&Container) -> i128) -> i128 {
    let mut sidecars = 0;
    let mut init_max = 0;
    for member in pod.of(&[Kind::Init, Kind::Sidecar]) {
        let own = of(&member.container);
        if member.kind == Kind::Sidecar {
            sidecars += own;
            init_max = init_max.max(sidecars);
        } else {
            init_max = init_max.max(sidecars + own);
        }
    }
    let regular: i128 = pod.of(&[Kind::Regular]).map(|m| of(&m.container)).sum();
    (regular + sidecars).max(init_max)
}

/// Requests of a pod: CPU in millicores, memory in bytes.
#[must_use]
pub fn pod_requests(pod: &LocalPod) -> (i128, i128) {
    let of = |name: &'static str| pod_total(pod, |c| request(c.resources.as_ref(), name).unwrap_or(0));
    (of("cpu"), of("memory") / 1000)
}

fn shares(cpu_millis: i128) -> i64 {
    i64::try_from(cpu_millis * 1024 / 1000).unwrap_or(i64::MAX).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

fn quota(cpu_millis: i128) -> i64 {
    let period = i128::from(CPU_PERIOD_MICROS);
    i64::try_from(cpu_millis * period / 1000).unwrap_or(i64::MAX).clamp(CPU_QUOTA_MIN, CPU_QUOTA_MAX)
}

/// Whole bytes, rounded up: a limit below one byte is one byte. In the CRI, 0 means no limit.
fn bytes(millis: i128) -> i64 {
    i64::try_from((millis + 999).div_euclid(1000)).unwrap_or(i64::MAX).max(0)
}

/// Linux resources of one container. `memory_capacity` is the node's, in bytes.
#[must_use]
pub fn container(pod: &LocalPod, container: &Container, memory_capacity: u64) -> cri::LinuxContainerResources {
    let resources = container.resources.as_ref();
    let cpu_limit = limit(resources, "cpu").filter(|v| *v > 0);
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD_MICROS,
        cpu_quota: cpu_limit.map_or(0, quota),
        cpu_shares: shares(request(resources, "cpu").unwrap_or(0)),
        memory_limit_in_bytes: limit(resources, "memory").map_or(0, bytes),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..cri::LinuxContainerResources::default()
    }
}

/// Resources of the pod as a whole; limits only where every container has one.
#[must_use]
pub fn pod(pod: &LocalPod) -> cri::LinuxContainerResources {
    let every = |name: &'static str| {
        let mut members = pod.of(&[Kind::Init, Kind::Sidecar, Kind::Regular]);
        members.all(|m| limit(m.container.resources.as_ref(), name).is_some_and(|v| v > 0))
    };
    let total = |name: &'static str| pod_total(pod, |c| limit(c.resources.as_ref(), name).unwrap_or(0));
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD_MICROS,
        cpu_quota: if every("cpu") { quota(total("cpu")) } else { 0 },
        cpu_shares: shares(pod_requests(pod).0),
        memory_limit_in_bytes: if every("memory") { bytes(total("memory")) } else { 0 },
        ..cri::LinuxContainerResources::default()
    }
}

/// Upstream's scale: Guaranteed and critical pods go last, BestEffort first, the rest by the share of memory they asked for.
#[must_use]
pub fn oom_score_adj(pod: &LocalPod, container: &Container, memory_capacity: u64) -> i64 {
    if pod.spec.priority.is_some_and(|p| p >= CRITICAL_PRIORITY) {
        return -997;
    }
    match qos(&pod.spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let asked = request(container.resources.as_ref(), "memory").unwrap_or(0) / 1000;
            let share = 1000 * asked / i128::from(memory_capacity.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

/// The pod's cgroup, as the runtime is told it.
#[must_use]
pub fn cgroup_parent(root: &str, pod: &LocalPod) -> String {
    let root = root.trim_end_matches('/');
    match qos(&pod.spec) {
        Qos::Guaranteed => format!("{root}/kubepods/pod{}", pod.uid),
        Qos::Burstable => format!("{root}/kubepods/burstable/pod{}", pod.uid),
        Qos::BestEffort => format!("{root}/kubepods/besteffort/pod{}", pod.uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Source;
    use serde_json::json;

    #[test]
    fn quantities_in_thousandths() {
        let cases = [
            ("1", Some(1000)),
            ("250m", Some(250)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("100k", Some(100_000_000)),
            ("1e3", Some(1_000_000)),
            ("1n", Some(1)),
            ("-2", Some(-2000)),
            ("12E", Some(MILLIS_MAX)),
            ("9E", Some(9_000_000_000_000_000_000_000)),
            ("1e30", Some(MILLIS_MAX)),
            ("1e999999", Some(MILLIS_MAX)),
            ("1e-999999", Some(1)),
            ("0e999999", Some(0)),
            ("99999999999999999999999999999999999999999999999999999999999", Some(MILLIS_MAX)),
            ("0.00000000000000000001", Some(1)),
            ("-1e30", Some(-MILLIS_MAX)),
            ("--1", None),
            ("1.-1", None),
            ("1.2.3", None),
            ("x", None),
            ("1Qi", None),
            ("", Some(0)),
        ];
        for (text, expect) in cases {
            assert_eq!(millis(&Quantity(text.into())), expect, "{text}");
        }
    }

    fn parse(resources: &[serde_json::Value]) -> LocalPod {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(i, r)| json!({"name": format!("c{i}"), "image": "i", "resources": r}))
            .collect();
        let object =
            json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"containers": containers}});
        LocalPod::parse(serde_json::from_value(object).unwrap(), Source::Api).unwrap()
    }

    #[test]
    fn class_and_numbers() {
        let full = json!({"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "0.5", "memory": "64Mi"}});
        let some = json!({"requests": {"memory": "512Mi"}});
        let none = json!({});
        let check = |list: &[serde_json::Value], class: Qos, parent: &str, oom: i64| {
            let pod = parse(list);
            assert_eq!(qos(&pod.spec), class);
            assert_eq!(cgroup_parent("/r", &pod), parent);
            assert_eq!(oom_score_adj(&pod, &pod.spec.containers[0], 1 << 30), oom);
        };
        check(std::slice::from_ref(&full), Qos::Guaranteed, "/r/kubepods/podu", -997);
        check(&[some.clone(), full.clone()], Qos::Burstable, "/r/kubepods/burstable/podu", 500);
        check(std::slice::from_ref(&none), Qos::BestEffort, "/r/kubepods/besteffort/podu", 1000);
        let pod = parse(&[full, some]);
        let first = container(&pod, &pod.spec.containers[0], 1 << 30);
        assert_eq!((first.cpu_quota, first.cpu_shares, first.memory_limit_in_bytes), (50_000, 512, 64 << 20));
        assert_eq!((super::pod(&pod).cpu_quota, super::pod(&pod).cpu_shares), (0, 512));
        // What is given never means no limit: less than a byte is one, more than there is stays a limit.
        for (amount, expect) in [("100m", 1), ("1", 1), ("1500m", 2), ("1e30", i64::MAX), ("99E", i64::MAX)] {
            let pod = parse(&[json!({"limits": {"memory": amount, "cpu": amount}})]);
            let got = container(&pod, &pod.spec.containers[0], 1 << 30);
            assert_eq!(got.memory_limit_in_bytes, expect, "{amount}");
            assert_eq!(super::pod(&pod).memory_limit_in_bytes, expect, "{amount}");
            assert!((CPU_QUOTA_MIN..=CPU_QUOTA_MAX).contains(&got.cpu_quota), "{amount}");
        }
        let best_effort = parse(&[none]);
        assert_eq!(super::pod(&best_effort).cpu_shares, 2);
    }
}
