//! What the node says of itself and of its images.

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, context, pod, script, systemd_driver};

async fn node_status(daemon: &Daemon) -> cri::StatusResponse {
    daemon.runtime().status(cri::StatusRequest { verbose: true }).await.unwrap().into_inner()
}

fn condition<'a>(status: &'a cri::StatusResponse, name: &str) -> &'a cri::RuntimeCondition {
    let conditions = &status.status.as_ref().unwrap().conditions;
    conditions.iter().find(|c| c.r#type == name).unwrap_or_else(|| panic!("{name}: {conditions:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_5_an_image_has_one_id() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("five")).await;
    let images = daemon.images().list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner();
    let image = &images.images[0];
    assert!(image.id.starts_with("sha256:"), "{}", image.id);
    let tag = &image.repo_tags[0];
    for name in [tag, &image.id, &image.repo_digests[0]] {
        let wanted = Some(cri::ImageSpec { image: name.clone(), ..Default::default() });
        let request = cri::ImageStatusRequest { image: wanted.clone(), verbose: false };
        let found = daemon.images().image_status(request).await.unwrap().into_inner().image.unwrap();
        assert_eq!(found.id, image.id, "{name}");
        let mut config = script(&format!("c{}", name.len()), "sleep 1000");
        config.image = wanted;
        let id = daemon.run(&made, config).await;
        let status = daemon.status(&id).await;
        assert_eq!(status.image_id, image.id, "{name}");
        assert_eq!(status.image_ref, image.repo_digests[0], "{name}");
        assert_eq!(&status.image.unwrap().image, name, "as it was given");
        let listed = daemon.runtime().list_containers(cri::ListContainersRequest::default()).await.unwrap();
        let listed = listed.into_inner().containers.into_iter().find(|c| c.id == id).unwrap();
        assert_eq!((&listed.image_id, &listed.image_ref), (&image.id, &image.repo_digests[0]));
        daemon.remove(&id).await.unwrap();
    }
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_16_exec_of_what_is_not_there_or_fails() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("sixteen")).await;
    let id = daemon
        .run(&made, script("main", "echo text > /plain; mkdir /directory; echo ready; sleep 1000"))
        .await;
    daemon.lines_of(&id, 1).await;
    for (program, cause) in [
        ("/no/such/program", "no such file"),
        ("no-such-program", "no such file"),
        ("/plain", "permission denied"),
        ("/directory", "permission denied"),
    ] {
        let error = daemon.exec(&id, &[program]).await.unwrap_err();
        assert!(error.message().contains(program) && error.message().contains(cause), "{error}");
    }
    for code in [1, 42, 126, 127, 255] {
        let output = daemon.exec(&id, &["sh", "-c", &format!("exit {code}")]).await.unwrap();
        assert_eq!(output.exit_code, code);
    }
    let error = daemon.exec(&id, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    daemon.stop(&id, 0).await.unwrap();
    let error = daemon.exec(&id, &["true"]).await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.message().contains(&id), "{error}");
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_31_readiness_handlers_and_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let extra = format!("mode = \"cni\"\ncni_conf_dir = {0:?}\ncni_bin_dirs = [{0:?}]", directory.path());
    let daemon = Daemon::start_with(&extra).await;
    let status = node_status(&daemon).await;
    assert!(condition(&status, "RuntimeReady").status);
    let network = condition(&status, "NetworkReady");
    let place = directory.path().to_str().unwrap();
    assert!(!network.status && !network.reason.is_empty() && network.message.contains(place), "{network:?}");
    let names: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert!(names.contains(&""), "{names:?}");
    for handler in &status.runtime_handlers {
        assert!(handler.features.as_ref().unwrap().recursive_read_only_mounts);
    }
    // Once there is a configuration that can be used.
    let plugin = directory.path().join("loopback");
    std::fs::write(
        &plugin,
        "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'\n",
    )
    .unwrap();
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let list = r#"{"cniVersion":"1.0.0","name":"late","plugins":[{"type":"loopback"}]}"#;
    std::fs::write(directory.path().join("10-late.conflist"), list).unwrap();
    let mut ready = false;
    for _ in 0..10_000 {
        ready = condition(&node_status(&daemon).await, "NetworkReady").status;
        if ready {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(ready, "{:?}", node_status(&daemon).await);
    let config = daemon.runtime().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let driver = cri::CgroupDriver::try_from(config.linux.unwrap().cgroup_driver).unwrap();
    assert_eq!(
        driver,
        if systemd_driver() { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs }
    );
    daemon.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behaviour_32_the_image_file_system() {
    let daemon = Daemon::start().await;
    let request = cri::ImageFsInfoRequest {};
    let info = daemon.images().image_fs_info(request).await.unwrap().into_inner();
    // kubelet reads the first.
    let first = &info.image_filesystems[0];
    let mountpoint = &first.fs_id.as_ref().unwrap().mountpoint;
    assert!(std::path::Path::new(mountpoint).starts_with(daemon.dir.path()), "{mountpoint}");
    let busybox = std::fs::metadata("/bin/busybox").unwrap().len();
    let used = first.used_bytes.unwrap().value;
    assert!(used >= busybox && used < busybox + (4 << 20), "{used}");
    assert!(first.inodes_used.unwrap().value > 10 && first.timestamp > 0);
    assert_eq!(info.container_filesystems.len(), 1);
    daemon.finish().await;
}

/// 35: user namespaces are not built, and refused by name wherever they are asked for.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_35_user_namespaces_are_never_ignored() {
    let daemon = Daemon::start().await;
    let made = daemon.run_pod(pod("thirty-five")).await;
    let mapping = || vec![cri::IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
    let asked = |mode: cri::NamespaceMode| {
        Some(cri::UserNamespace { mode: mode as i32, uids: mapping(), gids: mapping() })
    };
    let features = node_status(&daemon).await.runtime_handlers.remove(0).features.unwrap();
    for mode in [cri::NamespaceMode::Pod, cri::NamespaceMode::Container, cri::NamespaceMode::Target] {
        if mode == cri::NamespaceMode::Pod && features.user_namespaces {
            continue;
        }
        let mut config = pod("asks");
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options.as_mut().unwrap().userns_options = asked(mode);
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let error = daemon.runtime().run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains("userns"), "{mode:?}: {error}");
        let mut config = script("asks", "true");
        context(&mut config).namespace_options.as_mut().unwrap().userns_options = asked(mode);
        let error = daemon.create(&made, config).await.unwrap_err();
        assert!(error.message().contains("userns"), "{mode:?}: {error}");
    }
    daemon.finish().await;
}
