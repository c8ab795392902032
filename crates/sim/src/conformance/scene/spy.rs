//! Somebody else who is told of changes: counts them, and refuses or takes its time if it is to.

use super::Stage;
use crate::checker::Brackets;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use lockdep::sync::{ShortLock, sleep};
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::bus::{Bus, DeviceMemory};
use pinless_mm::mmu_notifier::{
    Context, EndContext, IntervalNotifier, IntervalSubscription, Mode, Notifier, Range, Ranges,
    Subscription,
};
use std::sync::Arc;

/// How long somebody takes who takes its time, in virtual time: long enough for a device to come
/// and use a page.
pub(super) const SLOW: Duration = Duration::from_micros(2);

/// Counts.
pub(super) struct Spy {
    /// Refuses where it may.
    pub(super) refuses: AtomicBool,
    /// Takes its time where it may.
    is_slow: bool,
    pub(super) seen: ShortLock<Brackets>,
}

impl Spy {
    fn new(is_slow: bool) -> Arc<Self> {
        Arc::new(Self {
            refuses: AtomicBool::new(false),
            is_slow,
            seen: ShortLock::new("sim.kit.spy", Brackets::new()),
        })
    }

    /// Told of every change.
    pub(super) fn on_list(stage: &Stage) -> (Arc<Self>, Subscription) {
        Self::listed(stage, Self::new(false))
    }

    /// The same of somebody who takes its time, for as long as the subscription is there.
    pub(super) fn slow(stage: &Stage) -> Subscription {
        Self::listed(stage, Self::new(true)).1
    }

    fn listed(stage: &Stage, spy: Arc<Self>) -> (Arc<Self>, Subscription) {
        let listed = stage
            .memory
            .notifiers()
            .subscribe("spy", Ranges::WholeMm, Arc::clone(&spy));
        (spy, listed)
    }

    /// Told of the changes of the mapping.
    pub(super) fn on_interval(stage: &Stage) -> (Arc<Self>, IntervalSubscription<Self>) {
        let spy = Self::new(false);
        let base = stage.memory.base();
        let len = u64::from(PageRun::new(0, stage.nr_pages()).nr) * PAGE_SIZE as u64;
        let listed = stage.memory.notifiers().subscribe_interval(
            "spy of the mapping",
            base,
            Vaddr(base.0 + len),
            Arc::clone(&spy),
        );
        (spy, listed.expect("a mapping that is there"))
    }
}

impl Notifier for Spy {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if self.refuses.load(Relaxed) {
            cx.would_block()?;
        }
        if self.is_slow && cx.mode() == Mode::Blockable {
            sleep("kit.slow", SLOW);
        }
        cx.short(&self.seen).started();
        Ok(())
    }

    fn end(&self, _range: &Range, cx: &EndContext<'_>) {
        let ended = cx.short(&self.seen).ended();
        // Contained by the caller, and judged by who hears of that.
        ended.unwrap_or_else(|breach| panic!("{breach}"));
    }
}

impl IntervalNotifier for Spy {
    type Lock = ShortLock<Brackets>;

    fn lock(&self) -> &ShortLock<Brackets> {
        &self.seen
    }
}
