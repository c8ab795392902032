//! Memory cgroups: a budget, and those who live in it.
//!
//! A [`Memcg`] bounds the frames of its address spaces (`max`) and the bytes of its compressed
//! store (`zswap.max`). It owns no thread: whoever sets it up gives it threads that call
//! [`Memcg::run_reclaim`], [`Memcg::run_settle`] and [`Memcg::run_reaper`], and a few that call
//! [`Memcg::run_spare`].
//!
//! Linux counterpart: `mm/memcontrol.c`.

pub(crate) mod counter;
pub(crate) mod frames;
pub(crate) mod stat;
mod workers;

pub use counter::Counter;
pub use stat::StatSnapshot;

use crate::env::Clock;
use crate::fault::FaultError;
use crate::limits::{LimitError, Limits, Marks};
use crate::lock_order;
use crate::mm_struct::{Mm, Vma, VmaId};
use crate::mmu_notifier::MmId;
use crate::oom;
use crate::reclaim;
use crate::swap::Zswap;
use crate::watch::Watch;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use frames::{Frames, NoFrame};
use lockdep::sync::RwLock;
use stat::{Stat, count};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// A memory cgroup.
pub struct Memcg {
    pub(crate) limits: Limits,
    pub(crate) marks: Marks,
    pub(crate) frames: Frames,
    pub(crate) zswap: Zswap,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stat: Stat,
    pub(crate) vmas: RwLock<BTreeMap<VmaId, Arc<Vma>>>,
    pub(crate) mms: RwLock<BTreeMap<MmId, Weak<Mm>>>,
    pub(crate) reclaim: reclaim::Control,
    pub(crate) oom: oom::Control,
    pub(crate) watch: Arc<Watch>,
    stopped: AtomicBool,
    next_id: AtomicU64,
}

impl core::fmt::Debug for Memcg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Memcg")
            .field("frames", self.frames.counter())
            .field("zswap_bytes", &self.zswap.bytes())
            .finish_non_exhaustive()
    }
}

impl Memcg {
    /// A memory cgroup with the given bounds. Everything that its paths need later is reserved
    /// here.
    ///
    /// # Errors
    ///
    /// See [`LimitError`].
    pub fn new(limits: Limits, clock: Arc<dyn Clock>) -> Result<Arc<Self>, LimitError> {
        limits.check()?;
        lock_order::ORDER.prime();
        let frames_max = limits.frames_max();
        Ok(Arc::new(Self {
            marks: Marks::new(frames_max),
            watch: Watch::new(&limits, &clock),
            frames: Frames::new(frames_max),
            zswap: Zswap::new(limits.zswap_max_bytes),
            clock,
            stat: Stat::default(),
            vmas: RwLock::new("mm.memcg.vmas", BTreeMap::new()),
            mms: RwLock::new("mm.memcg.mms", BTreeMap::new()),
            reclaim: reclaim::Control::new(),
            oom: oom::Control::new(),
            stopped: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            limits,
        }))
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Frames charged now, at most, and their bound.
    pub fn frames(&self) -> &Counter {
        self.frames.counter()
    }

    /// The compressed store.
    pub fn zswap(&self) -> &Zswap {
        &self.zswap
    }

    /// The counters.
    pub fn stat(&self) -> StatSnapshot {
        self.stat.snapshot()
    }

    /// Ends the worker loops; nothing is reclaimed after this but by those who allocate.
    pub fn stop(&self) {
        // Release: pairs with the Acquire in `is_stopped`; what came before the stop is seen by a
        // loop that ends because of it.
        self.stopped.store(true, Ordering::Release);
        self.reclaim.wake_all();
        self.oom.wake_reaper();
        self.frames.wake_all();
        self.watch.wake_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        // Acquire: pairs with the Release in `stop`.
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn add_mm(&self, mm: &Arc<Mm>) {
        let mut mms = self.mms.write();
        mms.insert(mm.id(), Arc::downgrade(mm));
        let nr = mms.len();
        drop(mms);
        self.oom.make_room(nr);
    }

    pub(crate) fn remove_mm(&self, id: MmId) {
        self.mms.write().remove(&id);
    }

    /// Charges a frame for a fault of `mm`: from what is free, or waits for it.
    pub(crate) fn charge_fault(&self, mm: &Mm) -> Result<(), FaultError> {
        if self.try_charge_frame() {
            return Ok(());
        }
        count(&self.stat.pgfault_waited);
        let is_cancelled = || mm.is_killed() || self.is_stopped();
        let (clock, deadline) = (&*self.clock, self.limits.fault_deadline);
        let charged = self
            .frames
            .charge_wait(clock, deadline, is_cancelled, || self.reclaim.kick());
        match charged {
            Ok(()) => {
                // The worker may have gone to sleep because this frame was free, while others
                // still wait.
                self.kick_if_few();
                Ok(())
            }
            Err(NoFrame::Cancelled) if mm.is_killed() => Err(FaultError::Killed),
            Err(NoFrame::Cancelled) => Err(FaultError::Unmapped),
            Err(NoFrame::TimedOut(waited)) => {
                count(&self.stat.pgfault_noframe);
                Err(FaultError::NoFrame { waited })
            }
        }
    }

    /// Charges a frame if one is free, and wakes reclaim when few are left.
    pub(crate) fn try_charge_frame(&self) -> bool {
        // Nobody goes before those who wait already.
        let is_charged = self.frames.nr_waiting() == 0 && self.frames.try_charge(1);
        self.kick_if_few();
        is_charged
    }

    /// Everybody who takes a frame asks this: with the last free frame somebody wakes reclaim.
    fn kick_if_few(&self) {
        if self.frames.counter().free() < self.marks.low {
            self.reclaim.kick();
        }
    }
}
