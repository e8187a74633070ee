//! `slice:prefix:name` as a unit, and where its cgroup is. Pure.

use crate::error::Error;
use crate::plan::invalid;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub slice: String,
    pub unit: String,
}

impl Names {
    /// Without a path: a scope of the id in the default slice.
    pub(crate) fn parse(path: Option<&str>, id: &str, is_root: bool) -> Result<Self, Error> {
        let wrong = |reason: &str| Err(invalid("linux.cgroupsPath", reason));
        let default = if is_root { "system.slice" } else { "user.slice" };
        let (slice, prefix, name) = match path {
            None => ("", "sampan", id),
            Some(path) => {
                let parts: Vec<&str> = path.split(':').collect();
                let [slice, prefix, name] = parts[..] else {
                    return wrong("is not slice:prefix:name, which --systemd-cgroup needs, as system.slice:sampan:c1");
                };
                (slice, prefix, name)
            }
        };
        let slice = if slice.is_empty() { default } else { slice };
        if name.is_empty() || [slice, prefix, name].iter().any(|part| part.contains('/')) {
            return wrong("as slice:prefix:name needs a name, and has no slash");
        }
        if slice != "-.slice" && (!slice.ends_with(".slice") || slice.starts_with('-') || slice.contains("--")) {
            return wrong("names a slice that systemd would not take: system.slice or machine-a.slice are some");
        }
        let unit = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        };
        Ok(Self { slice: slice.to_owned(), unit })
    }

    /// systemd.slice(5): `a-b.slice` lies in `a.slice`.
    pub(crate) fn cgroup(&self, above: &str) -> String {
        let mut path = above.trim_end_matches('/').to_owned();
        let stem = self.slice.trim_end_matches(".slice");
        if stem != "-" {
            for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
                path.push_str(&format!("/{}.slice", &stem[..end]));
            }
        }
        format!("{path}/{}", self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_units() {
        for (path, unit, cgroup) in [
            (Some("system.slice:runc:c1"), "runc-c1.scope", "/system.slice/runc-c1.scope"),
            (
                Some("machine-a-b.slice:x:c1"),
                "x-c1.scope",
                "/machine.slice/machine-a.slice/machine-a-b.slice/x-c1.scope",
            ),
            (Some("::c1"), "c1.scope", "/system.slice/c1.scope"),
            (Some("-.slice:x:c1"), "x-c1.scope", "/x-c1.scope"),
            (Some("a.slice:x:a-b.slice"), "a-b.slice", "/a.slice/a-b.slice"),
            (None, "sampan-id.scope", "/system.slice/sampan-id.scope"),
        ] {
            let names = Names::parse(path, "id", true).expect("names");
            assert_eq!((names.unit.as_str(), names.cgroup("").as_str()), (unit, cgroup), "{path:?}");
        }
        for bad in ["/a/b", "a:b", "a.slice:b:", "a/b.slice:c:d", "a:b:c", "a--b.slice:c:d", "a:b:c:d"] {
            assert!(Names::parse(Some(bad), "id", true).is_err(), "{bad}");
        }
        let names = Names::parse(None, "id", false).expect("names");
        assert_eq!(names.cgroup("/user.slice/user@1.service"), "/user.slice/user@1.service/user.slice/sampan-id.scope");
    }
}
