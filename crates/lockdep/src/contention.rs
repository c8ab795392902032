//! How often and how long threads wait for locks, class by class: counted while somebody asks.
//!
//! What is counted stands in [`snapshot`](crate::snapshot()), for the whole process: counting knows
//! no validators, and works while they are off.
//!
//! ```
//! use lockdep::sync::Mutex;
//!
//! static TABLE: Mutex<u64> = Mutex::new("table", 0);
//!
//! lockdep::contention::set_enabled(true);
//! *TABLE.lock() += 1; // nobody was in the way
//! assert_eq!(lockdep::snapshot().contention, []);
//! println!("{}", lockdep::snapshot().contention_text());
//! ```
//!
//! Linux counterpart: /proc/lock_stat in kernel/locking/lockdep_proc.c.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::hooks::{self, Hooks};
use crate::registry;
use crate::word::ClassId;

/// Switches the counting on or off for the whole process; says whether it was on.
///
/// What was counted before stays. While it is off, it costs locks nothing: they read one word to
/// find out who watches, and this is a bit of it. While it is on, who finds a lock taken reads the
/// clock twice.
///
/// Counted are the locks of [`sync`](crate::sync) and [`lock_api`](crate::lock_api), where they
/// wait in real time: waits under a scheduler are not, nor those with a time limit.
pub fn set_enabled(is_on: bool) -> bool {
    hooks::set_counting(is_on)
}

/// Forgets what was counted so far.
///
/// Kernel counterpart: writing `0` to /proc/lock_stat.
pub fn reset() {
    WAITS.iter().for_each(Waits::clear);
}

/// How locks of a class were waited for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contention {
    /// The class, as reports name it.
    pub class: String,
    /// Acquisitions that found the lock taken, those that still wait included.
    pub nr_waits: u64,
    /// The longest wait that is over.
    pub longest: Duration,
    /// All waits that are over, added up.
    pub total: Duration,
}

/// The counts of a key. Relaxed: each is a number of its own.
struct Waits {
    nr: AtomicU64,
    longest_ns: AtomicU64,
    total_ns: AtomicU64,
}

/// By the number of the key; in zero pages until used.
static WAITS: [Waits; ClassId::NR_KEYS_MAX as usize] =
    [const { Waits::new() }; ClassId::NR_KEYS_MAX as usize];

impl Waits {
    const fn new() -> Self {
        Self {
            nr: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            total_ns: AtomicU64::new(0),
        }
    }

    fn of(class: ClassId) -> &'static Self {
        &WAITS[class.key() as usize]
    }

    fn clear(&self) {
        // A page that was never written stays a zero page.
        if self.nr.load(Ordering::Relaxed) == 0 {
            return;
        }
        for count in [&self.nr, &self.longest_ns, &self.total_ns] {
            count.store(0, Ordering::Relaxed);
        }
    }

    fn add(&self, waited: Duration) {
        let ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.longest_ns.fetch_max(ns, Ordering::Relaxed);
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// Takes a lock: by `attempt`, or if that fails, by waiting. Both count as one acquisition.
pub(crate) fn take<G>(
    hooks: Hooks,
    class: impl FnOnce() -> ClassId,
    attempt: impl FnOnce() -> Option<G>,
    wait: impl FnOnce() -> G,
) -> G {
    if !hooks.counts_waits() {
        return wait();
    }
    attempt().unwrap_or_else(|| timed(class(), wait))
}

/// Waits for a lock that was found taken.
pub(crate) fn timed<G>(class: ClassId, wait: impl FnOnce() -> G) -> G {
    let waits = Waits::of(class);
    // First, so that it can be seen that somebody waits.
    waits.nr.fetch_add(1, Ordering::Relaxed);
    let begun = Instant::now();
    let guard = wait();
    waits.add(begun.elapsed());
    guard
}

/// Forgets a class whose number may come back.
pub(crate) fn forget(class: ClassId) {
    Waits::of(class).clear();
}

/// What was counted for these classes, the longest waited for first.
pub(crate) fn counted(classes: &[ClassId]) -> Vec<Contention> {
    let count = |&class: &ClassId| {
        let waits = Waits::of(class);
        let nr_waits = waits.nr.load(Ordering::Relaxed);
        (nr_waits > 0).then(|| Contention {
            class: registry::display_name(class),
            nr_waits,
            longest: Duration::from_nanos(waits.longest_ns.load(Ordering::Relaxed)),
            total: Duration::from_nanos(waits.total_ns.load(Ordering::Relaxed)),
        })
    };
    let mut counted: Vec<Contention> = classes.iter().filter_map(count).collect();
    counted.sort_by_key(|waits| std::cmp::Reverse(waits.total));
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, DynamicClass};

    #[test]
    fn a_class_that_is_gone_leaves_no_counts_to_the_next_of_its_number() {
        let class = DynamicClass::new("contention.gone", Attributes::SLEEP);
        let id = class.id();
        timed(id, || ());
        assert_eq!(counted(&[id]).first().map(|waits| waits.nr_waits), Some(1));
        drop(class);
        assert_eq!(counted(&[id]), []);
    }
}
