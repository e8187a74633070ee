//! What stands on this host: links, mounts, nf_tables tables, cgroups, and processes of Sampan.
//!
//! Taken before the first `up` and after `down`. What is there afterwards and was not before is a leak where it bears the
//! instance's name or lies below its directories, and is named as somebody else's otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cni_netlink::nft::{Family, Nftables};
use cni_netlink::rtnetlink::Rtnetlink;
use serde::{Deserialize, Serialize};

use crate::instance::{Instance, Layout};

const RECORD_VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inventory {
    pub version: u32,
    pub links: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub tables: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    pub processes: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InventoryError {
    #[error("list network links")]
    Links(#[source] cni_netlink::rtnetlink::RtnetlinkError),
    #[error("list nf_tables tables")]
    Tables(#[source] cni_netlink::nft::NftError),
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is no inventory; remove it")]
    Parse { path: PathBuf, source: serde_json::Error },
}

fn path(layout: &Layout) -> PathBuf {
    // In the run directory: after a reboot everything that it lists is gone anyway.
    layout.run.join("before.json")
}

impl Inventory {
    pub(crate) fn take(layout: &Layout, instance: &Instance) -> Result<Self, InventoryError> {
        Ok(Self {
            version: RECORD_VERSION,
            links: links()?,
            mounts: mounts()?,
            tables: tables()?,
            cgroups: cgroups(&instance.name),
            processes: processes(layout),
        })
    }

    /// Keeps what was found before the first `up`; a later `up` does not overwrite it.
    pub(crate) fn keep_first(layout: &Layout, instance: &Instance) -> Result<(), InventoryError> {
        let path = path(layout);
        if path.exists() {
            return Ok(());
        }
        let text = serde_json::to_vec(&Self::take(layout, instance)?).expect("sets of strings encode");
        crate::files::replace(&path, &text, 0o644).map_err(|source| InventoryError::Write { path, source })
    }

    /// What was found before the first `up`; nothing, where that was never recorded.
    pub(crate) fn before(layout: &Layout) -> Result<Option<Self>, InventoryError> {
        let path = path(layout);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|source| InventoryError::Parse { path, source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(InventoryError::Read { path, source }),
        }
    }

    /// What is here and was not there: ours, then others'.
    pub(crate) fn since(&self, before: &Self, layout: &Layout, instance: &Instance) -> (Vec<String>, Vec<String>) {
        let mut ours = Vec::new();
        let mut others = Vec::new();
        let roots = [&layout.data, &layout.run, &layout.config].map(|path| format!("{}/", path.display()));
        // Whole names: that of an instance with `--root` begins with that of the instance without.
        let names = [instance.bridge.clone(), instance.name.clone(), format!("{}-cni", instance.name)];
        let is_named = |name: &str| names.iter().any(|ours| ours == name);
        for (what, now, then) in [
            ("link", &self.links, &before.links),
            ("mount", &self.mounts, &before.mounts),
            ("table", &self.tables, &before.tables),
            ("cgroup", &self.cgroups, &before.cgroups),
            ("process", &self.processes, &before.processes),
        ] {
            for name in now.difference(then) {
                let is_ours = match what {
                    "mount" => roots.iter().any(|root| name.starts_with(root.as_str())),
                    "cgroup" | "process" => true,
                    _ => is_named(name.split_whitespace().last().unwrap_or_default()),
                };
                let list = if is_ours { &mut ours } else { &mut others };
                list.push(format!("{what} {name}"));
            }
        }
        (ours, others)
    }

    pub(crate) fn counts(&self) -> String {
        format!("{} links, {} mounts, {} tables", self.links.len(), self.mounts.len(), self.tables.len())
    }
}

fn links() -> Result<BTreeSet<String>, InventoryError> {
    let links = Rtnetlink::open().and_then(|mut netlink| netlink.links()).map_err(InventoryError::Links)?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

fn tables() -> Result<BTreeSet<String>, InventoryError> {
    let mut tables = BTreeSet::new();
    let mut netlink = Nftables::open().map_err(InventoryError::Tables)?;
    for (family, name) in [(Family::Inet, "inet"), (Family::Ip, "ip")] {
        let found = netlink.tables(family).map_err(InventoryError::Tables)?;
        tables.extend(found.into_iter().map(|table| format!("{name} {table}")));
    }
    Ok(tables)
}

/// Mount points. proc_pid_mountinfo(5): the fifth field, with blanks in octal.
fn mounts() -> Result<BTreeSet<String>, InventoryError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let text = fs::read_to_string(&path).map_err(|source| InventoryError::Read { path, source })?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " ")).collect())
}

/// Directories called like the instance, at the root of every cgroup hierarchy.
fn cgroups(name: &str) -> BTreeSet<String> {
    let base = Path::new("/sys/fs/cgroup");
    let mut candidates = vec![base.join(name)];
    let controllers = fs::read_dir(base).into_iter().flatten().flatten();
    candidates.extend(controllers.map(|entry| entry.path().join(name)));
    candidates.into_iter().filter(|path| path.is_dir()).map(|path| path.display().to_string()).collect()
}

/// Processes of Sampan's programs that were told this instance's directories, this one aside.
fn processes(layout: &Layout) -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.parse::<u32>().is_ok());
    numbers
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            // It may have ended in between.
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let program = line.split(' ').next()?.rsplit('/').next()?;
            let is_ours = program == "sampan-shim" && line.contains(&format!("{}/", layout.run.display()));
            is_ours.then(|| format!("{pid} {}", line.trim()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::Wishes;

    #[test]
    fn tells_ours_from_others() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        let wishes = Wishes { node_name: Some("n".into()), ..Wishes::default() };
        let instance = Instance::load_or_decide(&layout, &wishes).unwrap();
        let before = Inventory::default();
        let after = Inventory {
            links: [instance.bridge.clone(), "eth7".into()].into(),
            mounts: [format!("{}/pods/a/ns/net", layout.run.display()), "/mnt".into()].into(),
            tables: [format!("inet {}", instance.name), "inet firewall".into()].into(),
            ..Inventory::default()
        };
        let (ours, others) = after.since(&before, &layout, &instance);
        assert_eq!(ours.len(), 3, "{ours:?}");
        assert_eq!(others, ["link eth7", "mount /mnt", "table inet firewall"]);
    }

    #[test]
    fn an_instance_beside_is_not_ours() {
        let layout = Layout::new(None).unwrap();
        let text = r#"{"version":1,"name":"sampan","node_name":"a","node_ip":"192.0.2.7","api_port":6443,
            "kubelet_port":10250,"pod_cidr":"10.42.0.0/16","service_cidr":"10.43.0.0/16","bridge":"sampan0"}"#;
        let instance: Instance = serde_json::from_str(text).unwrap();
        let after = Inventory {
            links: ["sampan-12ab0".into(), "sampan0".into()].into(),
            tables: ["inet sampan-12ab", "inet sampan-12ab-cni", "inet sampan-cni"].map(str::to_owned).into(),
            ..Inventory::default()
        };
        let (ours, others) = after.since(&Inventory::default(), &layout, &instance);
        assert_eq!(ours, ["link sampan0", "table inet sampan-cni"]);
        assert_eq!(others.len(), 3, "{others:?}");
    }

    #[test]
    fn the_first_record_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(directory.path().into())).unwrap();
        layout.create().unwrap();
        fs::write(path(&layout), r#"{"version":1,"links":["lo"],"mounts":[],"tables":[],"cgroups":[],"processes":[]}"#)
            .unwrap();
        let wishes = Wishes { node_name: Some("n".into()), ..Wishes::default() };
        let instance = Instance::load_or_decide(&layout, &wishes).unwrap();
        Inventory::keep_first(&layout, &instance).unwrap();
        assert_eq!(Inventory::before(&layout).unwrap().unwrap().links, ["lo".to_owned()].into());
    }
}
