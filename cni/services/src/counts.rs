//! Counts of what was refused, lost or mended, in the text form of Prometheus. One set for the process: a node has one
//! service network.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug)]
pub(crate) struct Count {
    name: &'static str,
    help: &'static str,
    value: AtomicU64,
}

impl Count {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, value: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) static CONFLICTS: Count = Count::new(
    "sampan_services_conflicts_total",
    "Ways into Services that were not programmed: they belong to others.",
);
pub(crate) static UNREADABLE: Count =
    Count::new("sampan_services_unreadable_objects_total", "Services and EndpointSlices that could not be read.");
pub(crate) static PANICS: Count =
    Count::new("sampan_services_panics_total", "Panics that were caught in service networking.");
pub(crate) static MENDED: Count = Count::new(
    "sampan_services_mended_total",
    "Times that somebody took away rules, links or routes and they were made anew.",
);
pub(crate) static DNS_REFUSED: Count =
    Count::new("sampan_dns_refused_total", "DNS queries that were refused because too many were under way.");

/// All of them, for a metrics endpoint.
#[must_use]
pub fn text() -> String {
    let mut text = String::new();
    for count in [&CONFLICTS, &UNREADABLE, &PANICS, &MENDED, &DNS_REFUSED] {
        let (name, help, value) = (count.name, count.help, count.value.load(Ordering::Relaxed));
        // Writing to a String does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
    text
}
