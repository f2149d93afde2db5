//! Resource limits of containers: explicit, not the daemon's own by accident (BEHAVIOUR 23).

use oci_spec::runtime::PosixRlimitType as Type;
use rustix::process::{Resource, getrlimit};

use crate::Result;

const INFINITY: u64 = libc::RLIM_INFINITY;

/// (limit, soft, hard). What the daemon itself may not raise is cut to what it has.
pub fn defaults(nofile: (u64, u64)) -> Result<Vec<(Type, u64, u64)>> {
    let wanted = [
        (Type::RlimitNofile, Resource::Nofile, nofile.0, nofile.1),
        (Type::RlimitNproc, Resource::Nproc, INFINITY, INFINITY),
        (Type::RlimitCore, Resource::Core, 0, INFINITY),
        (Type::RlimitStack, Resource::Stack, 8 << 20, INFINITY),
        (Type::RlimitMemlock, Resource::Memlock, 8 << 20, 8 << 20),
    ];
    let may_raise = rustix::thread::capabilities(None)
        .map(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
        .unwrap_or(false);
    let cut = |(typ, resource, soft, hard): (Type, Resource, u64, u64)| {
        let ours = getrlimit(resource).maximum.unwrap_or(INFINITY);
        let hard = if may_raise { hard } else { hard.min(ours) };
        (typ, soft.min(hard), hard)
    };
    Ok(wanted.into_iter().map(cut).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaviour_23_soft_limits_never_exceed_hard_ones() {
        for (typ, soft, hard) in defaults((1 << 40, 1 << 41)).unwrap() {
            assert!(soft <= hard, "{typ:?}");
        }
    }
}
