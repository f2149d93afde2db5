//! What a container stands on: directories, root file system, user, program, mounts, devices.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::container::devices::{self, Devices};
use crate::container::mounts::{self, Planned};
use crate::container::spec::{ContainerSpec, RunAs};
use crate::container::status::User;
use crate::container::stdio::{self, Stdio};
use crate::container::{process_env, rootfs, user};
use crate::error::Step;
use crate::image::Resolved;
use crate::node::Node;
use crate::pod;
use crate::pod::spec::NamespaceMode;
use crate::security::apparmor;
use crate::{Error, Result};

/// What was found out and opened on the file system.
pub struct Ground {
    pub spec: Arc<ContainerSpec>,
    pub image: Resolved,
    /// Of the image volumes, in order: for the caller to fill.
    pub volumes: Vec<Resolved>,
    pub root: OwnedFd,
    pub user: User,
    pub argv: Vec<String>,
    pub env: Vec<Vec<u8>>,
    pub cwd: String,
    pub devices: Devices,
    pub mounts: Vec<Planned>,
    pub stdio: Stdio,
    pub log_path: PathBuf,
    /// The AppArmor profile, loaded.
    pub apparmor: Option<String>,
}

/// Finds it out, in the store and the state directory. Blocks.
pub fn prepare(
    node: &Node,
    pod: &pod::Record,
    id: &str,
    spec: Arc<ContainerSpec>,
    image: Resolved,
) -> Result<Ground> {
    let directory = node.layout.container(id);
    let state = node.layout.container_state(id);
    for path in [&directory, &state] {
        std::fs::create_dir_all(path).step(|| format!("making directory {}", path.display()))?;
    }
    let root = rootfs::mount(&image.layers, &directory)?;
    let config = image.config.config().clone().unwrap_or_default();
    let found = find_user(&spec, config.user().as_deref().unwrap_or_default(), &root)?;
    let (argv, env, cwd) = program(pod, &spec, &config, found.home.as_deref())?;
    let log_path = log_path(&pod.spec.log_directory, &spec.log_path);
    let stdio = stdio::open(&stdio::Wish {
        directory: &state,
        log: (!log_path.as_os_str().is_empty()).then_some(log_path.as_path()),
        stdin: spec.stdin,
        tty: spec.tty,
        uid: found.uid,
        gid: found.gid,
    })?;
    let modes = &spec.security.namespaces;
    let mounts = mounts::plan(&mounts::Wish {
        mounts: &spec.mounts,
        privileged: spec.security.privileged,
        host_ipc: modes.ipc == NamespaceMode::Node,
        own_ipc: modes.ipc == NamespaceMode::Container,
        pod_files: &node.layout.pod_state(&pod.id),
        readonly_rootfs: spec.security.readonly_rootfs,
    })?;
    let devices = devices::resolve(&spec.devices, spec.security.privileged)?;
    let user = User { uid: found.uid, gid: found.gid, groups: found.groups };
    let apparmor = apparmor::resolve(&spec.security.apparmor).step(|| "finding the apparmor_profile")?;
    Ok(Ground {
        spec,
        image,
        volumes: Vec::new(),
        root,
        user,
        argv,
        env,
        cwd,
        devices,
        mounts,
        stdio,
        log_path,
        apparmor,
    })
}

/// Its arguments, environment and working directory.
fn program(
    pod: &pod::Record,
    spec: &ContainerSpec,
    config: &oci_spec::image::Config,
    home: Option<&str>,
) -> Result<(Vec<String>, Vec<Vec<u8>>, String)> {
    let argv = process_env::argv(
        &spec.command,
        &spec.args,
        config.entrypoint().as_deref().unwrap_or_default(),
        config.cmd().as_deref().unwrap_or_default(),
    )?;
    let env = process_env::environment(&process_env::EnvWish {
        image: config.env().as_deref().unwrap_or_default(),
        request: &spec.envs,
        hostname: &pod::namespaces::hostname(&pod.spec),
        home,
        tty: spec.tty,
    });
    process_env::check_environment(&env)?;
    let cwd = [spec.working_dir.as_str(), config.working_dir().as_deref().unwrap_or_default(), "/"];
    let cwd = cwd.into_iter().find(|c| !c.is_empty()).unwrap_or("/").to_owned();
    Ok((argv, env, cwd))
}

fn find_user(spec: &ContainerSpec, image_user: &str, root: &OwnedFd) -> Result<user::Resolved> {
    let security = &spec.security;
    if security.run_as_group.is_some() && security.run_as == RunAs::Image {
        return Err(Error::invalid("run_as_group is given without a user"));
    }
    user::resolve(&user::Wish {
        run_as: &security.run_as,
        run_as_group: security.run_as_group,
        supplemental_groups: &security.supplemental_groups,
        policy: security.supplemental_groups_policy,
        image_user,
        root: root.as_fd(),
    })
    .step(|| "finding the user")
}

fn log_path(directory: &str, path: &str) -> PathBuf {
    if directory.is_empty() || path.is_empty() { PathBuf::new() } else { Path::new(directory).join(path) }
}
