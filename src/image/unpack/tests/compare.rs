//! Our result beside that of another tool, on the same archive.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::image::unpack::{Limits, apply};

/// GNU tar makes the tree and the archive, unpacks it too, and both results are compared.
#[test]
fn the_result_equals_gnu_tars() {
    for format in ["gnu", "pax", "ustar", "oldgnu"] {
        let temporary = tempfile::tempdir().unwrap();
        let [source, theirs, ours] = ["source", "theirs", "ours"].map(|n| temporary.path().join(n));
        for directory in [&source, &theirs, &ours] {
            fs::create_dir(directory).unwrap();
        }
        make_tree(&source, format != "ustar");
        let archive = temporary.path().join("x.tar");
        let (from, to) = (source.to_str().unwrap(), archive.to_str().unwrap());
        let format_flag = format!("--format={format}");
        let mut arguments = vec!["-C", from, "-cf", to, &format_flag];
        if format != "ustar" {
            arguments.push("--sparse");
        }
        if format == "pax" {
            arguments.extend(["--xattrs", "--xattrs-include=*"]);
        }
        arguments.push(".");
        run("tar", &arguments);
        run(
            "tar",
            &[
                "-C",
                theirs.to_str().unwrap(),
                "-xpf",
                to,
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
            ],
        );
        let input = std::io::BufReader::new(fs::File::open(&archive).unwrap());
        let counted = apply(input, &ours, None, Limits::default()).unwrap().usage;
        let (bytes, inodes) = used(&ours);
        assert_eq!(counted.inodes, inodes, "{format}");
        assert!(counted.bytes.abs_diff(bytes) <= bytes / 20, "{format}: {} and {bytes}", counted.bytes);
        assert_eq!(describe(&ours), describe(&theirs), "{format}");
        let sparse = fs::metadata(ours.join("sparse"));
        assert!(sparse.is_err() || sparse.unwrap().blocks() < 2000, "holes stay holes");
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make_tree(root: &Path, sparse: bool) {
    let deep = root.join("usr/share/some/deep/directory");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("n".repeat(90)), vec![b'x'; 100_000]).unwrap();
    fs::write(root.join("suid"), "#!").unwrap();
    std::os::unix::fs::chown(root.join("suid"), Some(1000), Some(70_000)).unwrap();
    fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(root.join("suid"), deep.join("linked")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"odd \xff\n name")), "odd").unwrap();
    run("mkfifo", &[root.join("fifo").to_str().unwrap()]);
    run("mknod", &[root.join("device").to_str().unwrap(), "c", "5", "1"]);
    rustix::fs::setxattr(root.join("suid"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    run("touch", &["-d", "2001-02-03 04:05:06.789", root.join("suid").to_str().unwrap()]);
    if sparse {
        let file = fs::File::create(root.join("sparse")).unwrap();
        for n in 0..30_u64 {
            std::os::unix::fs::FileExt::write_all_at(&file, b"data", n * 1_000_000).unwrap();
        }
        file.set_len(50_000_000).unwrap();
    }
}

/// Bytes of the blocks that a tree has, and inodes.
fn used(root: &Path) -> (u64, u64) {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = 0;
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if seen.insert(stat.ino()) {
            bytes += stat.blocks() * 512;
        }
        if stat.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    (bytes, seen.len() as u64)
}

/// Everything about a tree that an archive carries, in one line per file.
fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let content = match () {
            () if stat.is_dir() => {
                open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                String::new()
            }
            () if stat.is_file() => crate::image::digest::Digest::of(&fs::read(&path).unwrap()).to_string(),
            () if stat.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            () => stat.rdev().to_string(),
        };
        let mut value = [0; 64];
        let attribute =
            rustix::fs::lgetxattr(&path, "user.x", &mut value[..]).map(|len| value[..len].to_vec());
        let links = if stat.is_dir() { 0 } else { stat.nlink() };
        lines.push(format!(
            "{name:?} {:o} {}:{} {}.{} {links} {content} {attribute:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
        ));
    }
    lines.sort();
    lines
}
