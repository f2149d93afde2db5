//! Requests that are refused by the name of what is wrong with them, and what is accepted since it changes
//! nothing.

use podwright::cri::wire as cri;
use tonic::Code;

use crate::harness::{Daemon, context, pod, script, text};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_built_is_refused_by_name() {
    use cri::security_profile::ProfileType;
    let daemon = Daemon::start().await;
    let plain = daemon.run_pod(pod("refusals")).await;
    type Change = fn(&mut cri::ContainerConfig);
    fn a_mount(config: &mut cri::ContainerConfig) -> &mut cri::Mount {
        config.mounts.push(cri::Mount {
            container_path: "/data".into(),
            host_path: "/tmp".into(),
            ..Default::default()
        });
        config.mounts.last_mut().unwrap()
    }
    let rows: [(&str, Change, Code); 16] = [
        ("CDI_devices", |c| c.cdi_devices.push(cri::CdiDevice { name: "v/c=d".into() }), Code::Unimplemented),
        (
            "apparmor",
            |c| {
                context(c).apparmor = Some(cri::SecurityProfile {
                    profile_type: ProfileType::Localhost as i32,
                    localhost_ref: "p".into(),
                })
            },
            Code::InvalidArgument,
        ),
        (
            "apparmor_profile",
            |c| {
                context(c).apparmor = None;
                context(c).apparmor_profile = "localhost/p".into()
            },
            Code::InvalidArgument,
        ),
        (
            "selinux_options",
            |c| {
                context(c).selinux_options =
                    Some(cri::SeLinuxOption { level: "s0".into(), ..Default::default() })
            },
            Code::InvalidArgument,
        ),
        (
            "userns_options",
            |c| {
                context(c).namespace_options.as_mut().unwrap().userns_options = Some(cri::UserNamespace {
                    mode: cri::NamespaceMode::Pod as i32,
                    uids: vec![cri::IdMapping { host_id: 1, container_id: 0, length: 1 }],
                    gids: Vec::new(),
                })
            },
            Code::Unimplemented,
        ),
        (
            "userns_options",
            |c| {
                context(c).namespace_options.as_mut().unwrap().userns_options =
                    Some(cri::UserNamespace { mode: cri::NamespaceMode::Target as i32, ..Default::default() })
            },
            Code::InvalidArgument,
        ),
        (
            "readonly",
            |c| {
                let m = a_mount(c);
                m.host_path.clear();
                m.image = Some(cri::ImageSpec { image: "x".into(), ..Default::default() });
            },
            Code::InvalidArgument,
        ),
        ("image_sub_path", |c| a_mount(c).image_sub_path = "x".into(), Code::InvalidArgument),
        ("mount_options", |c| a_mount(c).mount_options.push("noexec".into()), Code::Unimplemented),
        (
            "uidMappings",
            |c| a_mount(c).uid_mappings.push(cri::IdMapping { host_id: 1, container_id: 0, length: 1 }),
            Code::Unimplemented,
        ),
        ("propagation", |c| a_mount(c).propagation = 17, Code::InvalidArgument),
        (
            "seccomp",
            |c| {
                context(c).seccomp = Some(cri::SecurityProfile {
                    profile_type: ProfileType::Localhost as i32,
                    localhost_ref: String::new(),
                })
            },
            Code::InvalidArgument,
        ),
        (
            "profile_type",
            |c| {
                context(c).seccomp =
                    Some(cri::SecurityProfile { profile_type: 9, localhost_ref: String::new() })
            },
            Code::InvalidArgument,
        ),
        ("privileged", |c| context(c).privileged = true, Code::InvalidArgument),
        (
            "/no/such/profile",
            |c| {
                context(c).seccomp = Some(cri::SecurityProfile {
                    profile_type: ProfileType::Localhost as i32,
                    localhost_ref: "/no/such/profile".into(),
                })
            },
            Code::Unknown,
        ),
        (
            "permissions",
            |c| {
                c.devices.push(cri::Device {
                    container_path: "/dev/x".into(),
                    host_path: "/dev/null".into(),
                    permissions: "z".into(),
                })
            },
            Code::InvalidArgument,
        ),
    ];
    for (field, change, code) in rows {
        let mut config = script("refused", "true");
        change(&mut config);
        let error = daemon.create(&plain, config).await.expect_err(field);
        assert!(error.message().contains(field), "{field}: {error}");
        assert!(error.code() == code || code == Code::Unknown, "{field}: {error}");
    }
    type PodChange = fn(&mut cri::PodSandboxConfig);
    fn security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }
    let rows: [(&str, PodChange); 4] = [
        ("userns_options", |c| {
            security(c).namespace_options.as_mut().unwrap().userns_options =
                Some(cri::UserNamespace { mode: 0, ..Default::default() })
        }),
        ("selinux_options", |c| {
            security(c).selinux_options =
                Some(cri::SeLinuxOption { level: "s0".into(), ..Default::default() })
        }),
        ("apparmor", |c| {
            security(c).apparmor = Some(cri::SecurityProfile {
                profile_type: ProfileType::Localhost as i32,
                localhost_ref: "p".into(),
            })
        }),
        ("pid", |c| {
            let o = security(c).namespace_options.as_mut().unwrap();
            (o.pid, o.target_id) = (3, "x".into())
        }),
    ];
    for (field, change) in rows {
        let mut config = pod("refused");
        change(&mut config);
        let request = cri::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let error = daemon.runtime().run_pod_sandbox(request).await.expect_err(field);
        assert!(error.message().contains(field), "{field}: {error}");
        assert!(matches!(error.code(), Code::Unimplemented | Code::InvalidArgument), "{field}: {error}");
    }
    let request = cri::RunPodSandboxRequest { config: Some(pod("handler")), runtime_handler: "kata".into() };
    let error = daemon.runtime().run_pod_sandbox(request).await.unwrap_err();
    assert!(error.message().contains("kata"), "{error}");
    daemon.finish().await;
}

/// 38: what changes nothing is accepted everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn behaviour_38_neutral_values() {
    use cri::security_profile::ProfileType::Unconfined;
    let daemon = Daemon::start().await;
    let unconfined =
        || Some(cri::SecurityProfile { profile_type: Unconfined as i32, localhost_ref: String::new() });
    let node = || Some(cri::UserNamespace { mode: cri::NamespaceMode::Node as i32, ..Default::default() });
    let mut config = pod("neutral");
    let linux = config.linux.as_mut().unwrap();
    linux.overhead = Some(Default::default());
    linux.resources = Some(Default::default());
    let security = linux.security_context.as_mut().unwrap();
    (security.apparmor, security.seccomp, security.selinux_options) =
        (unconfined(), unconfined(), Some(Default::default()));
    security.namespace_options.as_mut().unwrap().userns_options = node();
    let made = daemon.run_pod(config).await;
    let mut config = script("neutral", "echo ran");
    config.windows = Some(Default::default());
    config.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        hugepage_limits: ["2MB", "1GB"].map(|s| cri::HugepageLimit { page_size: s.into(), limit: 0 }).into(),
        ..Default::default()
    });
    let security = context(&mut config);
    (security.apparmor, security.seccomp, security.selinux_options) =
        (unconfined(), unconfined(), Some(Default::default()));
    security.apparmor_profile = "unconfined".into();
    security.namespace_options.as_mut().unwrap().userns_options = node();
    let (_, lines) = daemon.outcome(&made, config).await;
    assert_eq!(text(&lines), "ran");
    let mut bare = script("bare", "echo ran");
    bare.linux = None;
    let (_, lines) = daemon
        .outcome(&daemon.run_pod(cri::PodSandboxConfig { linux: None, ..pod("bare") }).await, bare)
        .await;
    assert_eq!(text(&lines), "ran");
    daemon.finish().await;
}
