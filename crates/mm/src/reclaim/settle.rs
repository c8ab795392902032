//! Windows that a device refused without blocking: asked again by a worker that may wait.
//!
//! No fault waits for this worker. When a device does not answer in time, its name is kept, and
//! what it holds counts as pinned until it answers.

use crate::addr::{PageIndex, PageRun};
use crate::limits::{REFUSED_QUEUE_MAX, STUCK_MAX};
use crate::memcg::Memcg;
use crate::memcg::stat::count;
use crate::mm_struct::VmaId;
use crate::mmu_notifier::BracketError;
use core::sync::atomic::{AtomicU64, Ordering};
use lockdep::sync::{Condvar, Fence, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

/// A range that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RefusedWindow {
    pub(crate) vma: VmaId,
    pub(crate) run: PageRun,
}

/// Ranges that wait for a blockable bracket. Full means that a refusal is forgotten: the front
/// hand comes round again.
#[derive(Debug)]
pub(crate) struct RefusedQueue {
    queue: Mutex<VecDeque<RefusedWindow>>,
    pushed: Condvar,
    /// Queued, or in a bracket.
    nr_pending: AtomicU64,
}

impl RefusedQueue {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::new(
                "mm.reclaim.refused",
                VecDeque::with_capacity(REFUSED_QUEUE_MAX),
            ),
            pushed: Condvar::new("mm.reclaim.refused.pushed"),
            nr_pending: AtomicU64::new(0),
        }
    }

    pub(super) fn push(&self, window: RefusedWindow) {
        let mut queue = self.queue.lock();
        if queue.len() < REFUSED_QUEUE_MAX && !queue.contains(&window) {
            queue.push_back(window);
            self.nr_pending.fetch_add(1, Ordering::Relaxed);
            drop(queue);
            self.pushed.notify_one();
        }
    }

    /// Whether some refusal is not yet answered.
    pub(crate) fn is_pending(&self) -> bool {
        self.nr_pending.load(Ordering::Relaxed) > 0
    }

    pub(super) fn wake_all(&self) {
        drop(self.queue.lock());
        self.pushed.notify_all();
    }

    fn pop(&self, is_stopped: impl Fn() -> bool) -> Option<RefusedWindow> {
        let mut queue = self.queue.lock();
        loop {
            if is_stopped() {
                return None;
            }
            match queue.pop_front() {
                Some(window) => return Some(window),
                None => queue = self.pushed.wait(queue),
            }
        }
    }

    fn done(&self) {
        self.nr_pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A range whose holder did not answer before the deadline.
#[derive(Clone, Debug)]
struct Stuck {
    vma: VmaId,
    run: PageRun,
    holder: Arc<str>,
    /// What the holder still owes; `None` for one whose callback panicked.
    fence: Option<Fence>,
}

impl Stuck {
    fn is_over(&self) -> bool {
        self.fence.as_ref().is_some_and(Fence::is_signalled)
    }
}

/// Ranges that count as pinned because of a holder that does not answer.
#[derive(Debug)]
pub(crate) struct StuckTable {
    entries: Mutex<Vec<Stuck>>,
    nr: AtomicU64,
}

impl StuckTable {
    pub(super) fn new() -> Self {
        Self {
            entries: Mutex::new("mm.reclaim.stuck", Vec::with_capacity(STUCK_MAX)),
            nr: AtomicU64::new(0),
        }
    }

    /// Whether `page` counts as pinned.
    pub(super) fn holds(&self, vma: VmaId, page: PageIndex) -> bool {
        if self.nr.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut entries = self.entries.lock();
        entries.retain(|stuck| !stuck.is_over());
        self.nr.store(entries.len() as u64, Ordering::Relaxed);
        entries
            .iter()
            .any(|stuck| stuck.vma == vma && stuck.run.contains(page))
    }

    fn push(&self, stuck: Stuck) {
        let mut entries = self.entries.lock();
        let is_known = entries
            .iter()
            .any(|e| (e.vma, e.run) == (stuck.vma, stuck.run));
        if entries.len() < STUCK_MAX && !is_known {
            entries.push(stuck);
            self.nr.store(entries.len() as u64, Ordering::Relaxed);
        }
    }

    /// Who holds on to what, for reports.
    pub(crate) fn holders(&self) -> Vec<(Arc<str>, PageRun)> {
        let entries = self.entries.lock();
        entries
            .iter()
            .map(|stuck| (Arc::clone(&stuck.holder), stuck.run))
            .collect()
    }
}

impl Memcg {
    /// The loop of the worker that waits for devices, until [`Memcg::stop`]. One thread; no fault
    /// ever waits for it.
    pub fn run_settle(&self) {
        while let Some(refused) = self.reclaim.refused.pop(|| self.is_stopped()) {
            self.settle(refused);
            self.reclaim.refused.done();
        }
    }

    fn settle(&self, refused: RefusedWindow) {
        let vma = self.vmas.read().get(&refused.vma).cloned();
        let Some(vma) = vma else { return };
        match vma.detach_window_blockable(refused.run) {
            // What stands by now can be stored.
            Ok(_detached) => self.reclaim.kick(),
            Err(error) => {
                count(&self.stat.reclaim_stuck);
                let (holder, fence) = match error {
                    BracketError::Stuck { holder, fence, .. } => (holder, Some(fence)),
                    BracketError::Panicked { holder } => (holder, None),
                };
                let (vma, run) = (refused.vma, refused.run);
                self.reclaim.stuck.push(Stuck {
                    vma,
                    run,
                    holder,
                    fence,
                });
            }
        }
    }

    /// Devices that did not let go in time, and of what.
    pub fn stuck_holders(&self) -> Vec<(Arc<str>, PageRun)> {
        self.reclaim.stuck.holders()
    }
}
