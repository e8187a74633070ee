//! Devices: what of the host's `/dev` a container gets, as nodes and as cgroup rules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use runtime_cri_api::v1::Device;

use super::SpecError;

/// Never handed out as devices: the container has its own of these.
const OWN: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", "ptmx", "stdin", "core"];

/// Deepest directory below `/dev` that is walked.
const DEPTH_MAX: usize = 6;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostDevice {
    pub(crate) path: PathBuf,
    pub(crate) kind: LinuxDeviceType,
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) access: String,
}

/// The devices a configuration names (a directory stands for all within), or all of the host's.
pub(crate) fn find(wanted: &[Device], privileged: bool) -> Result<Vec<HostDevice>, SpecError> {
    let mut found = Vec::new();
    if privileged {
        walk(Path::new("/dev"), Path::new("/dev"), "rwm", DEPTH_MAX, &mut found)?;
    }
    for device in wanted {
        let access = if device.permissions.is_empty() { "rwm" } else { device.permissions.as_str() };
        if !access.chars().all(|letter| "rwm".contains(letter)) {
            return Err(SpecError::field("devices.permissions", format!("{access:?} has other letters than r, w, m")));
        }
        let host = Path::new(&device.host_path);
        let inside = if device.container_path.is_empty() { host } else { Path::new(&device.container_path) };
        let failed = |source| SpecError::Device { path: host.to_owned(), source };
        // A name such as /dev/disk/by-id/... stands for the device it points to.
        let resolved = fs::canonicalize(host).map_err(failed)?;
        if resolved.is_dir() {
            walk(&resolved, inside, access, DEPTH_MAX, &mut found)?;
        } else {
            let metadata = fs::metadata(&resolved).map_err(failed)?;
            let device = describe(inside, &metadata, access)
                .ok_or_else(|| SpecError::field("devices.host_path", format!("{} is not a device", host.display())))?;
            found.push(device);
        }
    }
    // The one named last wins a path.
    let mut paths = BTreeSet::new();
    found.reverse();
    found.retain(|device| paths.insert(device.path.clone()));
    found.reverse();
    Ok(found)
}

fn walk(host: &Path, inside: &Path, access: &str, depth: usize, found: &mut Vec<HostDevice>) -> Result<(), SpecError> {
    let failed = |source| SpecError::Device { path: host.to_owned(), source };
    for entry in fs::read_dir(host).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        // A device that vanishes while we look is no error.
        let Ok(metadata) = entry.metadata() else { continue };
        if host == Path::new("/dev") && OWN.iter().any(|own| name == *own) {
            continue;
        }
        if metadata.is_dir() && depth > 0 {
            walk(&entry.path(), &inside.join(&name), access, depth - 1, found)?;
        } else if let Some(device) = describe(&inside.join(&name), &metadata, access) {
            found.push(device);
        }
    }
    Ok(())
}

fn describe(path: &Path, metadata: &fs::Metadata, access: &str) -> Option<HostDevice> {
    let kind = if metadata.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if metadata.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        return None;
    };
    Some(HostDevice {
        path: path.to_owned(),
        kind,
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

impl HostDevice {
    pub(crate) fn node(&self) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device
            .set_path(self.path.clone())
            .set_typ(self.kind)
            .set_major(signed(self.major))
            .set_minor(signed(self.minor))
            .set_file_mode(Some(self.mode))
            .set_uid(Some(self.uid))
            .set_gid(Some(self.gid));
        device
    }
}

/// Nothing, then what is handed out; the runtime adds the default devices. A privileged container may use everything.
pub(crate) fn rules(devices: &[HostDevice], privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let mut everything = LinuxDeviceCgroup::default();
    everything.set_allow(privileged).set_access(Some("rwm".into()));
    let mut rules = vec![everything];
    if !privileged {
        rules.extend(devices.iter().map(|device| {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(device.kind))
                .set_major(Some(signed(device.major)))
                .set_minor(Some(signed(device.minor)))
                .set_access(Some(device.access.clone()));
            rule
        }));
    }
    rules
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_devices() {
        let device = |host: &str, inside: &str, permissions: &str| Device {
            host_path: host.into(),
            container_path: inside.into(),
            permissions: permissions.into(),
        };
        let found = find(&[device("/dev/null", "/dev/void", "rw")], false).unwrap();
        assert_eq!((found[0].major, found[0].minor, found[0].access.as_str()), (1, 3, "rw"));
        assert_eq!(found[0].path, Path::new("/dev/void"));
        assert_eq!(rules(&found, false).len(), 2);
        assert!(matches!(find(&[device("/no/such", "", "")], false), Err(SpecError::Device { .. })));
        assert!(find(&[device("/etc/passwd", "", "")], false).is_err());
        assert!(find(&[device("/dev/null", "", "rwx")], false).is_err());
        let all = find(&[], true).unwrap();
        assert!(all.iter().any(|device| device.path == Path::new("/dev/null")));
        assert!(!all.iter().any(|device| device.path.starts_with("/dev/pts")));
    }
}
