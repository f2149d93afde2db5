//! The OCI runtime Spec of a container: the contract between a request and its execution.
//!
//! Everything that shapes the container is in here, so that `crictl inspect` shows it and whatever
//! edits Specs can edit it; [`super::compile`] turns it into a plan. One lossy corner: OCI text is
//! UTF-8, the CRI's environment values are bytes, so the plan takes those from beside the Spec.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime as oci;

use crate::cgroup::{DeviceRules, Driver};
use crate::container::spec::{ContainerSpec, Resources};
use crate::container::status::User;
use crate::pod::spec::NamespaceMode;
use crate::security::capabilities::{self, Sets};
use crate::{Error, Result};

/// Paths of the pod's namespaces, for the reader; joining is done by fd.
#[derive(Debug, Clone, Default)]
pub struct NamespacePaths {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: Option<PathBuf>,
}

pub struct Wish<'a> {
    pub spec: &'a ContainerSpec,
    pub argv: Vec<String>,
    pub env: &'a [Vec<u8>],
    pub cwd: &'a str,
    pub user: &'a User,
    pub sets: Sets,
    pub seccomp: Option<oci::LinuxSeccomp>,
    /// A profile that is loaded.
    pub apparmor: Option<String>,
    pub mounts: Vec<oci::Mount>,
    pub devices: Vec<oci::LinuxDevice>,
    pub rules: &'a DeviceRules,
    pub rootfs: &'a Path,
    pub cgroup: &'a str,
    pub driver: Driver,
    pub namespaces: NamespacePaths,
    pub rlimits: Vec<(oci::PosixRlimitType, u64, u64)>,
    pub pod_id: &'a str,
}

/// Annotations by which the container is known where all else is lost; the names are containerd's,
/// which hooks look for.
pub const OF_POD: &str = "io.kubernetes.cri.sandbox-id";
pub const OF_NAME: &str = "io.kubernetes.cri.container-name";
pub const OF_IMAGE: &str = "io.kubernetes.cri.image-name";

pub fn spec(wish: Wish<'_>) -> Result<oci::Spec> {
    let failed = |e: OciSpecError| Error::internal(format!("building the runtime spec: {e}"));
    let security = &wish.spec.security;
    let process = process(&wish).map_err(failed)?;
    let mut root = oci::Root::default();
    root.set_path(wish.rootfs.to_owned()).set_readonly(Some(security.readonly_rootfs));
    let linux = linux(&wish).map_err(failed)?;
    let mut spec = oci::SpecBuilder::default()
        .version("1.2.0")
        .process(process)
        .root(root)
        .mounts(wish.mounts)
        .linux(linux)
        .build()
        .map_err(failed)?;
    let own = [(OF_POD, wish.pod_id), (OF_NAME, &wish.spec.name.name), (OF_IMAGE, &wish.spec.image.image)];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    let annotations = wish.spec.annotations.iter().map(|(k, v)| (k.clone(), v.clone())).chain(own).collect();
    spec.set_hostname(None).set_annotations(Some(annotations));
    Ok(spec)
}

fn process(wish: &Wish<'_>) -> Result<oci::Process, OciSpecError> {
    let mut user = oci::User::default();
    user.set_uid(wish.user.uid).set_gid(wish.user.gid).set_additional_gids(Some(wish.user.groups.clone()));
    let rlimits = wish
        .rlimits
        .iter()
        .map(|(typ, soft, hard)| oci::PosixRlimitBuilder::default().typ(*typ).soft(*soft).hard(*hard).build())
        .collect::<Result<Vec<_>, _>>()?;
    let adj = wish.spec.resources.oom_score_adj.clamp(-1000, 1000);
    let mut process = oci::ProcessBuilder::default()
        .terminal(wish.spec.tty)
        .user(user)
        .args(wish.argv.clone())
        .env(wish.env.iter().map(|e| String::from_utf8_lossy(e).into_owned()).collect::<Vec<_>>())
        .cwd(wish.cwd)
        .capabilities(capability_sets(&wish.sets))
        .rlimits(rlimits)
        .no_new_privileges(wish.spec.security.no_new_privs)
        .build()?;
    process.set_oom_score_adj(Some(adj as i32)).set_apparmor_profile(wish.apparmor.clone());
    Ok(process)
}

fn capability_sets(sets: &Sets) -> oci::LinuxCapabilities {
    let list = |set: u64| -> Option<oci::Capabilities> {
        Some(capabilities::names(set).into_iter().filter_map(parse).collect())
    };
    let mut out = oci::LinuxCapabilities::default();
    out.set_bounding(list(sets.bounding))
        .set_effective(list(sets.effective))
        .set_permitted(list(sets.permitted))
        .set_inheritable(list(sets.inheritable))
        .set_ambient(list(sets.ambient));
    out
}

fn parse(name: &str) -> Option<oci::Capability> {
    name.strip_prefix("CAP_").unwrap_or(name).parse().ok()
}

/// The sets of a Spec as bits.
pub fn capability_bits(sets: Option<&oci::LinuxCapabilities>) -> Sets {
    let bits = |list: &Option<oci::Capabilities>| -> u64 {
        let Some(list) = list else { return 0 };
        (0..64)
            .map(|n| 1u64 << n)
            .filter(|bit| {
                capabilities::names(*bit)
                    .first()
                    .and_then(|name| parse(name))
                    .is_some_and(|c| list.contains(&c))
            })
            .sum()
    };
    let Some(sets) = sets else { return Sets::default() };
    Sets {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        permitted: bits(sets.permitted()),
        inheritable: bits(sets.inheritable()),
        ambient: bits(sets.ambient()),
    }
}

fn linux(wish: &Wish<'_>) -> Result<oci::Linux, OciSpecError> {
    let security = &wish.spec.security;
    let paths = |list: &[String]| if security.privileged { Vec::new() } else { list.to_vec() };
    let mut linux = oci::LinuxBuilder::default()
        .namespaces(namespaces(wish))
        .cgroups_path(cgroups_path(wish.cgroup, wish.driver))
        .resources(resources(&wish.spec.resources, wish.rules))
        .devices(wish.devices.clone())
        .masked_paths(paths(&security.masked_paths))
        .readonly_paths(paths(&security.readonly_paths))
        .build()?;
    linux.set_seccomp(wish.seccomp.clone()).set_rootfs_propagation(Some("private".into()));
    Ok(linux)
}

/// As the OCI spec has it for the driver: a path, or `slice:prefix:name`.
fn cgroups_path(cgroup: &str, driver: Driver) -> PathBuf {
    if driver == Driver::Cgroupfs {
        return cgroup.into();
    }
    let path = Path::new(cgroup);
    let name =
        |p: Option<&Path>| p.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let scope = name(Some(path));
    let (prefix, id) = scope.trim_end_matches(".scope").split_once('-').unwrap_or(("podwright", &scope));
    format!("{}:{prefix}:{id}", name(path.parent())).into()
}

fn namespaces(wish: &Wish<'_>) -> Vec<oci::LinuxNamespace> {
    let modes = &wish.spec.security.namespaces;
    let namespace = |typ, path: Option<PathBuf>| {
        let mut namespace = oci::LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path);
        namespace
    };
    let mut list = vec![namespace(oci::LinuxNamespaceType::Mount, None)];
    if !wish.spec.security.privileged {
        list.push(namespace(oci::LinuxNamespaceType::Cgroup, None));
    }
    let paths = &wish.namespaces;
    if modes.network != NamespaceMode::Node {
        list.push(namespace(oci::LinuxNamespaceType::Network, paths.network.clone()));
        list.push(namespace(oci::LinuxNamespaceType::Uts, paths.uts.clone()));
    }
    if modes.ipc != NamespaceMode::Node {
        list.push(namespace(oci::LinuxNamespaceType::Ipc, paths.ipc.clone()));
    }
    if modes.pid != NamespaceMode::Node {
        list.push(namespace(oci::LinuxNamespaceType::Pid, paths.pid.clone()));
    }
    list
}

fn resources(limits: &Resources, rules: &DeviceRules) -> oci::LinuxResources {
    let given = |n: i64| (n != 0).then_some(n);
    let text = |s: &String| (!s.is_empty()).then(|| s.clone());
    let mut cpu = oci::LinuxCpu::default();
    cpu.set_shares(u64::try_from(limits.cpu_shares).ok().filter(|n| *n > 0))
        .set_period(u64::try_from(limits.cpu_period).ok().filter(|n| *n > 0))
        .set_quota(given(limits.cpu_quota))
        .set_cpus(text(&limits.cpuset_cpus))
        .set_mems(text(&limits.cpuset_mems));
    let mut memory = oci::LinuxMemory::default();
    memory.set_limit(given(limits.memory_limit)).set_swap(given(limits.memory_swap_limit));
    let mut out = oci::LinuxResources::default();
    out.set_cpu(Some(cpu)).set_memory(Some(memory)).set_devices(Some(device_rules(rules)));
    if !limits.unified.is_empty() {
        out.set_unified(Some(limits.unified.clone().into_iter().collect()));
    }
    out
}

fn device_rules(rules: &DeviceRules) -> Vec<oci::LinuxDeviceCgroup> {
    let all = |allow: bool| {
        let mut rule = oci::LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_access(Some("rwm".into()));
        rule
    };
    let DeviceRules::Listed(rules) = rules else { return vec![all(true)] };
    let mut out = vec![all(false)];
    for rule in rules {
        let typ = if rule.block { oci::LinuxDeviceType::B } else { oci::LinuxDeviceType::C };
        let mut item = oci::LinuxDeviceCgroup::default();
        item.set_allow(true)
            .set_typ(Some(typ))
            .set_major(Some(i64::from(rule.major)))
            .set_minor(Some(i64::from(rule.minor)))
            .set_access(Some(rule.access.clone()));
        out.push(item);
    }
    out
}
