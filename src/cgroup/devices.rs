//! Which device nodes a container may make, read and write.
//!
//! v1 keeps a list in the devices controller. v2 asks a program, attached to the cgroup, at every
//! access; it is emitted here, a few comparisons per rule.

use std::os::fd::AsFd;

use rustix::fs::OFlags;

use super::layout::Layout;
use super::{DeviceRule, DeviceRules, file};
use crate::Result;
use crate::error::{Error, Step};
use crate::sys::bpf::{self, Instruction};

/// What every container may do, as with the peers: make any node (which alone gives no access),
/// and use those of the default /dev, the pseudo-terminals and the console.
const DEFAULT: &[Rule] = &[
    Rule { block: false, major: None, minor: None, access: MKNOD },
    Rule { block: true, major: None, minor: None, access: MKNOD },
    Rule::character(1, Some(3)), // null
    Rule::character(1, Some(5)), // zero
    Rule::character(1, Some(7)), // full
    Rule::character(1, Some(8)), // random
    Rule::character(1, Some(9)), // urandom
    Rule::character(5, Some(0)), // tty
    Rule::character(5, Some(1)), // console
    Rule::character(5, Some(2)), // ptmx
    Rule::character(136, None),  // pts/*
];

// BPF_DEVCG_ACC_* of linux/bpf.h.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const EVERYTHING: u8 = MKNOD | READ | WRITE;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    block: bool,
    /// None: any.
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    const fn character(major: u32, minor: Option<u32>) -> Self {
        Self { block: false, major: Some(major), minor, access: EVERYTHING }
    }

    /// As `devices.allow` takes it, e.g. `c 136:* rwm`.
    fn text(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, letter)| letter)
            .collect();
        let kind = if self.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// Confines a cgroup that was just made: it has its parent's access until then.
pub(super) fn allow(layout: &Layout, path: &str, rules: &DeviceRules) -> Result<()> {
    let listed = match rules {
        DeviceRules::All => return Ok(()),
        DeviceRules::Listed(listed) => listed,
    };
    let mut rules = DEFAULT.to_vec();
    for rule in listed {
        rules.push(compile(rule)?);
    }
    if let Some(devices) = layout.v1("devices") {
        allow_v1(&format!("{}{path}", devices.mount), &rules)
    } else if let Some(unified) = &layout.unified {
        attach(&format!("{}{path}", unified.mount), &rules)
    } else {
        Err(Error::precondition("device access cannot be confined: no devices controller and no cgroup2"))
    }
}

fn compile(rule: &DeviceRule) -> Result<Rule> {
    let mut access = 0;
    for letter in rule.access.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                return Err(Error::invalid(format!(
                    "device permissions {:?} are not of \"rwm\"",
                    rule.access
                )));
            }
        };
    }
    Ok(Rule { block: rule.block, major: Some(rule.major), minor: Some(rule.minor), access })
}

fn allow_v1(full: &str, rules: &[Rule]) -> Result<()> {
    let deny = format!("{full}/devices.deny");
    file::write(&deny, "a").step(|| format!("denying devices in {deny}"))?;
    let allow = format!("{full}/devices.allow");
    let fd = file::open(&allow, OFlags::WRONLY).step(|| format!("opening {allow}"))?;
    for rule in rules.iter().filter(|r| r.access != 0) {
        let text = rule.text();
        file::write_fd(&fd, &text).step(|| format!("writing {text:?} to {allow}"))?;
    }
    Ok(())
}

/// What a cgroup may access by v1's devices controller, in the form of systemd's DeviceAllow=, since
/// for a scope without one systemd writes "everything" there. None: everything, or a host where the
/// controller is eBPF, whose programs only ever take away.
pub(super) fn of_systemd(layout: &Layout, path: &str) -> Result<Option<Vec<(String, String)>>> {
    let Some(devices) = layout.v1("devices") else { return Ok(None) };
    let list = file::read_all(&format!("{}{path}/devices.list", devices.mount))?;
    Ok(device_allow(&list, &file::read_all("/proc/devices")?))
}

/// From the texts of devices.list and /proc/devices.
fn device_allow(list: &str, majors: &str) -> Option<Vec<(String, String)>> {
    let mut allowed = Vec::new();
    for line in list.lines() {
        let mut fields = line.split(' ');
        let (kind, number, access) = (fields.next()?, fields.next()?, fields.next()?);
        let kind = match kind {
            "b" => "block",
            "c" => "char",
            _ => return None,
        };
        let device = match number.split_once(':')? {
            ("*", _) => format!("{kind}-*"),
            // By the name of its driver; without one there is no way to say it, and access stays denied.
            (major, "*") => match driver(majors, kind, major) {
                Some(name) => format!("{kind}-{name}"),
                None => continue,
            },
            _ => format!("/dev/{kind}/{number}"),
        };
        allowed.push((device, access.to_owned()));
    }
    Some(allowed)
}

fn driver<'a>(majors: &'a str, kind: &str, major: &str) -> Option<&'a str> {
    let heading = if kind == "block" { "Block devices:" } else { "Character devices:" };
    let below = majors.lines().skip_while(|line| *line != heading).skip(1);
    let mut entries =
        below.take_while(|line| !line.ends_with(':')).filter_map(|line| line.trim().split_once(' '));
    entries.find(|(number, _)| *number == major).map(|(_, name)| name)
}

fn attach(full: &str, rules: &[Rule]) -> Result<()> {
    let program = bpf::load_device_program(&emit(rules)).step(|| "loading the device program")?;
    let directory =
        file::open(full, OFlags::RDONLY | OFlags::DIRECTORY).step(|| format!("opening {full}"))?;
    bpf::attach_device_program(directory.as_fd(), program.as_fd())
        .step(|| format!("attaching the device program to {full}"))
}

/// The context (`struct bpf_cgroup_dev_ctx`) is access << 16 | type, major, minor, four bytes each.
/// r2: type, r3: access asked for, r4: major, r5: minor. Returns 1 to allow.
fn emit(rules: &[Rule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE_REGISTER: u8 = 0xbf;
    const MOVE: u8 = 0xb7;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const JUMP_UNLESS_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let op = Instruction::new;
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(AND, 2, 0, 0, 0xffff),
    ];
    for rule in rules {
        // BPF_DEVCG_DEV_BLOCK is 1, BPF_DEVCG_DEV_CHAR 2.
        let mut block = vec![op(JUMP_UNLESS_EQUAL, 2, 0, 0, if rule.block { 1 } else { 2 })];
        if rule.access != EVERYTHING {
            // Nothing may be asked for that the rule does not give.
            block.push(op(MOVE_REGISTER, 0, 3, 0, 0));
            block.push(op(AND, 0, 0, 0, i32::from(EVERYTHING & !rule.access)));
            block.push(op(JUMP_UNLESS_EQUAL, 0, 0, 0, 0));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                block.push(op(JUMP_UNLESS_EQUAL, register, 0, 0, number.cast_signed()));
            }
        }
        block.push(op(MOVE, 0, 0, 0, 1));
        block.push(op(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (at, instruction) in block.iter_mut().enumerate() {
            if instruction.code == JUMP_UNLESS_EQUAL {
                instruction.offset = (length - at - 1) as i16;
            }
        }
        program.append(&mut block);
    }
    program.push(op(MOVE, 0, 0, 0, 0));
    program.push(op(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs what `emit` emits, as the kernel would.
    fn run(program: &[Instruction], access: u8, block: bool, major: u32, minor: u32) -> bool {
        let kind = if block { 1 } else { 2 };
        let context = [u64::from(access) << 16 | kind, major.into(), minor.into()];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            let (d, s, k) =
                (usize::from(i.destination()), usize::from(i.source()), i64::from(i.immediate) as u64);
            at += 1;
            match i.code {
                0x61 => registers[d] = context[i.offset as usize / 4],
                0xbf => registers[d] = registers[s],
                0xb7 => registers[d] = k,
                0x57 => registers[d] &= k,
                0x77 => registers[d] >>= k,
                0x55 if registers[d] != k => at += i.offset as usize,
                0x55 => {}
                0x95 => return registers[0] == 1,
                code => panic!("no such operation: {code:#x}"),
            }
        }
    }

    #[test]
    fn the_default_set_is_small() {
        let program = emit(DEFAULT);
        assert!(run(&program, READ | WRITE, false, 1, 3), "null");
        assert!(run(&program, READ | WRITE, false, 136, 77), "pts/77");
        assert!(run(&program, MKNOD, true, 8, 0), "making a node is no access");
        assert!(!run(&program, READ, true, 8, 0), "sda");
        assert!(!run(&program, READ | MKNOD, true, 8, 0), "sda");
        assert!(!run(&program, READ, false, 1, 1), "mem");
    }

    #[test]
    fn rules_as_v1_reads_them() {
        let texts: Vec<String> = DEFAULT.iter().map(Rule::text).collect();
        assert_eq!(texts[0], "c *:* m");
        assert_eq!(texts[1], "b *:* m");
        assert_eq!(texts[2], "c 1:3 rwm");
        assert_eq!(texts[10], "c 136:* rwm");
        let rule = DeviceRule { block: true, major: 7, minor: 9, access: "rx".into() };
        assert!(compile(&rule).is_err());
    }

    #[test]
    fn systemd_is_told_the_same_devices() {
        let majors = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  7 loop\n136 other\n";
        let list = "c *:* m\nb *:* m\nc 1:3 rwm\nc 136:* rwm\nb 7:9 r\nc 99:* rwm\n";
        let expected = [
            ("char-*", "m"),
            ("block-*", "m"),
            ("/dev/char/1:3", "rwm"),
            ("char-pts", "rwm"),
            ("/dev/block/7:9", "r"),
        ];
        let expected = expected.map(|(device, access)| (device.to_owned(), access.to_owned()));
        assert_eq!(device_allow(list, majors).unwrap(), expected);
        assert_eq!(device_allow("a *:* rwm\n", majors), None);
    }

    proptest! {
        #[test]
        fn a_program_allows_what_one_of_its_rules_allows(
            rules in proptest::collection::vec((any::<bool>(), proptest::option::of(0u32..3), proptest::option::of(0u32..3), 0u8..8), 0..6),
            access in 1u8..8, block: bool, major in 0u32..4, minor in 0u32..4,
        ) {
            let rules: Vec<Rule> = rules.into_iter()
                .map(|(block, major, minor, access)| Rule { block, major, minor, access }).collect();
            let expected = rules.iter().any(|r| {
                r.block == block && r.major.is_none_or(|m| m == major) && r.minor.is_none_or(|m| m == minor)
                    && access & !r.access == 0
            });
            prop_assert_eq!(run(&emit(&rules), access, block, major, minor), expected);
        }
    }
}
