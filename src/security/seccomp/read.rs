//! Profiles from files: the OCI spec's LinuxSeccomp as JSON, and what Docker adds to it.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSeccompFilterFlag,
    LinuxSyscallBuilder,
};
use serde::Deserialize;

use crate::error::Step;
use crate::security::capabilities;
use crate::{Error, Result};

/// Bytes. The largest profiles in use are below 100 KB.
const MAX_SIZE: u64 = 1 << 20;

/// Reads the profile at `path`, which is absolute.
pub fn profile(path: &Path, capabilities: u64) -> Result<LinuxSeccomp> {
    let step = || format!("reading seccomp profile {}", path.display());
    if !path.is_absolute() {
        return Err(Error::invalid(format!("seccomp profile {}: the path is not absolute", path.display())));
    }
    // O_NONBLOCK: a FIFO with no writer must not hold up the call.
    let options = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = match options {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::invalid(format!("{}: no such file or directory", step())));
        }
        file => file.step(step)?,
    };
    let metadata = file.metadata().step(step)?;
    if !metadata.is_file() {
        return Err(Error::invalid("it is not a regular file").during(step()));
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text).step(step)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(Error::invalid(format!("it is larger than {MAX_SIZE} bytes")).during(step()));
    }
    parse(&text, capabilities).map_err(|e| e.during(step()))
}

/// Parses a profile for a process with these capabilities.
pub fn parse(text: &[u8], capabilities: u64) -> Result<LinuxSeccomp> {
    let profile: Profile = serde_json::from_slice(text).map_err(|e| Error::invalid(e.to_string()))?;
    profile.resolve(capabilities)
}

/// A field that is not here is refused: it could be one that was meant to confine.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    /// The errno by its name, as the containers/common profile has it beside the number.
    default_errno: Option<String>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Syscall>>,
    #[serde(rename = "$schema")]
    _schema: Option<serde_json::Value>,
    #[serde(rename = "comment")]
    _comment: Option<serde_json::Value>,
}

/// Docker's: an architecture, and those whose programs it runs as well.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscall {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
    #[serde(rename = "comment")]
    _comment: Option<serde_json::Value>,
}

/// Docker's: when a rule counts.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    fn resolve(self, capabilities: u64) -> Result<LinuxSeccomp> {
        let mut profile =
            LinuxSeccompBuilder::default().default_action(self.default_action).build().map_err(internal)?;
        profile.set_default_errno_ret(errno(self.default_errno_ret, self.default_errno)?);
        profile.set_flags(self.flags);
        profile.set_listener_path(self.listener_path.map(Into::into));
        profile.set_listener_metadata(self.listener_metadata);
        profile.set_architectures(architectures(self.architectures, self.arch_map)?);
        let mut rules = Vec::new();
        for syscall in self.syscalls.into_iter().flatten() {
            rules.extend(syscall.resolve(capabilities)?);
        }
        profile.set_syscalls(Some(rules));
        Ok(profile)
    }
}

impl Syscall {
    /// None where it does not count.
    fn resolve(self, capabilities: u64) -> Result<Option<oci_spec::runtime::LinuxSyscall>> {
        let names = match (self.name, self.names) {
            (None, Some(names)) if !names.is_empty() => names,
            (Some(name), None) => vec![name],
            (Some(_), Some(_)) => return Err(Error::invalid("a rule has both `name` and `names`")),
            _ => return Err(Error::invalid("a rule names no system call")),
        };
        let includes = self.includes.unwrap_or_default();
        let excludes = self.excludes.unwrap_or_default();
        if !includes.all_hold(capabilities)? || excludes.any_holds(capabilities)? {
            return Ok(None);
        }
        let rule = LinuxSyscallBuilder::default().names(names).action(self.action);
        let mut rule = rule.build().map_err(internal)?;
        rule.set_errno_ret(errno(self.errno_ret, self.errno)?);
        rule.set_args(self.args);
        Ok(Some(rule))
    }
}

impl Condition {
    fn all_hold(&self, capabilities: u64) -> Result<bool> {
        let caps = self.held(capabilities)?;
        let arch = self.arches.iter().flatten().next().is_none() || self.names_this_architecture();
        let kernel = self.min_kernel.as_deref().map_or(Ok(true), kernel_is_at_least)?;
        Ok(caps.iter().all(|held| *held) && arch && kernel)
    }

    fn any_holds(&self, capabilities: u64) -> Result<bool> {
        let caps = self.held(capabilities)?;
        let kernel = self.min_kernel.as_deref().map_or(Ok(false), kernel_is_at_least)?;
        Ok(caps.contains(&true) || self.names_this_architecture() || kernel)
    }

    fn held(&self, capabilities: u64) -> Result<Vec<bool>> {
        let held = self.caps.iter().flatten().map(|name| match capabilities::number(name) {
            Some(n) => Ok(capabilities & 1 << n != 0),
            None => Err(Error::invalid(format!("{name:?} is not a known capability"))),
        });
        held.collect()
    }

    /// As Go calls it.
    fn names_this_architecture(&self) -> bool {
        self.arches.iter().flatten().any(|arch| arch == "amd64")
    }
}

fn architectures(list: Option<Vec<Arch>>, map: Option<Vec<ArchMap>>) -> Result<Option<Vec<Arch>>> {
    match (list, map) {
        (Some(list), Some(_)) if !list.is_empty() => {
            Err(Error::invalid("it has both `architectures` and `archMap`"))
        }
        (list, None) => Ok(list),
        (_, Some(map)) => {
            let native = map.into_iter().find(|entry| entry.architecture == Arch::ScmpArchX86_64);
            Ok(native.map(|entry| {
                let subs = entry.sub_architectures.into_iter().flatten();
                std::iter::once(entry.architecture).chain(subs).collect()
            }))
        }
    }
}

/// The number; the name beside it may only say the same.
fn errno(number: Option<u32>, name: Option<String>) -> Result<Option<u32>> {
    let named = match name.as_deref() {
        None | Some("") => return Ok(number),
        Some("EPERM") => libc::EPERM,
        Some("ENOSYS") => libc::ENOSYS,
        Some("EACCES") => libc::EACCES,
        Some("EINVAL") => libc::EINVAL,
        Some(other) => {
            return match number {
                Some(_) => Ok(number),
                None => Err(Error::invalid(format!("errno {other:?} needs its number, as errnoRet"))),
            };
        }
    } as u32;
    match number {
        Some(number) if number != named => {
            Err(Error::invalid(format!("errno {} is not errnoRet {number}", name.unwrap_or_default())))
        }
        _ => Ok(Some(named)),
    }
}

/// `minimum` is MAJOR.MINOR.
fn kernel_is_at_least(minimum: &str) -> Result<bool> {
    fn version(text: &str) -> Option<(u32, u32)> {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
    let wanted =
        version(minimum).ok_or_else(|| Error::invalid(format!("minKernel {minimum:?} is no version")))?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(version(&release).is_some_and(|running| running >= wanted))
}

fn internal(cause: oci_spec::OciSpecError) -> Error {
    Error::internal(format!("building a seccomp profile: {cause}"))
}
