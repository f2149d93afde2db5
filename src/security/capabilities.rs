//! Capability sets from a request (BEHAVIOUR 21). Bit n is capability n.

use crate::Result;
use crate::container::spec::Capabilities;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// `available` is the daemon's own bounding set: privileged gets all of it, and a capability
/// outside it is refused where it was asked for by name.
pub fn resolve(_request: &Capabilities, _privileged: bool, _available: u64) -> Result<Sets> {
    todo!()
}

/// CAP_… names of a set, as the OCI spec has them.
pub fn names(_set: u64) -> Vec<&'static str> {
    todo!()
}
