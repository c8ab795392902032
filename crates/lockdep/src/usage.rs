//! Which classes are used in an interrupt-like level, and which are held where one can come.
//!
//! Eight bits a class: for each level whether a lock of the class was taken in it, and whether one
//! was held while it could come, each for writers and readers.

use crate::word::{Context, Word};

/// An interrupt-like level.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Level {
    /// What can come at any time, such as a signal handler.
    Hard = 0,
    /// What can come on top of a holder, such as a callback of an executor.
    Soft = 1,
}

impl Level {
    pub(crate) const ALL: [Self; 2] = [Self::Hard, Self::Soft];

    /// `hardirq` or `softirq`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hard => "hardirq",
            Self::Soft => "softirq",
        }
    }
}

/// A set of usage bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Usage(u8);

/// One usage bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UsageBit {
    pub(crate) level: Level,
    pub(crate) is_enabled: bool,
    pub(crate) is_read: bool,
}

impl UsageBit {
    const fn mask(self) -> u8 {
        1 << (self.level as u8 * 4 + self.is_enabled as u8 * 2 + self.is_read as u8)
    }

    /// The bits of the other direction that contradict this one on the same class.
    pub(crate) const fn opposites(self) -> Usage {
        let read = Self {
            is_enabled: !self.is_enabled,
            is_read: true,
            ..self
        };
        let both = self.opposites_afar();
        Usage(both.0 & if self.is_read { !read.mask() } else { !0 })
    }

    /// The bits of the other direction that contradict this one on a class that a strong path
    /// leads to: the path blocks the readers too.
    pub(crate) const fn opposites_afar(self) -> Usage {
        let write = Self {
            is_enabled: !self.is_enabled,
            is_read: false,
            ..self
        };
        let read = Self {
            is_read: true,
            ..write
        };
        Usage(write.mask() | read.mask())
    }

    fn all() -> impl Iterator<Item = Self> {
        let levels = Level::ALL.into_iter();
        levels.flat_map(|level| {
            [(false, false), (false, true), (true, false), (true, true)].map(
                |(is_enabled, is_read)| Self {
                    level,
                    is_enabled,
                    is_read,
                },
            )
        })
    }
}

impl std::fmt::Display for UsageBit {
    /// As the kernel has it: `IN-HARDIRQ-W`, `SOFTIRQ-ON-R`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Hard => "HARDIRQ",
            Level::Soft => "SOFTIRQ",
        };
        let mode = if self.is_read { 'R' } else { 'W' };
        if self.is_enabled {
            write!(f, "{level}-ON-{mode}")
        } else {
            write!(f, "IN-{level}-{mode}")
        }
    }
}

impl Usage {
    const READS: u8 = 0b1010_1010;
    const USED: u8 = 0b0011_0011;

    pub(crate) const fn from_raw(raw: u8) -> Self {
        Self(raw)
    }

    pub(crate) const fn raw(self) -> u8 {
        self.0
    }

    pub(crate) const fn has(self, bit: UsageBit) -> bool {
        self.0 & bit.mask() != 0
    }

    pub(crate) const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub(crate) const fn with(self, bit: UsageBit) -> Self {
        Self(self.0 | bit.mask())
    }

    #[must_use]
    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What counts at the end of a path that may have been restricted: then no reader does.
    #[must_use]
    pub(crate) const fn seen_from(self, is_restricted: bool) -> Self {
        Self(if is_restricted {
            self.0 & !Self::READS
        } else {
            self.0
        })
    }

    pub(crate) fn bits(self) -> impl Iterator<Item = UsageBit> {
        UsageBit::all().filter(move |bit| self.has(*bit))
    }

    /// The bits that say *taken in a level*.
    #[must_use]
    pub(crate) const fn used(self) -> Self {
        Self(self.0 & Self::USED)
    }

    /// What taking a lock in this way says of its class.
    pub(crate) fn of_acquire(word: Word) -> Self {
        let context = word.context();
        let is_read = word.mode().is_read();
        let bit = |level, is_enabled| UsageBit {
            level,
            is_enabled,
            is_read,
        };
        let mut usage = Self::default();
        if !word.has(Word::TRY) {
            if context.has(Context::HARD) {
                usage = usage.with(bit(Level::Hard, false));
            }
            if context.has(Context::SOFT) {
                usage = usage.with(bit(Level::Soft, false));
            }
        }
        if !word.has(Word::SYNC) {
            usage = usage.union(Self::of_enabled(word));
        }
        usage
    }

    /// What holding a lock says of its class where the levels of its context are on.
    pub(crate) fn of_enabled(word: Word) -> Self {
        let context = word.context();
        let is_read = word.mode().is_read();
        let mut usage = Self::default();
        if context.has(Context::HARD_OFF) {
            return usage;
        }
        for level in Level::ALL {
            let is_off = level == Level::Soft && context.has(Context::SOFT_OFF);
            if !is_off {
                usage = usage.with(UsageBit {
                    level,
                    is_enabled: true,
                    is_read,
                });
            }
        }
        usage
    }
}
