use proptest::prelude::*;

use super::*;
use crate::error::Kind;

const PLAIN: Host = Host { apparmor: false, selinux: false };
const CONFINING: Host = Host { apparmor: true, selinux: true };

fn decode_on(host: &Host, change: impl Fn(&mut wire::LinuxContainerSecurityContext)) -> Result<Security> {
    let mut context = wire::LinuxContainerSecurityContext::default();
    change(&mut context);
    container("sc", Some(context), host)
}

fn decode(change: impl Fn(&mut wire::LinuxContainerSecurityContext)) -> Result<Security> {
    decode_on(&PLAIN, change)
}

fn decode_pod(change: impl Fn(&mut wire::LinuxSandboxSecurityContext)) -> Result<PodSecurity> {
    let mut context = wire::LinuxSandboxSecurityContext::default();
    change(&mut context);
    pod("sc", Some(context), &PLAIN)
}

fn typed(kind: ProfileType, name: &str) -> Option<wire::SecurityProfile> {
    Some(wire::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
}

fn user_namespace_of(mode: wire::NamespaceMode) -> Option<wire::NamespaceOption> {
    Some(wire::NamespaceOption {
        userns_options: Some(wire::UserNamespace { mode: mode.into(), ..Default::default() }),
        ..Default::default()
    })
}

#[test]
fn behaviour_38_neutral_values_pass_on_every_host() {
    for host in [PLAIN, CONFINING] {
        // Nothing asked for is the node's default.
        let apparmor = if host.apparmor { AppArmor::Preferred } else { AppArmor::Unconfined };
        assert_eq!(container("sc", None, &host).unwrap(), Security { apparmor, ..Security::default() });
        assert_eq!(pod("sc", None, &host).unwrap(), PodSecurity::default());
        let neutral = decode_on(&host, |c| {
            c.namespace_options = user_namespace_of(wire::NamespaceMode::Node);
            c.apparmor = typed(ProfileType::Unconfined, "");
            c.seccomp = typed(ProfileType::Unconfined, "");
            c.selinux_options = Some(Default::default());
            c.capabilities = Some(Default::default());
        });
        assert_eq!(neutral.unwrap(), Security::default());
        assert!(decode_on(&host, |c| c.apparmor_profile = "unconfined".into()).is_ok());
    }
}

#[test]
fn behaviour_35_user_namespaces_are_refused_by_name() {
    for (mode, kind) in [
        (wire::NamespaceMode::Pod, Kind::Unimplemented),
        (wire::NamespaceMode::Container, Kind::InvalidArgument),
        (wire::NamespaceMode::Target, Kind::InvalidArgument),
    ] {
        let container = decode(|c| c.namespace_options = user_namespace_of(mode)).unwrap_err();
        let pod = decode_pod(|c| c.namespace_options = user_namespace_of(mode)).unwrap_err();
        for error in [container, pod] {
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.contains("userns_options"), "{error}");
        }
    }
    let mapped = decode(|c| {
        let mut options = user_namespace_of(wire::NamespaceMode::Node);
        options.as_mut().unwrap().userns_options.as_mut().unwrap().uids.push(Default::default());
        c.namespace_options = options;
    });
    assert!(mapped.is_err());
}

#[test]
fn apparmor_is_confinement_where_the_kernel_has_it() {
    let of = |host: &Host, set: &dyn Fn(&mut wire::LinuxContainerSecurityContext)| {
        decode_on(host, |c| set(c)).map(|security| security.apparmor)
    };
    let default: [&dyn Fn(&mut wire::LinuxContainerSecurityContext); 2] =
        [&|c| c.apparmor = typed(ProfileType::RuntimeDefault, ""), &|c| {
            c.apparmor_profile = "runtime/default".into()
        }];
    for set in default {
        assert_eq!(of(&PLAIN, set).unwrap(), AppArmor::Unconfined, "nothing is what every process has there");
        assert_eq!(of(&CONFINING, set).unwrap(), AppArmor::RuntimeDefault);
        let privileged = |c: &mut wire::LinuxContainerSecurityContext| {
            set(c);
            c.privileged = true;
        };
        assert_eq!(of(&CONFINING, &privileged).unwrap(), AppArmor::Unconfined);
    }
    assert_eq!(of(&CONFINING, &|_| ()).unwrap(), AppArmor::Preferred, "as with the peers");
    assert_eq!(of(&CONFINING, &|c| c.privileged = true).unwrap(), AppArmor::Unconfined);
    assert_eq!(of(&PLAIN, &|_| ()).unwrap(), AppArmor::Unconfined);
    let named: [&dyn Fn(&mut wire::LinuxContainerSecurityContext); 3] = [
        &|c| c.apparmor = typed(ProfileType::Localhost, "mine"),
        &|c| c.apparmor = typed(ProfileType::Localhost, "localhost/mine"),
        &|c| c.apparmor_profile = "localhost/mine".into(),
    ];
    for set in named {
        assert_eq!(of(&CONFINING, set).unwrap(), AppArmor::Localhost("mine".into()));
        let error = of(&PLAIN, set).unwrap_err();
        assert!(error.message.contains("apparmor") && error.message.contains("mine"), "{error}");
    }
    for bad in ["mine", "localhost/", "localhost/a\nb"] {
        assert!(of(&CONFINING, &|c| c.apparmor_profile = bad.into()).is_err(), "{bad:?}");
    }
    assert!(decode_pod(|c| c.apparmor = typed(ProfileType::Localhost, "mine")).is_err());
}

#[test]
fn selinux_options_are_never_dropped() {
    let labelled = |c: &mut wire::LinuxContainerSecurityContext| {
        c.selinux_options = Some(wire::SeLinuxOption { level: "s0:c1".into(), ..Default::default() });
    };
    assert_eq!(decode_on(&CONFINING, labelled).unwrap_err().kind, Kind::Unimplemented);
    let error = decode_on(&PLAIN, labelled).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidArgument);
    assert!(error.message.contains("SELinux is off"), "{error}");
}

#[test]
fn behaviour_22_unset_seccomp_is_not_the_default_profile() {
    let seccomp = |set: &dyn Fn(&mut wire::LinuxContainerSecurityContext)| decode(set).map(|s| s.seccomp);
    let typed_as = |kind, name: &'static str| seccomp(&|c| c.seccomp = typed(kind, name));
    let path = |path: &'static str| seccomp(&|c| c.seccomp_profile_path = path.into());
    let file = Seccomp::Localhost("/var/lib/kubelet/seccomp/a.json".into());

    assert_eq!(seccomp(&|_| ()).unwrap(), Seccomp::Unconfined);
    assert_eq!(typed_as(ProfileType::Unconfined, "").unwrap(), Seccomp::Unconfined);
    assert_eq!(typed_as(ProfileType::RuntimeDefault, "").unwrap(), Seccomp::RuntimeDefault);
    assert_eq!(typed_as(ProfileType::Localhost, "/var/lib/kubelet/seccomp/a.json").unwrap(), file);
    assert!(typed_as(ProfileType::Localhost, "").is_err());
    assert!(typed_as(ProfileType::Localhost, "a.json").is_err());
    assert!(typed_as(ProfileType::Unconfined, "/a.json").is_err());

    assert_eq!(path("unconfined").unwrap(), Seccomp::Unconfined);
    assert_eq!(path("runtime/default").unwrap(), Seccomp::RuntimeDefault);
    assert_eq!(path("docker/default").unwrap(), Seccomp::RuntimeDefault);
    assert_eq!(path("localhost//var/lib/kubelet/seccomp/a.json").unwrap(), file);
    assert!(path("localhost/a.json").is_err() && path("default").is_err());

    let both = decode(|c| {
        c.seccomp = typed(ProfileType::RuntimeDefault, "");
        c.seccomp_profile_path = "unconfined".into();
    });
    assert_eq!(both.unwrap().seccomp, Seccomp::RuntimeDefault);
}

#[test]
fn behaviour_20_a_group_needs_a_user() {
    let id = |value| Some(wire::Int64Value { value });
    assert_eq!(decode(|c| c.run_as_group = id(5)).unwrap_err().kind, Kind::InvalidArgument);
    assert!(decode_pod(|c| c.run_as_group = id(5)).is_err());
    let named = decode(|c| {
        c.run_as_username = "ada".into();
        c.run_as_group = id(5);
    });
    assert_eq!(named.unwrap().run_as, RunAs::Username("ada".into()));
    let both = decode(|c| {
        c.run_as_username = "ada".into();
        c.run_as_user = id(0);
    });
    assert!(both.is_err());
    assert_eq!(decode(|c| c.run_as_user = id(0)).unwrap().run_as, RunAs::Uid(0));
    assert!(decode(|c| c.run_as_username = "ada:root".into()).is_err());
}

#[test]
fn namespaces_have_the_modes_that_mean_something() {
    let with = |set: fn(&mut wire::NamespaceOption)| {
        let mut options = wire::NamespaceOption::default();
        set(&mut options);
        namespaces("ns", Some(options))
    };
    assert_eq!(with(|n| n.pid = 1).unwrap().pid, NamespaceMode::Container);
    assert_eq!(with(|n| n.network = 2).unwrap().network, NamespaceMode::Node);
    assert!(with(|n| n.network = 1).is_err() && with(|n| n.ipc = 3).is_err() && with(|n| n.pid = 4).is_err());
    assert!(with(|n| n.pid = 3).is_err() && with(|n| n.target_id = "a".into()).is_err());
    let target = wire::NamespaceOption { pid: 3, target_id: "a".into(), ..Default::default() };
    assert_eq!(namespaces("ns", Some(target.clone())).unwrap().target, "a");
    assert!(decode_pod(|c| c.namespace_options = Some(target.clone())).is_err());
}

proptest! {
    #[test]
    fn cve_2024_40635_no_number_is_cut_to_another(id in any::<i64>()) {
        let wire = Some(wire::Int64Value { value: id });
        let valid = (0..i64::from(u32::MAX)).contains(&id);
        match decode(|c| c.run_as_user = wire) {
            Ok(security) => {
                let same = matches!(security.run_as, RunAs::Uid(uid) if i64::from(uid) == id);
                prop_assert!(same);
            }
            Err(error) => {
                prop_assert!(!valid);
                prop_assert!(error.message.contains("run_as_user"));
            }
        }
        prop_assert_eq!(decode(|c| c.supplemental_groups = vec![id]).is_ok(), valid);
        prop_assert_eq!(decode_pod(|c| c.run_as_user = wire).is_ok(), valid);
    }

    #[test]
    fn cve_2024_40635_around_the_limits(id in (i64::from(u32::MAX) - 2)..=(i64::from(u32::MAX) + 2)) {
        let wire = Some(wire::Int64Value { value: id });
        prop_assert_eq!(decode(|c| c.run_as_user = wire).is_ok(), id < i64::from(u32::MAX));
    }
}
