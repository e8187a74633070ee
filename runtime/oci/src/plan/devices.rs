//! The steps that fill /dev: default devices, the configuration's own, the usual symlinks, the terminal.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxNamespaceType, Spec};

use super::mounts::clean;
use super::steps::{DeviceNode, MountStep, Step};
use super::{Plan, Source, invalid};
use crate::error::Error;

/// runtime-spec 1.3, "Default Devices"; /dev/console and /dev/ptmx are made otherwise.
const DEFAULT: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Where every container has a node.
pub(crate) fn default_device_paths() -> impl Iterator<Item = &'static str> {
    DEFAULT.iter().map(|(path, ..)| *path)
}

/// runtime-spec 1.3, "Dev symbolic links", and the terminal multiplexer of the container's own devpts.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

const MODE: u32 = 0o666;

impl Plan {
    pub(super) fn devices(&mut self, spec: &Spec, linux: &Linux) -> Result<(), Error> {
        // A /dev that is bound from the host has its devices, and is not ours to change.
        let bound = self.setup.iter().any(|step| match step {
            Step::Mount { destination, mount: MountStep::Bind(_), .. } => destination == Path::new("/dev"),
            _ => false,
        });
        if !bound {
            self.nodes(linux)?;
            for (path, target) in LINKS {
                self.setup.push(Step::Link(path.into(), target.into()));
            }
        }
        if let Some(process) = spec.process().as_ref().filter(|process| process.terminal() == Some(true)) {
            let size = process.console_size();
            let cells = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
            let (columns, rows) = size.map_or((0, 0), |size| (cells(size.width()), cells(size.height())));
            self.setup.push(Step::Console { bind: !bound, columns, rows });
        }
        Ok(())
    }

    fn nodes(&mut self, linux: &Linux) -> Result<(), Error> {
        let mut nodes: Vec<DeviceNode> = Vec::new();
        for (path, major, minor) in DEFAULT {
            nodes.push(DeviceNode {
                path: path.into(),
                letter: 'c',
                major,
                minor,
                mode: MODE,
                uid: 0,
                gid: 0,
                is_default: true,
                bind: None,
            });
        }
        for device in linux.devices().iter().flatten() {
            let field = format!("linux.devices.{}", device.path().display());
            let number =
                |number: i64| u64::try_from(number).map_err(|_| invalid(&field, "a device number is negative"));
            let path = clean(device.path());
            let letter = match device.typ() {
                LinuxDeviceType::B => 'b',
                LinuxDeviceType::C | LinuxDeviceType::U => 'c',
                LinuxDeviceType::P => 'p',
                LinuxDeviceType::A => return Err(invalid(&field, "type a is for rules, not for nodes")),
            };
            let is_fifo = letter == 'p';
            let node = DeviceNode {
                letter,
                major: if is_fifo { 0 } else { number(device.major())? },
                minor: if is_fifo { 0 } else { number(device.minor())? },
                mode: device.file_mode().unwrap_or(MODE) & 0o7777,
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
                is_default: false,
                bind: None,
                path,
            };
            // The configuration's own node replaces a default one.
            nodes.retain(|known| known.path != node.path);
            nodes.push(node);
        }
        let unprivileged = self.namespaces.has(LinuxNamespaceType::User);
        for mut node in nodes {
            if unprivileged && node.letter != 'p' {
                node.bind = Some(self.source(Source::below(&node.path, false)));
            }
            self.setup.push(Step::Device(node));
        }
        Ok(())
    }
}
