//! Requests, profiles from files, and filters in the kernel.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::verify::{build, pipe};
use super::*;
use crate::error::Kind;

fn profile(request: &Seccomp, capabilities: u64) -> Result<Option<LinuxSeccomp>> {
    Ok(resolve(request, capabilities)?.map(|compiled| LinuxSeccomp::clone(&compiled.profile)))
}

fn parse(profile: Value) -> Result<LinuxSeccomp> {
    read::parse(profile.to_string().as_bytes(), 0xa804_25fb)
}

fn names(profile: &LinuxSeccomp) -> Vec<&str> {
    profile.syscalls().iter().flatten().flat_map(|s| s.names()).map(String::as_str).collect()
}

#[test]
fn behaviour_22_unconfined_is_no_profile_and_the_default_is_one() {
    assert_eq!(profile(&Seccomp::Unconfined, u64::MAX).unwrap(), None);
    let default = profile(&Seccomp::RuntimeDefault, 0).unwrap().unwrap();
    assert!(names(&default).contains(&"read") && !names(&default).contains(&"mount"));
    let admin = profile(&Seccomp::RuntimeDefault, 1 << 21).unwrap().unwrap();
    assert!(names(&admin).contains(&"mount"));
}

#[test]
fn the_default_profile_knows_its_names() {
    let all = profile(&Seccomp::RuntimeDefault, u64::MAX).unwrap().unwrap();
    for name in names(&all) {
        let known = syscalls::numbers(name).is_some() || syscalls::multiplexed(name).is_some();
        assert!(known, "{name}");
    }
}

#[test]
fn programs_come_from_the_cache() {
    let default = profile(&Seccomp::RuntimeDefault, 5).unwrap().unwrap();
    let (first, second) = (compile(&default).unwrap(), compile(&default).unwrap());
    assert!(Arc::ptr_eq(&first.program, &second.program));
    let again = resolve(&Seccomp::RuntimeDefault, 5).unwrap().unwrap();
    assert!(Arc::ptr_eq(&again.filter.program, &first.program));
    let other = compile(&profile(&Seccomp::RuntimeDefault, 1 << 21).unwrap().unwrap()).unwrap();
    assert_ne!(first.program, other.program);
}

#[test]
fn localhost_profiles_are_read_from_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.json");
    let request = Seccomp::Localhost(path.to_str().unwrap().to_owned());
    let missing = profile(&request, 0).unwrap_err();
    assert!(missing.message.contains("p.json: no such file"), "{missing}");
    std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#)
        .unwrap();
    let read = profile(&request, 0).unwrap().unwrap();
    assert_eq!(compile(&read).unwrap().flags, 2);
    std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_FLY"}"#).unwrap();
    let unknown = profile(&request, 0).unwrap_err();
    assert!(unknown.kind == Kind::InvalidArgument && unknown.message.contains("p.json"), "{unknown}");
    assert!(unknown.message.contains("SCMP_ACT_FLY"), "{unknown}");
    for path in ["p.json", "", directory.path().to_str().unwrap(), "/dev/null"] {
        let e = profile(&Seccomp::Localhost(path.to_owned()), 0).unwrap_err();
        assert_eq!(e.kind, Kind::InvalidArgument, "{path}: {e}");
    }
}

#[test]
fn what_would_be_ignored_is_refused() {
    let allow = "SCMP_ACT_ALLOW";
    for (profile, word) in [
        (json!({}), "defaultAction"),
        (json!({"defaultAction": allow, "sycalls": []}), "sycalls"),
        (json!({"defaultAction": allow, "architectures": ["SCMP_ARCH_Z80"]}), "SCMP_ARCH_Z80"),
        (json!({"defaultAction": allow, "flags": ["SECCOMP_FILTER_FLAG_FLY"]}), "SECCOMP_FILTER_FLAG_FLY"),
        (json!({"defaultAction": allow, "syscalls": [{"action": allow}]}), "names no system call"),
        (
            json!({"defaultAction": allow, "syscalls": [{"names": [], "action": allow}]}),
            "names no system call",
        ),
        (json!({"defaultAction": allow, "syscalls": [{"names": ["a"], "action": allow, "arg": []}]}), "arg"),
        (
            json!({"defaultAction": allow, "syscalls": [
                {"names": ["a"], "action": allow, "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_ODD"}]}]}),
            "SCMP_CMP_ODD",
        ),
        (
            json!({"defaultAction": allow, "syscalls": [
                {"names": ["a"], "action": allow, "includes": {"caps": ["CAP_FLY"]}}]}),
            "CAP_FLY",
        ),
    ] {
        let e = parse(profile).unwrap_err();
        assert!(e.kind == Kind::InvalidArgument && e.message.contains(word), "{e} lacks {word}");
    }
}

#[test]
fn what_we_cannot_do_is_refused() {
    let deny = "SCMP_ACT_ERRNO";
    for (profile, kind, word) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), Kind::Unimplemented, "SCMP_ACT_NOTIFY"),
        (
            json!({"defaultAction": deny, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}),
            Kind::Unimplemented,
            "SCMP_ACT_NOTIFY",
        ),
        (json!({"defaultAction": deny, "listenerPath": "/run/agent"}), Kind::Unimplemented, "listenerPath"),
        (
            json!({"defaultAction": deny, "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}),
            Kind::Unimplemented,
            "WAIT_KILLABLE_RECV",
        ),
        (json!({"defaultAction": deny, "defaultErrnoRet": 4096}), Kind::InvalidArgument, "4096"),
        (
            json!({"defaultAction": deny, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}),
            Kind::InvalidArgument,
            "argument 6",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["fly"], "action": deny}]}),
            Kind::InvalidArgument,
            "\"fly\"",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [
                {"names": ["read"], "action": deny, "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]},
                {"names": ["read"], "action": "SCMP_ACT_LOG",
                    "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_EQ"}]}]}),
            Kind::InvalidArgument,
            "the rules for read",
        ),
    ] {
        let e = compile(&parse(profile).unwrap()).unwrap_err();
        assert!(e.kind == kind && e.message.contains(word), "{e} lacks {word}");
    }
}

#[test]
fn unknown_names_are_skipped_where_nothing_is_lost_by_it() {
    let rule = |name: &str, action: &str| json!({"names": [name], "action": action});
    for (default, rule) in [
        ("SCMP_ACT_ERRNO", rule("fly", "SCMP_ACT_ALLOW")),
        ("SCMP_ACT_ERRNO", rule("fly", "SCMP_ACT_KILL")),
        ("SCMP_ACT_ALLOW", rule("fly", "SCMP_ACT_LOG")),
        ("SCMP_ACT_ALLOW", rule("s390_sthyi", "SCMP_ACT_ERRNO")),
        ("SCMP_ACT_ALLOW", rule("recv", "SCMP_ACT_ERRNO")),
    ] {
        compile(&parse(json!({"defaultAction": default, "syscalls": [rule]})).unwrap()).unwrap();
    }
}

#[test]
fn dockers_additions_to_a_profile() {
    let rule = |name: &str, condition: &str, value: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", condition: value});
    let profile = parse(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrno": "ENOSYS",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"name": "a", "action": "SCMP_ACT_ALLOW", "comment": "old form"},
            rule("b", "includes", json!({"caps": ["CAP_CHOWN"]})),
            rule("c", "includes", json!({"caps": ["CAP_SYS_ADMIN"]})),
            rule("d", "excludes", json!({"caps": ["CAP_SYS_ADMIN"]})),
            rule("e", "excludes", json!({"caps": ["CAP_CHOWN"]})),
            rule("f", "includes", json!({"arches": ["amd64", "x32"]})),
            rule("g", "includes", json!({"arches": ["s390x"]})),
            rule("h", "includes", json!({"minKernel": "4.8"})),
            rule("i", "includes", json!({"minKernel": "99.0"})),
            rule("j", "includes", json!({})),
        ],
    }));
    let profile = profile.unwrap();
    assert_eq!(names(&profile), ["a", "b", "d", "f", "h", "j"]);
    assert_eq!(profile.default_errno_ret(), Some(libc::ENOSYS as u32));
    let arches = profile.architectures().clone().unwrap();
    assert_eq!(serde_json::to_value(arches).unwrap(), json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
}

#[test]
fn a_program_that_the_kernel_would_not_take_is_refused() {
    let rules: Vec<_> = syscalls::entries()
        .zip(1u64..)
        .flat_map(|((name, _), value)| {
            (0u64..6).map(move |n| {
                let args = json!([{"index": n, "value": value << 33, "op": "SCMP_CMP_GT"}]);
                json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
            })
        })
        .collect();
    let profile = parse(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})).unwrap();
    let e = compile(&profile).unwrap_err();
    assert!(e.kind == Kind::InvalidArgument && e.message.contains("4096"), "{e}");
}

/// The results of calls under a filter: a value, or minus an errno. None: killed by SIGSYS.
fn under(filter: &Filter, calls: &[&str]) -> Option<Vec<i64>> {
    static PROGRAM: LazyLock<std::path::PathBuf> = LazyLock::new(|| build("load", &["-static"]));
    let mut command = Command::new(PROGRAM.as_path());
    command.arg(filter.flags.to_string()).args(calls);
    let output = pipe(&mut command, &filter.program);
    if output.status.signal() == Some(libc::SIGSYS) {
        return None;
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    Some(String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().unwrap()).collect())
}

#[test]
fn the_kernel_takes_the_default_profile() {
    assert!(supported());
    let (eperm, enosys) = (-i64::from(libc::EPERM), -i64::from(libc::ENOSYS));
    let filter = compile(&profile(&Seccomp::RuntimeDefault, 0xa804_25fb).unwrap().unwrap()).unwrap();
    let results = under(
        &filter,
        &[
            "39",               // getpid
            "272,0x20000000",   // unshare(CLONE_NEWPID)
            "435,0,0",          // clone3
            "470",              // newer than the profile
            "41,40,1",          // socket(AF_VSOCK)
            "41,0x100000028,1", // the same with a bit that the kernel drops
            "41,38,5",          // socket(AF_ALG)
            "41,1,1",           // socket(AF_UNIX)
            "135,0xffffffff",   // personality(?)
            "135,0x40000",      // personality(ADDR_NO_RANDOMIZE)
        ],
    );
    let results = results.unwrap();
    assert!(results[0] > 0 && results[7] >= 0 && results[8] >= 0, "{results:?}");
    assert_eq!(results[1..7], [eperm, enosys, enosys, eperm, eperm, eperm], "{results:?}");
    assert_eq!(results[9], eperm);
}

#[test]
fn the_kernel_takes_actions_and_flags() {
    let profile = |action, errno| {
        let rule = json!({"names": ["getppid"], "action": action, "errnoRet": errno});
        let flags =
            ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
        compile(
            &parse(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "syscalls": [rule]})).unwrap(),
        )
    };
    let errno = profile("SCMP_ACT_ERRNO", 4095).unwrap();
    assert_eq!(errno.flags, 6);
    assert_eq!(under(&errno, &["110"]), Some(vec![-4095]));
    assert_eq!(under(&profile("SCMP_ACT_KILL_PROCESS", 0).unwrap(), &["110"]), None);
    assert_eq!(under(&profile("SCMP_ACT_KILL", 0).unwrap(), &["110"]), None);
    assert_eq!(under(&profile("SCMP_ACT_TRAP", 0).unwrap(), &["110"]), None);
    assert!(under(&profile("SCMP_ACT_LOG", 0).unwrap(), &["110"]).unwrap()[0] > 0);
}
