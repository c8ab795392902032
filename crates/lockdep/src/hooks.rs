//! Whether anybody watches: one word, so that a lock that nobody watches costs one load.
//!
//! ```text
//!  63        32 31      18 17         16         15          0
//! | epoch      | 0        | counting | validator | schedulers |
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SCHEDULER: u64 = 1;
const SCHEDULERS: u64 = 0xffff;
const VALIDATOR: u64 = 1 << 16;
const COUNTING: u64 = 1 << 17;
const EPOCH: u64 = 1 << 32;

/// The word, on a cache line that is hardly ever written.
#[repr(align(128))]
struct Word(AtomicU64);

/// Relaxed everywhere but for the epoch: a thread has to see its own changes only.
static WORD: Word = Word(AtomicU64::new(VALIDATOR));

/// What the word said.
#[derive(Clone, Copy)]
pub(crate) struct Hooks(u64);

#[inline(always)]
pub(crate) fn load() -> Hooks {
    if cfg!(feature = "validate") {
        Hooks(WORD.0.load(Ordering::Relaxed))
    } else {
        // Known when it is compiled: everything that hangs on it is gone.
        Hooks(0)
    }
}

impl Hooks {
    /// Neither a scheduler nor the validator, and nobody counts.
    #[inline(always)]
    pub(crate) const fn is_idle(self) -> bool {
        self.0 as u32 == 0
    }

    #[inline(always)]
    pub(crate) const fn has_scheduler(self) -> bool {
        self.0 & SCHEDULERS != 0
    }

    /// Whether waits for locks are to be counted; see [`crate::contention`].
    #[inline(always)]
    pub(crate) const fn counts_waits(self) -> bool {
        self.0 & COUNTING != 0
    }

    /// Whether a lock is not simply taken.
    #[inline(always)]
    pub(crate) const fn is_special(self) -> bool {
        self.0 & (SCHEDULERS | COUNTING) != 0
    }

    #[inline(always)]
    pub(crate) const fn has_validator(self) -> bool {
        self.0 & VALIDATOR != 0
    }

    /// Changes whenever chains that were validated no longer count.
    #[inline(always)]
    pub(crate) const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Counts one thread that has a scheduler.
pub(crate) fn add_scheduler() {
    WORD.0.fetch_add(SCHEDULER, Ordering::Relaxed);
}

/// Counts one thread less that has a scheduler.
pub(crate) fn remove_scheduler() {
    WORD.0.fetch_sub(SCHEDULER, Ordering::Relaxed);
}

/// Sets or clears a bit; says whether it was set.
fn set(bit: u64, is_on: bool) -> bool {
    let before = if is_on {
        WORD.0.fetch_or(bit, Ordering::Relaxed)
    } else {
        WORD.0.fetch_and(!bit, Ordering::Relaxed)
    };
    before & bit != 0
}

/// Switches the counting of waits for locks on or off; says whether it was on.
pub(crate) fn set_counting(is_on: bool) -> bool {
    set(COUNTING, is_on)
}

/// Switches the validator of the process on or off; says whether it was on.
pub(crate) fn set_validator(is_on: bool) -> bool {
    let was_on = set(VALIDATOR, is_on);
    if was_on != is_on {
        WAS_TOGGLED.store(true, Ordering::Relaxed);
    }
    was_on
}

/// Whether locks may have been taken or released while the validator was off.
pub(crate) fn was_toggled() -> bool {
    WAS_TOGGLED.load(Ordering::Relaxed)
}

static WAS_TOGGLED: AtomicBool = AtomicBool::new(false);

/// Begins an epoch: chains validated before no longer count.
pub(crate) fn next_epoch() {
    // Release pairs with the Acquire in `epoch_now`: who finds chains of the new epoch in a table
    // that was cleared after this sees the epoch too.
    WORD.0.fetch_add(EPOCH, Ordering::Release);
}

/// The epoch, read after a table of chains.
pub(crate) fn epoch_now() -> u32 {
    // Acquire pairs with the Release in `next_epoch`.
    Hooks(WORD.0.load(Ordering::Acquire)).epoch()
}
