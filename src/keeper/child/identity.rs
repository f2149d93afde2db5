//! Who the program will be: groups, ids, capabilities, in the one order that works.

use rustix::io::{Errno, Result};

use crate::keeper::plan::Identity;
use crate::sys::prctl;

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// `keeps_admin`: a filter is to be loaded after this without no_new_privs, which takes
/// CAP_SYS_ADMIN. It is out of the bounding set by then (unless it was asked for), so that the
/// execve which follows drops it.
pub fn become_user(identity: &Identity, keeps_admin: bool) -> Result<()> {
    let extra = if keeps_admin { CAP_SYS_ADMIN } else { 0 };
    // 1. While CAP_SETPCAP is still there.
    cut_bounding_set(identity.bounding)?;
    // 2. Leaving uid 0 would take the permitted set along.
    prctl::keep_capabilities()?;
    // 3. Groups before the user, who may not set them.
    prctl::set_groups(&identity.groups)?;
    prctl::set_gid(identity.gid)?;
    prctl::set_uid(identity.uid)?;
    // 4. Leaving uid 0 emptied the effective set.
    prctl::set_capabilities(identity.effective | extra, identity.permitted | extra, identity.inheritable)?;
    // 5. A capability must be permitted and inheritable to be ambient.
    prctl::clear_ambient()?;
    (0..64).filter(|n| identity.ambient & (1 << n) != 0).try_for_each(prctl::raise_ambient)
}

fn cut_bounding_set(bounding: u64) -> Result<()> {
    for capability in 0..64 {
        if bounding & (1 << capability) != 0 {
            continue;
        }
        match prctl::drop_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no further ones.
            Err(Errno::INVAL) if capability > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
