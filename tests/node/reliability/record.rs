//! A reboot; records that are torn, files that are missing, cgroups that vanish.

use std::path::Path;

use podwright::cri::wire as cri;

use super::{CREATED, EXITED, RUNNING, alive, counter, go, until};
use crate::harness::{Daemon, hierarchies, pod, script};

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_13_after_a_reboot_pods_are_not_ready_and_containers_exited() {
    let mut daemon = Daemon::start().await;
    let one = daemon.run_pod(pod("one")).await;
    let two = daemon.run_pod(pod("two")).await;
    let runs = daemon.run(&one, counter(&daemon, "runs", 5)).await;
    let (ended, _) = daemon.outcome(&one, script("ended", "exit 4")).await;
    let waits = daemon.create(&two, script("waits", "true")).await.unwrap();
    assert_eq!(daemon.addresses().len(), 2);
    daemon.reboot().await;

    for id in [&one.0, &two.0] {
        assert!(!daemon.pod_ready(id).await);
    }
    assert_eq!(daemon.states(&[&runs, &waits]).await, [EXITED, EXITED]);
    for id in [&runs, &waits] {
        let status = daemon.status(id).await;
        assert_eq!(status.reason, "ContainerStatusUnknown");
        assert!(status.finished_at > 0 && !status.message.is_empty(), "{status:?}");
    }
    assert_eq!(daemon.status(&ended.id).await.exit_code, 4, "what was known stays known");
    until("the release of the addresses", || daemon.addresses().is_empty()).await;
    // The node works, and a pod of the same name and another attempt takes the place.
    let mut again = pod("one");
    again.metadata.as_mut().unwrap().attempt = 1;
    let again = daemon.run_pod(again).await;
    let (status, _) = daemon.outcome(&again, script("new", "exit 6")).await;
    assert_eq!(status.exit_code, 6);
    daemon.finish().await;
}

/// Leaves half of a record's first state, so that nothing of it can be read.
fn tear(path: &Path) {
    let text = std::fs::read(path).unwrap();
    let first = text.split(|byte| *byte == b'\n').next().unwrap();
    std::fs::write(path, &first[..first.len() / 2]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_shows_it_and_goes_and_the_rest_works() {
    let mut daemon = Daemon::start().await;
    let mut pods = Vec::new();
    for name in ["torn-pod", "torn-container", "torn-exit", "no-upper", "no-cgroup", "sound", "torn-all"] {
        pods.push(daemon.run_pod(pod(name)).await);
    }
    let mut containers = Vec::new();
    for pod in &pods {
        containers.push(daemon.run(pod, script("main", "sleep 1000")).await);
    }
    let torn_pid = daemon.pid_of(&containers[1]).await;
    daemon.stop_container(&containers[2]).await;
    daemon.stop_container(&containers[4]).await;
    daemon.kill();
    let root = daemon.dir.path().join("root");
    let files = |id: &str| root.join("containers").join(id);
    tear(&root.join("pods").join(&pods[0].0).join("pod.json"));
    tear(&files(&containers[1]).join("container.json"));
    for name in ["container.json", "config.json"] {
        tear(&files(&containers[6]).join(name));
    }
    tear(&files(&containers[2]).join("exit.json"));
    std::fs::remove_dir_all(files(&containers[3]).join("upper")).unwrap();
    for mount in hierarchies() {
        let pod = format!("{mount}{}/pod-{}", daemon.cgroup(), pods[4].0);
        for entry in std::fs::read_dir(&pod).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(pod);
    }
    daemon.start_again().await;

    assert!(!daemon.pod_ready(&pods[0].0).await);
    for (torn, name) in [(&containers[1], "main"), (&containers[6], containers[6].as_str())] {
        let status = daemon.status(torn).await;
        assert!(status.message.contains("container.json is damaged"), "{status:?}");
        // BEHAVIOUR 4.
        assert_eq!(status.metadata.unwrap().name, name);
        assert!(!status.image.unwrap().image.is_empty() && !status.image_ref.is_empty());
    }
    let status = daemon.status(&containers[2]).await;
    assert_eq!((status.state, status.reason.as_str()), (EXITED, "ContainerStatusUnknown"));
    assert!(status.message.contains("exit.json is damaged"), "{status:?}");
    assert_eq!(daemon.states(&[&containers[3], &containers[5]]).await, [RUNNING, RUNNING]);
    assert_eq!(daemon.exec(&containers[5], &["true"]).await.unwrap().exit_code, 0);
    // The pod whose cgroup vanished cannot run another container, and says so; it can be removed.
    let _ = daemon.create(&pods[4], script("another", "true")).await;
    daemon.stop_container(&containers[3]).await;
    daemon.remove_container(&containers[3]).await;
    assert!(!alive(torn_pid), "a container that nobody knows does not run on");
    for pod in &pods {
        daemon.remove_pod(&pod.0).await.expect("every pod can be removed");
    }
    let left = daemon.runtime().list_containers(cri::ListContainersRequest::default()).await;
    assert_eq!(left.unwrap().into_inner().containers, [], "a pod takes its containers along");
    let sound = daemon.run_pod(pod("sound-too")).await;
    let (status, _) = daemon.outcome(&sound, script("works", "exit 2")).await;
    assert_eq!(status.exit_code, 2);
    daemon.finish().await;
}

/// A pod or a container of which only the beginning is there: nobody was told of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_half_way_is_freed() {
    let mut daemon = Daemon::start().await;
    let config = pod("half");
    let half = daemon.run_pod(config.clone()).await;
    let whole = daemon.run_pod(pod("whole")).await;
    let container = daemon.create(&whole, script("half", "true")).await.unwrap();
    let parked = daemon.create(&whole, script("parked", "true")).await.unwrap();
    daemon.kill();
    // As they are just before the pod's second record, and just before the container's pid is noted.
    let path = daemon.dir.path().join("root/pods").join(&half.0).join("pod.json");
    let states = std::fs::read_to_string(&path).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(states.lines().last().unwrap()).unwrap();
    record["cgroup"] = serde_json::Value::Null;
    record["complete"] = false.into();
    std::fs::write(&path, record.to_string()).unwrap();
    std::fs::remove_file(daemon.dir.path().join("root/containers").join(&container).join("container.json"))
        .unwrap();
    daemon.start_again().await;

    assert_eq!(daemon.states(&[&parked]).await, [CREATED]);
    let again = daemon.run_pod(config).await;
    assert_ne!(again.0, half.0);
    let container_again = daemon.create(&whole, script("half", "true")).await.unwrap();
    assert_ne!(container, container_again);
    go(&daemon, "unused");
    daemon.finish().await;
}
