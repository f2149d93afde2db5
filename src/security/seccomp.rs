//! Seccomp: the default profile, profiles from files, and their compilation to a tree.

use std::sync::Arc;

use oci_spec::runtime::LinuxSeccomp;

use crate::Result;
use crate::container::spec::Seccomp;

/// A cBPF program in the kernel's layout, 8 bytes an instruction, and the flags to load it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub program: Arc<Vec<u8>>,
    pub flags: u32,
}

/// The profile of a request: None if unconfined. `capabilities` (effective set) widens the
/// default profile, as the peers' default does.
pub fn profile(_request: &Seccomp, _capabilities: u64) -> Result<Option<LinuxSeccomp>> {
    todo!()
}

/// Compiles a profile, or takes it from the cache.
pub fn compile(_profile: &LinuxSeccomp) -> Result<Filter> {
    todo!()
}
