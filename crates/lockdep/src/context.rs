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
use crate::task;
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
    /// The bits that this guard has set.
    bits: u32,
    /// What stood in the bits of a field before.
    field: Option<(u32, u32)>,
    not_send: PhantomData<*const ()>,
}

impl ContextGuard {
    fn set(bits: u32) -> Self {
        let new = task::with(|task| {
            let context = task.context().0;
            task.set_context(Context(context | bits));
            bits & !context
        });
        Self {
            bits: new,
            field: None,
            not_send: PhantomData,
        }
    }
}

impl Drop for ContextGuard {
    fn drop(&mut self) {
        const OFF: u32 = Context::HARD_OFF | Context::SOFT_OFF;
        task::with(|task| {
            let mut context = task.context().0 & !self.bits;
            if let Some((mask, before)) = self.field {
                context = context & !mask | before;
            }
            task.set_context(Context(context));
            if self.bits & OFF != 0 && self.bits & (Context::HARD | Context::SOFT) == 0 {
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

/// Lowers what may be waited for to this.
pub fn wait_limit(limit: WaitType) -> ContextGuard {
    const MASK: u32 = 7 << Context::LIMIT_SHIFT;
    let before = task::with(|task| {
        let context = task.context().0;
        let limit = (limit as u32) << Context::LIMIT_SHIFT;
        task.set_context(Context(context & !MASK | limit));
        context & MASK
    });
    ContextGuard {
        bits: 0,
        field: Some((MASK, before)),
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
