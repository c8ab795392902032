//! Shrinkers: caches that give back when memory is short.
//!
//! They are asked when the hands of the clock have found nothing more: a page that was stored comes
//! back as it was, a cache has to be built again.
//!
//! Linux counterpart: `mm/shrinker.c`.

use super::Effort;
use crate::memcg::Memcg;
use crate::oom::contained;
use crate::watch::{Callback, Suspect, Watched, is_replaced};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use lockdep::sync::{Condvar, Mutex};
use std::sync::Arc;

/// What is asked for at once.
const BATCH: u64 = 128;

/// A cache that can give something back.
///
/// Both methods are called in reclaim: no lock may be taken in them that is held anywhere while a
/// frame is charged, managed memory is touched, or a mapping is changed. They must not wait for
/// other threads that do so, nor allocate. They run in a worker, or in a thread that pins.
pub trait Shrinker: Send + Sync {
    /// How many things could be given back now, roughly.
    fn count(&self) -> u64;

    /// Gives back up to `nr` of them. Returns how many were; `None` when nothing can be given back
    /// now, however often it is asked for.
    fn scan(&self, nr: u64) -> Option<u64>;
}

/// The shrinkers of a memory cgroup.
#[derive(Default)]
struct Entry {
    shrinker: Option<Arc<dyn Shrinker>>,
    nr_running: u32,
    is_gone: bool,
}

/// One that is registered.
struct Registered {
    name: Arc<str>,
    /// Calls of it that have not returned in their time.
    nr_overdue: AtomicU32,
    entry: Mutex<Entry>,
    idle: Condvar,
}

/// Keeps a shrinker registered. Its drop waits until nobody is in the shrinker; not to be dropped
/// in it.
#[must_use = "the shrinker is asked until this is dropped"]
pub struct ShrinkerHandle {
    memcg: Arc<Memcg>,
    registered: Arc<Registered>,
}

impl fmt::Debug for ShrinkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ShrinkerHandle")
            .field(&self.registered.name)
            .finish()
    }
}

/// The shrinkers of one level.
pub(crate) struct Shrinkers(Mutex<Vec<Arc<Registered>>>);

impl Shrinkers {
    pub(super) fn new() -> Self {
        Self(Mutex::new("mm.shrinkers", Vec::new()))
    }
}

impl fmt::Debug for Shrinkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shrinkers").finish_non_exhaustive()
    }
}

impl Registered {
    fn begin(&self) -> Option<Arc<dyn Shrinker>> {
        let mut entry = self.entry.lock();
        let shrinker = entry.shrinker.clone().filter(|_| !entry.is_gone)?;
        entry.nr_running += 1;
        Some(shrinker)
    }

    fn end(&self) {
        let mut entry = self.entry.lock();
        entry.nr_running -= 1;
        if entry.nr_running == 0 {
            self.idle.notify_all();
        }
    }

    /// Asks for the share of all it has that this effort calls for. One that has not returned in
    /// its time is not asked, and one that panics has given nothing.
    fn shrink(self: &Arc<Self>, effort: Effort) -> u64 {
        if self.nr_overdue.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        let Some(shrinker) = self.begin() else {
            return 0;
        };
        let freed = self.shrink_in_batches(&*shrinker, effort);
        drop(shrinker);
        self.end();
        freed
    }

    fn shrink_in_batches(self: &Arc<Self>, shrinker: &dyn Shrinker, effort: Effort) -> u64 {
        let nr = self.call(|| shrinker.count()).unwrap_or(0);
        let (mut left, mut freed) = (effort.share_of(nr), 0);
        while left > 0 && !is_replaced() {
            let batch = left.min(BATCH);
            match self.call(|| shrinker.scan(batch)).flatten() {
                Some(nr) => freed += nr,
                None => break,
            }
            left -= batch;
        }
        freed
    }

    /// Calls one of its methods, each of which has the whole budget; `None` if it panicked.
    fn call<R>(self: &Arc<Self>, method: impl FnOnce() -> R) -> Option<R> {
        let _watched = Watched::enter(Callback::Shrink, self);
        contained(method)
    }
}

impl Suspect for Registered {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn convict(&self) {
        self.nr_overdue.fetch_add(1, Ordering::Relaxed);
    }

    fn acquit(&self) {
        self.nr_overdue.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Effort {
    /// How many of `nr` things a shrinker is asked for.
    fn share_of(self, nr: u64) -> u64 {
        match self {
            Self::Fault => 0,
            Self::Direct => nr.div_ceil(8),
            Self::Worker => nr.div_ceil(2),
            Self::LastResort => nr,
        }
    }
}

impl Memcg {
    /// From now on `shrinker` is asked when this memory cgroup, or one that it is in, is short of
    /// memory and finds no page to take. Not callable from a shrinker.
    pub fn register_shrinker(
        self: &Arc<Self>,
        name: &str,
        shrinker: Arc<dyn Shrinker>,
    ) -> ShrinkerHandle {
        let entry = Entry {
            shrinker: Some(shrinker),
            ..Entry::default()
        };
        let registered = Arc::new(Registered {
            name: Arc::from(name),
            nr_overdue: AtomicU32::new(0),
            entry: Mutex::new("mm.shrinker", entry),
            idle: Condvar::new("mm.shrinker.idle"),
        });
        self.domain.shrinkers.0.lock().push(Arc::clone(&registered));
        let memcg = Arc::clone(self);
        ShrinkerHandle { memcg, registered }
    }

    /// Asks the shrinkers of this memory cgroup and of all below it. Returns how much they gave
    /// back; not in a fault.
    pub(crate) fn shrink(&self, effort: Effort) -> u64 {
        let mut freed = 0;
        self.for_each_level(&mut |level| {
            for index in 0.. {
                let registered = level.domain.shrinkers.0.lock().get(index).cloned();
                let Some(registered) = registered else { break };
                freed += registered.shrink(effort);
            }
        });
        self.note_shrunk(freed);
        freed
    }
}

impl Drop for ShrinkerHandle {
    fn drop(&mut self) {
        let is_other = |known: &Arc<Registered>| !Arc::ptr_eq(known, &self.registered);
        self.memcg.domain.shrinkers.0.lock().retain(is_other);
        let mut entry = self.registered.entry.lock();
        entry.is_gone = true;
        while entry.nr_running > 0 {
            entry = self.registered.idle.wait(entry);
        }
        // Out of the lock: what is destroyed is not ours.
        let shrinker = entry.shrinker.take();
        drop(entry);
        drop(shrinker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Clock;
    use crate::limits::Limits;
    use crate::watch::{Post, Watch};
    use core::sync::atomic::AtomicU64;

    /// Each call takes as long as is said here.
    struct Slow {
        now_ns: AtomicU64,
        takes_ns: u64,
    }

    impl Clock for Slow {
        fn now_ns(&self) -> u64 {
            self.now_ns.load(Ordering::Relaxed)
        }
    }

    impl Shrinker for Slow {
        fn count(&self) -> u64 {
            self.now_ns.fetch_add(self.takes_ns, Ordering::Relaxed);
            4 * BATCH
        }

        fn scan(&self, nr: u64) -> Option<u64> {
            self.now_ns.fetch_add(self.takes_ns, Ordering::Relaxed);
            Some(nr)
        }
    }

    fn registered(shrinker: Arc<dyn Shrinker>) -> Arc<Registered> {
        let registered = Arc::new(Registered {
            name: Arc::from("one"),
            nr_overdue: AtomicU32::new(0),
            entry: Mutex::new("mm.shrinker", Entry::default()),
            idle: Condvar::new("mm.shrinker.idle"),
        });
        registered.entry.lock().shrinker = Some(shrinker);
        registered
    }

    #[track_caller]
    fn check(takes_ns: u64, nr_convictions: usize) {
        let now_ns = AtomicU64::new(0);
        let slow = Arc::new(Slow { now_ns, takes_ns });
        let clock = Arc::clone(&slow) as Arc<dyn Clock>;
        let watch = Watch::new(&Limits::new(1 << 20), &clock);
        let registered = registered(slow);
        let _sitting = watch.sit(Some(Post::Reclaim));
        assert_eq!(registered.shrink(Effort::LastResort), 4 * BATCH);
        assert_eq!(watch.convictions().len(), nr_convictions);
    }

    #[test]
    fn each_call_has_the_whole_budget() {
        let budget_ns = Limits::new(1 << 20).nonblock_budget.as_nanos() as u64;
        check(budget_ns - 1, 0);
        check(budget_ns, 5);
    }

    /// Has as much as ten batches, and gives so many of them before it says that nothing is left.
    struct Dry {
        nr_given: u64,
        nr_scans: AtomicU64,
    }

    impl Shrinker for Dry {
        fn count(&self) -> u64 {
            self.nr_scans.store(0, Ordering::Relaxed);
            10 * BATCH
        }

        fn scan(&self, nr: u64) -> Option<u64> {
            let nr_before = self.nr_scans.fetch_add(1, Ordering::Relaxed);
            (nr_before < self.nr_given).then_some(nr)
        }
    }

    /// In each pass, `nr_given` batches come, and it is scanned `nr_scans` times.
    #[track_caller]
    fn check_dry(effort: Effort, nr_given: u64, nr_scans: u64) {
        let dry = Arc::new(Dry {
            nr_given,
            nr_scans: AtomicU64::new(0),
        });
        let registered = registered(Arc::clone(&dry) as Arc<dyn Shrinker>);
        for _pass in 0..2 {
            assert_eq!(registered.shrink(effort), nr_given.min(nr_scans) * BATCH);
            assert_eq!(dry.nr_scans.load(Ordering::Relaxed), nr_scans);
        }
    }

    #[test]
    fn none_ends_the_scans_of_this_pass_and_of_no_other() {
        for nr_given in [0, 1, 4] {
            check_dry(Effort::LastResort, nr_given, nr_given + 1);
            check_dry(Effort::Worker, nr_given, nr_given + 1);
        }
        check_dry(Effort::LastResort, u64::MAX, 10);
        check_dry(Effort::Worker, u64::MAX, 5);
    }
}
