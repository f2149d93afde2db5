//! AppArmor, where the kernel has it.

use std::io::Write;
use std::process::{Command, Stdio};

use podwright::cri::wire as cri;
use podwright::cri::wire::security_profile::ProfileType;

use crate::harness::{Daemon, context, pod, script, text};

fn is_on() -> bool {
    let on = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text == b"Y\n");
    if !on {
        eprintln!("skipped: the kernel has no AppArmor, or it is off");
    }
    on
}

fn parser(arguments: &[&str], profile: &str) {
    let mut child = Command::new("apparmor_parser").args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "apparmor_parser {arguments:?}");
}

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: name.into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn apparmor_profiles_confine_containers_and_execs() {
    if !is_on() {
        return;
    }
    let name = format!("podwright-test-{}", std::process::id());
    let rules =
        format!("profile {name} flags=(attach_disconnected) {{ file, capability, deny /tmp/denied w, }}");
    parser(&["-a", "-K", "-q"], &rules);
    let daemon = Daemon::start().await;
    let pod = daemon.run_pod(pod("apparmor")).await;
    let probe = "cat /proc/self/attr/current; mkdir -p /m; mount -t tmpfs x /m 2>/dev/null && echo mounted; \
                 { echo x > /tmp/denied; } 2>/dev/null && echo written; sleep 1000";
    let ours = "podwright-default (enforce)";
    let rows = [
        ("none", profile(ProfileType::Unconfined, ""), "unconfined", "mounted\nwritten"),
        ("unset", None, ours, "written"),
        ("default", profile(ProfileType::RuntimeDefault, ""), ours, "written"),
        ("named", profile(ProfileType::Localhost, &name), &*format!("{name} (enforce)"), ""),
    ];
    for (row, apparmor, label, rest) in rows {
        for no_new_privs in [false, true] {
            let mut config = script(&format!("{row}-{no_new_privs}"), probe);
            let security = context(&mut config);
            (security.apparmor, security.no_new_privs) = (apparmor.clone(), no_new_privs);
            security.capabilities =
                Some(cri::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
            let id = daemon.run(&pod, config.clone()).await;
            let out = daemon.exec(&id, &["cat", "/proc/self/attr/current"]).await.unwrap().stdout;
            assert_eq!(String::from_utf8(out).unwrap().trim(), label, "exec {row} {no_new_privs}");
            config.metadata.as_mut().unwrap().name += "-once";
            config.log_path = format!("once-{row}-{no_new_privs}.log");
            config.command[2] = probe.replace("; sleep 1000", "");
            let (_, lines) = daemon.outcome(&pod, config).await;
            assert_eq!(text(&lines), format!("{label}\n{rest}").trim(), "{row} {no_new_privs}");
        }
    }
    let mut config = script("missing", "true");
    context(&mut config).apparmor = profile(ProfileType::Localhost, "podwright-no-such-profile");
    let error = daemon.create(&pod, config).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    assert!(error.message().contains("podwright-no-such-profile"), "{error}");
    daemon.finish().await;
    parser(&["-R", "-q"], &rules);
}
