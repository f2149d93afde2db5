//! From the wire to plain specs. Every field is read, or refused by its name; none is ignored.
//!
//! Neutral values of what is not built are accepted (BEHAVIOUR 38): unset, empty, the node's user
//! namespace, the profile Unconfined. Windows' fields are the one exception: they mean nothing to
//! a Linux node, and clients fill them in all the same.
//!
//! Nothing here looks at the node but [`Host::detect`], so all of it can be tested by value.

pub(super) mod container;
pub(super) mod exec;
pub(super) mod filter;
pub(super) mod image;
mod mount;
pub(super) mod node;
pub(super) mod pod;
pub(super) mod resources;
mod security;
mod signal;
mod text;

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// The runtime handlers that a pod may ask for. The default one has the empty name.
pub(super) const RUNTIME_HANDLERS: &[&str] = &[""];

/// What the answer to a security field depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) apparmor: bool,
    pub(super) selinux: bool,
}

impl Host {
    /// As the kernel was booted; neither changes while it runs.
    pub(super) fn detect() -> Self {
        let apparmor = std::fs::read("/sys/module/apparmor/parameters/enabled");
        Self {
            apparmor: apparmor.is_ok_and(|enabled| enabled.starts_with(b"Y")),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}

/// An ID of a request. Unique prefixes are looked up by the verbs, so the empty one must not pass.
pub(super) fn id<'a>(field: &str, id: &'a str) -> Result<&'a str> {
    match id {
        "" => Err(Error::invalid(format!("{field} is empty"))),
        id => Ok(id),
    }
}

/// Seconds of a request. What is negative has passed already.
pub(super) fn seconds(seconds: i64) -> Duration {
    // Longer than any machine runs, and far from what clocks overflow at.
    Duration::from_secs(seconds.clamp(0, u32::MAX.into()).unsigned_abs())
}

/// A message that the request must have.
fn given<T>(field: &str, message: Option<T>) -> Result<T> {
    message.ok_or_else(|| Error::invalid(format!("{field} is missing")))
}

/// An enum's value, or the refusal of one that this API version does not have.
fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E> {
    E::try_from(value).map_err(|_| Error::invalid(format!("{field} has the unknown value {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_id_is_no_prefix_of_everything() {
        assert!(id("container_id", "").is_err());
        assert_eq!(id("container_id", "a").unwrap(), "a");
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds(-3), Duration::ZERO);
        assert_eq!(seconds(30), Duration::from_secs(30));
        assert_eq!(seconds(i64::MAX), Duration::from_secs(u32::MAX.into()));
    }
}
