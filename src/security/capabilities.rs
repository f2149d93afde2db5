//! Capability sets from a request (BEHAVIOUR 21). Bit n is capability n.

use crate::container::spec::Capabilities;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// In the kernel's order (linux/capability.h), which is the numbering.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container has that asks for nothing: the set that Docker began with and every CRI
/// runtime gives.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The sets of a container's process.
///
/// ALL is taken first and names after it, so that "add ALL, drop X" is all but X and "drop ALL,
/// add X" is X alone; a capability that is dropped by name is in no set, whoever adds it (CRI,
/// Capability). `available` is the daemon's own bounding set: ALL and privileged mean all of it,
/// the default set is cut to it, and a capability outside it is refused where it was asked for by
/// name. Privileged ignores `add` and `drop`, as every CRI runtime does.
///
/// Inheritable capabilities are given only with ambient ones, which need them: a file with
/// inheritable capabilities in the image would otherwise give them to any user (CVE-2022-29162).
pub fn resolve(request: &Capabilities, privileged: bool, available: u64) -> Result<Sets> {
    let ambient = List::parse("add_ambient_capabilities", &request.add_ambient)?;
    let (set, dropped) = if privileged {
        (available, 0)
    } else {
        let add = List::parse("add_capabilities", &request.add)?;
        let drop = List::parse("drop_capabilities", &request.drop)?;
        add.refuse_beyond(available & !drop.named | drop.named)?;
        let start = match (drop.all, add.all) {
            (true, _) => 0,
            (false, true) => available,
            (false, false) => set_of(&DEFAULT) & available,
        };
        ((start | add.named) & !drop.named, drop.named)
    };
    ambient.refuse_beyond(available | dropped)?;
    let ambient = (if ambient.all { set } else { 0 } | ambient.named) & !dropped;
    let set = set | ambient;
    Ok(Sets { bounding: set, effective: set, permitted: set, inheritable: ambient, ambient })
}

/// CAP_… names of a set, as the OCI spec has them, in the kernel's order.
pub fn names(set: u64) -> Vec<&'static str> {
    NAMES.iter().enumerate().filter(|(n, _)| set & (1 << n) != 0).map(|(_, name)| *name).collect()
}

/// The number of a capability by its name, with or without CAP_, in any case.
pub fn number(name: &str) -> Option<u32> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    NAMES.iter().position(|known| &known["CAP_".len()..] == name).map(|n| n as u32)
}

fn set_of(names: &[&str]) -> u64 {
    names.iter().filter_map(|name| number(name)).fold(0, |set, n| set | 1 << n)
}

/// A list of the request: ALL, and what is named beside it.
struct List {
    field: &'static str,
    all: bool,
    named: u64,
}

impl List {
    fn parse(field: &'static str, entries: &[String]) -> Result<Self> {
        let mut list = Self { field, all: false, named: 0 };
        for entry in entries {
            if entry.eq_ignore_ascii_case("ALL") {
                list.all = true;
            } else if let Some(n) = number(entry) {
                list.named |= 1 << n;
            } else {
                return Err(Error::invalid(format!("{field}: {entry:?} is not a known capability")));
            }
        }
        Ok(list)
    }

    fn refuse_beyond(&self, allowed: u64) -> Result<()> {
        match names(self.named & !allowed).first() {
            None => Ok(()),
            Some(name) => Err(Error::invalid(format!(
                "{}: {name} is not in the daemon's own bounding set, so no container can have it",
                self.field
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = (1 << NAMES.len()) - 1;

    fn request(add: &[&str], drop: &[&str], ambient: &[&str]) -> Capabilities {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Capabilities { add: list(add), drop: list(drop), add_ambient: list(ambient) }
    }

    fn bounding(add: &[&str], drop: &[&str]) -> u64 {
        resolve(&request(add, drop, &[]), false, ALL).unwrap().bounding
    }

    #[test]
    fn behaviour_21_nothing_asked_gives_the_default_fourteen() {
        let sets = resolve(&Capabilities::default(), false, ALL).unwrap();
        assert_eq!(names(sets.bounding).len(), 14);
        assert_eq!((sets.effective, sets.permitted), (sets.bounding, sets.bounding));
        assert_eq!((sets.inheritable, sets.ambient), (0, 0));
        // The numbers that other runtimes print for it in /proc/PID/status.
        assert_eq!(sets.bounding, 0xa80425fb);
    }

    #[test]
    fn behaviour_21_all_comes_before_names() {
        assert_eq!(bounding(&["ALL"], &["CAP_CHOWN"]), ALL & !1);
        assert_eq!(bounding(&["all"], &["chown"]), ALL & !1);
        assert_eq!(names(bounding(&["NET_ADMIN"], &["ALL"])), ["CAP_NET_ADMIN"]);
        assert_eq!(names(bounding(&["cap_net_admin", "SYS_TIME"], &["ALL", "SYS_TIME"])), ["CAP_NET_ADMIN"]);
        assert_eq!(bounding(&["ALL"], &["ALL"]), 0);
        assert_eq!(bounding(&["SYS_ADMIN"], &["KILL"]), (0xa80425fb | 1 << 21) & !(1 << 5));
    }

    #[test]
    fn unknown_names_are_refused_and_named() {
        for r in [
            request(&["FLY"], &[], &[]),
            request(&[], &["CAP_FLY"], &[]),
            request(&[], &[], &["FLY"]),
            request(&[""], &[], &[]),
            request(&["CAP_CAP_KILL"], &[], &[]),
        ] {
            let e = resolve(&r, false, ALL).unwrap_err();
            assert_eq!(e.kind, crate::error::Kind::InvalidArgument);
            assert!(e.message.contains("not a known capability"), "{e}");
        }
    }

    #[test]
    fn what_the_daemon_lacks_is_refused_by_name_and_left_out_otherwise() {
        let available = ALL & !(1 << 24) & !(1 << 27);
        let e = resolve(&request(&["SYS_RESOURCE"], &[], &[]), false, available).unwrap_err();
        assert!(e.message.contains("CAP_SYS_RESOURCE"), "{e}");
        assert_eq!(resolve(&request(&["ALL"], &[], &[]), false, available).unwrap().bounding, available);
        let plain = resolve(&Capabilities::default(), false, available).unwrap();
        assert_eq!(plain.bounding, 0xa80425fb & !(1 << 27));
        assert_eq!(resolve(&Capabilities::default(), true, available).unwrap().bounding, available);
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let sets = resolve(&request(&[], &["ALL"], &["NET_BIND_SERVICE"]), false, ALL).unwrap();
        let bit = 1 << 10;
        let all = Sets { bounding: bit, effective: bit, permitted: bit, inheritable: bit, ambient: bit };
        assert_eq!(sets, all);
        let dropped = resolve(&request(&[], &["KILL"], &["KILL"]), false, ALL).unwrap();
        assert_eq!((dropped.ambient, dropped.bounding & 1 << 5), (0, 0));
    }

    fn entry() -> impl Strategy<Value = String> {
        let name = (0..NAMES.len(), any::<bool>(), any::<bool>()).prop_map(|(n, prefix, lower)| {
            let name = if prefix { NAMES[n] } else { &NAMES[n]["CAP_".len()..] };
            if lower { name.to_lowercase() } else { name.to_owned() }
        });
        prop_oneof![8 => name, 1 => Just("ALL".to_owned()), 1 => Just("all".to_owned())]
    }

    fn entries() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(entry(), 0..6)
    }

    proptest! {
        #[test]
        fn sets_hold_together(add in entries(), drop in entries(), add_ambient in entries(),
                              available in any::<u64>(), privileged: bool) {
            let available = available & ALL;
            let request = Capabilities { add, drop, add_ambient };
            if let Ok(s) = resolve(&request, privileged, available) {
                prop_assert_eq!(s.bounding & !available, 0, "beyond what the daemon has");
                prop_assert_eq!(s.effective, s.bounding);
                prop_assert_eq!(s.permitted, s.bounding);
                prop_assert_eq!(s.inheritable, s.ambient);
                prop_assert_eq!(s.ambient & !s.permitted, 0);
                if request.add_ambient.is_empty() {
                    prop_assert_eq!(s.ambient, 0);
                }
                if privileged {
                    prop_assert_eq!(s.bounding, available);
                } else {
                    for name in request.drop.iter().filter_map(|name| number(name)) {
                        prop_assert_eq!(s.bounding & 1 << name, 0);
                    }
                }
            }
        }

        #[test]
        fn order_and_repetition_do_not_matter(add in entries(), drop in entries()) {
            let forward = Capabilities { add: add.clone(), drop: drop.clone(), add_ambient: vec![] };
            let twice = |list: &[String]| list.iter().rev().chain(list).cloned().collect::<Vec<_>>();
            let backward = Capabilities { add: twice(&add), drop: twice(&drop), add_ambient: vec![] };
            prop_assert_eq!(resolve(&forward, false, ALL), resolve(&backward, false, ALL));
        }

        #[test]
        fn names_and_numbers_agree(set in 0..=ALL) {
            prop_assert_eq!(set_of(&names(set)), set);
        }
    }
}
