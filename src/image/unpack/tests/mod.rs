//! The applier against the real kernel, as root, in temporary directories.

mod compare;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

/// An archive written header by header, so that it can say what no tool would.
#[derive(Default, Clone)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        change: impl FnOnce(&mut tar::Header),
        body: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_size(body.len() as u64);
        header.set_mtime(1_000_000_000);
        header.as_old_mut().linkflag = [kind];
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn entry(self, kind: u8, path: &str, link: &str) -> Self {
        self.raw(kind, path.as_bytes(), link.as_bytes(), |_| (), b"")
    }

    fn file(self, path: &str, body: &str) -> Self {
        self.raw(b'0', path.as_bytes(), b"", |_| (), body.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target)
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target)
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let payload = key.len() + value.len() + 3;
            let len = (payload..).find(|len| len.to_string().len() + payload == *len).unwrap();
            body.extend_from_slice(format!("{len} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", |_| (), &body)
    }

    fn end(&self) -> Vec<u8> {
        [&self.0[..], &[0; 1024]].concat()
    }
}

/// A directory to unpack into, with a neighbour that nothing may touch.
struct Place {
    temporary: tempfile::TempDir,
    root: PathBuf,
}

fn place() -> Place {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(temporary.path().join("outside"), "untouched").unwrap();
    Place { temporary, root }
}

impl Place {
    fn apply(&self, tar: &Tar) -> Result<Usage> {
        let manifest = tempfile::NamedTempFile::new().unwrap();
        let result = apply(&tar.end()[..], &self.root, Some(manifest.path()), Limits::default());
        if result.is_ok() {
            assert_eq!(
                verify(&self.root, manifest.path(), 10).unwrap(),
                Vec::<String>::new(),
                "by its manifest"
            );
        }
        assert_eq!(fs::read_dir(self.temporary.path()).unwrap().count(), 2, "something was made outside");
        assert_eq!(fs::read_to_string(self.temporary.path().join("outside")).unwrap(), "untouched");
        result.map(|applied| applied.usage)
    }

    fn refused(tar: &Tar) -> String {
        let error = place().apply(tar).unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::InvalidArgument, "{error:?}");
        error.message
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }

    fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root.join(path)).unwrap()
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let stat = self.stat(path);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let len = rustix::fs::lgetxattr(self.root.join(path), name, value.as_mut_slice()).ok()?;
        value.truncate(len);
        Some(value)
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

#[test]
fn all_kinds_of_files_get_their_metadata() {
    let place = place();
    let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .raw(b'5', b"./", b"", |h| h.set_mode(0o750), b"")
        .raw(b'5', b"d/", b"", |h| (h.set_mode(0o1777), h.set_mtime(5), h.set_uid(3)).0, b"")
        .raw(b'0', b"d/suid", b"", |h| (h.set_mode(0o6755), h.set_uid(1), h.set_gid(2)).0, b"body")
        .pax(&[
            ("uid", b"3000000000"),
            ("gid", b"4294967294"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.k", b"a\0b"),
        ])
        .file("pax", "x")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("capable", "x")
        .symlink("link", "../../../etc/passwd")
        .hard_link("hard", "d/suid")
        .entry(b'6', "fifo", "")
        .raw(
            b'3',
            b"null",
            b"",
            |h| (h.set_device_major(1).unwrap(), h.set_device_minor(3).unwrap(), h.set_mode(0o666)).2,
            b"",
        )
        .raw(
            b'4',
            b"loop",
            b"",
            |h| (h.set_device_major(7).unwrap(), h.set_device_minor(300).unwrap()).1,
            b"",
        );
    let usage = place.apply(&tar).unwrap();
    assert_eq!(usage.inodes, 9);
    assert_eq!(place.stat("").permissions().mode() & 0o7777, 0o750);
    let directory = place.stat("d");
    assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.mtime()), (0o1777, 3, 5));
    let suid = place.stat("d/suid");
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid(), suid.nlink()), (0o6755, 1, 2, 2));
    assert_eq!((suid.mtime(), suid.ino()), (1_000_000_000, place.stat("hard").ino()));
    assert_eq!(place.read("hard"), "body");
    let pax = place.stat("pax");
    assert_eq!(
        (pax.uid(), pax.gid(), pax.mtime(), pax.mtime_nsec()),
        (3_000_000_000, 4_294_967_294, -2, 500_000_000)
    );
    assert_eq!(place.xattr("capable", "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(fs::read_link(place.root.join("link")).unwrap(), Path::new("../../../etc/passwd"));
    assert!(place.stat("fifo").file_type().is_fifo());
    let null = place.stat("null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o666));
    let block = place.stat("loop");
    assert!(block.file_type().is_block_device() && block.rdev() == rustix::fs::makedev(7, 300));
}

#[test]
fn names_that_lead_out_are_refused() {
    for path in ["../outside", "a/../../outside", "..", "/../outside", "a/.."] {
        for kind in [b'0', b'5', b'2', b'6'] {
            let message = Place::refused(&Tar::default().entry(kind, path, "x"));
            assert!(message.contains("\"..\""), "{message}");
        }
        assert!(Place::refused(&Tar::default().file("a", "").hard_link("b", path)).contains("\"..\""));
    }
}

#[test]
fn absolute_names_begin_at_the_layers_root() {
    let place = place();
    let absolute = format!("{}/x", place.temporary.path().display());
    place
        .apply(&Tar::default().file("/etc/passwd", "ours").file("//a//./b", "1").file(&absolute, "in"))
        .unwrap();
    assert_eq!(place.read("etc/passwd"), "ours");
    assert_eq!(place.read("a/b"), "1");
    assert_eq!(place.read(absolute.trim_start_matches('/')), "in");
    assert_eq!(place.stat("a").permissions().mode() & 0o7777, 0o755);
}

#[test]
fn symlinks_of_the_archive_do_not_lead_out() {
    let place = place();
    let outside = place.temporary.path().to_str().unwrap().to_owned();
    let inside = outside.trim_start_matches('/');
    // The link's target, seen from the layer's root, is a directory of the layer.
    let tar = Tar::default()
        .dir(inside)
        .symlink("out", &outside)
        .file("out/outside", "inside")
        .symlink("up", "../../..");
    place.apply(&tar.file("up/escaped", "x")).unwrap();
    assert_eq!(place.read(&format!("{inside}/outside")), "inside");
    assert_eq!(place.read("escaped"), "x");
}

#[test]
fn dangling_and_magic_links_are_no_parents() {
    for target in ["/nowhere", "/proc/self/root", "loop"] {
        let error = place().apply(&Tar::default().symlink("loop", target).file("loop/x", "")).unwrap_err();
        assert!(error.message.contains("loop/x"), "{error}");
    }
}

#[test]
fn a_symlink_is_replaced_not_followed() {
    let place = place();
    let outside = place.temporary.path().join("outside");
    let outside = outside.to_str().unwrap();
    let tar = Tar::default()
        .file("t", "target")
        .symlink("a", "t")
        .file("a", "new")
        .symlink("b", outside)
        .file("b", "new");
    place.apply(&tar.symlink("c", outside).dir("c").symlink("d", outside).entry(b'6', "d", "")).unwrap();
    assert_eq!(
        (place.read("t"), place.read("a"), place.read("b")),
        ("target".into(), "new".into(), "new".into())
    );
    assert!(place.stat("a").is_file() && place.stat("c").is_dir() && place.stat("d").file_type().is_fifo());
}

#[test]
fn a_parent_swapped_for_a_symlink_does_not_lead_out() {
    let place = place();
    let outside = place.temporary.path().to_str().unwrap().to_owned();
    // The directory's fd is cached when the link takes its place.
    let tar = Tar::default().dir("d").file("d/a", "1").symlink("d", &outside).file("d/outside", "x");
    let error = place.apply(&tar).unwrap_err();
    assert!(error.message.contains("d/outside"), "{error}");
}

#[test]
fn hard_links_stay_inside() {
    for tar in [
        Tar::default().symlink("l", "/").hard_link("x", "l/etc/hostname"),
        Tar::default().hard_link("x", "/etc/hostname"),
        Tar::default().symlink("l", "/proc/self/cwd").hard_link("x", "l/x"),
    ] {
        let message = Place::refused(&tar);
        assert!(message.contains("not in this layer"), "{message}");
    }
    let place = place();
    // A hard link to a symbolic link is that link, whatever it points to.
    place
        .apply(&Tar::default().symlink("l", "/etc/hostname").hard_link("x", "l").hard_link("l", "l"))
        .unwrap();
    assert!(place.stat("x").file_type().is_symlink());
    assert_eq!(place.stat("x").nlink(), 2);
}

#[test]
fn files_and_directories_replace_each_other() {
    let place = place();
    let tar = Tar::default().file("a", "1").dir("a").file("a/x", "2").dir("b").dir("b/c").file("b/c/y", "3");
    let usage = place.apply(&tar.file("b", "4").file("z", "old").file("z", "new")).unwrap();
    assert_eq!((place.read("a/x"), place.read("b"), place.read("z")), ("2".into(), "4".into(), "new".into()));
    assert_eq!(usage.inodes, 5, "the root, a, a/x, b, z");
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let place = place();
    let tar = Tar::default()
        .file("d/.wh.gone", "")
        .file(".wh.again", "")
        .dir("again")
        .file("again/x", "1")
        .file("kept", "1")
        .file(".wh.kept", "")
        .dir("keptdir")
        .file("keptdir/x", "1")
        .file(".wh.keptdir", "")
        .file(".wh.implied", "")
        .file("implied/x", "1")
        .file("o/.wh..wh..opq", "")
        .file("o/x", "1")
        .file(".wh..wh.plnk/7.1", "")
        .file(".wh.back", "")
        .file("back", "2");
    place.apply(&tar).unwrap();
    assert!(place.is_whiteout("d/gone"));
    assert!(
        place.is_opaque("again")
            && place.is_opaque("keptdir")
            && place.is_opaque("implied")
            && place.is_opaque("o")
    );
    assert!(!place.is_opaque("d"));
    assert_eq!(
        (place.read("kept"), place.read("keptdir/x"), place.read("back")),
        ("1".into(), "1".into(), "2".into())
    );
    assert!(!place.root.join(".wh..wh.plnk").exists());
}

#[test]
fn overlay_understands_the_whiteouts() {
    let (lower, upper) = (place(), place());
    lower
        .apply(&Tar::default().file("d/gone", "1").file("d/stays", "1").file("o/old", "1").file("f", "1"))
        .unwrap();
    upper
        .apply(
            &Tar::default()
                .file("d/.wh.gone", "")
                .file("o/.wh..wh..opq", "")
                .file("o/new", "2")
                .file(".wh.f", ""),
        )
        .unwrap();
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let stack = format!("{}:{}", upper.root.display(), lower.root.display());
    fsconfig_set_string(&fs, "lowerdir", stack.as_str()).unwrap();
    fsconfig_create(&fs).unwrap();
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let exists = |path: &str| rustix::fs::statat(&mount, path, rustix::fs::AtFlags::empty()).is_ok();
    assert!(exists("d/stays") && exists("o/new"));
    assert!(!exists("d/gone") && !exists("o/old") && !exists("f"));
}

#[test]
fn hostile_whiteouts_are_refused() {
    for path in [".wh..", ".wh...", ".wh.", "a/.wh...", "a/.wh./"] {
        assert!(Place::refused(&Tar::default().file(path, "")).contains("whiteout"), "{path}");
    }
    assert!(Place::refused(&Tar::default().file(".wh.d/x", "")).contains("whiteout"));
    let place = place();
    let outside = place.temporary.path().to_str().unwrap().to_owned();
    assert!(place.apply(&Tar::default().symlink("l", &outside).file("l/.wh.outside", "")).is_err());
}

#[test]
fn overlays_own_attributes_are_not_the_images_to_set() {
    let place = place();
    let redirect: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.ok", b"1"),
    ];
    place.apply(&Tar::default().pax(redirect).dir("d")).unwrap();
    assert_eq!(place.xattr("d", "trusted.overlay.redirect"), None);
    assert!(!place.is_opaque("d"));
}

#[test]
fn malformed_headers_are_refused_with_a_sentence() {
    let refused = |tar: Tar| Place::refused(&tar);
    assert!(refused(Tar::default().pax(&[("path", b"a\0b")]).file("x", "")).contains("malformed"));
    assert!(refused(Tar::default().pax(&[("uid", b"4294967295")]).file("x", "")).contains("uid"));
    assert!(refused(Tar::default().pax(&[("uid", b"4294967296")]).file("x", "")).contains("uid"));
    let negative = |h: &mut tar::Header| h.as_old_mut().size.fill(0xff);
    assert!(refused(Tar::default().raw(b'0', b"x", b"", negative, b"")).contains("negative"));
    let uid = |h: &mut tar::Header| h.as_old_mut().uid.fill(0xff);
    assert!(refused(Tar::default().raw(b'0', b"x", b"", uid, b"")).contains("uid -1"));
    let device = |h: &mut tar::Header| h.set_device_major(4096).unwrap();
    assert!(refused(Tar::default().raw(b'3', b"x", b"", device, b"")).contains("out of range"));
    assert!(refused(Tar::default().raw(b'x', b"x", b"", |h| h.set_size(1 << 40), b"")).contains("too long"));
    assert!(refused(Tar::default().raw(b'L', b"x", b"", |h| h.set_size(1 << 40), b"")).contains("too long"));
    assert!(refused(Tar::default().entry(b'V', "x", "")).contains("not supported"));
    let mut broken = Tar::default().file("x", "");
    broken.0[0] = b'y';
    assert!(refused(broken).contains("checksum"));
    let truncated = Tar::default().raw(b'0', b"x", b"", |h| h.set_size(5000), b"");
    let error = apply(&truncated.0[..], &place().root, None, Limits::default()).unwrap_err();
    assert!(error.message.contains("ends inside"), "{error}");
}

#[test]
fn the_last_files_padding_may_be_missing_or_cut_off() {
    let whole = Tar::default().file("a", "first").file("b", "last").0;
    for missing in [512 - 4, 100] {
        let place = place();
        apply(&whole[..whole.len() - missing], &place.root, None, Limits::default()).unwrap();
        assert_eq!(std::fs::read(place.root.join("b")).unwrap(), b"last");
    }
    for missing in [512 - 3, 512 + 1] {
        let error =
            apply(&whole[..whole.len() - missing], &place().root, None, Limits::default()).unwrap_err();
        assert!(error.message.contains("ends inside"), "{error}");
    }
}

#[test]
fn odd_but_legitimate_archives_are_taken() {
    let place = place();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let tar = Tar::default()
        .raw(b'L', b"././@LongLink", b"", |_| (), format!("{long}\0").as_bytes())
        .file("cut", "gnu")
        .pax(&[("path", b"new\nline"), ("linkpath", b"unused")])
        .file("cut", "pax")
        .raw(b'g', b"pax_global_header", b"", |_| (), b"20 comment=whatever\n")
        .raw(0, b"v7dir/", b"", |_| (), b"")
        .raw(0, b"v7file", b"", |_| (), b"v7");
    // Without the two blocks of zeros.
    apply(&tar.0[..], &place.root, None, Limits::default()).unwrap();
    assert_eq!(
        (place.read(&long), place.read("new\nline"), place.read("v7file")),
        ("gnu".into(), "pax".into(), "v7".into())
    );
    assert!(place.stat("v7dir").is_dir());
    assert_eq!(apply(&b""[..], &place.root, None, Limits::default()).unwrap().usage.inodes, 1);
}

#[test]
fn limits_are_kept() {
    let limited = |tar: &Tar, limits| apply(&tar.end()[..], &place().root, None, limits).unwrap_err().message;
    let limits = Limits { bytes: 10, entries: 3, depth: 4 };
    let four = Tar::default().dir("a").dir("b").dir("c").dir("d");
    assert!(limited(&four, limits).contains("more than 3 entries"));
    assert!(
        limited(&Tar::default().file("a", "12345").file("b", "123456"), limits).contains("larger than 10")
    );
    assert!(limited(&Tar::default().dir("a/b/c/d/e"), limits).contains("deeper than 4"));
    assert!(limited(&Tar::default().hard_link("x", "a/b/c/d/e"), limits).contains("deeper than 4"));
    let deep = "d/".repeat(2100);
    assert!(
        Place::refused(&Tar::default().pax(&[("path", deep.as_bytes())]).dir("x")).contains("longer than")
    );
}

fn any_entry() -> impl Strategy<Value = (u8, String, String, String)> {
    let name = "(\\.\\./|/|\\./|a/|b/|l/|\\.wh\\.){0,4}(a|b|l|\\.\\.|\\.|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq|\\.wh\\.\\.\\.)";
    let kind = prop::sample::select(vec![b'0', b'1', b'2', b'5', b'6', b'3', b'x', b'L', b'S']);
    (kind, name, name, "[a-z0-9 =\\n]{0,20}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// `Place::apply` looks at what lies outside.
    #[test]
    fn no_archive_leaves_its_directory(entries in prop::collection::vec(any_entry(), 1..12)) {
        let mut tar = Tar::default();
        for (kind, path, link, body) in &entries {
            let link = if *kind == b'2' { format!("../{link}") } else { link.clone() };
            let body = if matches!(kind, b'0' | b'x' | b'L' | b'S') { body.as_bytes() } else { b"" };
            tar = tar.raw(*kind, path.as_bytes(), link.as_bytes(), |_| (), body);
        }
        let _ = place().apply(&tar);
    }

    #[test]
    fn damaged_archives_are_refused_or_taken(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let tar = Tar::default().pax(&[("path", b"long")]).file("x", "body").dir("d").symlink("d/l", "..").hard_link("h", "x");
        let mut bytes = tar.end();
        let index = at.index(bytes.len());
        bytes[index] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        let _ = place().apply(&Tar(bytes));
    }
}
