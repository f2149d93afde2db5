//! Namespaces that a container has, shares, or is given.

use podwright::cri::wire as cri;

use crate::harness::{Daemon, context, namespaces, pod, pod_status, script, text};

#[tokio::test(flavor = "multi_thread")]
async fn pid_namespace_modes() {
    let daemon = Daemon::start().await;
    let with = |pid: cri::NamespaceMode, target: &str| {
        let options = cri::NamespaceOption { target_id: target.into(), ..namespaces(pid) };
        move |mut config: cri::ContainerConfig| {
            context(&mut config).namespace_options = Some(options.clone());
            config
        }
    };
    let pod_with = |name: &str, pid: cri::NamespaceMode| {
        let mut config = pod(name);
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options = Some(namespaces(pid));
        config
    };
    // CONTAINER: alone.
    let own = daemon.run_pod(pod("own")).await;
    let (_, lines) = daemon.outcome(&own, script("own", "echo $$; ls -d /proc/[0-9]* | wc -l")).await;
    assert_eq!(lines[0].1, "1");
    // POD: an init of ours, and everybody sees everybody.
    let shared = daemon.run_pod(pod_with("shared", cri::NamespaceMode::Pod)).await;
    let in_pod = with(cri::NamespaceMode::Pod, "");
    let other = daemon.run(&shared, in_pod(script("other", "sleep 4321"))).await;
    let (_, lines) = daemon
        .outcome(
            &shared,
            in_pod(script("look", "ps -o pid,user,args; (sleep 0.1 &); grep ^Cap /proc/1/status")),
        )
        .await;
    let seen = text(&lines);
    assert!(seen.contains("sleep 4321") && seen.contains("podwright-init"), "{seen}");
    assert!(seen.contains("CapPrm:\t0000000000000000"), "{seen}");
    let host = std::fs::read_to_string("/proc/1/comm").unwrap();
    assert!(!seen.contains("kthreadd") && !seen.contains(host.trim()), "the node's processes are seen");
    daemon.stop(&other, 0).await.unwrap();
    // TARGET: the other's.
    let target = daemon.run(&own, script("target", "sleep 8765")).await;
    let into = with(cri::NamespaceMode::Target, &target);
    let (_, lines) = daemon
        .outcome(
            &own,
            into(script("debug", "ps -o args; readlink /proc/self/ns/pid /proc/1/ns/pid | uniq | wc -l")),
        )
        .await;
    assert!(text(&lines).contains("sleep 8765"), "{lines:?}");
    let error = daemon
        .create(&own, with(cri::NamespaceMode::Target, "no-such")(script("bad", "true")))
        .await
        .unwrap_err();
    assert!(error.message().contains("no-such"), "{error}");
    // NODE: the host's.
    let node = daemon.run_pod(pod_with("node", cri::NamespaceMode::Node)).await;
    let (_, lines) = daemon
        .outcome(&node, with(cri::NamespaceMode::Node, "")(script("node", "readlink /proc/self/ns/pid")))
        .await;
    assert_eq!(text(&lines), std::fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap());
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_33_host_network() {
    let daemon = Daemon::start().await;
    let mut config = pod("host");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    config.hostname = String::new();
    let pod = daemon.run_pod(config).await;
    let network = pod_status(&daemon, &pod.0).await.status.unwrap().network.unwrap_or_default();
    assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("", 0));
    let mut container = script("main", "readlink /proc/self/ns/net; hostname");
    context(&mut container).namespace_options.as_mut().unwrap().network = cri::NamespaceMode::Node as i32;
    let (_, lines) = daemon.outcome(&pod, container).await;
    let ours = std::fs::read_link(format!("/proc/{}/ns/net", daemon.pid())).unwrap();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(text(&lines), format!("{}\n{}", ours.display(), hostname.trim()));
    daemon.finish().await;
}
