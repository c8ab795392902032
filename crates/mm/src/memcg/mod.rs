//! Memory cgroups: a budget, and those who live in it.
//!
//! A [`Memcg`] bounds the frames of its address spaces (`max`) and the bytes of its compressed
//! store (`zswap.max`). It may have others in it ([`Memcg::new_child`]). The tree owns no thread:
//! whoever sets it up gives it threads that call [`Memcg::run_reclaim`], [`Memcg::run_settle`] and
//! [`Memcg::run_reaper`] of the root, and a few that call [`Memcg::run_spare`].
//!
//! Linux counterpart: `mm/memcontrol.c`.

mod charge;
pub(crate) mod counter;
mod files;
pub(crate) mod frames;
mod knob;
mod pins;
mod pressure;
mod protect;
pub(crate) mod stat;
mod store_charges;
mod tree;
mod workers;

pub use crate::reclaim::{Shrinker, ShrinkerHandle};
pub use counter::Counter;
pub use knob::{Knob, SetLimitError};
pub use pressure::{CountedThread, Pressure, PressureLine};
pub(crate) use protect::Protection;
pub use stat::StatSnapshot;

use crate::env::Clock;
use crate::limits::{LimitError, Limits, Marks};
use crate::lock_order;
use crate::mm_struct::{Mm, Rss, Vma, VmaId};
use crate::mmu_notifier::MmId;
use crate::oom;
use crate::reclaim;
use crate::swap::{BackingFile, FileStore, Zswap};
use crate::watch::Watch;
use core::sync::atomic::{AtomicBool, Ordering};
use frames::Frames;
use knob::Knobs;
use lockdep::sync::RwLock;
use pressure::Meter;
use stat::Stat;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use store_charges::StoreCharges;
use tree::Tree;

/// A memory cgroup.
pub struct Memcg {
    name: Arc<str>,
    parent: Option<Arc<Memcg>>,
    /// Those below that have an address space.
    children: RwLock<Vec<Arc<Memcg>>>,
    /// All below, for what they counted.
    known: RwLock<Vec<Weak<Memcg>>>,
    /// Address spaces of this level, for what is pinned of them; also those that were torn down.
    born: RwLock<Vec<Weak<Mm>>>,
    pub(crate) limits: Limits,
    knobs: Knobs,
    is_changing: AtomicBool,
    meter: Meter,
    pub(crate) frames: Frames,
    pub(crate) store_charges: StoreCharges,
    pub(crate) stat: Stat,
    /// Of this level and of all below, as [`Memcg::mms`].
    pub(crate) vmas: RwLock<BTreeMap<VmaId, Arc<Vma>>>,
    pub(crate) mms: RwLock<BTreeMap<MmId, Member>>,
    pub(crate) domain: reclaim::Domain,
    tree: Arc<Tree>,
    pub(crate) zswap: Arc<Zswap>,
    file: Option<Arc<FileStore>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) reclaim: Arc<reclaim::Control>,
    pub(crate) oom: Arc<oom::Control>,
    pub(crate) watch: Arc<Watch>,
}

/// An address space, as a memory cgroup knows it.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) mm: Weak<Mm>,
    pub(crate) rss: Arc<Rss>,
}

/// What all levels of a tree share.
struct Common {
    tree: Arc<Tree>,
    zswap: Arc<Zswap>,
    file: Option<Arc<FileStore>>,
    clock: Arc<dyn Clock>,
    reclaim: Arc<reclaim::Control>,
    oom: Arc<oom::Control>,
    watch: Arc<Watch>,
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
    /// A memory cgroup with the given bounds, in no other. Everything that its paths need later is
    /// reserved here.
    ///
    /// # Errors
    ///
    /// See [`LimitError`].
    pub fn new(limits: Limits, clock: Arc<dyn Clock>) -> Result<Arc<Self>, LimitError> {
        Self::on_file(limits, clock, None)
    }

    /// The same, with a file under the compressed store. What is in the file when this is called is
    /// not looked at. A thread has to call [`Memcg::run_write_back`].
    ///
    /// # Errors
    ///
    /// See [`LimitError`].
    ///
    /// # Panics
    ///
    /// If the file has fewer than 3 or more than 64 staging buffers.
    pub fn with_file(
        limits: Limits,
        clock: Arc<dyn Clock>,
        file: Arc<dyn BackingFile>,
    ) -> Result<Arc<Self>, LimitError> {
        Self::on_file(limits, clock, Some(file))
    }

    fn on_file(
        limits: Limits,
        clock: Arc<dyn Clock>,
        file: Option<Arc<dyn BackingFile>>,
    ) -> Result<Arc<Self>, LimitError> {
        limits.check()?;
        lock_order::ORDER.prime();
        let common = Common {
            tree: Arc::new(Tree::new()),
            zswap: Arc::new(Zswap::new(limits.zswap_max_bytes)),
            file: file.map(|file| Arc::new(FileStore::new(file))),
            watch: Watch::new(&limits, &clock),
            clock,
            reclaim: Arc::new(reclaim::Control::new()),
            oom: Arc::new(oom::Control::new()),
        };
        Ok(Arc::new(Self::level("", limits, None, common)))
    }

    fn level(name: &str, limits: Limits, parent: Option<Arc<Self>>, common: Common) -> Self {
        let Common {
            tree,
            zswap,
            file,
            clock,
            reclaim,
            oom,
            watch,
        } = common;
        Self {
            name: Arc::from(name),
            parent,
            children: RwLock::new("mm.memcg.children", Vec::new()),
            known: RwLock::new("mm.memcg.known", Vec::new()),
            born: RwLock::new("mm.memcg.born", Vec::new()),
            knobs: Knobs::new(&limits),
            is_changing: AtomicBool::new(false),
            meter: Meter::new(),
            frames: Frames::new(limits.frames_max()),
            store_charges: StoreCharges::new(&limits),
            stat: Stat::default(),
            vmas: RwLock::new("mm.memcg.vmas", BTreeMap::new()),
            mms: RwLock::new("mm.memcg.mms", BTreeMap::new()),
            domain: reclaim::Domain::new(limits.frames_max()),
            limits,
            tree,
            zswap,
            file,
            clock,
            reclaim,
            oom,
            watch,
        }
    }

    /// The bounds that it was made with; see [`Memcg::set_limit`] and
    /// [`Memcg::set_oom_group`].
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Frames charged now, at most, and their bound.
    pub fn frames(&self) -> &Counter {
        self.frames.counter()
    }

    /// Stored pages that are charged now, at most, and their bound.
    pub fn swap(&self) -> &Counter {
        &self.store_charges.swap_pages
    }

    /// Compressed bytes that are charged now, at most, and their bound.
    pub fn zswap_bytes(&self) -> &Counter {
        &self.store_charges.zswap_bytes
    }

    /// Frames and compressed bytes that are charged now, at most, and their bound; in bytes.
    pub fn total(&self) -> &Counter {
        &self.store_charges.total_bytes
    }

    /// The marks for the bound of today.
    pub(crate) fn marks(&self) -> Marks {
        Marks::new(self.frames.counter().max())
    }

    /// The file under the compressed store, if there is one.
    pub fn file(&self) -> Option<&FileStore> {
        self.file.as_deref()
    }

    /// The compressed store, which is one for the whole tree.
    pub fn zswap(&self) -> &Zswap {
        &self.zswap
    }

    /// Ends the worker loops of the whole tree; nothing is reclaimed after this but by those who
    /// allocate.
    pub fn stop(&self) {
        // Release: pairs with the Acquire in `is_stopped`; what came before the stop is seen by a
        // loop that ends because of it.
        self.tree.stopped.store(true, Ordering::Release);
        self.reclaim.wake_all();
        self.oom.wake_reaper();
        self.wake_waiters();
        self.watch.wake_all();
    }

    /// Makes everybody who waits for a frame look again, at every level of the tree.
    pub(crate) fn wake_waiters(&self) {
        let root = self.levels().last().unwrap_or(self);
        root.for_each_level(&mut |level| level.frames.wake_all());
    }

    pub(crate) fn is_stopped(&self) -> bool {
        // Acquire: pairs with the Release in `stop`.
        self.tree.stopped.load(Ordering::Acquire)
    }
}
