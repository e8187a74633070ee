//! Intel's Resource Director Technology: the container's place in a mounted resctrl file system. runtime-spec 1.3, "IntelRdt".
//!
//! Decides first (`decide`, pure), then acts. Invariant: a directory is removed at the end only where it was made for this container.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::invalid;

/// What the container's record says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// The class of service; every process of the container is in it.
    pub class: PathBuf,
    /// Made for this container.
    pub owns_class: bool,
    /// Of this container alone, where monitoring was asked for.
    pub monitoring: Option<PathBuf>,
}

#[derive(Debug, PartialEq)]
struct Decision {
    /// Below the mount; empty for the default class.
    class: String,
    makes_class: bool,
    owns_class: bool,
    /// Lines for `schemata`, in order.
    lines: Vec<String>,
}

/// `schemata` is the file's content in the class that is named, where that exists.
fn decide(rdt: &LinuxIntelRdt, id: &str, schemata: Option<&str>) -> Result<Decision, Error> {
    let field = |name: &str| format!("linux.intelRdt.{name}");
    let mut lines = Vec::new();
    let single = [("l3CacheSchema", rdt.l3_cache_schema(), "L3"), ("memBwSchema", rdt.mem_bw_schema(), "MB:")];
    for (name, line, prefix) in single {
        let Some(line) = line.as_ref().filter(|line| !line.is_empty()) else { continue };
        if !line.starts_with(prefix) || line.contains('\n') {
            return Err(invalid(
                &field(name),
                &format!("\"{line}\" does not start with {prefix}, or has several lines"),
            ));
        }
        lines.push(line.clone());
    }
    let compared = lines.len();
    for line in rdt.schemata().iter().flatten() {
        if line.contains('\n') {
            return Err(invalid(&field("schemata"), "an element has several lines"));
        }
        lines.push(line.clone());
    }
    let Some(class) = rdt.clos_id().as_ref().filter(|class| !class.is_empty()) else {
        return Ok(Decision { class: id.to_owned(), makes_class: true, owns_class: true, lines });
    };
    if class == "/" {
        return Ok(Decision { class: String::new(), makes_class: false, owns_class: false, lines });
    }
    let is_reserved = matches!(class.as_str(), "." | ".." | "info" | "mon_groups" | "mon_data");
    if is_reserved || class.contains(['/', '\n', '\0']) {
        return Err(invalid(&field("closID"), &format!("\"{class}\" is not a name for a directory of resctrl")));
    }
    match schemata {
        None if lines.is_empty() => {
            Err(invalid(&field("closID"), &format!("there is no class \"{class}\", and no schema to make it with")))
        }
        None => Ok(Decision { class: class.clone(), makes_class: true, owns_class: false, lines }),
        Some(found) => {
            for line in &lines[..compared] {
                if !holds(found, line) {
                    let reason = format!("class \"{class}\" exists, and its schemata do not hold \"{line}\"");
                    return Err(invalid(&field("closID"), &reason));
                }
            }
            Ok(Decision { class: class.clone(), makes_class: false, owns_class: false, lines })
        }
    }
}

/// Whether every domain of a line (`L3:0=7f;1=1f`) has that value in the file, whose numbers have blanks and zeros in front.
fn holds(schemata: &str, line: &str) -> bool {
    let domains = |line: &str| -> Option<(String, Vec<(String, String)>)> {
        let (resource, domains) = line.trim().split_once(':')?;
        let value = |text: &str| text.trim().trim_start_matches('0').to_ascii_lowercase();
        let pairs =
            domains.split(';').filter_map(|pair| pair.split_once('=')).map(|(key, text)| (value(key), value(text)));
        Some((resource.to_owned(), pairs.collect()))
    };
    let Some((resource, wanted)) = domains(line) else { return false };
    let found = schemata.lines().filter_map(domains).find(|(name, _)| *name == resource);
    found.is_some_and(|(_, found)| wanted.iter().all(|pair| found.contains(pair)))
}

/// Where resctrl is mounted.
fn mount() -> Result<PathBuf, Error> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let table = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
    let lines = table.lines().filter_map(|line| line.split_once(" - "));
    let found = lines.filter(|(_, right)| right.starts_with("resctrl ")).find_map(|(left, _)| left.split(' ').nth(4));
    found.map(PathBuf::from).ok_or_else(|| {
        invalid("linux.intelRdt", "no resctrl file system is mounted: mount one (mount -t resctrl resctrl /sys/fs/resctrl), if this CPU and kernel have it")
    })
}

/// A membership that is undone when dropped, unless it is kept.
#[derive(Debug)]
pub(crate) struct Joined(Option<Membership>);

impl Joined {
    /// Makes what is to be made; no process is in it yet.
    pub(crate) fn prepare(rdt: &LinuxIntelRdt, id: &str) -> Result<Self, Error> {
        let root = mount()?;
        let named = rdt.clos_id().as_deref().filter(|class| !class.is_empty() && !class.contains('/'));
        let schemata = named.and_then(|class| fs::read_to_string(root.join(class).join("schemata")).ok());
        let decision = decide(rdt, id, schemata.as_deref())?;
        let class = root.join(&decision.class);
        let mut joined =
            Self(Some(Membership { class: class.clone(), owns_class: decision.owns_class, monitoring: None }));
        if decision.makes_class {
            make(&class)?;
        }
        for line in &decision.lines {
            write(&class.join("schemata"), &format!("{line}\n"))?;
        }
        if rdt.enable_monitoring() == &Some(true) {
            let group = class.join("mon_groups").join(id);
            make(&group)?;
            if let Some(membership) = &mut joined.0 {
                membership.monitoring = Some(group);
            }
        }
        Ok(joined)
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.0.as_ref()
    }

    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(membership) = self.0.take() {
            // The first error is the one that matters.
            let _left = membership.leave();
        }
    }
}

impl Membership {
    pub(crate) fn add(&self, pid: i32) -> Result<(), Error> {
        write(&self.class.join("tasks"), &pid.to_string())?;
        match &self.monitoring {
            Some(group) => write(&group.join("tasks"), &pid.to_string()),
            None => Ok(()),
        }
    }

    /// At the container's end.
    pub(crate) fn leave(&self) -> Result<(), Error> {
        let class = self.owns_class.then_some(&self.class);
        for dir in self.monitoring.iter().chain(class) {
            match fs::remove_dir(dir) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    return Err(Error::Write { path: dir.clone(), source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn make(dir: &Path) -> Result<(), Error> {
    fs::create_dir(dir).map_err(|source| Error::Write { path: dir.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, schemata: Option<&str>) -> Result<Decision, String> {
        let rdt: LinuxIntelRdt = serde_json::from_str(json).expect("intelRdt");
        decide(&rdt, "c1", schemata).map_err(|error| error.to_string())
    }

    #[test]
    fn classes_are_made_joined_or_refused_as_the_specification_says() {
        let own = check(r#"{"l3CacheSchema":"L3:0=f","memBwSchema":"MB:0=20","schemata":["L2:0=f"]}"#, None);
        let lines = ["L3:0=f", "MB:0=20", "L2:0=f"].map(str::to_owned).to_vec();
        assert_eq!(own, Ok(Decision { class: "c1".to_owned(), makes_class: true, owns_class: true, lines }));
        let named = |makes_class, lines: &[&str]| {
            let lines = lines.iter().map(|&line| line.to_owned()).collect();
            Ok(Decision { class: "gold".to_owned(), makes_class, owns_class: false, lines })
        };
        assert_eq!(check(r#"{"closID":"gold","schemata":["L3:0=f"]}"#, None), named(true, &["L3:0=f"]));
        assert_eq!(check(r#"{"closID":"gold"}"#, Some("L3:0=f\n")), named(false, &[]));
        let exists = r#"{"closID":"gold","l3CacheSchema":"L3:0=7F;1=1"}"#;
        assert_eq!(check(exists, Some("    L3:0=07f;1=001\n    MB:0=100\n")), named(false, &["L3:0=7F;1=1"]));
        assert_eq!(check(r#"{"closID":"/"}"#, None).map(|decision| decision.class), Ok(String::new()));
        for (json, schemata, words) in [
            (r#"{"closID":"gold"}"#, None, "no schema"),
            (exists, Some("L3:0=ff;1=1\n"), "do not hold"),
            (r#"{"closID":"../x"}"#, None, "closID"),
            (r#"{"closID":"info"}"#, None, "closID"),
            (r#"{"memBwSchema":"L3:0=f"}"#, None, "memBwSchema"),
            (r#"{"schemata":["L3:0=f\nMB:0=1"]}"#, None, "several lines"),
        ] {
            let error = check(json, schemata).expect_err(json);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn only_what_was_made_is_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let class = dir.path().join("gold");
        let group = class.join("mon");
        fs::create_dir_all(&group).expect("mkdir");
        let membership = Membership { class: class.clone(), owns_class: false, monitoring: Some(group.clone()) };
        membership.leave().expect("leave");
        membership.leave().expect("again");
        assert!(class.exists() && !group.exists());
        fs::write(class.join("tasks"), "").expect("write");
        Membership { monitoring: None, ..membership }.add(42).expect("add");
        assert_eq!(fs::read_to_string(class.join("tasks")).expect("read"), "42");
    }
}
