//! What one acquisition is, packed into 43 bits so that a step of a chain fits one machine word.

use std::fmt;

/// A class: a key and one of its eight subclasses.
///
/// Numbers are given out by the registry and stay small: see [`ClassId::NR_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClassId(u32);

impl ClassId {
    /// How many subclasses a key has: subclass 0 to 7.
    pub const NR_SUBCLASSES: u32 = 8;
    pub(crate) const NR_KEYS_MAX: u32 = crate::room(1 << 15) as u32;
    /// Class numbers are below this.
    pub const NR_MAX: u32 = Self::NR_KEYS_MAX * Self::NR_SUBCLASSES;

    pub(crate) const fn of_key(key: u32) -> Self {
        Self(key * Self::NR_SUBCLASSES)
    }

    /// The class of this number, if it comes from [`index`](Self::index).
    pub const fn from_index(index: u32) -> Self {
        Self(index % Self::NR_MAX)
    }

    /// The class of the same key with this subclass; `None` above seven.
    pub const fn subclass(self, subclass: u32) -> Option<Self> {
        if subclass < Self::NR_SUBCLASSES {
            Some(Self((self.0 & !(Self::NR_SUBCLASSES - 1)) | subclass))
        } else {
            None
        }
    }

    /// The number, for tables.
    pub const fn index(self) -> u32 {
        self.0
    }

    pub(crate) const fn key(self) -> u32 {
        self.0 / Self::NR_SUBCLASSES
    }

    pub(crate) const fn nr_subclass(self) -> u32 {
        self.0 % Self::NR_SUBCLASSES
    }
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Alone: a mutex, a writer.
    Exclusive = 0,
    /// With other readers, but a waiting writer stops new ones (`r`): reading twice can deadlock.
    Shared = 1,
    /// With other readers, whoever waits (`R`): reading twice cannot deadlock.
    SharedRecursive = 2,
}

impl Mode {
    pub(crate) const fn is_read(self) -> bool {
        !matches!(self, Self::Exclusive)
    }

    /// One letter: `W`, `r` or `R`.
    pub const fn letter(self) -> char {
        match self {
            Self::Exclusive => 'W',
            Self::Shared => 'r',
            Self::SharedRecursive => 'R',
        }
    }
}

/// The context of an acquisition, as [`crate::context`] keeps it: 17 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Context(pub(crate) u32);

impl Context {
    pub(crate) const HARD: u32 = 1;
    pub(crate) const SOFT: u32 = 1 << 1;
    pub(crate) const HARD_OFF: u32 = 1 << 2;
    pub(crate) const SOFT_OFF: u32 = 1 << 3;
    pub(crate) const THREADED: u32 = 1 << 4;
    pub(crate) const NON_BLOCK: u32 = 1 << 5;
    pub(crate) const SCOPE_SHIFT: u32 = 6;
    pub(crate) const SCOPES: u32 = 0xff << Self::SCOPE_SHIFT;
    pub(crate) const LIMIT_SHIFT: u32 = 14;
    pub(crate) const NR_BITS: u32 = 17;

    /// Which of the interrupt-like levels it is in; locks of other levels start another chain.
    pub(crate) const fn level(self) -> u32 {
        self.0 & (Self::HARD | Self::SOFT)
    }

    pub(crate) const fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// The scope bits that [`crate::context::Scope`] set.
    pub const fn scopes(self) -> u8 {
        ((self.0 & Self::SCOPES) >> Self::SCOPE_SHIFT) as u8
    }

    /// Whether it is in an interrupt-like level, hard or soft.
    pub const fn in_interrupt(self) -> bool {
        self.level() != 0
    }

    /// Whether it is in a section that must not block.
    pub const fn is_non_block(self) -> bool {
        self.has(Self::NON_BLOCK)
    }

    pub(crate) const fn limit(self) -> u8 {
        ((self.0 >> Self::LIMIT_SHIFT) & 7) as u8
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Context {
    /// The names of what holds, such as `hardirq non-block NoFs`; `task` if nothing does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(u32, &str); 6] = [
            (Context::HARD, "hardirq"),
            (Context::SOFT, "softirq"),
            (Context::HARD_OFF, "irqs-off"),
            (Context::SOFT_OFF, "softirqs-off"),
            (Context::THREADED, "threaded"),
            (Context::NON_BLOCK, "non-block"),
        ];
        let scopes = (0..8).filter(|bit| self.scopes() & (1 << bit) != 0);
        let mut names = NAMES
            .iter()
            .filter(|(bit, _)| self.has(*bit))
            .map(|(_, name)| *name)
            .chain(scopes.map(crate::context::scope_name));
        f.write_str(names.next().unwrap_or("task"))?;
        names.try_for_each(|name| write!(f, " {name}"))
    }
}

/// One acquisition: class, mode, flags and context.
///
/// ```text
///  42       26 25        18 17      0
/// | context   | flags, mode | class  |
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word(u64);

impl Word {
    const MODE_SHIFT: u32 = 18;
    pub(crate) const TRY: u64 = 1 << 20;
    /// Only balance is checked.
    pub(crate) const UNCHECKED: u64 = 1 << 21;
    /// Acquired and released at once: a wait for every holder.
    pub(crate) const SYNC: u64 = 1 << 22;
    /// A nest lock was given.
    pub(crate) const NESTED: u64 = 1 << 23;
    /// A wait for an event, which no other thread holds.
    pub(crate) const WAIT: u64 = 1 << 24;
    /// A wait that ends by itself.
    pub(crate) const TIMED: u64 = 1 << 25;
    const CONTEXT_SHIFT: u32 = 26;
    pub(crate) const NR_BITS: u32 = Self::CONTEXT_SHIFT + Context::NR_BITS;
    pub(crate) const NONE: Self = Self(0);

    #[inline(always)]
    pub(crate) const fn new(class: ClassId, mode: Mode, flags: u64, context: Context) -> Self {
        let how = (mode as u64) << Self::MODE_SHIFT | flags;
        Self(class.0 as u64 | how).with_context(context)
    }

    /// The same acquisition in this context, if it was in none.
    #[inline(always)]
    pub(crate) const fn with_context(self, context: Context) -> Self {
        Self(self.0 | (context.0 as u64) << Self::CONTEXT_SHIFT)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn class(self) -> ClassId {
        ClassId((self.0 & (ClassId::NR_MAX as u64 - 1)) as u32)
    }

    pub(crate) const fn mode(self) -> Mode {
        match (self.0 >> Self::MODE_SHIFT) & 3 {
            0 => Mode::Exclusive,
            1 => Mode::Shared,
            _ => Mode::SharedRecursive,
        }
    }

    pub(crate) const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub(crate) const fn context(self) -> Context {
        Context((self.0 >> Self::CONTEXT_SHIFT) as u32)
    }

    pub(crate) const fn with_mode(self, mode: Mode) -> Self {
        Self(self.0 & !(3 << Self::MODE_SHIFT) | (mode as u64) << Self::MODE_SHIFT)
    }

    pub(crate) const fn with_class(self, class: ClassId) -> Self {
        Self(self.0 & !(ClassId::NR_MAX as u64 - 1) | class.0 as u64)
    }

    pub(crate) const fn is_recursive(self) -> bool {
        matches!(self.mode(), Mode::SharedRecursive)
    }
}
