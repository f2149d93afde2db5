//! Making, entering, killing, waiting and removing.

use super::*;

#[tokio::test]
async fn a_pod_with_a_container_and_an_exec_lives_and_goes() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p1").await;
    assert_eq!(pod, scratch.pod("p1").await, "repeating is fine");
    assert_eq!(pod.path, format!("{}/pod-p1/p1", scratch.root));
    let init = scratch.run(&pod, "sleep 1000");
    let container = scratch.container(&pod, "c1", &Resources::default());
    let taken = c.create_container(&pod, "c1").unwrap_err();
    assert!(taken.message.contains("is there already"), "{taken}");

    let main = scratch.run(&container, "sleep 1000");
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", main.pid())).unwrap();
    let paths: Vec<&str> = text.lines().filter_map(|l| l.splitn(3, ':').nth(2)).collect();
    assert!(paths.iter().all(|p| *p == container.path), "in every hierarchy: {text}");

    let exec = c.create_exec(&container, "e1").unwrap();
    let command = scratch.run(&exec, "sleep 1000 & sleep 1000");
    assert_eq!(c.wait_empty(&exec, Duration::ZERO).await.unwrap_err().kind, Kind::DeadlineExceeded);
    c.kill(&exec).unwrap();
    c.wait_empty(&exec, SECONDS).await.unwrap();
    assert!(command.killed());
    c.remove(&exec).await.unwrap();
    assert!(!scratch.exists(&exec.path));

    let survivors = c.wait_empty(&container, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(survivors.kind, Kind::DeadlineExceeded);
    assert!(survivors.message.contains("(sleep) in state S"), "{survivors}");
    c.kill(&container).unwrap();
    c.wait_empty(&container, SECONDS).await.unwrap();
    assert!(main.killed());
    c.remove(&container).await.unwrap();
    c.kill(&pod).unwrap();
    assert!(init.killed());
    c.remove(&pod).await.unwrap();
    c.remove(&pod).await.unwrap();
    c.kill(&pod).unwrap();
    c.wait_empty(&pod, SECONDS).await.unwrap();
    assert_eq!(c.stats(&container).unwrap_err().kind, Kind::NotFound);
    assert_eq!(c.create_exec(&container, "e2").unwrap_err().kind, Kind::NotFound);
    scratch.finish().await;
}

/// Of a pod that was made while systemd ran the host and the driver was its: what only systemd can do
/// is refused in words, and its removal is none of that.
#[tokio::test]
async fn a_scope_without_systemd_is_refused_and_can_be_removed() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = Cgroup {
        path: format!("{}/podwright-p1.scope", scratch.root),
        role: Role::Pod { parent_is_ours: false },
    };
    let limits = Resources::default();
    let container = scratch.container(&pod, "c1", &limits);
    assert_eq!(container.path, format!("{}/podwright-c1.scope", scratch.root));
    let process = scratch.run(&container, "sleep 1000");
    let refused = c.adopt(&container, process.pid().cast_signed(), &limits).await.unwrap_err();
    assert_eq!(refused.kind, Kind::FailedPrecondition);
    assert!(refused.message.contains("systemd does not run this host"), "{refused}");
    c.kill(&container).unwrap();
    assert!(process.killed());
    c.wait_empty(&container, SECONDS).await.unwrap();
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn b28_a_parent_of_others_stays_and_one_of_ours_goes_with_the_last_pod() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let kubelets = format!("{}/kubepods/podx", scratch.root);
    tree::make(scratch.layout(), &scratch.root, false).unwrap();
    for mount in scratch.layout().mounts() {
        std::fs::create_dir_all(format!("{mount}{kubelets}")).unwrap();
    }
    let pod = c.create_pod(&kubelets, "p").await.unwrap();
    assert_eq!(pod.path, format!("{kubelets}/p"));
    let container = scratch.container(&pod, "c", &Resources::default());
    assert_eq!(container.path, format!("{kubelets}/c"));
    let process = scratch.run(&container, "sleep 1000");
    c.kill(&pod).unwrap();
    c.wait_empty(&pod, SECONDS).await.unwrap();
    assert!(c.wait_empty(&container, Duration::ZERO).await.is_err(), "a parent may hold other pods");
    c.kill(&container).unwrap();
    assert!(process.killed());
    c.wait_empty(&container, SECONDS).await.unwrap();
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    assert!(scratch.layout().mounts().all(|m| Path::new(&format!("{m}{kubelets}")).exists()));

    let ours = format!("{}/made/deep", scratch.root);
    let (one, two) = (c.create_pod(&ours, "1").await.unwrap(), c.create_pod(&ours, "2").await.unwrap());
    c.remove(&one).await.unwrap();
    assert!(scratch.exists(&two.path));
    c.remove(&two).await.unwrap();
    assert!(!scratch.exists(&format!("{}/made", scratch.root)));

    assert_eq!(c.create_pod("/a/../b", "p").await.unwrap_err().kind, Kind::InvalidArgument);
    assert_eq!(c.create_pod("/", "../p").await.unwrap_err().kind, Kind::InvalidArgument);
    let slice = c.create_pod("/kubepods.slice/kubepods-podx.slice", "p").await.unwrap_err();
    assert!(slice.message.contains("same driver"), "{slice}");
    tree::remove(scratch.layout(), &format!("{}/kubepods", scratch.root)).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn cgroups_that_a_container_made_go_with_it() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let container = scratch.container(&pod, "c", &Resources::default());
    for mount in scratch.layout().mounts() {
        for below in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(format!("{mount}{}/{below}", container.path)).unwrap();
        }
    }
    let inner = Cgroup { path: format!("{}/a/b", container.path), role: Role::Container };
    let cpuset = scratch.layout().v1("cpuset").map(|h| format!("{}{}/cpuset.cpus", h.mount, inner.path));
    assert!(cpuset.is_none_or(|name| !file::read_all(&name).unwrap().trim().is_empty()), "cloned from ours");
    let process = scratch.run(&inner, "sleep 1000");
    let error = tree::remove(scratch.layout(), &container.path).await.unwrap_err();
    assert!(error.message.matches("busy").count() == scratch.layout().mounts().count(), "{error}");
    c.kill(&container).unwrap();
    assert!(process.killed());
    c.wait_empty(&container, SECONDS).await.unwrap();
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn pure_v1_kills_by_the_freezer() {
    let Some(scratch) = Scratch::with(|layout| {
        if !layout.v1.is_empty() {
            layout.unified = None;
        }
    }) else {
        return;
    };
    if scratch.layout().killer().is_none() || scratch.layout().unified.is_some() {
        eprintln!("skipped: no v1 freezer here");
        return;
    }
    let c = &scratch.cgroups;
    let pod = scratch.pod("p").await;
    let container = scratch.container(&pod, "c", &Resources::default());
    let main = scratch.run(&container, "sleep 1000");
    let exec = c.create_exec(&container, "e").unwrap();
    let command = scratch.run(&exec, "while :; do sleep 0.001 & done");
    assert!(c.wait_empty(&exec, Duration::from_millis(30)).await.is_err());
    c.kill(&exec).unwrap();
    c.wait_empty(&exec, SECONDS).await.unwrap();
    assert!(command.killed());
    c.remove(&exec).await.unwrap();
    assert!(c.wait_empty(&container, Duration::ZERO).await.is_err(), "the container lives on");
    c.kill(&container).unwrap();
    c.wait_empty(&container, SECONDS).await.unwrap();
    assert!(main.killed());
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn an_exec_finds_a_place_beside_a_threaded_container() {
    let Some(scratch) = Scratch::new() else { return };
    let c = &scratch.cgroups;
    let Some(unified) = scratch.layout().unified.clone() else { return };
    let pod = scratch.pod("p").await;
    let container = scratch.container(&pod, "c", &Resources::default());
    let main = scratch.run(&container, "sleep 1000");
    let full = format!("{}{}", unified.mount, container.path);
    std::fs::create_dir(format!("{full}/t")).unwrap();
    if file::write(&format!("{full}/t/cgroup.type"), "threaded").is_ok() {
        let exec = c.create_exec(&container, "e").unwrap();
        assert_eq!(exec.path, container.path);
        assert_eq!(c.kill(&exec).unwrap_err().kind, Kind::FailedPrecondition);
        drop(scratch.run(&exec, "sleep 1000"));
        c.wait_empty(&exec, Duration::ZERO).await.unwrap();
        c.remove(&exec).await.unwrap();
        assert!(scratch.exists(&container.path));
    }
    file::write(&format!("{full}/cgroup.max.descendants"), "0").unwrap();
    let exec = c.create_exec(&container, "f").unwrap();
    assert_eq!(exec.role, Role::Exec { container: container.path.clone(), shared: true });
    c.kill(&pod).unwrap();
    assert!(main.killed());
    c.wait_empty(&pod, SECONDS).await.unwrap();
    c.remove(&pod).await.unwrap();
    scratch.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_come_and_go_in_one_parent_that_comes_and_goes() {
    let Some(scratch) = Scratch::new() else { return };
    tree::make(scratch.layout(), &scratch.root, false).unwrap();
    let parent = format!("{}/shared", scratch.root);
    let tasks: Vec<_> = (0..4)
        .map(|worker| {
            let (cgroups, parent) = (scratch.cgroups.clone(), parent.clone());
            tokio::spawn(async move {
                for turn in 0..10 {
                    let pod = cgroups.create_pod(&parent, &format!("{worker}-{turn}")).await.unwrap();
                    cgroups.remove(&pod).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    scratch.finish().await;
}

#[tokio::test]
async fn the_keeper_has_a_cgroup_of_its_own() {
    let Some(scratch) = Scratch::new() else { return };
    let files = scratch.cgroups.keeper_procs().unwrap();
    assert_eq!(files.len(), scratch.layout().mounts().count());
    let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let sleeper = Process(sleeper);
    for name in &files {
        std::fs::write(name, sleeper.pid().to_string()).unwrap();
    }
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", sleeper.pid())).unwrap();
    assert!(text.lines().all(|line| line.ends_with(&format!(":{}/keeper", scratch.root))), "{text}");
    drop(sleeper);
    tree::remove(scratch.layout(), &format!("{}/keeper", scratch.root)).await.unwrap();
    scratch.finish().await;
}

#[tokio::test]
async fn a_record_of_a_cgroup_is_read_back() {
    let pod = Cgroup { path: "/a/b".into(), role: Role::Pod { parent_is_ours: true } };
    let exec = Cgroup { path: "/a/c".into(), role: Role::Exec { container: "/a".into(), shared: false } };
    for cgroup in [pod, exec, Cgroup::default()] {
        let text = serde_json::to_string(&cgroup).unwrap();
        assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
    }
    assert_eq!(serde_json::from_str::<Cgroup>(r#"{"path":"/x"}"#).unwrap().role, Role::Container);
}
