use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

const PASSWD: &[u8] =
    b"root:x:0:0:root:/root:/bin/sh\n# a comment\nalice:x:1000:1001:A:/home/alice:/bin/sh\n\
    short:x:7\nhuge:x:4294967296:0::/:\nminus:x:-1:0::/:\nodd:x:5:4294967295::/:\nfive:x:5:5::/second:\n\
    nohome:x:8:8:::\n\nlast:x:9:9::/last:";
const GROUP: &[u8] =
    b"root:x:0:\nwheel:x:10:root,alice\nalice:x:1001:\nstaff:x:50:bob, alice\nbad:x:nan:bob\n\
    big:x:4294967296:\nlast:x:99:last";

fn wish<'a>(run_as: &'a RunAs, image_user: &'a str, root: BorrowedFd<'a>) -> Wish<'a> {
    let policy = SupplementalGroupsPolicy::Merge;
    Wish { run_as, run_as_group: None, supplemental_groups: &[], policy, image_user, root }
}

fn found(run_as: RunAs, image_user: &str, edit: impl FnOnce(&mut Wish)) -> Result<Resolved> {
    let stdin = std::io::stdin();
    let mut wish = wish(&run_as, image_user, stdin.as_fd());
    edit(&mut wish);
    lookup(&wish, PASSWD, GROUP)
}

fn image(user: &str) -> Result<(u32, u32, Vec<u32>)> {
    found(RunAs::Image, user, |_| {}).map(|r| (r.uid, r.gid, r.groups))
}

#[test]
fn behaviour_20_the_images_user_in_all_its_forms() {
    assert_eq!(image("").unwrap(), (0, 0, vec![0, 10]));
    assert_eq!(image("alice").unwrap(), (1000, 1001, vec![1001, 10, 50]));
    assert_eq!(image("1000").unwrap(), (1000, 1001, vec![1001, 10, 50]));
    assert_eq!(image("4242").unwrap(), (4242, 0, vec![0]));
    assert_eq!(image("4242:77").unwrap(), (4242, 77, vec![77]));
    assert_eq!(image("alice:wheel").unwrap(), (1000, 10, vec![10, 50]));
    assert_eq!(image("1000:staff").unwrap(), (1000, 50, vec![50, 10]));
    assert_eq!(image("alice:").unwrap(), (1000, 1001, vec![1001, 10, 50]));
    assert_eq!(image(":staff").unwrap(), (0, 50, vec![50, 10]));
    assert_eq!(image("last").unwrap(), (9, 9, vec![9, 99]));
}

#[test]
fn behaviour_20_what_is_not_there_is_named() {
    for (user, word) in [
        ("bob", "\"bob\""),
        ("alice:nobody", "\"nobody\""),
        ("short", "\"short\""),
        ("huge", "\"huge\""),
        ("minus", "\"minus\""),
        ("odd", "\"odd\""),
        ("alice:big", "\"big\""),
        ("-1", "\"-1\""),
        ("a:b:c", "\"a:b:c\""),
        ("alice:-1", "\"-1\""),
    ] {
        let e = image(user).unwrap_err();
        assert_eq!(e.kind, crate::error::Kind::InvalidArgument, "{user}");
        assert!(e.message.contains(word), "{user}: {e}");
    }
    assert!(found(RunAs::Username("bob".into()), "", |_| {}).unwrap_err().message.contains("\"bob\""));
    assert!(found(RunAs::Username(String::new()), "", |_| {}).is_err());
}

#[test]
fn cve_2024_40635_large_numbers_are_refused() {
    for user in ["2147483648", "4294967295", "4294967296", "18446744073709551616", "0:4294967296"] {
        assert!(image(user).unwrap_err().message.contains("is above"), "{user}");
    }
    assert!(found(RunAs::Uid(u32::MAX), "", |_| {}).is_err());
    assert!(found(RunAs::Uid(1), "", |w| w.run_as_group = Some(u32::MAX)).is_err());
    assert!(found(RunAs::Uid(1), "", |w| w.supplemental_groups = &[u32::MAX]).is_err());
    assert_eq!(image("2147483647").unwrap().0, 2147483647);
}

#[test]
fn behaviour_20_the_request_comes_before_the_image() {
    let r = found(RunAs::Uid(1000), "root", |_| {}).unwrap();
    assert_eq!((r.uid, r.gid, r.home.as_deref()), (1000, 1001, Some("/home/alice")));
    let r = found(RunAs::Username("alice".into()), "root", |w| w.run_as_group = Some(3)).unwrap();
    assert_eq!((r.uid, r.gid, r.groups), (1000, 3, vec![3, 10, 50]));
    assert_eq!(found(RunAs::Username("1000".into()), "", |_| {}).unwrap().username.as_deref(), Some("alice"));
    let e = found(RunAs::Image, "alice", |w| w.run_as_group = Some(3)).unwrap_err();
    assert!(e.message.contains("run_as_group"), "{e}");
    // A number has the first entry of that uid, malformed or not: its gid is not guessed.
    assert!(found(RunAs::Uid(5), "", |_| {}).is_err());
    let nohome = found(RunAs::Uid(8), "", |_| {}).unwrap();
    assert_eq!((nohome.home, nohome.username.as_deref()), (None, Some("nohome")));
}

#[test]
fn behaviour_20_merge_and_strict() {
    let groups = |policy| {
        let r = found(RunAs::Uid(1000), "", |w| {
            w.policy = policy;
            w.supplemental_groups = &[60, 50, 60, 1001];
        });
        r.unwrap().groups
    };
    assert_eq!(groups(SupplementalGroupsPolicy::Merge), [1001, 10, 50, 60]);
    assert_eq!(groups(SupplementalGroupsPolicy::Strict), [1001, 60, 50]);
}

fn resolve_in(root: &std::path::Path, user: &str) -> Result<Resolved> {
    let root = std::fs::File::open(root).unwrap();
    resolve(&wish(&RunAs::Image, user, root.as_fd()))
}

#[test]
fn files_are_read_inside_the_root() {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    assert_eq!(resolve_in(root.path(), "12").unwrap().uid, 12, "without /etc");
    assert!(resolve_in(root.path(), "alice").unwrap_err().message.contains("\"alice\""));
    std::fs::create_dir(&etc).unwrap();
    // Links lead back into the root, absolute ones and those that climb.
    std::fs::write(root.path().join("passwd"), "inside:x:7:8::/in:\n").unwrap();
    symlink("/passwd", etc.join("passwd")).unwrap();
    symlink("../../../../../passwd", etc.join("group")).unwrap();
    assert_eq!(resolve_in(root.path(), "inside").unwrap().gid, 8);
    assert!(resolve_in(root.path(), "daemon").is_err(), "the host's passwd was read");
    std::fs::remove_file(etc.join("passwd")).unwrap();
    symlink("passwd", etc.join("passwd")).unwrap();
    let e = resolve_in(root.path(), "inside").unwrap_err();
    assert!(e.message.contains("/etc/passwd"), "{e}");
}

#[test]
fn a_fifo_or_a_directory_for_passwd_is_refused_and_does_not_block() {
    let root = tempfile::tempdir().unwrap();
    let passwd = root.path().join("etc/passwd");
    std::fs::create_dir_all(&passwd).unwrap();
    assert!(resolve_in(root.path(), "").unwrap_err().message.contains("not a regular file"));
    std::fs::remove_dir(&passwd).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(resolve_in(root.path(), "").unwrap_err().message.contains("not a regular file"));
    std::fs::remove_file(&passwd).unwrap();
    std::fs::File::create(&passwd).unwrap().set_len(MAX_SIZE + 1).unwrap();
    assert!(resolve_in(root.path(), "").unwrap_err().message.contains("larger"));
}

proptest! {
    #[test]
    fn whatever_the_files_hold(passwd in proptest::collection::vec(any::<u8>(), 0..200),
                               group in "([a-c]:x?:[0-9]{0,12}:[a-c,]{0,4}\n?){0,8}",
                               user in "[a-c0-9:]{0,8}") {
        let stdin = std::io::stdin();
        let run_as = RunAs::Image;
        if let Ok(r) = lookup(&wish(&run_as, &user, stdin.as_fd()), &passwd, group.as_bytes()) {
            prop_assert!(r.uid <= MAX_ID && r.groups.iter().all(|gid| *gid <= MAX_ID));
            prop_assert_eq!(r.groups.first(), Some(&r.gid));
        }
    }
}
