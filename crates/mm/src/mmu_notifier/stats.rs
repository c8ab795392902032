//! Counters of one list of notifiers, and faults that tests inject to prove the checkers.

use super::range::{Event, Mode};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What happened so far. Brackets that no subscription matched are not counted: they cost
/// nothing, and counting would.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NotifierStats {
    starts: [[u64; Mode::ALL.len()]; Event::ALL.len()],
    /// Non-blockable brackets that were refused.
    pub refusals: u64,
    /// Blockable brackets whose devices did not settle before the deadline.
    pub stuck: u64,
    /// Callbacks that panicked.
    pub panics: u64,
}

impl NotifierStats {
    /// Brackets of this event and mode that reached a subscription, whatever came of them.
    pub const fn starts(&self, event: Event, mode: Mode) -> u64 {
        self.starts[event as usize][mode as usize]
    }

    /// Brackets that reached a subscription.
    pub fn starts_total(&self) -> u64 {
        self.starts.iter().flatten().sum()
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
}

impl Inject {
    /// Every setting, in the order in which they are declared.
    pub const ALL: [Self; 3] = [Self::None, Self::SkipNotifier, Self::LateEnd];
}

/// The live counters. They order nothing: each is exact by itself, a snapshot is not one instant.
#[derive(Default)]
pub(super) struct Counters {
    starts: [[AtomicU64; Mode::ALL.len()]; Event::ALL.len()],
    pub(super) refusals: AtomicU64,
    pub(super) stuck: AtomicU64,
    pub(super) panics: AtomicU64,
    /// An `Inject`.
    inject: AtomicU8,
}

impl Counters {
    pub(super) fn started(&self, event: Event, mode: Mode) {
        add_one(&self.starts[event as usize][mode as usize]);
    }

    pub(super) fn snapshot(&self) -> NotifierStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NotifierStats {
            starts: core::array::from_fn(|event| {
                core::array::from_fn(|mode| get(&self.starts[event][mode]))
            }),
            refusals: get(&self.refusals),
            stuck: get(&self.stuck),
            panics: get(&self.panics),
        }
    }

    pub(super) fn inject(&self, fault: Inject) {
        self.inject.store(fault as u8, Ordering::Relaxed);
    }

    pub(super) fn injected(&self) -> Inject {
        Inject::ALL[usize::from(self.inject.load(Ordering::Relaxed))]
    }
}

pub(super) fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
