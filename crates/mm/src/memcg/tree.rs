//! The tree: memory cgroups in memory cgroups.
//!
//! Each level has books on everything below it: its address spaces and mappings, its own hands of
//! the clock, its own counters. So reclaim and the OOM killer do the same at every level, and who
//! is out of frames at one level has only what is below it to look at.
//!
//! A child is known to its parent while it has an address space. So there is nothing to remove: a
//! memory cgroup ends when nobody uses it.
//!
//! Linux counterpart: the hierarchy of `cgroup` v2.

use super::stat::{Stat, StatSnapshot};
use super::{Common, Member, Memcg};
use crate::limits::{LimitError, Limits};
use crate::mm_struct::{Mm, Vma};
use crate::mmu_notifier::MmId;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// What all memory cgroups of a tree have in common.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(super) stopped: AtomicBool,
    next_id: AtomicU64,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            stopped: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
        }
    }
}

impl Memcg {
    /// A memory cgroup within this one, with bounds of its own: what it charges is charged to all
    /// that it is in, too. It has the store and the workers of the root; of its limits, the
    /// deadlines and what concerns the reaper are the root's as well.
    ///
    /// # Errors
    ///
    /// See [`LimitError`].
    pub fn new_child(
        self: &Arc<Self>,
        name: &str,
        limits: Limits,
    ) -> Result<Arc<Self>, LimitError> {
        let limits = Limits {
            fault_deadline: self.limits.fault_deadline,
            settle_deadline: self.limits.settle_deadline,
            reap_passes: self.limits.reap_passes,
            reap_interval: self.limits.reap_interval,
            cancel_deadline: self.limits.cancel_deadline,
            callback_budget: self.limits.callback_budget,
            nonblock_budget: self.limits.nonblock_budget,
            bus_checks: self.limits.bus_checks,
            ..limits
        };
        limits.check()?;
        let common = Common {
            tree: Arc::clone(&self.tree),
            zswap: Arc::clone(&self.zswap),
            file: self.file.clone(),
            clock: Arc::clone(&self.clock),
            reclaim: Arc::clone(&self.reclaim),
            oom: Arc::clone(&self.oom),
            watch: Arc::clone(&self.watch),
        };
        let child = Arc::new(Self::level(name, limits, Some(Arc::clone(self)), common));
        let mut known = self.known.write();
        known.retain(|child| child.strong_count() > 0);
        known.push(Arc::downgrade(&child));
        Ok(child)
    }

    /// Its name: of the root, an empty one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The memory cgroup that this one is in.
    pub fn parent(&self) -> Option<&Arc<Self>> {
        self.parent.as_ref()
    }

    /// Whether it is `other`, or somewhere below it.
    pub fn is_within(&self, other: &Self) -> bool {
        core::iter::successors(Some(self), |memcg| memcg.parent().map(|parent| &**parent))
            .any(|memcg| memcg.is(other))
    }

    /// Whether the two are the same memory cgroup.
    pub(crate) fn is(&self, other: &Self) -> bool {
        core::ptr::eq(self, other)
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.tree.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls `visit` for this memory cgroup and for all below it that have address spaces, the
    /// lower ones first. No lock is held meanwhile: of those that come or go, some may be left out,
    /// and others visited twice.
    pub(crate) fn for_each_level(&self, visit: &mut dyn FnMut(&Self)) {
        let mut end = usize::MAX;
        // From the last to the first: whoever goes meanwhile moves only those that were visited to
        // places that are still to come.
        while let Some((index, child)) = self.last_child_before(end) {
            child.for_each_level(visit);
            end = index;
        }
        visit(self);
    }

    fn last_child_before(&self, end: usize) -> Option<(usize, Arc<Self>)> {
        let children = self.children.read();
        let index = children.len().min(end).checked_sub(1)?;
        Some((index, Arc::clone(&children[index])))
    }

    pub(crate) fn add_mm(self: &Arc<Self>, mm: &Arc<Mm>) {
        let member = Member {
            mm: Arc::downgrade(mm),
            rss: Arc::clone(&mm.rss),
        };
        let mut at = Some(self);
        let mut nr = 0;
        while let Some(level) = at {
            let mut mms = level.mms.write();
            mms.insert(mm.id(), member.clone());
            nr = mms.len();
            if let Some(parent) = level.parent.as_ref().filter(|_| nr == 1) {
                parent.children.write().push(Arc::clone(level));
            }
            drop(mms);
            at = level.parent.as_ref();
        }
        self.oom.make_room(nr);
    }

    pub(crate) fn remove_mm(&self, id: MmId) {
        for level in self.levels() {
            let mut mms = level.mms.write();
            let is_last = mms.remove(&id).is_some() && mms.is_empty();
            if let Some(parent) = level.parent.as_ref().filter(|_| is_last) {
                parent.children.write().retain(|child| !child.is(level));
            }
        }
    }

    /// The hands of reclaim look at `vma` from now on.
    pub(crate) fn add_vma(&self, vma: &Arc<Vma>) {
        for level in self.levels() {
            let mut vmas = level.vmas.write();
            if level.parent.is_none() {
                self.reclaim.retired.make_room(vmas.len() + 1);
            }
            vmas.insert(vma.id(), Arc::clone(vma));
            drop(vmas);
            level.domain.add_windows(vma.nr_windows());
        }
    }

    /// No hand of reclaim looks at `vma` any more.
    pub(crate) fn forget_vma(&self, vma: &Vma) {
        for level in self.levels() {
            // Not under the lock: it may be the last that is known of the mapping.
            let known = level.vmas.write().remove(&vma.id());
            if known.is_some() {
                level.domain.remove_windows(vma.nr_windows());
            }
        }
        self.reclaim.stuck.forget(vma.id());
    }

    /// All of whom are killed together when somebody here is killed because `domain` has run out of
    /// memory: the highest memory cgroup with `oom.group` from this one up to `domain`.
    pub(crate) fn oom_group_within(&self, domain: &Self) -> Option<&Self> {
        let is_above = |level: &&Self| {
            domain
                .parent
                .as_deref()
                .is_some_and(|above| level.is(above))
        };
        let within = self.levels().take_while(|level| !is_above(level));
        within.filter(|level| level.is_oom_group()).last()
    }
}

impl Memcg {
    /// The counters of this memory cgroup and of all that are or were below it.
    pub fn stat(&self) -> StatSnapshot {
        let sum = Stat::default();
        self.add_counts_to(&sum);
        sum.snapshot()
    }

    fn add_counts_to(&self, sum: &Stat) {
        sum.absorb(&self.stat);
        // A copy: the list may be made shorter meanwhile, and nobody may be counted twice.
        let known = self.known.read().clone();
        for child in known.iter().filter_map(Weak::upgrade) {
            child.add_counts_to(sum);
        }
    }
}

/// What was counted here is counted with the parent from now on.
impl Drop for Memcg {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent {
            parent.stat.absorb(&self.stat);
        }
    }
}
