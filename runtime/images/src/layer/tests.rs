//! Archives, good and hostile, through `unpack` and `settle`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;

fn raw_header(kind: EntryType, path: &str, link: &str, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    header
}

/// Writes names as they are, which `tar::Builder` alone refuses to.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }
    fn entry(mut self, kind: EntryType, path: &str, link: &str, mode: u32) -> Self {
        self.0.append(&raw_header(kind, path, link, mode, 0), &[][..]).unwrap();
        self
    }
    fn file(mut self, path: &str, text: &str) -> Self {
        let header = raw_header(EntryType::Regular, path, "", 0o644, text.len() as u64);
        self.0.append(&header, text.as_bytes()).unwrap();
        self
    }
    fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, "", mode)
    }
    fn symlink(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, path, to, 0o777)
    }
    fn link(self, path: &str, to: &str) -> Self {
        self.entry(EntryType::Link, path, to, 0o644)
    }
    fn pax(mut self, pairs: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(pairs.iter().copied()).unwrap();
        self
    }
    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
    fn unpack(self) -> Result<Layer, Error> {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("layer");
        fs::create_dir(&root).unwrap();
        let done = unpack(&self.bytes()[..], &root)?;
        Ok(Layer { root, done, _dir: dir })
    }
}

struct Layer {
    root: PathBuf,
    done: Unpacked,
    _dir: TempDir,
}

impl Layer {
    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }
    fn is_whiteout(&self, path: &str) -> bool {
        let meta = fs::symlink_metadata(self.root.join(path)).unwrap();
        meta.file_type().is_char_device() && meta.rdev() == 0
    }
    fn is_opaque(&self, path: &str) -> bool {
        xattr::get(self.root.join(path), unpack::OPAQUE_XATTR).unwrap().as_deref() == Some(b"y")
    }
    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.root.join(path)).unwrap().permissions().mode() & 0o7777
    }
}

#[test]
fn kinds_of_entries() {
    let mut layer =
        Archive::new().dir("./", 0o750).dir("d", 0o1777).file("d/f", "text").symlink("s", "d/f").link("h", "d/f");
    let mut suid = raw_header(EntryType::Regular, "suid", "", 0o4755, 1);
    suid.set_uid(12);
    suid.set_gid(34);
    suid.set_cksum();
    layer.0.append(&suid, &b"x"[..]).unwrap();
    let mut device = raw_header(EntryType::Char, "null", "", 0o666, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_cksum();
    layer.0.append(&device, &[][..]).unwrap();
    let layer = layer.entry(EntryType::Fifo, "fifo", "", 0o600).unpack().unwrap();

    assert_eq!(layer.mode(""), 0o750);
    assert_eq!(layer.mode("d"), 0o1777);
    assert_eq!(layer.text("s"), "text");
    let (file, hard) = (fs::metadata(layer.root.join("d/f")).unwrap(), fs::metadata(layer.root.join("h")).unwrap());
    assert_eq!((file.ino(), file.nlink(), file.mtime()), (hard.ino(), 2, 1_000_000_000));
    let suid = fs::metadata(layer.root.join("suid")).unwrap();
    assert_eq!((suid.uid(), suid.gid(), suid.mode() & 0o7777), (12, 34, 0o4755));
    assert_eq!(fs::metadata(layer.root.join("null")).unwrap().rdev(), nix::sys::stat::makedev(1, 3));
    assert!(fs::metadata(layer.root.join("fifo")).unwrap().file_type().is_fifo());
    // A directory's time is set after what lies in it was written.
    assert_eq!(fs::metadata(layer.root.join("d")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::symlink_metadata(layer.root.join("s")).unwrap().mtime(), 1_000_000_000);
    assert!(layer.done.inodes == 6 && layer.done.implicit.is_empty());
}

#[test]
fn whiteouts() {
    let layer = Archive::new()
        .file("a/.wh.gone", "")
        .file("b/.wh..wh..opq", "")
        .file("b/new", "n")
        .file("c", "mine")
        .file(".wh.c", "")
        .dir("d", 0o755)
        .file(".wh.d", "")
        .file(".wh.e", "")
        .dir("e", 0o755)
        .file(".wh.f", "")
        .file("f", "back")
        .file(".wh..wh.plnk", "")
        .unpack()
        .unwrap();
    assert!(layer.is_whiteout("a/gone"));
    assert!(layer.is_opaque("b") && layer.text("b/new") == "n");
    assert_eq!(layer.text("c"), "mine");
    assert!(layer.is_opaque("d") && layer.is_opaque("e"));
    assert_eq!(layer.text("f"), "back");
    assert!(!layer.root.join(".wh..wh.plnk").exists());
    for bad in [".wh.", ".wh..", ".wh..."] {
        assert!(matches!(Archive::new().file(bad, "").unpack(), Err(Error::Entry { .. })), "{bad}");
    }
}

#[test]
fn pax_records() {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let layer = Archive::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"70000"),
            ("gid", b"80000"),
            ("mtime", b"1234567890.5"),
            ("SCHILY.xattr.user.note", b"kept"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ])
        .file("short", "x")
        .unpack()
        .unwrap();
    let path = layer.root.join(&long);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), (70000, 80000, 1_234_567_890, 500_000_000));
    assert_eq!(xattr::get(&path, "user.note").unwrap().unwrap(), b"kept");
    assert_eq!(xattr::get(&path, "trusted.overlay.redirect").unwrap(), None);
    assert!(xattr::get(&path, "security.capability").unwrap().is_some());
    let sparse = Archive::new().pax(&[("GNU.sparse.major", b"1")]).file("s", "x").unpack();
    assert!(matches!(sparse, Err(Error::Entry { .. })));
}

#[test]
fn nothing_leaves_the_layer() {
    let outside = TempDir::new().unwrap();
    let target = outside.path().to_str().unwrap();
    let layer = Archive::new().symlink("out", target).file("out/file", "inside").unpack().unwrap();
    assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
    assert_eq!(fs::read_to_string(layer.root.join(&target[1..]).join("file")).unwrap(), "inside");

    let layer = Archive::new().symlink("up", "../../..").file("up/file", "inside").unpack().unwrap();
    assert_eq!(layer.text("file"), "inside");

    // Through an absolute link, the name must be looked up inside too; there it is a link to a file of no layer.
    let linked = Archive::new().symlink("etc", "/etc").link("stolen", "etc/passwd").unpack().unwrap();
    assert!(!linked.root.join("stolen").exists());
    assert_eq!(linked.done.links.len(), 1);
    // Over a symbolic link, not through it.
    let victim = outside.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let layer = Archive::new().symlink("v", victim.to_str().unwrap()).file("v", "new").unpack().unwrap();
    assert_eq!((layer.text("v").as_str(), fs::read_to_string(&victim).unwrap().as_str()), ("new", "safe"));

    for bad in ["../x", "a/../../x", "/../x", ".."] {
        let refused = Archive::new().file(bad, "x").unpack();
        assert!(matches!(refused, Err(Error::Entry { .. })), "{bad}");
        let refused = Archive::new().file("ok", "x").link("l", bad).unpack();
        assert!(matches!(refused, Err(Error::Entry { .. })), "link to {bad}");
    }
}

#[test]
fn later_entries_win() {
    let layer = Archive::new()
        .dir("x/y", 0o755)
        .file("x/y/z", "1")
        .file("x", "now a file")
        .file("f", "1")
        .dir("f", 0o700)
        .file("f/g", "2")
        .symlink("l", "f")
        .dir("l", 0o711)
        .file("l/own", "3")
        .unpack()
        .unwrap();
    assert_eq!(layer.text("x"), "now a file");
    assert_eq!((layer.text("f/g").as_str(), layer.mode("f")), ("2", 0o700));
    assert_eq!((layer.text("l/own").as_str(), layer.mode("l")), ("3", 0o711));
    assert!(!layer.root.join("f/own").exists());
}

#[test]
fn a_cut_archive_is_an_error() {
    let bytes = Archive::new().file("a", &"x".repeat(3000)).bytes();
    let dir = TempDir::new().unwrap();
    assert!(matches!(unpack(&bytes[..1500], dir.path()), Err(Error::Read { .. })));
}

#[test]
fn settling_borrows_from_below() {
    let bottom = Archive::new().dir("./", 0o711).dir("tmp", 0o1777).file("bin/tool", "tool").unpack().unwrap();
    let middle = Archive::new().file("tmp/unrelated", "").unpack().unwrap();
    let below = [middle.root.clone(), bottom.root.clone()];
    let mut top = Archive::new().file("tmp/mine", "m").file("fresh/f", "").link("alias", "bin/tool").unpack().unwrap();
    assert_eq!((top.mode("tmp"), top.done.links.len()), (0o755, 1));
    // As the store does: each layer is settled before the one above it.
    let mut middle_done = middle.done;
    settle(&mut middle_done, &middle.root, &below[1..]).unwrap();
    settle(&mut top.done, &top.root, &below).unwrap();
    assert_eq!((top.mode("tmp"), top.mode("fresh"), top.mode("")), (0o1777, 0o755, 0o711));
    assert_eq!(top.text("alias"), "tool");

    let mut lost = Archive::new().link("alias", "no/such").unpack().unwrap();
    let error = settle(&mut lost.done, &lost.root, &below).unwrap_err();
    assert!(error.to_string().contains("alias"), "{error}");
}

#[derive(Clone, Debug)]
struct Hostile {
    kind: u8,
    path: String,
    link: String,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let name =
        prop::sample::select(vec!["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh...", "canary", "outside"]);
    let path = prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"));
    let link = prop_oneof![
        path.clone(),
        path.clone().prop_map(|p| format!("/{p}")),
        Just("../..".to_owned()),
        Just("/".to_owned())
    ];
    (0..6u8, path, link).prop_map(|(kind, path, link)| Hostile { kind, path, link })
}

fn photograph(dir: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>)> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() == "layer" {
            continue;
        }
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        let content = if meta.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
        seen.insert(entry.file_name().as_bytes().to_owned(), (meta.mode(), content));
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn hostile_archives_stay_inside(entries in prop::collection::vec(hostile(), 1..12)) {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("layer");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        let before = photograph(dir.path());
        let mut archive = Archive::new();
        for entry in &entries {
            archive = match entry.kind {
                0 | 1 => archive.file(&entry.path, "data"),
                2 => archive.dir(&entry.path, 0o700),
                3 => archive.symlink(&entry.path, &entry.link),
                4 => archive.link(&entry.path, &entry.link),
                _ => archive.entry(EntryType::Fifo, &entry.path, "", 0o600),
            };
        }
        if let Ok(mut done) = unpack(&archive.bytes()[..], &root) {
            let _ = settle(&mut done, &root, &[]);
        }
        prop_assert_eq!(photograph(dir.path()), before);
        prop_assert!(fs::read_dir(dir.path().join("outside")).unwrap().next().is_none());
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let dir = TempDir::new().unwrap();
        let _ = unpack(&bytes[..], dir.path());
    }
}

/// A header that says it is followed by `size` bytes, as a GNU long name, PAX records or the like.
fn special(kind: EntryType, size: u64) -> Vec<u8> {
    let mut bytes = raw_header(kind, "././@LongLink", "", 0o644, size).as_bytes().to_vec();
    bytes.resize(bytes.len() + usize::try_from(size).unwrap().next_multiple_of(512), b'a');
    bytes
}

#[test]
fn headers_of_an_entry_are_bounded_whatever_they_say_of_themselves() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let dir = TempDir::new().unwrap();
        let bytes = [special(kind, HEADER_BYTES_MAX + 1), Archive::new().file("f", "x").bytes()].concat();
        let error = unpack(&bytes[..], dir.path()).unwrap_err();
        assert!(format!("{error:?}").contains("headers of one entry"), "{kind:?}: {error:?}");
        // One that promises more than there is takes no memory either.
        let short = &bytes[..1024];
        assert!(matches!(unpack(short, dir.path()), Err(Error::Read { .. })), "{kind:?}");
    }
}

#[test]
fn data_of_entries_does_not_count_as_headers() {
    let dir = TempDir::new().unwrap();
    let text = "x".repeat(usize::try_from(HEADER_BYTES_MAX).unwrap() + 1);
    let bytes = Archive::new().file("large", &text).file("small", "y").bytes();
    unpack(&bytes[..], dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("small")).unwrap(), b"y");
}

#[test]
fn a_name_that_no_program_could_open_is_refused_and_cut_in_the_message() {
    let long = [b"a/".repeat(200_000), b"f".to_vec()].concat();
    let mut bytes =
        raw_header(EntryType::GNULongName, "././@LongLink", "", 0o644, long.len() as u64).as_bytes().to_vec();
    bytes.extend_from_slice(&long);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(Archive::new().file("f", "x").bytes());
    let dir = TempDir::new().unwrap();
    let error = unpack(&bytes[..], dir.path()).unwrap_err();
    assert!(matches!(error, Error::Entry { .. }), "{error:?}");
    assert!(error.to_string().len() < 1000, "{} bytes of message", error.to_string().len());
}

#[test]
fn directories_without_an_entry_are_for_every_user_whatever_the_umask() {
    let layer = Archive::new().file("a/b/f", "x").unpack().unwrap();
    for path in ["a", "a/b"] {
        assert_eq!(fs::metadata(layer.root.join(path)).unwrap().permissions().mode() & 0o7777, 0o755, "{path}");
    }
}

#[test]
fn paths_as_deep_as_they_may_be_need_no_deep_stack_links_or_not() {
    let deep = ["d"; 2040].join("/");
    let mut archive = Archive::new().pax(&[("path", format!("{deep}/f").as_bytes())]).file("f", "x");
    // Each link leads to a long way that is not there yet, and on to the next link.
    for number in 0..30 {
        let target = format!("{}/l{}", ["t"; 1000].join("/"), number + 1);
        archive = archive.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{number}"), "x");
    }
    let bytes = archive.file("l0/f", "x").bytes();
    let dir = TempDir::new().unwrap();
    let root = dir.path().to_owned();
    let work = move || unpack(&bytes[..], &root).map(drop).map_err(|error| error.to_string());
    let unpacked = std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().expect("no overflow");
    // The ways grow beyond what a path may be; that is an error, and no more.
    assert!(unpacked.is_ok() || unpacked.is_err_and(|error| error.len() < 1000));
    runtime_linux::tree::remove(dir.path()).unwrap();
    fs::create_dir(dir.path()).unwrap();
}
