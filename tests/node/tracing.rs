//! What a container with CAP_SYS_PTRACE gets hold of while a program of ours is on its way into its
//! PID namespace: nothing that the program itself will not have (`keeper/filter`).

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, add_capabilities, context, pod, program, script};

const SYS_ADMIN: u64 = 1 << 21;
/// In the environment of a container of another pod.
const MARKER: &str = "the-secret-of-another-pod-0123456789";

fn localhost(daemon: &Daemon, name: &str, denied: &[&str]) -> Option<cri::SecurityProfile> {
    let path = daemon.dir.path().join(format!("{name}.json"));
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"action": "SCMP_ACT_ERRNO", "names": denied}],
    });
    std::fs::write(&path, profile.to_string()).unwrap();
    Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Localhost as i32,
        localhost_ref: path.to_str().unwrap().into(),
    })
}

/// A container that does nothing, without a shell.
fn idle(name: &str, seccomp: Option<cri::SecurityProfile>) -> cri::ContainerConfig {
    let mut config = script(name, "");
    config.command = vec!["sleep".into(), "1000".into()];
    context(&mut config).seccomp = seccomp;
    config
}

/// One that traces whatever appears in the PID namespace of another.
fn tracer(name: &str, target: &str) -> cri::ContainerConfig {
    let mut config = script(&format!("tracer-{name}"), "");
    config.command = vec!["/tracer".into(), MARKER.into()];
    program(&mut config, "tracer");
    add_capabilities(&mut config, &["SYS_PTRACE"]);
    let options = context(&mut config).namespace_options.as_mut().unwrap();
    (options.pid, options.target_id) = (cri::NamespaceMode::Target as i32, target.into());
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_is_traced_has_nothing_to_give() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("traced")).await;
    let other = daemon.run_pod(pod("secret")).await;
    let mut secret = idle("secret", None);
    secret.envs = vec![cri::KeyValue { key: "TOKEN".into(), value: MARKER.into() }];
    let secret = daemon.run(&other, secret).await;
    let default = Some(cri::SecurityProfile::default());
    let ids = ["capset", "setuid", "setgid", "setgroups", "setresuid", "setresgid", "prctl", "clone3"];
    let rows = [
        ("default", default.clone(), false),
        ("new-privileges", default, true),
        // Without capset the filter is another thread's to load.
        ("no-capset", localhost(&daemon, "no-capset", &ids), false),
        ("no-capset-nor-privileges", localhost(&daemon, "no-capset-2", &ids), true),
    ];
    for (name, seccomp, no_new_privs) in rows {
        let mut config = idle(name, seccomp);
        context(&mut config).no_new_privs = no_new_privs;
        // A long search for the program gives the tracer time.
        let path = format!("{}/bin", "/nothing-there:".repeat(2000));
        config.envs = vec![cri::KeyValue { key: "PATH".into(), value: path.into() }];
        let main = daemon.run(&made, config).await;
        let attacker = daemon.run(&made, tracer(name, &main)).await;
        daemon.lines_of(&attacker, 1).await;
        for _ in 0..200 {
            let output = daemon.exec(&main, &["true"]).await.unwrap();
            assert_eq!(output.exit_code, 0);
            // The keeper has handled the secret just before.
            daemon.exec(&secret, &["true"]).await.unwrap();
            if daemon.lines_of(&attacker, 1).await.len() > 5 {
                break;
            }
        }
        daemon.stop(&attacker, 0).await.unwrap();
        let caught = daemon.lines_of(&attacker, 1).await.split_off(1);
        assert!(!caught.is_empty(), "{name}: nothing was caught, and nothing shown");
        for (_, line) in caught {
            let words: Vec<&str> = line.split(' ').collect();
            let permitted = u64::from_str_radix(words[1], 16).unwrap();
            assert_eq!(permitted & SYS_ADMIN, 0, "{name}: CAP_SYS_ADMIN to be had: {line}");
            assert_eq!(words[2], "2", "{name}: without its filter: {line}");
            assert_eq!(words.len(), 3, "{name}: memory of another pod: {line}");
        }
        daemon.remove(&attacker).await.unwrap();
        daemon.remove(&main).await.unwrap();
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_forbids_clone_is_not_loaded_before_a_tracer() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("clone")).await;
    let denied = ["capset", "setuid", "clone", "clone3", "fork", "vfork"];
    let main = daemon.run(&made, idle("main", localhost(&daemon, "no-clone", &denied))).await;
    let filtered = async || {
        let output = daemon.exec(&main, &["grep", "^Seccomp:", "/proc/self/status"]).await?;
        Ok::<_, tonic::Status>(String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(filtered().await.unwrap(), "Seccomp:\t2\n");
    let attacker = daemon.run(&made, tracer("clone", &main)).await;
    let error = filtered().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(error.message().contains("clone") && error.message().contains(&attacker), "{error}");
    // A container that would join the same namespace waits as well.
    let mut config = idle("late", localhost(&daemon, "no-clone", &denied));
    let options = context(&mut config).namespace_options.as_mut().unwrap();
    (options.pid, options.target_id) = (cri::NamespaceMode::Target as i32, main.clone());
    let late = daemon.create(&made, config).await.unwrap();
    let error = daemon.start_container(&late).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    daemon.remove(&attacker).await.unwrap();
    assert_eq!(filtered().await.unwrap(), "Seccomp:\t2\n");
    daemon.start_container(&late).await.unwrap();
    daemon.finish().await;
}
