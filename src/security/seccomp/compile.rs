//! From a profile to a program: a table for each architecture, then a binary tree over it.
//!
//! ```text
//!  names, rules ─▶ number → verdict or conditions ─▶ spans of equal verdict ─▶ tree of "at least n?"
//! ```
//!
//! The meaning of a profile is what runc and libseccomp make of it, since that is what profiles on
//! nodes were tried with:
//! - A rule whose action is the default action is dropped. The first rule without conditions for a
//!   call decides it, whatever others there are. Else the narrowest rule whose conditions all hold
//!   does (see [`Condition::precedence`]), whatever their order, and the default action if none. Two
//!   rules with the same conditions and different actions are refused.
//! - A rule with two conditions on one argument stands for a rule for each of its conditions.
//! - 32-bit architectures, x32 among them, compare the lower half of an argument.
//! - On i386 a rule for a socket or IPC call is also one for its number in socketcall or ipc. The
//!   conditions on the first argument are lost there.
//! - Architectures that are not in the profile (the native one always is) get the thread killed.
//! - Names that this version does not know are skipped, unless they would then be let through though
//!   the profile forbids them: that is refused (the others say nothing). Numbers above the greatest that the profile
//!   names are newer than the profile: they get ENOSYS, so that libc takes its older way, unless the
//!   default action lets calls through (ALLOW, LOG, TRACE).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Op,
    LinuxSyscall,
};

use super::bpf::{self, Assembler, Instruction, Target};
use super::syscalls::{self, Multiplexed, X32_BIT};
use crate::{Error, Result};

/// BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

/// AUDIT_ARCH_*, as seccomp_data.arch has them.
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;

/// SECCOMP_RET_*
const KILL_THREAD: u32 = 0;
const ERRNO: u32 = 0x0005_0000;
/// The greatest errno that the kernel returns from a filter.
const MAX_ERRNO: u32 = 4095;

/// A profile's program. Errors name what in the profile is wrong.
pub fn program(profile: &LinuxSeccomp) -> Result<Vec<Instruction>> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Error::unimplemented("a seccomp profile on another architecture than x86_64"));
    }
    let policy = Policy::new(profile)?;
    let mut out = Assembler::default();
    let mut start = Target::Return(KILL_THREAD);
    for (audit, spans) in [(AUDIT_I386, policy.i386()), (AUDIT_X86_64, policy.x86_64())] {
        if let Some(spans) = spans {
            let tree = tree(&mut out, &spans, policy.default);
            let table = out.statement(bpf::LOAD, bpf::NUMBER, tree);
            start = out.branch(bpf::EQUAL, audit, table, start);
        }
    }
    let start = out.statement(bpf::LOAD, bpf::ARCHITECTURE, start);
    let program = out.finish(start);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "the profile compiles to {} instructions, more than the kernel's {MAX_INSTRUCTIONS}",
            program.len()
        )));
    }
    Ok(program)
}

/// Equal verdicts for the numbers from `start` to the next span's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    start: u32,
    verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Always(u32),
    /// The first whose conditions hold; the default action if none.
    When(Vec<Rule>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    action: u32,
}

/// `negated` turns the answer of `test`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    index: u32,
    test: Test,
    negated: bool,
    width: Width,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    /// `argument & mask == value`
    Equal {
        mask: u64,
        value: u64,
    },
    Greater(u64),
    AtLeast(u64),
}

/// How much of an argument an architecture's calls use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Whole,
    LowerHalf,
}

/// What a profile says about one table of system calls.
#[derive(Default)]
struct Calls {
    verdicts: BTreeMap<u32, Verdict>,
    /// The greatest number that the profile names.
    last: u32,
}

struct Policy {
    default: u32,
    /// The verdict of what is newer than the profile; None: the default.
    newer: Option<u32>,
    x86_64: Calls,
    i386: Option<Calls>,
    x32: Option<Calls>,
}

impl Policy {
    fn new(profile: &LinuxSeccomp) -> Result<Self> {
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let lets_through = lets_through(profile.default_action());
        let listed = |arch| profile.architectures().as_ref().is_some_and(|list| list.contains(&arch));
        let mut policy = Self {
            default,
            newer: (!lets_through).then_some(ERRNO | libc::ENOSYS as u32),
            x86_64: Calls::default(),
            i386: listed(Arch::ScmpArchX86).then(Calls::default),
            x32: listed(Arch::ScmpArchX32).then(Calls::default),
        };
        for syscall in profile.syscalls().iter().flatten() {
            let action = action(syscall.action(), syscall.errno_ret())?;
            let rules = alternatives(syscall)?;
            let forbids = lets_through && !self::lets_through(syscall.action());
            for name in syscall.names() {
                if forbids && !syscalls::known(name) {
                    return Err(Error::invalid(format!(
                        "it forbids {name:?}, a system call that podwright does not know and so cannot forbid"
                    )));
                }
                policy.add(name, &rules, action).map_err(|e| e.during(format!("the rules for {name}")))?;
            }
        }
        for calls in
            [Some(&mut policy.x86_64), policy.i386.as_mut(), policy.x32.as_mut()].into_iter().flatten()
        {
            calls.sort();
        }
        Ok(policy)
    }

    /// `rules`: each a list of conditions that must all hold.
    fn add(&mut self, name: &str, rules: &[Vec<LinuxSeccompArg>], action: u32) -> Result<()> {
        let numbers = syscalls::numbers(name);
        let default = self.default;
        let add = |calls: &mut Calls, number: Option<u32>, width: Width| {
            let Some(number) = number else { return Ok(()) };
            calls.last = calls.last.max(number);
            rules.iter().filter(|_| action != default).try_for_each(|rule| {
                let conditions = rule.iter().filter_map(|arg| condition(arg, width));
                calls.add(number, Rule { conditions: conditions.collect(), action })
            })
        };
        add(&mut self.x86_64, numbers.and_then(|n| n.x86_64), Width::Whole)?;
        if let Some(x32) = &mut self.x32 {
            add(x32, numbers.and_then(|n| n.x32), Width::LowerHalf)?;
        }
        if let Some(i386) = &mut self.i386 {
            add(i386, numbers.and_then(|n| n.i386), Width::LowerHalf)?;
            if action != default {
                i386.add_multiplexed(name, rules, action)?;
            }
        }
        Ok(())
    }

    fn i386(&self) -> Option<Vec<Span>> {
        let mut spans = Spans::default();
        self.spans(self.i386.as_ref()?, 0, u32::MAX, &mut spans);
        Some(spans.0)
    }

    /// x32 shares the architecture, above [`X32_BIT`].
    fn x86_64(&self) -> Option<Vec<Span>> {
        let mut spans = Spans::default();
        self.spans(&self.x86_64, 0, X32_BIT - 1, &mut spans);
        match &self.x32 {
            Some(x32) => self.spans(x32, X32_BIT, u32::MAX, &mut spans),
            None => {
                spans.push(X32_BIT, Verdict::Always(KILL_THREAD));
                // Not x32: a tracer puts -1 there to skip a call (seccomp(2)).
                spans.push(u32::MAX, Verdict::Always(self.default));
            }
        }
        Some(spans.0)
    }

    fn spans(&self, calls: &Calls, base: u32, end: u32, spans: &mut Spans) {
        let default = Verdict::Always(self.default);
        spans.push(base, default.clone());
        for (number, verdict) in &calls.verdicts {
            spans.push(base + number, verdict.clone());
            spans.push(base + number + 1, default.clone());
        }
        if let Some(newer) = self.newer.filter(|_| calls.last > 0 && base + calls.last < end) {
            spans.push(base + calls.last + 1, Verdict::Always(newer));
        }
    }
}

impl Calls {
    fn add(&mut self, number: u32, rule: Rule) -> Result<()> {
        let rules = match self.verdicts.entry(number).or_insert_with(|| Verdict::When(Vec::new())) {
            Verdict::Always(_) => return Ok(()),
            Verdict::When(rules) => rules,
        };
        if rule.conditions.is_empty() {
            self.verdicts.insert(number, Verdict::Always(rule.action));
            return Ok(());
        }
        match rules.iter().find(|known| known.conditions == rule.conditions) {
            None => rules.push(rule),
            Some(known) if known.action == rule.action => {}
            Some(_) => return Err(Error::invalid("two have the same conditions and different actions")),
        }
        Ok(())
    }

    /// The same rules for the call's number inside socketcall or ipc.
    fn add_multiplexed(&mut self, name: &str, rules: &[Vec<LinuxSeccompArg>], action: u32) -> Result<()> {
        let Some(Multiplexed { outer, inner }) = syscalls::multiplexed(name) else { return Ok(()) };
        rules.iter().try_for_each(|rule| {
            let test = Test::Equal { mask: u64::MAX, value: inner.into() };
            let mut conditions = vec![Condition { index: 0, test, negated: false, width: Width::LowerHalf }];
            let others = rule.iter().filter(|arg| arg.index() != 0);
            conditions.extend(others.filter_map(|arg| condition(arg, Width::LowerHalf)));
            self.add(outer, Rule { conditions, action })
        })
    }

    /// Puts the narrowest rules first.
    fn sort(&mut self) {
        for verdict in self.verdicts.values_mut() {
            if let Verdict::When(rules) = verdict {
                rules.sort_by_cached_key(|rule| {
                    Reverse(rule.conditions.iter().map(Condition::precedence).collect::<Vec<_>>())
                });
            }
        }
    }
}

impl Condition {
    /// Of two rules that hold, the one goes whose first condition has the greater of these: on the later
    /// argument, then equality before upper bounds before lower ones, then the tighter bound.
    fn precedence(&self) -> (u32, u8, u64) {
        let (class, value) = match (self.test, self.negated) {
            (Test::Equal { value, .. }, _) => (3, value),
            (Test::Greater(value) | Test::AtLeast(value), true) => (2, !value),
            (Test::Greater(value) | Test::AtLeast(value), false) => (1, value),
        };
        (self.index, class, value)
    }
}

/// Spans in order; equal neighbours become one.
#[derive(Default)]
struct Spans(Vec<Span>);

impl Spans {
    /// From `start` on, replacing what began there.
    fn push(&mut self, start: u32, verdict: Verdict) {
        self.0.pop_if(|last| last.start == start);
        if self.0.last().is_none_or(|last| last.verdict != verdict) {
            self.0.push(Span { start, verdict });
        }
    }
}

/// The condition lists of a rule, one of which must hold.
fn alternatives(syscall: &LinuxSyscall) -> Result<Vec<Vec<LinuxSeccompArg>>> {
    let mut args = syscall.args().clone().unwrap_or_default();
    args.sort_by_key(|arg| arg.index());
    if let Some(arg) = args.iter().find(|arg| arg.index() > 5) {
        return Err(Error::invalid(format!(
            "{}: a system call has no argument {}, only 0 to 5",
            syscall.names().join(", "),
            arg.index()
        )));
    }
    let repeated = (0..6).any(|index| args.iter().filter(|arg| arg.index() == index).count() > 1);
    Ok(if repeated { args.into_iter().map(|arg| vec![arg]).collect() } else { vec![args] })
}

/// None for a condition that always holds.
fn condition(arg: &LinuxSeccompArg, width: Width) -> Option<Condition> {
    let (test, negated) = match arg.op() {
        Op::ScmpCmpEq => (Test::Equal { mask: u64::MAX, value: arg.value() }, false),
        Op::ScmpCmpNe => (Test::Equal { mask: u64::MAX, value: arg.value() }, true),
        Op::ScmpCmpGt => (Test::Greater(arg.value()), false),
        Op::ScmpCmpLe => (Test::Greater(arg.value()), true),
        Op::ScmpCmpGe => (Test::AtLeast(arg.value()), false),
        Op::ScmpCmpLt => (Test::AtLeast(arg.value()), true),
        Op::ScmpCmpMaskedEq => {
            let mask = arg.value();
            (Test::Equal { mask, value: arg.value_two().unwrap_or_default() & mask }, false)
        }
    };
    let looked_at = match width {
        Width::Whole => u64::MAX,
        Width::LowerHalf => u32::MAX.into(),
    };
    match test {
        Test::Equal { mask, .. } if mask & looked_at == 0 => None,
        _ => Some(Condition { index: arg.index() as u32, test, negated, width }),
    }
}

fn lets_through(action: Action) -> bool {
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

/// SECCOMP_RET_* of an action.
fn action(action: Action, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(libc::EPERM as u32);
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => Ok(KILL_THREAD),
        Action::ScmpActKillProcess => Ok(0x8000_0000),
        Action::ScmpActTrap => Ok(0x0003_0000),
        Action::ScmpActErrno if data <= MAX_ERRNO => Ok(ERRNO | data),
        Action::ScmpActErrno => {
            Err(Error::invalid(format!("errnoRet {data} is above {MAX_ERRNO}, the greatest errno")))
        }
        Action::ScmpActTrace if data <= 0xffff => Ok(0x7ff0_0000 | data),
        Action::ScmpActTrace => Err(Error::invalid(format!("errnoRet {data} is above 65535"))),
        Action::ScmpActLog => Ok(0x7ffc_0000),
        Action::ScmpActAllow => Ok(0x7fff_0000),
        Action::ScmpActNotify => Err(Error::unimplemented("seccomp action SCMP_ACT_NOTIFY")),
    }
}

/// Finds the span of the number in the accumulator.
fn tree(out: &mut Assembler, spans: &[Span], default: u32) -> Target {
    if let [span] = spans {
        return verdict(out, &span.verdict, default);
    }
    let (below, above) = spans.split_at(spans.len() / 2);
    let yes = tree(out, above, default);
    let no = tree(out, below, default);
    out.branch(bpf::AT_LEAST, above[0].start, yes, no)
}

fn verdict(out: &mut Assembler, verdict: &Verdict, default: u32) -> Target {
    match verdict {
        Verdict::Always(action) => Target::Return(*action),
        Verdict::When(rules) => rules.iter().rev().fold(Target::Return(default), |otherwise, rule| {
            let action = Target::Return(rule.action);
            rule.conditions.iter().rev().fold(action, |then, c| compare(out, c, then, otherwise))
        }),
    }
}

/// Goes to `yes` if the condition holds. 64 bits are compared in halves; for equality the lower one
/// first, since that is where values differ, so that a list of values loads it once.
fn compare(out: &mut Assembler, condition: &Condition, yes: Target, no: Target) -> Target {
    let (yes, no) = if condition.negated { (no, yes) } else { (yes, no) };
    let low = bpf::argument(condition.index);
    let wide = condition.width == Width::Whole;
    match condition.test {
        Test::Equal { mask, value } => {
            let (upper_mask, upper) = ((mask >> 32) as u32, (value >> 32) as u32);
            let yes = if wide { equal(out, low + 4, upper_mask, upper, yes, no) } else { yes };
            equal(out, low, mask as u32, value as u32, yes, no)
        }
        Test::Greater(value) | Test::AtLeast(value) => {
            let strict = matches!(condition.test, Test::Greater(_));
            let code = if strict { bpf::GREATER } else { bpf::AT_LEAST };
            let lower = out.branch(code, value as u32, yes, no);
            let lower = out.statement(bpf::LOAD, low, lower);
            if !wide {
                return lower;
            }
            let high = (value >> 32) as u32;
            let same = out.branch(bpf::EQUAL, high, lower, no);
            let upper = out.branch(bpf::GREATER, high, yes, same);
            out.statement(bpf::LOAD, low + 4, upper)
        }
    }
}

fn equal(out: &mut Assembler, offset: u32, mask: u32, value: u32, yes: Target, no: Target) -> Target {
    match mask {
        0 => yes,
        u32::MAX => {
            let (yes, no) = (out.past_load(yes, offset), out.past_load(no, offset));
            let test = out.branch(bpf::EQUAL, value, yes, no);
            out.statement(bpf::LOAD, offset, test)
        }
        _ => {
            let test = out.branch(bpf::EQUAL, value, yes, no);
            let test = out.statement(bpf::AND, mask, test);
            out.statement(bpf::LOAD, offset, test)
        }
    }
}
