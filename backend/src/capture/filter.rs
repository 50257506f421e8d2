//! Filters: programs of the classic BSD packet filter, as `tcpdump -ddd` prints them.
//!
//! The machine is that of McCanne and Jacobson, "The BSD Packet Filter" (1993), as bpf(4) describes it:
//! an accumulator, an index register, 16 words of memory, and jumps that go forward only, so that every
//! program ends. What is taken is what the kernel takes of a socket filter, without its extensions.

use std::str::FromStr;

/// Most instructions of a program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Words of memory (`BPF_MEMWORDS`).
const MEMORY: usize = 16;
/// Loads from here on are Linux extensions (`SKF_LL_OFF`): what they ask for is not in the frame.
const EXTENSIONS: u32 = 0xffe0_0000;

/// A packet that a filter looks at.
pub trait Packet {
    /// Its bytes.
    fn len(&self) -> u32;

    /// `N` bytes from byte `at` on; none if they are not all in it.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

/// Why a program was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No program, or too long a one.
    #[error("a filter has 1 to {MAX_INSTRUCTIONS} instructions, not {0}")]
    Length(usize),
    /// Not numbers where there should be.
    #[error("instruction {0} is not \"CODE JT JF K\" in decimal numbers")]
    Syntax(usize),
    /// There is no such operation.
    #[error("instruction {0} has the unknown code {1}")]
    Code(usize, u16),
    /// A jump out of the program.
    #[error("instruction {0} jumps out of the program")]
    Jump(usize),
    /// No such word of memory.
    #[error("instruction {0} uses memory word {1}, and there are {MEMORY}")]
    Memory(usize, u32),
    /// A division by a constant that is zero.
    #[error("instruction {0} divides by zero")]
    Division(usize),
    /// A shift by more bits than there are.
    #[error("instruction {0} shifts by {1} bits")]
    Shift(usize, u32),
    /// A Linux extension.
    #[error("instruction {0} asks for something that is not in the frame")]
    Extension(usize),
    /// It runs over its end.
    #[error("the last instruction is not a return")]
    NoReturn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Byte,
    Half,
    Word,
}

/// What is computed with the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Or,
    And,
    Lsh,
    Rsh,
    Mod,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    NotLess,
    Set,
}

/// The second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    K(u32),
    X,
}

/// A checked instruction: places and memory words are within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    LoadAt(Size, u32),
    LoadFromX(Size, u32),
    Set(u32),
    Recall(usize),
    Length,
    SetX(u32),
    RecallX(usize),
    LengthX,
    /// Four times the low half of the byte at this place: an IPv4 header's length.
    HeaderX(u32),
    Store(usize),
    StoreX(usize),
    Compute(Alu, With),
    Negate,
    Jump(usize),
    Branch(Test, With, usize, usize),
    Return(u32),
    ReturnA,
    ToX,
    FromX,
}

/// A program that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Box<[Op]>);

/// One line of `tcpdump -ddd`.
struct Raw {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `N,CODE JT JF K,…`: what `tcpdump -ddd` prints, with commas for its line ends, which may be left as
/// they are.
impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut lines = text.split([',', '\n']).map(str::trim);
        let said: usize = lines.next().unwrap_or_default().parse().unwrap_or(0);
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        if lines.is_empty() || lines.len() > MAX_INSTRUCTIONS || lines.len() != said {
            return Err(FilterError::Length(lines.len()));
        }
        let raw = |(at, line): (usize, &&str)| Raw::read(line).ok_or(FilterError::Syntax(at));
        let raw = lines.iter().enumerate().map(raw);
        Self::check(&raw.collect::<Result<Vec<_>, _>>()?)
    }
}

impl Raw {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let raw = Self {
            code: words.next()?.parse().ok()?,
            jt: words.next()?.parse().ok()?,
            jf: words.next()?.parse().ok()?,
            k: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(raw)
    }

    fn memory(&self, at: usize) -> Result<usize, FilterError> {
        match self.k as usize {
            k if k < MEMORY => Ok(k),
            _ => Err(FilterError::Memory(at, self.k)),
        }
    }

    fn place(&self, at: usize) -> Result<u32, FilterError> {
        if self.k < EXTENSIONS {
            Ok(self.k)
        } else {
            Err(FilterError::Extension(at))
        }
    }

    fn with(&self) -> With {
        if self.code & 0x08 == 0 {
            With::K(self.k)
        } else {
            With::X
        }
    }

    /// What it does, at place `at`. Codes are those of `linux/bpf_common.h`: the low three bits are the
    /// class, the others depend on it.
    fn op(&self, at: usize) -> Result<Op, FilterError> {
        let size = match self.code & 0x18 {
            0x00 => Size::Word,
            0x08 => Size::Half,
            _ => Size::Byte,
        };
        Ok(match self.code {
            0x20 | 0x28 | 0x30 => Op::LoadAt(size, self.place(at)?),
            0x40 | 0x48 | 0x50 => Op::LoadFromX(size, self.k),
            0x00 => Op::Set(self.k),
            0x60 => Op::Recall(self.memory(at)?),
            0x80 => Op::Length,
            0x01 => Op::SetX(self.k),
            0x61 => Op::RecallX(self.memory(at)?),
            0x81 => Op::LengthX,
            0xb1 => Op::HeaderX(self.place(at)?),
            0x02 => Op::Store(self.memory(at)?),
            0x03 => Op::StoreX(self.memory(at)?),
            0x84 => Op::Negate,
            code if code & 0x07 == 0x04 => Op::Compute(self.alu(at)?, self.with()),
            code if code & 0x07 == 0x05 => self.jump(at)?,
            0x06 => Op::Return(self.k),
            0x16 => Op::ReturnA,
            0x07 => Op::ToX,
            0x87 => Op::FromX,
            code => return Err(FilterError::Code(at, code)),
        })
    }

    fn alu(&self, at: usize) -> Result<Alu, FilterError> {
        let alu = match self.code & !0x08 {
            0x04 => Alu::Add,
            0x14 => Alu::Sub,
            0x24 => Alu::Mul,
            0x34 => Alu::Div,
            0x44 => Alu::Or,
            0x54 => Alu::And,
            0x64 => Alu::Lsh,
            0x74 => Alu::Rsh,
            0x94 => Alu::Mod,
            0xa4 => Alu::Xor,
            _ => return Err(FilterError::Code(at, self.code)),
        };
        match (alu, self.with()) {
            (Alu::Div | Alu::Mod, With::K(0)) => Err(FilterError::Division(at)),
            (Alu::Lsh | Alu::Rsh, With::K(bits)) if bits > 31 => Err(FilterError::Shift(at, bits)),
            _ => Ok(alu),
        }
    }

    fn jump(&self, at: usize) -> Result<Op, FilterError> {
        let to = |by: u32| at + 1 + by as usize;
        let test = match self.code & !0x08 {
            0x05 if self.code == 0x05 => return Ok(Op::Jump(to(self.k))),
            0x15 => Test::Equal,
            0x25 => Test::Greater,
            0x35 => Test::NotLess,
            0x45 => Test::Set,
            _ => return Err(FilterError::Code(at, self.code)),
        };
        let (yes, no) = (to(self.jt.into()), to(self.jf.into()));
        Ok(Op::Branch(test, self.with(), yes, no))
    }
}

impl Filter {
    fn check(raw: &[Raw]) -> Result<Self, FilterError> {
        let ops = raw.iter().enumerate().map(|(at, raw)| raw.op(at));
        let ops: Box<[Op]> = ops.collect::<Result<_, _>>()?;
        for (at, op) in ops.iter().enumerate() {
            let furthest = match op {
                Op::Jump(to) => *to,
                Op::Branch(_, _, yes, no) => *yes.max(no),
                _ => 0,
            };
            if furthest >= ops.len() {
                return Err(FilterError::Jump(at));
            }
        }
        match ops.last() {
            Some(Op::Return(_) | Op::ReturnA) => Ok(Self(ops)),
            _ => Err(FilterError::NoReturn),
        }
    }

    /// Bytes of the packet that are wanted; 0: it is not one of those that are looked for.
    pub fn run(&self, packet: &impl Packet) -> u32 {
        let mut m = Machine::default();
        let mut at = 0;
        while let Some(op) = self.0.get(at) {
            at += 1;
            match *op {
                Op::Jump(to) => at = to,
                Op::Branch(test, with, yes, no) => at = if m.test(test, with) { yes } else { no },
                Op::Return(bytes) => return bytes,
                Op::ReturnA => return m.a,
                // It asks for what is not in the packet.
                _ if m.step(*op, packet).is_none() => return 0,
                _ => {}
            }
        }
        0
    }
}

#[derive(Default)]
struct Machine {
    a: u32,
    x: u32,
    memory: [u32; MEMORY],
}

impl Machine {
    /// What neither jumps nor ends; none: the packet is too short, or a division by zero.
    #[inline]
    fn step(&mut self, op: Op, packet: &impl Packet) -> Option<()> {
        match op {
            Op::LoadAt(size, at) => self.a = load(packet, size, at)?,
            Op::LoadFromX(size, by) => self.a = load(packet, size, self.x.checked_add(by)?)?,
            Op::Set(k) => self.a = k,
            Op::Recall(word) => self.a = self.memory[word],
            Op::Length => self.a = packet.len(),
            Op::SetX(k) => self.x = k,
            Op::RecallX(word) => self.x = self.memory[word],
            Op::LengthX => self.x = packet.len(),
            Op::HeaderX(at) => self.x = (load(packet, Size::Byte, at)? & 0x0f) << 2,
            Op::Store(word) => self.memory[word] = self.a,
            Op::StoreX(word) => self.memory[word] = self.x,
            Op::Compute(alu, with) => self.a = compute(alu, self.a, self.value(with))?,
            Op::Negate => self.a = self.a.wrapping_neg(),
            Op::ToX => self.x = self.a,
            Op::FromX => self.a = self.x,
            Op::Jump(_) | Op::Branch(..) | Op::Return(_) | Op::ReturnA => {}
        }
        Some(())
    }

    #[inline]
    fn value(&self, with: With) -> u32 {
        match with {
            With::K(k) => k,
            With::X => self.x,
        }
    }

    #[inline]
    fn test(&self, test: Test, with: With) -> bool {
        let other = self.value(with);
        match test {
            Test::Equal => self.a == other,
            Test::Greater => self.a > other,
            Test::NotLess => self.a >= other,
            Test::Set => self.a & other != 0,
        }
    }
}

#[inline]
fn load(packet: &impl Packet, size: Size, at: u32) -> Option<u32> {
    Some(match size {
        Size::Byte => u32::from(packet.load::<1>(at)?[0]),
        Size::Half => u32::from(u16::from_be_bytes(packet.load(at)?)),
        Size::Word => u32::from_be_bytes(packet.load(at)?),
    })
}

#[inline]
fn compute(alu: Alu, a: u32, b: u32) -> Option<u32> {
    Some(match alu {
        Alu::Add => a.wrapping_add(b),
        Alu::Sub => a.wrapping_sub(b),
        Alu::Mul => a.wrapping_mul(b),
        Alu::Div => a.checked_div(b)?,
        Alu::Mod => a.checked_rem(b)?,
        Alu::Or => a | b,
        Alu::And => a & b,
        Alu::Xor => a ^ b,
        Alu::Lsh => a.checked_shl(b).unwrap_or(0),
        Alu::Rsh => a.checked_shr(b).unwrap_or(0),
    })
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
