//! Counters of one list of notifiers, and faults that tests inject to prove the checkers.

use super::range::{Event, Mode};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What happened so far. Brackets that began while nobody was subscribed are not counted: they
/// cost nothing, and counting would.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NotifierStats {
    starts: Starts,
    /// Non-blockable brackets that were refused.
    pub refusals: u64,
    /// Blockable brackets whose devices did not settle before the deadline.
    pub stuck: u64,
    /// Callbacks that panicked.
    pub panics: u64,
    /// Uses that break the contract; see [`Misuse`](super::Misuse).
    pub misuses: u64,
}

impl NotifierStats {
    pub(super) fn new(starts: Starts, counters: &Counters) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            starts,
            refusals: get(&counters.refusals),
            stuck: get(&counters.stuck),
            panics: get(&counters.panics),
            misuses: get(&counters.misuses),
        }
    }

    /// Brackets of this event and mode that began while anybody was subscribed, whatever came of
    /// them.
    pub const fn starts(&self, event: Event, mode: Mode) -> u64 {
        self.starts.0[event as usize][mode as usize]
    }

    /// Brackets that began while anybody was subscribed.
    pub fn starts_total(&self) -> u64 {
        self.starts.0.iter().flatten().sum()
    }
}

/// Brackets by event and mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Starts([[u64; Mode::ALL.len()]; Event::ALL.len()]);

impl Starts {
    #[inline]
    pub(super) fn count(&mut self, event: Event, mode: Mode) {
        self.0[event as usize][mode as usize] += 1;
    }
}

impl core::ops::AddAssign for Starts {
    fn add_assign(&mut self, other: Self) {
        let mine = self.0.iter_mut().flatten();
        for (mine, other) in mine.zip(other.0.iter().flatten()) {
            *mine += other;
        }
    }
}

/// A fault that tests put into the notifier core, to prove that a checker sees it.
///
/// Never set in production: devices then read memory that is no longer theirs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inject {
    /// No fault.
    None,
    /// Brackets call nobody, and report success.
    SkipNotifier,
    /// The change comes too late: `end` is delivered before it, right after the starts.
    LateEnd,
    /// The number of an interval grows after its callback instead of before.
    BumpAfter,
    /// An interval that joins does not wait for the brackets that do not know it.
    ForgetDeferred,
    /// Whoever waits for an interval to be idle is not woken.
    LoseWakeUp,
    /// A bracket that a member of the list refuses does not end the intervals.
    ForgetIntervals,
    /// A bracket that is refused does not end those of the list that it started.
    ForgetList,
    /// The removal of an interval does not wait for callbacks that run.
    RemoveEarly,
}

impl Inject {
    /// Every setting, in the order in which they are declared.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::SkipNotifier,
        Self::LateEnd,
        Self::BumpAfter,
        Self::ForgetDeferred,
        Self::LoseWakeUp,
        Self::ForgetIntervals,
        Self::ForgetList,
        Self::RemoveEarly,
    ];
}

/// The live counters. They order nothing: each is exact by itself, a snapshot is not one instant.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) refusals: AtomicU64,
    pub(super) stuck: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) misuses: AtomicU64,
    /// An `Inject`.
    inject: AtomicU8,
}

impl Counters {
    pub(super) fn inject(&self, fault: Inject) {
        self.inject.store(fault as u8, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn injected(&self) -> Inject {
        match self.inject.load(Ordering::Relaxed) {
            0 => Inject::None,
            fault => Inject::ALL[usize::from(fault)],
        }
    }
}

pub(super) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
