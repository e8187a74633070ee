//! Which of the feasible nodes is the best. Pure.
//!
//! Each score is 0 to 100 and has upstream's weight; equal sums go to the node with fewer pods, then to the smaller name.

use k8s_openapi::api::core::v1::Pod;

use crate::affinity;
use crate::filter::Wanted;
use crate::requests::{CPU, MEMORY, Requests};
use crate::snapshot::{NodeState, group_of};

const MAX: i64 = 100;
const WEIGHT_TAINTS: i64 = 3;
const WEIGHT_AFFINITY: i64 = 2;
const WEIGHT_SPREADING: i64 = 2;
const WEIGHT_FREE: i64 = 1;
const WEIGHT_BALANCE: i64 = 1;
const WEIGHT_IMAGES: i64 = 1;

/// An image smaller than this makes no difference; one larger than the other counts in full.
const IMAGE_BYTES_MIN: i64 = 23 * 1024 * 1024;
const IMAGE_BYTES_MAX: i64 = 1000 * 1024 * 1024;

/// Numbers of one node that only mean something beside those of the others.
struct Raw {
    untolerated: i64,
    affinity: i64,
    of_group: i64,
}

/// The best of `feasible`, or `None` where there is none.
pub(crate) fn best<'a>(wanted: &Wanted<'_>, feasible: &[(&'a str, &NodeState)]) -> Option<&'a str> {
    let group = group_of(wanted.pod);
    let raw: Vec<Raw> = feasible.iter().map(|(name, node)| raw(wanted, group.as_deref(), name, node)).collect();
    let largest = |of: fn(&Raw) -> i64| raw.iter().map(of).max().unwrap_or(0);
    let (untolerated, affinity, of_group) =
        (largest(|raw| raw.untolerated), largest(|raw| raw.affinity), largest(|raw| raw.of_group));
    let requests = Requests::of_pod_for_scoring(wanted.pod);
    let scored = feasible.iter().zip(&raw).map(|((name, node), raw)| {
        let score = WEIGHT_TAINTS * fewest(raw.untolerated, untolerated)
            + WEIGHT_AFFINITY * most(raw.affinity, affinity)
            + WEIGHT_SPREADING * fewest(raw.of_group, of_group)
            + WEIGHT_FREE * free(node, &requests)
            + WEIGHT_BALANCE * balance(node, &requests)
            + WEIGHT_IMAGES * images(wanted.pod, node);
        (score, std::cmp::Reverse(node.pods), std::cmp::Reverse(*name))
    });
    scored.max().map(|(_, _, std::cmp::Reverse(name))| name)
}

fn raw(wanted: &Wanted<'_>, group: Option<&str>, name: &str, node: &NodeState) -> Raw {
    Raw {
        untolerated: i64::try_from(wanted.untolerated(&node.taints, &["PreferNoSchedule"]).count()).unwrap_or(i64::MAX),
        affinity: affinity::preferred_weight(wanted.pod, name, node),
        of_group: group.and_then(|group| node.groups.get(group)).copied().unwrap_or(0),
    }
}

/// `value` in hundredths of the largest.
fn share(value: i64, largest: i64) -> i64 {
    let share = i128::from(MAX) * i128::from(value) / i128::from(largest);
    i64::try_from(share).unwrap_or(MAX).clamp(-MAX, MAX)
}

fn most(value: i64, largest: i64) -> i64 {
    if largest == 0 { 0 } else { share(value, largest) }
}

fn fewest(value: i64, largest: i64) -> i64 {
    if largest == 0 { MAX } else { MAX - share(value, largest) }
}

/// The share that stays free, averaged over CPU and memory.
fn free(node: &NodeState, requests: &Requests) -> i64 {
    let shares = used_percent(node, requests).map(|used| MAX - used);
    shares.iter().sum::<i64>() / 2
}

/// Full marks where CPU and memory would be used to the same degree.
fn balance(node: &NodeState, requests: &Requests) -> i64 {
    let [cpu, memory] = used_percent(node, requests);
    MAX - (cpu - memory).abs() / 2
}

fn used_percent(node: &NodeState, requests: &Requests) -> [i64; 2] {
    [CPU, MEMORY].map(|resource| {
        let total = node.allocatable.get(resource);
        let used = node.requested_for_scoring.get(resource).saturating_add(requests.get(resource));
        if total <= 0 {
            return MAX;
        }
        let percent = (used.saturating_mul(i128::from(MAX)) / total).clamp(0, i128::from(MAX));
        i64::try_from(percent).unwrap_or(MAX)
    })
}

fn images(pod: &Pod, node: &NodeState) -> i64 {
    let containers = pod.spec.iter().flat_map(|spec| spec.containers.iter());
    let sizes = containers.filter_map(|container| container.image.as_ref()).filter_map(|image| node.images.get(image));
    let present = sizes.fold(0i64, |sum, size| sum.saturating_add(*size));
    MAX * (present.clamp(IMAGE_BYTES_MIN, IMAGE_BYTES_MAX) - IMAGE_BYTES_MIN) / (IMAGE_BYTES_MAX - IMAGE_BYTES_MIN)
}
