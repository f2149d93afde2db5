//! Classic BPF, written from its end to its beginning.
//!
//! Jumps only go forward, over at most 255 instructions when they are conditional. Written backwards,
//! the distance of every jump is known when it is written, and one that is too far gets a stepping
//! stone right behind it: another copy of a return, or a long jump.

use std::collections::HashMap;

/// The kernel's struct sock_filter (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// BPF_LD | BPF_W | BPF_ABS: a word of struct seccomp_data, by its offset.
pub const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K
pub const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA
pub const JUMP: u16 = 0x05;
/// BPF_RET | BPF_K
pub const RETURN: u16 = 0x06;
/// BPF_JMP | BPF_JEQ | BPF_K
pub const EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGT | BPF_K
pub const GREATER: u16 = 0x25;
/// BPF_JMP | BPF_JGE | BPF_K
pub const AT_LEAST: u16 = 0x35;

/// Offsets in struct seccomp_data (linux/seccomp.h).
pub const NUMBER: u32 = 0;
pub const ARCHITECTURE: u32 = 4;

/// The offset of an argument's lower half; its upper half is 4 bytes on (little endian).
pub fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A place in the program: the number of instructions from there to its end.
    Label(usize),
    /// Return this value, wherever that is written.
    Return(u32),
}

#[derive(Default)]
pub struct Assembler {
    /// The last instruction first.
    reversed: Vec<Instruction>,
    /// The nearest copy of each return.
    returns: HashMap<u32, usize>,
}

impl Assembler {
    /// `code k`, and then `next`.
    pub fn statement(&mut self, code: u16, k: u32, next: Target) -> Target {
        let next = self.place(next);
        if next != self.reversed.len() {
            self.long_jump(next);
        }
        self.push(code, 0, 0, k)
    }

    /// Goes to `yes` if `code k` holds of the accumulator, else to `no`.
    pub fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        // One instruction of slack: the stepping stone of `no` comes between.
        let yes = self.within(yes, 254);
        let no = self.within(no, 255);
        let here = self.reversed.len();
        self.push(code, (here - yes) as u8, (here - no) as u8, k)
    }

    /// `target`, or what follows if it begins with a load of the word at `offset`: for who has that in the
    /// accumulator.
    pub fn past_load(&self, target: Target, offset: u32) -> Target {
        match target {
            Target::Label(label) if label > 1 => match self.reversed[label - 1] {
                Instruction { code: LOAD, k, .. } if k == offset => Target::Label(label - 1),
                _ => target,
            },
            _ => target,
        }
    }

    /// The program, beginning at `start`.
    pub fn finish(mut self, start: Target) -> Vec<Instruction> {
        let start = self.place(start);
        if start != self.reversed.len() {
            self.long_jump(start);
        }
        self.reversed.reverse();
        self.reversed
    }

    /// A label of `target` at most `reach` instructions from the next one to be written.
    fn within(&mut self, target: Target, reach: usize) -> usize {
        let label = match target {
            Target::Label(label) => label,
            Target::Return(value) => match self.returns.get(&value) {
                Some(label) if self.reversed.len() - label <= reach => *label,
                _ => return self.write_return(value),
            },
        };
        if self.reversed.len() - label <= reach { label } else { self.long_jump(label) }
    }

    fn place(&mut self, target: Target) -> usize {
        match target {
            Target::Label(label) => label,
            Target::Return(value) => self.write_return(value),
        }
    }

    fn write_return(&mut self, value: u32) -> usize {
        self.push(RETURN, 0, 0, value);
        self.returns.insert(value, self.reversed.len());
        self.reversed.len()
    }

    fn long_jump(&mut self, label: usize) -> usize {
        let over = (self.reversed.len() - label) as u32;
        self.push(JUMP, 0, 0, over);
        self.reversed.len()
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Target {
        self.reversed.push(Instruction { code, jt, jf, k });
        Target::Label(self.reversed.len())
    }
}

/// In the kernel's layout, as seccomp(2) takes it.
pub fn bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for i in program {
        bytes.extend(i.code.to_ne_bytes());
        bytes.extend([i.jt, i.jf]);
        bytes.extend(i.k.to_ne_bytes());
    }
    bytes
}
