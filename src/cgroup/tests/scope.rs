//! The systemd driver against a systemd that runs.

use super::*;

/// Below a slice of the test's own, since to stop one ends what the others run in it. None, with the
/// reason printed, where no systemd runs.
fn systemd() -> Option<Cgroups> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making scopes needs root");
        return None;
    }
    let root = format!("/podwrighttest{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    match Cgroups::detect(Driver::Systemd, &root) {
        Ok(cgroups) => Some(cgroups),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

fn property(unit: &str, name: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--value", "-p", name, unit]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Ends the test's own slice.
fn stop(scratch: &Scratch) {
    let slice = format!("{}.slice", path::base(&scratch.root).trim_end_matches(".slice"));
    let _ = Command::new("systemctl").args(["stop", &slice]).status();
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn b28_a_container_is_in_its_scope_from_its_making() {
    let Some(cgroups) = systemd() else { return };
    let inner = cgroups.0.clone();
    let scratch = Scratch { root: inner.root.clone(), cgroups };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p1").await;
    let root = path::base(&scratch.root).trim_end_matches(".slice");
    assert_eq!(pod.path, format!("/{root}.slice/{root}-podp1.slice/podwright-p1.scope"));
    let limits = Resources {
        cpu_shares: 2048,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit: 64 << 20,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    let container = scratch.container(&pod, "c1", &limits);
    let before = c.limits(&container);
    let process = scratch.run(&container, "sleep 1000");
    c.adopt(&container, process.pid().cast_signed(), &limits).await.unwrap();

    let unit = "podwright-c1.scope";
    assert_eq!(property(unit, "ActiveState"), "active");
    assert_eq!(property(unit, "ControlGroup"), container.path);
    assert_eq!(property(unit, "Delegate"), "yes");
    assert_eq!(property(unit, "TasksMax"), "infinity");
    assert_eq!(c.limits(&container), before, "systemd left our limits alone");
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap();
    assert!(text.contains(&format!(":{}\n", container.path)), "{text}");

    let reload = Command::new("systemctl").arg("daemon-reload").status().unwrap();
    assert!(reload.success());
    assert_eq!(c.limits(&container), before, "a reload sets nothing back");
    let more = Resources { memory_limit: 128 << 20, cpu_quota: -1, ..Default::default() };
    c.update(&container, &more).await.unwrap();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!((c.limits(&container).memory_limit, c.limits(&container).cpu_quota), (128 << 20, -1));

    let exec = c.create_exec(&container, "e1").unwrap();
    let command = scratch.run(&exec, "sleep 1000");
    c.kill(&exec).unwrap();
    assert!(command.killed());
    c.wait_empty(&exec, SECONDS).await.unwrap();
    c.remove(&exec).await.unwrap();

    c.kill(&container).unwrap();
    assert!(process.killed());
    c.wait_empty(&container, SECONDS).await.unwrap();
    until("the scope's end", || property(unit, "ActiveState") == "inactive").await;
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    until("the slice's end", || property(&format!("{root}-podp1.slice"), "ActiveState") == "inactive").await;
    assert!(!scratch.exists(path::parent(&pod.path)));
    stop(&scratch);
}

/// The configuration was changed while pods run.
#[tokio::test]
async fn a_pod_stays_with_the_driver_that_made_it() {
    let Some(before) = systemd() else { return };
    let root = before.0.root.clone();
    let after = Cgroups::detect(Driver::Cgroupfs, &format!("{root}-other")).unwrap();
    let (before, after) = (
        Scratch { root: root.clone(), cgroups: before },
        Scratch { root: after.0.root.clone(), cgroups: after },
    );
    let limits = Resources { memory_limit: 64 << 20, ..Default::default() };

    let pod = before.pod("p4").await;
    let container = after.container(&pod, "c4", &limits);
    let process = after.run(&container, "sleep 1000");
    after.cgroups.adopt(&container, process.pid().cast_signed(), &limits).await.unwrap();
    assert_eq!(property("podwright-c4.scope", "ControlGroup"), container.path);
    let more = Resources { memory_limit: 128 << 20, ..Default::default() };
    after.cgroups.update(&container, &more).await.unwrap();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!(after.cgroups.limits(&container).memory_limit, 128 << 20);
    after.cgroups.kill(&container).unwrap();
    assert!(process.killed());
    after.cgroups.remove(&container).await.unwrap();
    after.cgroups.remove(&pod).await.unwrap();
    let slice = path::base(path::parent(&pod.path)).to_owned();
    until("the slice's end", || property(&slice, "ActiveState") == "inactive").await;

    let pod = after.pod("p5").await;
    let container = before.container(&pod, "c5", &limits);
    assert_eq!(container.path, format!("{}/pod-p5/c5", after.root));
    let process = before.run(&container, "sleep 1000");
    before.cgroups.adopt(&container, process.pid().cast_signed(), &limits).await.unwrap();
    assert_eq!(property("podwright-c5.scope", "ActiveState"), "inactive");
    before.cgroups.update(&container, &more).await.unwrap();
    before.cgroups.kill(&container).unwrap();
    assert!(process.killed());
    before.cgroups.remove(&container).await.unwrap();
    before.cgroups.remove(&pod).await.unwrap();
    after.finish().await;
    stop(&before);
}

/// systemd writes "everything" into the devices of a v1 scope that says nothing of them.
#[tokio::test]
async fn devices_stay_confined_in_a_scope() {
    let Some(cgroups) = systemd() else { return };
    let scratch = Scratch { root: cgroups.0.root.clone(), cgroups };
    let c = &scratch.cgroups;
    let pod = scratch.pod("p3").await;
    let limits = Resources::default();
    let container = scratch.container(&pod, "c3", &limits);
    let kmsg = DeviceRule { block: false, major: 1, minor: 11, access: "r".into() };
    c.allow_devices(&container, &DeviceRules::Listed(vec![kmsg])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let wait = format!(
        "until [ -e {0}/go ]; do sleep 0.1; done; head -c 0 /dev/null && echo null; \
         head -c 0 /dev/kmsg && echo kmsg; true > /dev/kmsg && echo written; head -c 0 /dev/mem && echo mem",
        dir.path().display()
    );
    let process = scratch.run(&container, &wait);
    c.adopt(&container, process.pid().cast_signed(), &limits).await.unwrap();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    std::fs::write(dir.path().join("go"), "").unwrap();
    let said = process.output();
    assert!(said.starts_with("null\nkmsg\n"), "{said}");
    assert!(!said.contains("written") && !said.contains("mem\n"), "{said}");
    until("the scope's end", || property("podwright-c3.scope", "ActiveState") == "inactive").await;
    c.remove(&container).await.unwrap();
    c.remove(&pod).await.unwrap();
    stop(&scratch);
}

#[tokio::test]
async fn b10_oom_kills_are_known_after_systemd_removed_the_scope() {
    let Some(cgroups) = systemd() else { return };
    let scratch = Scratch { root: cgroups.0.root.clone(), cgroups };
    if scratch.layout().place("memory") != Some(layout::Place::V2) {
        eprintln!("skipped: no memory controller on cgroup2");
        return;
    }
    let c = &scratch.cgroups;
    let pod = scratch.pod("p2").await;
    let limits = Resources { memory_limit: 32 << 20, ..Default::default() };
    let container = scratch.container(&pod, "c2", &limits);
    let go = tempfile::tempdir().unwrap();
    let gate = go.path().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.1; done; exec tail /dev/zero", gate.display());
    let process = scratch.run(&container, &wait);
    c.adopt(&container, process.pid().cast_signed(), &limits).await.unwrap();
    std::fs::write(&gate, "").unwrap();
    until("the OOM kill", || !scratch.exists(&container.path)).await;
    assert!(process.killed());
    assert_eq!(c.oom_kills(&container), Some(1));
    c.remove(&container).await.unwrap();
    assert_eq!(c.oom_kills(&container), None);
    c.remove(&pod).await.unwrap();
    stop(&scratch);
}
