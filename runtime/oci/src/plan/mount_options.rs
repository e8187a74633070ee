//! A mount's options, sorted by what they are: attributes of the mount, flags of its superblock, our own words, and the file system's.

use nix::mount::MsFlags;
use runtime_linux::mount::attribute;

use super::steps::{Data, MountAttributes};

/// Options that are attributes of a mount: (name, set, clear). With `r` in front they reach everything below.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", attribute::RDONLY, 0),
    ("rw", 0, attribute::RDONLY),
    ("nosuid", attribute::NOSUID, 0),
    ("suid", 0, attribute::NOSUID),
    ("nodev", attribute::NODEV, 0),
    ("dev", 0, attribute::NODEV),
    ("noexec", attribute::NOEXEC, 0),
    ("exec", 0, attribute::NOEXEC),
    ("noatime", attribute::NOATIME, attribute::ATIME),
    ("relatime", 0, attribute::ATIME),
    ("strictatime", attribute::STRICTATIME, attribute::ATIME),
    ("atime", 0, attribute::ATIME),
    ("norelatime", 0, 0),
    ("nostrictatime", 0, attribute::ATIME),
    ("nodiratime", attribute::NODIRATIME, 0),
    ("diratime", 0, attribute::NODIRATIME),
    ("nosymfollow", attribute::NOSYMFOLLOW, 0),
    ("symfollow", 0, attribute::NOSYMFOLLOW),
];

/// Flags of the superblock, as fsconfig takes them.
const SUPERBLOCK: [&str; 7] = ["sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime"];

/// Flags that some file systems take, and the others can do nothing with.
const HINTS: [&str; 2] = ["iversion", "noiversion"];

/// What mount(8) reads for itself, from fstab or about its own words.
const MEANINGLESS: [&str; 9] = ["defaults", "auto", "noauto", "user", "nouser", "_netdev", "nofail", "loud", "silent"];

/// What is done here, and never reaches the kernel as an option.
const OWN: [&str; 9] =
    ["bind", "rbind", "idmap", "ridmap", "tmpcopyup", "remount", "copy-symlink", "src-nofollow", "dest-nofollow"];

const PROPAGATIONS: [(&str, MsFlags); 4] = [
    ("shared", MsFlags::MS_SHARED),
    ("slave", MsFlags::MS_SLAVE),
    ("private", MsFlags::MS_PRIVATE),
    ("unbindable", MsFlags::MS_UNBINDABLE),
];

/// Every option that is not a file system's own, sorted; what `features` prints.
pub fn mount_option_names() -> Vec<String> {
    let both = ATTRIBUTES.iter().map(|(name, _, _)| *name).chain(PROPAGATIONS.iter().map(|(name, _)| *name));
    let mut names: Vec<String> = both.flat_map(|name| [name.to_owned(), format!("r{name}")]).collect();
    let single = SUPERBLOCK.iter().chain(&HINTS).chain(&MEANINGLESS).chain(&OWN);
    names.extend(single.map(|name| (*name).to_owned()));
    names.sort();
    names
}

pub(super) fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let (_, flag) = PROPAGATIONS.iter().find(|(known, _)| *known == name)?;
    Some((flag.bits(), recursive))
}

/// A mount's options, sorted by what they are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub attributes: MountAttributes,
    /// One of them at least is about the mount itself.
    pub has_attributes: bool,
    pub data: Vec<Data>,
    /// `Some(true)` for rbind.
    pub bind: Option<bool>,
    /// `Some(true)` for ridmap.
    pub idmap: Option<bool>,
    pub copy_up: bool,
    pub remount: bool,
    /// A source that is a symlink becomes the same symlink in the container.
    pub copy_symlink: bool,
    pub source_nofollow: bool,
    pub destination_nofollow: bool,
}

impl Options {
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.take(option);
        }
        parsed
    }

    fn take(&mut self, option: &str) {
        match option {
            "bind" => self.bind = self.bind.or(Some(false)),
            "rbind" => self.bind = Some(true),
            "idmap" => self.idmap = self.idmap.or(Some(false)),
            "ridmap" => self.idmap = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "remount" => self.remount = true,
            "copy-symlink" => self.copy_symlink = true,
            "src-nofollow" => self.source_nofollow = true,
            "dest-nofollow" => self.destination_nofollow = true,
            "" => {}
            _ if MEANINGLESS.contains(&option) => {}
            _ if HINTS.contains(&option) => self.data.push(Data::Hint(option.to_owned())),
            _ if SUPERBLOCK.contains(&option) => self.data.push(Data::Flag(option.to_owned())),
            _ => self.take_attribute(option),
        }
    }

    fn take_attribute(&mut self, option: &str) {
        if let Some(propagation) = propagation(option) {
            self.attributes.propagation.push(propagation);
            return;
        }
        let find = |name: &str| ATTRIBUTES.iter().find(|(known, _, _)| *known == name).copied();
        let attributes = &mut self.attributes;
        if let Some((_, set, clear)) = find(option) {
            (attributes.set, attributes.clear) = apply(attributes.set, attributes.clear, set, clear);
            self.has_attributes = true;
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(find) {
            (attributes.recursive_set, attributes.recursive_clear) =
                apply(attributes.recursive_set, attributes.recursive_clear, set, clear);
        } else {
            self.data.push(match option.split_once('=') {
                Some((key, value)) => Data::Value(key.to_owned(), value.to_owned()),
                None => Data::Flag(option.to_owned()),
            });
        }
    }
}

/// The last of two options that contradict each other holds.
fn apply(old_set: u64, old_clear: u64, set: u64, clear: u64) -> (u64, u64) {
    ((old_set & !clear) | set, (old_clear & !set) | clear)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_sorted_by_what_they_are() {
        let options = parse(&["rbind", "ro", "nosuid", "rro", "rprivate", "size=64k", "noatime", "strictatime", "rw"]);
        assert_eq!((options.bind, options.has_attributes), (Some(true), true));
        assert!(!parse(&["rbind", "rro", "rprivate", "idmap"]).has_attributes);
        assert_eq!(options.attributes.set, attribute::NOSUID | attribute::STRICTATIME);
        assert_eq!(options.attributes.clear, attribute::RDONLY | attribute::ATIME);
        assert_eq!(options.attributes.recursive_set, attribute::RDONLY);
        assert_eq!(options.attributes.propagation, [(MsFlags::MS_PRIVATE.bits(), true)]);
        assert_eq!(options.data, [Data::Value("size".to_owned(), "64k".to_owned())]);
    }

    /// runtime-spec 1.3, "Linux mount options".
    #[test]
    fn every_option_of_the_specification_is_known() {
        let all = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec \
            noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime relatime \
            remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw \
            rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid symfollow sync \
            tmpcopyup unbindable idmap ridmap rnodev";
        let names = mount_option_names();
        for option in all.split_ascii_whitespace() {
            assert!(names.iter().any(|name| name == option), "{option}");
            let unknown = parse(&[option]).data.iter().any(|data| *data == Data::Flag(option.to_owned()));
            assert!(!unknown || SUPERBLOCK.contains(&option), "{option} would reach the file system");
        }
    }
}
