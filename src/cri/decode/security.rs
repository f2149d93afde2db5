//! Security fields of pods and containers. What is not built is refused: a field that is silently
//! ignored would leave a workload less confined than its author believes.

use crate::container::spec::{AppArmor, Capabilities, RunAs, Seccomp, Security, SupplementalGroupsPolicy};
use crate::cri::decode::{Host, known, text};
use crate::cri::wire;
use crate::cri::wire::security_profile::ProfileType;
use crate::error::{Error, Result};
use crate::pod::spec::{NamespaceMode, Namespaces, PodSecurity};

/// NGROUPS_MAX, see limits.h(0p).
const MAX_GROUPS: usize = 65536;

pub(super) fn pod(
    field: &str,
    wire: Option<wire::LinuxSandboxSecurityContext>,
    host: &Host,
) -> Result<PodSecurity> {
    let wire = wire.unwrap_or_default();
    let at = |name: &str| format!("{field}.{name}");
    selinux(&at("selinux_options"), wire.selinux_options, host)?;
    // The pod's own PID 1, if it has one, is nobody behind a filter; a profile is for containers.
    if apparmor(&at("apparmor"), wire.apparmor, wire.privileged, host)? != AppArmor::Unconfined {
        return Err(Error::unimplemented(format!("{} of a pod", at("apparmor"))));
    }
    if wire.run_as_group.is_some() && wire.run_as_user.is_none() {
        return Err(group_without_user(field));
    }
    let namespaces = namespaces(&at("namespace_options"), wire.namespace_options)?;
    if namespaces.pid == NamespaceMode::Target {
        return Err(Error::invalid(format!("{}.pid of a pod cannot be TARGET", at("namespace_options"))));
    }
    Ok(PodSecurity {
        namespaces,
        privileged: wire.privileged,
        readonly_rootfs: wire.readonly_rootfs,
        run_as_user: account(&at("run_as_user"), wire.run_as_user)?,
        run_as_group: account(&at("run_as_group"), wire.run_as_group)?,
        supplemental_groups: groups(&at("supplemental_groups"), wire.supplemental_groups)?,
        supplemental_groups_policy: policy(
            &at("supplemental_groups_policy"),
            wire.supplemental_groups_policy,
        )?,
        seccomp: seccomp(field, wire.seccomp, wire.seccomp_profile_path)?,
    })
}

pub(super) fn container(
    field: &str,
    wire: Option<wire::LinuxContainerSecurityContext>,
    host: &Host,
) -> Result<Security> {
    let wire = wire.unwrap_or_default();
    let at = |name: &str| format!("{field}.{name}");
    selinux(&at("selinux_options"), wire.selinux_options, host)?;
    let apparmor = match wire.apparmor {
        Some(profile) => apparmor(&at("apparmor"), Some(profile), wire.privileged, host)?,
        // With the peers a container that says nothing is confined by default.
        None if wire.apparmor_profile.is_empty() && host.apparmor && !wire.privileged => AppArmor::Preferred,
        None => {
            let profile = old_apparmor(&at("apparmor_profile"), &wire.apparmor_profile)?;
            apparmor(&at("apparmor_profile"), profile, wire.privileged, host)?
        }
    };
    let run_as = run_as(field, wire.run_as_user, wire.run_as_username)?;
    if wire.run_as_group.is_some() && run_as == RunAs::Image {
        return Err(group_without_user(field));
    }
    Ok(Security {
        capabilities: capabilities(&at("capabilities"), wire.capabilities)?,
        privileged: wire.privileged,
        namespaces: namespaces(&at("namespace_options"), wire.namespace_options)?,
        run_as,
        run_as_group: account(&at("run_as_group"), wire.run_as_group)?,
        readonly_rootfs: wire.readonly_rootfs,
        supplemental_groups: groups(&at("supplemental_groups"), wire.supplemental_groups)?,
        supplemental_groups_policy: policy(
            &at("supplemental_groups_policy"),
            wire.supplemental_groups_policy,
        )?,
        no_new_privs: wire.no_new_privs,
        masked_paths: text::each(&at("masked_paths"), wire.masked_paths, text::clean)?,
        readonly_paths: text::each(&at("readonly_paths"), wire.readonly_paths, text::clean)?,
        seccomp: seccomp(field, wire.seccomp, wire.seccomp_profile_path)?,
        apparmor,
    })
}

fn namespaces(field: &str, wire: Option<wire::NamespaceOption>) -> Result<Namespaces> {
    let wire = wire.unwrap_or_default();
    let pid = mode(&format!("{field}.pid"), wire.pid)?;
    if (pid == NamespaceMode::Target) == wire.target_id.is_empty() {
        return Err(Error::invalid(format!("{field}.target_id goes with pid TARGET, and only with it")));
    }
    user_namespace(&format!("{field}.userns_options"), wire.userns_options)?;
    Ok(Namespaces {
        network: pod_or_node(&format!("{field}.network"), wire.network)?,
        pid,
        ipc: pod_or_node(&format!("{field}.ipc"), wire.ipc)?,
        target: wire.target_id,
    })
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode> {
    Ok(match known(field, value)? {
        wire::NamespaceMode::Pod => NamespaceMode::Pod,
        wire::NamespaceMode::Container => NamespaceMode::Container,
        wire::NamespaceMode::Node => NamespaceMode::Node,
        wire::NamespaceMode::Target => NamespaceMode::Target,
    })
}

fn pod_or_node(field: &str, value: i32) -> Result<NamespaceMode> {
    match mode(field, value)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        mode => Err(Error::invalid(format!("{field} must be POD or NODE, and is {mode:?}"))),
    }
}

fn user_namespace(field: &str, wire: Option<wire::UserNamespace>) -> Result<()> {
    let Some(wire) = wire else { return Ok(()) };
    match known(&format!("{field}.mode"), wire.mode)? {
        wire::NamespaceMode::Node if wire.uids.is_empty() && wire.gids.is_empty() => Ok(()),
        wire::NamespaceMode::Node => Err(Error::invalid(format!("{field} has mappings with mode NODE"))),
        wire::NamespaceMode::Pod => Err(Error::unimplemented(format!("{field} with mode POD"))),
        // BEHAVIOUR 35: these will stay errors.
        mode => Err(Error::invalid(format!("{field}.mode must be POD or NODE, and is {mode:?}"))),
    }
}

/// Kept in 0..=u32::MAX-1: a larger number, cut to 32 bits, can become root's (CVE-2024-40635),
/// and u32::MAX itself means "unchanged" to setuid(2).
fn account(field: &str, wire: Option<wire::Int64Value>) -> Result<Option<u32>> {
    wire.map(|id| narrow(field, id.value)).transpose()
}

fn narrow(field: &str, id: i64) -> Result<u32> {
    match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::invalid(format!("{field} is not within 0 and {}: {id}", u32::MAX - 1))),
    }
}

fn groups(field: &str, groups: Vec<i64>) -> Result<Vec<u32>> {
    if groups.len() > MAX_GROUPS {
        return Err(Error::invalid(format!("{field} has more than {MAX_GROUPS} entries")));
    }
    text::each(field, groups, narrow)
}

fn policy(field: &str, value: i32) -> Result<SupplementalGroupsPolicy> {
    Ok(match known(field, value)? {
        wire::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
        wire::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
    })
}

fn run_as(field: &str, uid: Option<wire::Int64Value>, name: String) -> Result<RunAs> {
    let uid = account(&format!("{field}.run_as_user"), uid)?;
    match (uid, name.as_str()) {
        (None, "") => Ok(RunAs::Image),
        (Some(uid), "") => Ok(RunAs::Uid(uid)),
        // A colon would separate a group, as in an image's USER; the request has a field for it.
        (None, text) if text.contains([':', '\0', '\n']) => {
            Err(Error::invalid(format!("{field}.run_as_username is no user's name: {text:?}")))
        }
        (None, _) => Ok(RunAs::Username(name)),
        (Some(_), _) => Err(Error::invalid(format!("{field} has both run_as_user and run_as_username"))),
    }
}

fn group_without_user(field: &str) -> Error {
    Error::invalid(format!("{field}.run_as_group is given without a user"))
}

/// Names are looked up where the sets are made.
fn capabilities(field: &str, wire: Option<wire::Capability>) -> Result<Capabilities> {
    let wire = wire.unwrap_or_default();
    let words = |name: &str, names| text::words(&format!("{field}.{name}"), names);
    Ok(Capabilities {
        add: words("add_capabilities", wire.add_capabilities)?,
        drop: words("drop_capabilities", wire.drop_capabilities)?,
        add_ambient: words("add_ambient_capabilities", wire.add_ambient_capabilities)?,
    })
}

/// Unset is unconfined, and not the default profile (BEHAVIOUR 22). `path`: the older form.
fn seccomp(field: &str, wire: Option<wire::SecurityProfile>, path: String) -> Result<Seccomp> {
    let Some(wire) = wire else { return old_seccomp(&format!("{field}.seccomp_profile_path"), path) };
    let field = format!("{field}.seccomp");
    match profile(&field, &wire)? {
        ProfileType::Unconfined => Ok(Seccomp::Unconfined),
        ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
        ProfileType::Localhost => localhost(&format!("{field}.localhost_ref"), wire.localhost_ref),
    }
}

fn old_seccomp(field: &str, path: String) -> Result<Seccomp> {
    match path.as_str() {
        "" | "unconfined" => Ok(Seccomp::Unconfined),
        "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
        text => match text.strip_prefix("localhost/") {
            Some(path) => localhost(field, path.to_owned()),
            None => Err(Error::invalid(format!("{field} is no profile: {text:?}"))),
        },
    }
}

fn localhost(field: &str, path: String) -> Result<Seccomp> {
    Ok(Seccomp::Localhost(text::absolute(field, path)?))
}

/// The type, with a reference exactly where one belongs.
fn profile(field: &str, wire: &wire::SecurityProfile) -> Result<ProfileType> {
    let kind: ProfileType = known(&format!("{field}.profile_type"), wire.profile_type)?;
    match (kind == ProfileType::Localhost) == wire.localhost_ref.is_empty() {
        true => Err(Error::invalid(format!("{field}.localhost_ref goes with Localhost, and only with it"))),
        false => Ok(kind),
    }
}

/// The peers drop RuntimeDefault where the kernel has no AppArmor, since no profile is what every
/// process has there, and for a privileged container.
fn apparmor(
    field: &str,
    wire: Option<wire::SecurityProfile>,
    privileged: bool,
    host: &Host,
) -> Result<AppArmor> {
    let Some(wire) = wire else { return Ok(AppArmor::Unconfined) };
    match profile(field, &wire)? {
        ProfileType::Unconfined => Ok(AppArmor::Unconfined),
        ProfileType::RuntimeDefault if !host.apparmor || privileged => Ok(AppArmor::Unconfined),
        ProfileType::RuntimeDefault => Ok(AppArmor::RuntimeDefault),
        ProfileType::Localhost => {
            // Its older form has the prefix, which kubelet leaves in the newer one as well.
            let name = wire.localhost_ref.strip_prefix("localhost/").unwrap_or(&wire.localhost_ref);
            if !host.apparmor {
                let text = format!("{field} {name:?} cannot be met: AppArmor is off on this node");
                return Err(Error::invalid(text));
            }
            if name.is_empty() || name.contains(char::is_control) {
                return Err(Error::invalid(format!("{field} is no name of a profile: {name:?}")));
            }
            Ok(AppArmor::Localhost(name.to_owned()))
        }
    }
}

/// The older form of a profile in the newer one.
fn old_apparmor(field: &str, text: &str) -> Result<Option<wire::SecurityProfile>> {
    let profile = |kind: ProfileType, name: &str| {
        Some(wire::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
    };
    match text {
        "" => Ok(None),
        "unconfined" => Ok(profile(ProfileType::Unconfined, "")),
        "runtime/default" => Ok(profile(ProfileType::RuntimeDefault, "")),
        text => match text.strip_prefix("localhost/") {
            Some(name) => Ok(profile(ProfileType::Localhost, name)),
            None => Err(Error::invalid(format!("{field} is no profile: {text:?}"))),
        },
    }
}

fn selinux(field: &str, wire: Option<wire::SeLinuxOption>, host: &Host) -> Result<()> {
    match wire {
        None => Ok(()),
        Some(options) if options == wire::SeLinuxOption::default() => Ok(()),
        Some(_) if host.selinux => Err(Error::unimplemented(field)),
        Some(_) => Err(Error::invalid(format!("{field} cannot be met: SELinux is off on this node"))),
    }
}

#[cfg(test)]
#[path = "security_tests.rs"]
mod tests;
