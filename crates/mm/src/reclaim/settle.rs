//! Windows that a device refused without blocking: asked again by a worker that may wait.
//!
//! No fault waits for this worker, and what queues for it can still be had: when nothing else is
//! left, reclaim asks for each page without blocking, whoever was asked before. When a device does
//! not answer in time, its name is kept, what it was asked for counts as pinned until it answers,
//! and it is not waited for again until then: its refusals are taken as they come.

use crate::addr::{PageIndex, PageRun};
use crate::limits::{REFUSED_QUEUE_MAX, STUCK_MAX};
use crate::memcg::Memcg;
use crate::memcg::stat::count;
use crate::mm_struct::{Mm, VmaId};
use crate::mmu_notifier::BracketError;
use crate::watch;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::{Condvar, Fence, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

/// How often the worker looks whether a device has answered that holds up a teardown.
const PARKED_PERIOD: Duration = Duration::from_millis(50);

/// A range that was refused.
#[derive(Clone, Debug)]
pub(crate) struct RefusedWindow {
    pub(crate) vma: VmaId,
    pub(crate) run: PageRun,
    /// By whom.
    pub(crate) holder: Arc<str>,
}

/// What the worker does next.
enum Work {
    Stop,
    Settle(RefusedWindow),
    LookAtParked,
}

/// Ranges that wait for a blockable bracket. Full means that a refusal is forgotten: the front
/// hand comes round again.
#[derive(Debug)]
pub(crate) struct RefusedQueue {
    queue: Mutex<VecDeque<RefusedWindow>>,
    pushed: Condvar,
    /// Pushed so far, and settled so far.
    nr_pushed: AtomicU64,
    nr_done: AtomicU64,
    /// When the bracket began that the worker is in; zero for none.
    begun_ns: AtomicU64,
}

impl RefusedQueue {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::new(
                "mm.reclaim.refused",
                VecDeque::with_capacity(REFUSED_QUEUE_MAX),
            ),
            pushed: Condvar::new("mm.reclaim.refused.pushed"),
            nr_pushed: AtomicU64::new(0),
            nr_done: AtomicU64::new(0),
            begun_ns: AtomicU64::new(0),
        }
    }

    /// False when the queue is full.
    pub(super) fn push(&self, window: RefusedWindow) -> bool {
        let mut queue = self.queue.lock();
        if queue.len() == REFUSED_QUEUE_MAX {
            return false;
        }
        queue.push_back(window);
        self.nr_pushed.fetch_add(1, Ordering::Relaxed);
        drop(queue);
        self.pushed.notify_one();
        true
    }

    /// How many windows were refused so far.
    pub(super) fn nr_pushed(&self) -> u64 {
        self.nr_pushed.load(Ordering::Relaxed)
    }

    /// Whether one of the first `nr` refusals may still be settled. One that takes longer than
    /// `age_max_ns` will not, nor will those that queue behind it.
    pub(crate) fn is_pending(&self, nr: u64, now_ns: u64, age_max_ns: u64) -> bool {
        let begun_ns = self.begun_ns.load(Ordering::Relaxed);
        let is_overdue = begun_ns != 0 && now_ns.saturating_sub(begun_ns) >= age_max_ns;
        self.nr_done.load(Ordering::Relaxed) < nr && !is_overdue
    }

    pub(crate) fn wake_all(&self) {
        drop(self.queue.lock());
        self.pushed.notify_all();
    }

    fn next(&self, memcg: &Memcg) -> Work {
        let mut queue = self.queue.lock();
        loop {
            if memcg.is_stopped() {
                return Work::Stop;
            }
            if let Some(window) = queue.pop_front() {
                let now_ns = memcg.clock.now_ns().max(1);
                self.begun_ns.store(now_ns, Ordering::Relaxed);
                return Work::Settle(window);
            }
            if !memcg.reclaim.parked.is_empty() {
                drop(self.pushed.wait_timeout(queue, PARKED_PERIOD));
                return Work::LookAtParked;
            }
            queue = self.pushed.wait(queue);
        }
    }

    /// What the worker was in that had this post before will not be done soon.
    fn give_up_on_begun(&self) {
        if self.begun_ns.load(Ordering::Relaxed) != 0 {
            self.done();
        }
    }

    fn done(&self) {
        self.begun_ns.store(0, Ordering::Relaxed);
        self.nr_done.fetch_add(1, Ordering::Relaxed);
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

    /// Whether an entry that is not over fits.
    fn any(&self, fits: impl Fn(&Stuck) -> bool) -> bool {
        if self.nr.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // What is over is not taken out here: this may be in a fault, and a fence may be the last.
        let entries = self.entries.lock();
        entries.iter().any(|stuck| !stuck.is_over() && fits(stuck))
    }

    /// Takes out what is over.
    fn prune(&self) {
        let mut entries = self.entries.lock();
        entries.retain(|stuck| !stuck.is_over());
        self.nr.store(entries.len() as u64, Ordering::Relaxed);
    }

    /// Whether `page` counts as pinned.
    pub(super) fn holds(&self, vma: VmaId, page: PageIndex) -> bool {
        self.any(|stuck| stuck.vma == vma && stuck.run.contains(page))
    }

    /// Whether `holder` has yet to answer.
    pub(super) fn owes(&self, holder: &str) -> bool {
        self.any(|stuck| *stuck.holder == *holder)
    }

    fn push(&self, stuck: Stuck) {
        let mut entries = self.entries.lock();
        entries.retain(|stuck| !stuck.is_over());
        if entries.len() < STUCK_MAX {
            entries.push(stuck);
            self.nr.store(entries.len() as u64, Ordering::Relaxed);
        }
    }

    /// The mapping is gone.
    pub(crate) fn forget(&self, vma: VmaId) {
        let mut entries = self.entries.lock();
        entries.retain(|stuck| stuck.vma != vma);
        self.nr.store(entries.len() as u64, Ordering::Relaxed);
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

/// What a teardown waits for.
#[derive(Debug)]
pub(crate) enum Awaited {
    /// What the device owes.
    Fence(Fence),
    /// A callback that has not returned: it is looked whether it has.
    Return,
    /// Nothing: a callback panicked.
    Nothing,
}

impl Awaited {
    fn may_be_over(&self) -> bool {
        match self {
            Self::Fence(fence) => fence.is_signalled(),
            Self::Return => true,
            Self::Nothing => false,
        }
    }
}

/// Address spaces whose teardown waits for a device.
#[derive(Debug)]
pub(crate) struct Parked {
    entries: Mutex<Vec<(Arc<Mm>, Awaited)>>,
    nr: AtomicU64,
}

impl Parked {
    pub(super) fn new() -> Self {
        Self {
            entries: Mutex::new("mm.reclaim.parked", Vec::new()),
            nr: AtomicU64::new(0),
        }
    }

    pub(crate) fn push(&self, mm: Arc<Mm>, awaited: Awaited) {
        self.entries.lock().push((mm, awaited));
        self.nr.fetch_add(1, Ordering::Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.nr.load(Ordering::Relaxed) == 0
    }

    /// Takes out one whose device has answered, as far as can be said.
    fn take_answered(&self) -> Option<Arc<Mm>> {
        let mut entries = self.entries.lock();
        let has_answered = |(_, awaited): &(_, Awaited)| awaited.may_be_over();
        let index = entries.iter().position(has_answered)?;
        self.nr.fetch_sub(1, Ordering::Relaxed);
        Some(entries.swap_remove(index).0)
    }
}

impl Memcg {
    /// The loop of [`Memcg::run_settle`].
    pub(crate) fn settle_until_over(&self) {
        // Whoever was replaced in the middle of a window does not count it.
        self.reclaim.refused.give_up_on_begun();
        while !watch::is_replaced() {
            let work = self.reclaim.refused.next(self);
            self.reclaim.stuck.prune();
            match work {
                Work::Stop => return,
                Work::Settle(refused) => {
                    self.settle(refused);
                    if !watch::is_replaced() {
                        self.reclaim.refused.done();
                    }
                }
                Work::LookAtParked => {
                    while let Some(mm) = self.reclaim.parked.take_answered() {
                        if !mm.tear_down() || watch::is_replaced() {
                            break;
                        }
                    }
                }
            }
        }
    }

    fn settle(&self, refused: RefusedWindow) {
        let vma = self.vmas.read().get(&refused.vma).cloned();
        let Some(vma) = vma else { return };
        // Before it is asked: what is refused from now on is asked for once more.
        vma.end_refused(refused.run.first);
        // Queued before it was known that its holder does not answer: not waited for again.
        if self.reclaim.stuck.owes(&refused.holder) {
            return;
        }
        match vma.detach_window_blockable(refused.run) {
            // What stands by now can be stored.
            Ok(_detached) => self.reclaim.kick(),
            Err(error) => {
                count(&self.stat.reclaim_stuck);
                let (holder, fence) = match error {
                    BracketError::Stuck { holder, fence, .. } => (holder, Some(fence)),
                    BracketError::Panicked { holder } => (holder, None),
                    // Refused without being called, for as long as it does not return.
                    BracketError::Overdue { .. } => return,
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
