//! In which context a thread runs: interrupt-like levels, scopes, sections that must not wait.
//!
//! All of it is part of each chain of locks, so a chain that was validated in one context is looked
//! at again in another. Guards put back what was there before, in whatever order they are dropped.
//!
//! Linux counterpart: include/linux/irqflags.h, and the scopes of include/linux/sched/mm.h.

use std::marker::PhantomData;
use std::sync::OnceLock;

use crate::event;
use crate::registry::WaitType;
use crate::task::{self, Task};
use crate::usage::Level;
use crate::word::Context;

/// The context of the calling thread.
#[must_use]
pub fn current() -> Context {
    task::with(|task| task.context())
}

/// A change of the context that lasts until it is dropped; stays in its thread.
#[must_use = "the context changes back when the guard is dropped"]
#[derive(Debug)]
pub struct ContextGuard {
    /// The bits that this guard keeps set.
    bits: u32,
    /// The limit that it keeps.
    limit: Option<WaitType>,
    not_send: PhantomData<*const ()>,
}

/// How many guards keep each bit of the context, and each limit: they may end in any order.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sections {
    nr_bits: [u8; Context::LIMIT_SHIFT as usize],
    nr_limits: [u8; WaitType::Sleep as usize],
}

impl Sections {
    pub(crate) const NONE: Self = Self {
        nr_bits: [0; Context::LIMIT_SHIFT as usize],
        nr_limits: [0; WaitType::Sleep as usize],
    };

    /// Begins what a guard keeps.
    fn begin(&mut self, bits: u32) {
        self.of_bits(bits)
            .for_each(|count| *count = count.saturating_add(1));
    }

    /// Ends it: the bits that no other guard keeps.
    fn end(&mut self, bits: u32) -> u32 {
        self.of_bits(bits)
            .for_each(|count| *count = count.saturating_sub(1));
        let is_free = |bit: &usize| self.nr_bits[*bit] == 0;
        let freed = (0..self.nr_bits.len()).filter(is_free);
        bits & freed.fold(0, |freed, bit| freed | 1 << bit)
    }

    fn of_bits(&mut self, bits: u32) -> impl Iterator<Item = &mut u8> {
        let numbered = self.nr_bits.iter_mut().enumerate();
        numbered
            .filter(move |(bit, _)| bits & 1 << bit != 0)
            .map(|(_, count)| count)
    }

    /// The lowest limit that a guard keeps, 0 for none.
    fn limit(&self) -> u32 {
        let lowest = self.nr_limits.iter().position(|&count| count > 0);
        lowest.map_or(0, |lowest| lowest as u32 + 1)
    }
}

const LIMIT: u32 = 7 << Context::LIMIT_SHIFT;

/// Changes the sections of the thread, and its context as they are then.
fn change(task: &Task, change: impl FnOnce(&mut Sections, u32) -> u32) {
    let mut sections = task.sections.get();
    let context = change(&mut sections, task.context().0);
    let limit = sections.limit() << Context::LIMIT_SHIFT;
    task.sections.set(sections);
    task.set_context(Context(context & !LIMIT | limit));
}

impl ContextGuard {
    fn set(bits: u32) -> Self {
        task::with(|task| {
            change(task, |sections, context| {
                sections.begin(bits);
                context | bits
            });
        });
        Self {
            bits,
            limit: None,
            not_send: PhantomData,
        }
    }
}

impl Drop for ContextGuard {
    fn drop(&mut self) {
        const OFF: u32 = Context::HARD_OFF | Context::SOFT_OFF;
        task::with(|task| {
            let before = task.context().0;
            change(task, |sections, context| {
                if let Some(limit) = self.limit {
                    let count = &mut sections.nr_limits[limit as usize - 1];
                    *count = count.saturating_sub(1);
                }
                context & !sections.end(self.bits)
            });
            let ended = before & !task.context().0;
            if ended & OFF != 0 && ended & (Context::HARD | Context::SOFT) == 0 {
                event::levels_changed();
            }
        });
    }
}

/// Runs as a level from here on: its own kind cannot come on top of it.
pub fn enter(level: Level) -> ContextGuard {
    ContextGuard::set(match level {
        Level::Hard => Context::HARD | Context::HARD_OFF,
        Level::Soft => Context::SOFT | Context::SOFT_OFF,
    })
}

/// Runs as a hard level that has a thread of its own, where it may sleep on some locks.
pub fn enter_threaded() -> ContextGuard {
    ContextGuard::set(Context::HARD | Context::HARD_OFF | Context::THREADED)
}

/// Keeps a level from coming: `Hard` keeps both.
///
/// When the guard is dropped, locks still held are held where the level can come.
pub fn disable(level: Level) -> ContextGuard {
    ContextGuard::set(match level {
        Level::Hard => Context::HARD_OFF,
        Level::Soft => Context::SOFT_OFF,
    })
}

/// A section in which nothing may wait: what sleeps is reported.
///
/// Kernel counterpart: `non_block_start()`.
pub fn non_block() -> ContextGuard {
    ContextGuard::set(Context::NON_BLOCK)
}

/// Lowers what may be waited for to this; never raises it. [`WaitType::Unchecked`] lowers nothing.
pub fn wait_limit(limit: WaitType) -> ContextGuard {
    let limit = Some(limit).filter(|&limit| limit != WaitType::Unchecked);
    task::with(|task| {
        change(task, |sections, context| {
            if let Some(limit) = limit {
                let count = &mut sections.nr_limits[limit as usize - 1];
                *count = count.saturating_add(1);
            }
            context
        });
    });
    ContextGuard {
        bits: 0,
        limit,
        not_send: PhantomData,
    }
}

/// A scope that a program defines, such as *no file system*: one of eight.
///
/// The validator draws no conclusion from it, but reports show it with each acquisition, and
/// annotations can ask for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Scope(u8);

static SCOPE_NAMES: [OnceLock<&str>; 8] = [const { OnceLock::new() }; 8];

impl Scope {
    /// The scope of this number, 0 to 7.
    ///
    /// # Panics
    ///
    /// Above seven.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!(number < 8, "there are eight scopes");
        Self(number)
    }

    /// Names the scope in reports; the first name stays.
    pub fn name(self, name: &'static str) {
        // A second name is ignored, as documented.
        let _ = SCOPE_NAMES[self.0 as usize].set(name);
    }

    /// Enters the scope.
    pub fn enter(self) -> ContextGuard {
        ContextGuard::set(1 << (Context::SCOPE_SHIFT + u32::from(self.0)))
    }

    /// Whether the calling thread is in it.
    #[must_use]
    pub fn is_active(self) -> bool {
        current().scopes() & (1 << self.0) != 0
    }
}

pub(crate) fn scope_name(number: u8) -> &'static str {
    const NAMES: [&str; 8] = [
        "scope0", "scope1", "scope2", "scope3", "scope4", "scope5", "scope6", "scope7",
    ];
    let number = number as usize;
    SCOPE_NAMES[number].get().copied().unwrap_or(NAMES[number])
}

/// The state of the levels, for code that keeps it itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Levels {
    /// In the hard level.
    pub in_hard: bool,
    /// In the soft level.
    pub in_soft: bool,
    /// The hard level cannot come, nor the soft one.
    pub hard_off: bool,
    /// The soft level cannot come.
    pub soft_off: bool,
    /// The hard level has a thread of its own.
    pub is_threaded: bool,
}

/// Sets the levels of the calling thread; says nothing of locks that are held, see
/// [`levels_enabled`].
pub fn set_levels(levels: Levels) {
    const ALL: u32 = (1 << 5) - 1;
    let bit = |is_set, bit| if is_set { bit } else { 0 };
    let bits = bit(levels.in_hard, Context::HARD)
        | bit(levels.in_soft, Context::SOFT)
        | bit(levels.hard_off, Context::HARD_OFF)
        | bit(levels.soft_off, Context::SOFT_OFF)
        | bit(levels.is_threaded, Context::THREADED);
    task::with(|task| task.set_context(Context(task.context().0 & !ALL | bits)));
}

/// The levels that are on now may come while the locks held are held.
pub fn levels_enabled() {
    event::levels_changed();
}
