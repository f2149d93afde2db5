//! Whole trees, metadata included, against what umoci makes of the same layers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use podwright::image::Images;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use crate::support::{Registry, open, run};

fn write(path: &Path, bytes: &[u8], mode: u32, owner: (u32, u32)) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Three layers that add, replace, remove and hide.
fn layers(root: &Path) -> Vec<PathBuf> {
    let [one, two, three] = ["one", "two", "three"].map(|name| root.join(name));
    write(&one.join("bin/su"), b"suid", 0o4755, (0, 0));
    write(&one.join("data/large-ids"), b"x", 0o640, (3_000_000_000, 4_000_000_000));
    write(&one.join(format!("long/{}/{}", "d".repeat(120), "f".repeat(150))), b"long names", 0o600, (7, 8));
    write(&one.join("gone/file"), b"1", 0o644, (0, 0));
    write(&one.join("hidden/old"), b"1", 0o644, (0, 0));
    write(&one.join("becomes-dir"), b"1", 0o644, (0, 0));
    write(&one.join("becomes-file/x"), b"1", 0o644, (0, 0));
    write(&one.join("private/kept"), b"1", 0o600, (5, 6));
    write(&one.join("private/removed"), b"1", 0o600, (5, 6));
    fs::set_permissions(one.join("private"), fs::Permissions::from_mode(0o1770)).unwrap();
    std::os::unix::fs::chown(one.join("private"), Some(5), Some(6)).unwrap();
    fs::hard_link(one.join("bin/su"), one.join("bin/su-too")).unwrap();
    symlink("../bin/su", one.join("data/link")).unwrap();
    run("mkfifo", &[one.join("data/fifo").to_str().unwrap()]);
    run("mknod", &[one.join("data/null").to_str().unwrap(), "c", "1", "3"]);
    let sparse = fs::File::create(one.join("data/sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(one.join("data/large-ids"), "user.kind", b"test", flags).unwrap();

    write(&two.join(".wh.gone"), b"", 0o644, (0, 0));
    write(&two.join("hidden/.wh..wh..opq"), b"", 0o644, (0, 0));
    write(&two.join("hidden/new"), b"2", 0o644, (0, 0));
    write(&two.join("becomes-dir/inside"), b"2", 0o644, (0, 0));
    write(&two.join("becomes-file"), b"2", 0o755, (1, 1));
    write(&two.join("data/.wh.fifo"), b"", 0o644, (0, 0));

    write(&three.join("gone"), b"a file now", 0o644, (0, 0));
    write(&three.join("hidden/third"), b"3", 0o644, (0, 0));
    vec![one, two, three]
}

/// A line for each entry: kind, mode, owner, size or device, target, content, attributes, and with
/// which other name it shares an inode.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut lines = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let mut children: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
        children.sort();
        for path in children {
            let stat = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let kind = stat.file_type();
            let mut line = format!("{:o} {}:{}", stat.mode(), stat.uid(), stat.gid());
            if kind.is_dir() {
                open.push(path.clone());
            } else {
                let first = inodes.entry(stat.ino()).or_insert_with(|| name.clone()).clone();
                line += &format!(
                    " {} rdev {} nlink {} with {}",
                    stat.size(),
                    stat.rdev(),
                    stat.nlink(),
                    first.display()
                );
                line += &format!(" mtime {}", stat.mtime());
            }
            if kind.is_symlink() {
                line += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            }
            if kind.is_file() {
                line += &format!(" {:?}", crc(&fs::read(&path).unwrap()));
                let mut value = [0; 64];
                let found = rustix::fs::lgetxattr(&path, "user.kind", &mut value[..]);
                line += &format!(" {:?}", found.map(|len| value[..len].to_vec()).unwrap_or_default());
            }
            lines.insert(name, line);
        }
    }
    assert!(lines.keys().all(|name| !name.as_os_str().as_bytes().starts_with(b".wh.")));
    lines
}

fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes);
    hasher.finalize()
}

/// The image's layers as overlay shows them; the mount goes with the fd.
fn mounted(layers: &[PathBuf]) -> (std::os::fd::OwnedFd, PathBuf) {
    use std::os::fd::AsRawFd;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for layer in layers {
        fsconfig_set_string(&overlay, "lowerdir+", layer).unwrap();
    }
    fsconfig_create(&overlay).unwrap();
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    (mount, path)
}

async fn import(images: &Images, archive: &Path) {
    images
        .import(Box::new(fs::File::open(archive).unwrap()), Some("test.local/tree:v1".into()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stacked_tree_equals_umocis() {
    if Command::new("umoci").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "umoci is not installed");
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let work = registry.directory.path().join("trees");
    let layers = layers(&work);
    let archive = registry.archive(&layers);
    let layout = work.join("layout");
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--insecure-policy",
            &format!("docker-archive:{}", archive.display()),
            &format!("oci:{}:v1", layout.display()),
        ],
    );
    let bundle = work.join("bundle");
    run(
        "umoci",
        &["raw", "unpack", "--image", &format!("{}:v1", layout.display()), bundle.to_str().unwrap()],
    );
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    import(&images, &archive).await;
    let (_mount, ours) = mounted(&images.status("test.local/tree:v1").unwrap().unwrap().layers);
    let (ours, theirs) = (describe(&ours), describe(&bundle));
    for (name, line) in &theirs {
        assert_eq!(ours.get(name), Some(line), "{}", name.display());
    }
    assert_eq!(ours.len(), theirs.len());
}

/// An archive may name a file without the directories on its way: those below show through.
#[tokio::test(flavor = "multi_thread")]
async fn directories_without_an_entry_keep_what_lies_below() {
    let Some(registry) = Registry::start() else { return };
    let work = registry.directory.path().join("implied");
    let (lower, upper) = (work.join("lower"), work.join("upper"));
    write(&lower.join("private/kept"), b"1", 0o600, (5, 6));
    fs::set_permissions(lower.join("private"), fs::Permissions::from_mode(0o1770)).unwrap();
    std::os::unix::fs::chown(lower.join("private"), Some(5), Some(6)).unwrap();
    write(&upper.join("private/new"), b"2", 0o600, (5, 6));
    let archive = registry.archive_of(&[(&lower, "."), (&upper, "private/new")]);
    let root = tempfile::tempdir().unwrap();
    let images = open(root.path()).await;
    import(&images, &archive).await;
    let (_mount, tree) = mounted(&images.status("test.local/tree:v1").unwrap().unwrap().layers);
    let stat = fs::metadata(tree.join("private")).unwrap();
    let below = fs::metadata(lower.join("private")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o1770, 5, 6));
    assert_eq!(stat.mtime(), below.mtime());
    assert!(tree.join("private/kept").exists() && tree.join("private/new").exists());
    assert!(images.check(false).await.unwrap().faults.is_empty());
}
