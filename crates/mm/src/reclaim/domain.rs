//! What reclaim keeps for each level of a tree of memory cgroups: everything below it.

use super::Stall;
use super::hands::Hands;
use super::shed::KeptCopies;
use super::shrinker::Shrinkers;
use super::workingset::Age;
use crate::oom::Drought;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockdep::sync::Mutex;

/// The pages that belong to a memory cgroup or to one below it, as reclaim sees them.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(super) hands: Mutex<Hands>,
    pub(super) stall: Mutex<Stall>,
    /// What was tried before a kill.
    pub(crate) drought: Mutex<Drought>,
    pub(super) kept_copies: KeptCopies,
    pub(super) age: Age,
    pub(super) shrinkers: Shrinkers,
    /// Active pages.
    nr_active: AtomicU64,
    /// Pages that stand by.
    nr_standby: AtomicU64,
    /// Windows of all mappings.
    nr_windows: AtomicU64,
    /// A hand has passed over pages because `low` protects them.
    met_low: AtomicBool,
}

impl Domain {
    pub(crate) fn new(frames_max: u64) -> Self {
        Self {
            hands: Mutex::new("mm.reclaim.hands", Hands::default()),
            stall: Mutex::new("mm.reclaim.stall", Stall::default()),
            drought: Mutex::new("mm.oom.drought", Drought::default()),
            kept_copies: KeptCopies::new(),
            age: Age::new(frames_max),
            shrinkers: Shrinkers::new(),
            nr_active: AtomicU64::new(0),
            nr_standby: AtomicU64::new(0),
            nr_windows: AtomicU64::new(0),
            met_low: AtomicBool::new(false),
        }
    }

    /// Pages that stand by.
    pub(crate) fn nr_standby(&self) -> u64 {
        self.nr_standby.load(Ordering::Relaxed)
    }

    /// A page has come to stand by, or no longer does.
    pub(crate) fn count_standby(&self, stands_by: bool) {
        count_one(&self.nr_standby, stands_by);
    }

    /// Active pages.
    pub(crate) fn nr_active(&self) -> u64 {
        self.nr_active.load(Ordering::Relaxed)
    }

    /// A page has become active, or inactive.
    pub(crate) fn count_active(&self, is_active: bool) {
        count_one(&self.nr_active, is_active);
    }

    pub(super) fn nr_windows(&self) -> u64 {
        self.nr_windows.load(Ordering::Relaxed)
    }

    pub(crate) fn add_windows(&self, nr: u32) {
        self.nr_windows.fetch_add(u64::from(nr), Ordering::Relaxed);
    }

    pub(crate) fn remove_windows(&self, nr: u32) {
        self.nr_windows.fetch_sub(u64::from(nr), Ordering::Relaxed);
    }

    pub(super) fn meet_low(&self) {
        self.met_low.store(true, Ordering::Relaxed);
    }

    /// Whether a hand has met pages that `low` protects since this was last asked.
    pub(super) fn has_met_low(&self) -> bool {
        self.met_low.swap(false, Ordering::Relaxed)
    }
}

fn count_one(counter: &AtomicU64, is_more: bool) {
    if is_more {
        counter.fetch_add(1, Ordering::Relaxed);
    } else {
        counter.fetch_sub(1, Ordering::Relaxed);
    }
}
