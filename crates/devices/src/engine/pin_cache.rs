//! The engine of patterns E and F: pages that stay pinned between transfers, in a cache that
//! forgets them when it is told, and lets go of them when nobody uses them any more.
//!
//! A node is *live*, in the tree and found by transfers, or *doomed*: out of the tree, kept by the
//! transfers that use it, and unpinned by a worker after the last of them. It is in one of the two
//! lists at any time. A start only moves nodes, so it never waits and never refuses; the pages are
//! *unmapped, not freed* until the worker has run.

use super::{Counters, Rounds};
use crate::{DeviceMemory, DmaError, Pinned};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use lockdep::sync::{ShortLock, spin_wait};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// Pinned pages of one mapping.
pub struct PinCache {
    /// In whose name it pins.
    holder: Box<str>,
    state: ShortLock<State>,
    /// In pages.
    limit: u32,
}

struct State {
    rounds: Rounds,
    live: Vec<Arc<Node>>,
    doomed: Vec<Arc<Node>>,
    /// Of both lists, and of nodes that are being made.
    nr_pinned: u32,
    nr_uses: u64,
    is_over: bool,
}

/// Some pages, pinned.
struct Node {
    run: PageRun,
    access: Access,
    at: Vec<BusAddr>,
    pinned: ShortLock<Option<Pinned>>,
    /// Changed under the lock of the cache.
    nr_users: AtomicU32,
    last_use: AtomicU64,
}

/// Keeps a node while a transfer uses it.
#[must_use = "the pages may be unpinned after this is dropped"]
pub struct Using<'a> {
    cache: &'a PinCache,
    node: Arc<Node>,
}

/// What a start does with the nodes of its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doom {
    /// It takes them out of the tree.
    All,
    /// It leaves those in the tree that are in use: a fault.
    Idle,
    /// It leaves them all: a fault.
    None,
}

/// Whether a node that was just pinned is checked before it is put into the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// It is.
    Checked,
    /// It is not: a fault.
    Unchecked,
}

/// Where a node stays that a transfer discards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// In no tree.
    Nowhere,
    /// In the tree, and in the list of what is doomed besides: a fault.
    InTheTree,
}

/// How a lookup went.
enum Lookup<'a> {
    Hit(Using<'a>),
    /// The sequence, for the check.
    Miss(u64),
}

impl PinCache {
    /// An empty cache of at most `limit` pages, which are pinned in the name of `holder`.
    pub fn new(holder: &str, limit: u32) -> Self {
        crate::lock_order::prime();
        let room = limit as usize;
        let state = State {
            rounds: Rounds::new(),
            live: Vec::with_capacity(room),
            doomed: Vec::with_capacity(room),
            nr_pinned: 0,
            nr_uses: 0,
            is_over: false,
        };
        Self {
            holder: holder.into(),
            state: ShortLock::new("devices.pin_cache", state),
            limit,
        }
    }

    /// The node that has all of `run`, pinned now if there is none; none if something changed
    /// meanwhile or there is no room at the moment: try again.
    ///
    /// Call it with no lock held: it may wait.
    ///
    /// # Errors
    ///
    /// [`DmaError`]
    pub fn get(
        &self,
        memory: &Arc<dyn DeviceMemory>,
        run: PageRun,
        access: Access,
        insert: Insert,
        counters: &Counters,
    ) -> Result<Option<Using<'_>>, DmaError> {
        if run.nr > self.limit {
            return Err(DmaError::LimitReached { limit: self.limit });
        }
        let sequence = match self.look_up(run, access)? {
            Lookup::Hit(using) => {
                counters.cache_hits.add();
                return Ok(Some(using));
            }
            Lookup::Miss(sequence) => sequence,
        };
        if !self.make_room(run.nr) {
            return Ok(None);
        }
        counters.faults.add();
        let made = self.pin(memory, run, access);
        let node = match made {
            Ok(node) => node,
            Err(error) => {
                self.state.lock().nr_pinned -= run.nr;
                return Err(error);
            }
        };
        let mut state = self.state.lock();
        let is_fresh = insert == Insert::Unchecked || state.rounds.is_fresh(run, sequence);
        if !is_fresh || state.is_over {
            state.nr_pinned -= run.nr;
            drop(state);
            counters.retries.add();
            return Ok(None); // the node is dropped, and its pages unpinned
        }
        state.live.push(Arc::clone(&node));
        Ok(Some(self.use_node(&mut state, node)))
    }

    fn pin(
        &self,
        memory: &Arc<dyn DeviceMemory>,
        run: PageRun,
        access: Access,
    ) -> Result<Arc<Node>, DmaError> {
        let pinned = Arc::clone(memory)
            .pin(&self.holder, run, access)
            .map_err(DmaError::Pin)?;
        let at = super::fetch_run(&**memory, run, access).map_err(DmaError::Fault)?;
        Ok(Arc::new(Node {
            run,
            access,
            at,
            pinned: ShortLock::new("devices.pin_cache.pinned", Some(pinned)),
            nr_users: AtomicU32::new(0),
            last_use: AtomicU64::new(0),
        }))
    }

    fn look_up(&self, run: PageRun, access: Access) -> Result<Lookup<'_>, DmaError> {
        let mut state = self.state.lock();
        if state.is_over {
            return Err(DmaError::Stopped);
        }
        let serves = |node: &&Arc<Node>| {
            node.run.hull(run) == node.run && (access == Access::Read || node.access == access)
        };
        let found = state.live.iter().find(serves).cloned();
        Ok(match found {
            Some(node) => Lookup::Hit(self.use_node(&mut state, node)),
            None => Lookup::Miss(state.rounds.sequence()),
        })
    }

    fn use_node(&self, state: &mut State, node: Arc<Node>) -> Using<'_> {
        state.nr_uses += 1;
        node.last_use.store(state.nr_uses, Ordering::Relaxed);
        node.nr_users.fetch_add(1, Ordering::Relaxed);
        Using { cache: self, node }
    }

    /// Counts `nr` more pages, after evicting nodes that nobody uses, the oldest first.
    fn make_room(&self, nr: u32) -> bool {
        loop {
            let mut state = self.state.lock();
            if state.nr_pinned + nr <= self.limit {
                state.nr_pinned += nr;
                return true;
            }
            let idle = (0..state.live.len()).filter(|&at| !state.live[at].is_used());
            let oldest = idle.min_by_key(|&at| state.live[at].last_use.load(Ordering::Relaxed));
            if let Some(at) = oldest {
                let node = state.live.swap_remove(at);
                state.doomed.push(node);
            }
            drop(state);
            if !self.reap_one() {
                return false;
            }
        }
    }

    /// A bracket over `run` begins: its nodes go. Says whether there is anything to reap.
    pub fn begin(&self, run: PageRun, doom: Doom) -> bool {
        let mut state = self.state.lock();
        state.rounds.begin(run);
        state.doom(run, doom)
    }

    /// The bracket is over.
    pub fn end(&self) {
        self.state.lock().rounds.end();
    }

    /// Takes the nodes of `run` out of the tree, outside of a bracket.
    pub fn forget(&self, run: PageRun) -> bool {
        self.state.lock().doom(run, Doom::All)
    }

    /// The pages of a node that shares one with `run`, if there is any.
    pub fn overlapping(&self, run: PageRun) -> Option<PageRun> {
        let state = self.state.lock();
        let mut live = state.live.iter();
        live.find(|node| node.run.overlaps(run))
            .map(|node| node.run)
    }

    /// Unpins a node after this transfer: it was not worth caching.
    pub fn discard(&self, using: Using<'_>, keep: Keep) {
        let mut state = self.state.lock();
        let same = |node: &Arc<Node>| Arc::ptr_eq(node, &using.node);
        if let Some(at) = state.live.iter().position(same) {
            let node = match keep {
                Keep::Nowhere => state.live.swap_remove(at),
                Keep::InTheTree => Arc::clone(&state.live[at]),
            };
            state.doomed.push(node);
        }
        drop(state);
        drop(using);
    }

    /// Forgets what is doomed with its pages pinned: a fault.
    pub fn leak(&self) {
        let leaked = core::mem::take(&mut self.state.lock().doomed);
        for node in leaked {
            core::mem::forget(node.pinned.lock().take());
            self.state.lock().nr_pinned -= node.run.nr;
        }
    }

    /// Takes everything out of the tree, and lets nothing in any more.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        let all = PageRun::new(0, u32::MAX);
        state.doom(all, Doom::All);
    }

    /// Unpins one node that is doomed and that nobody uses; false if there is none. Never in a
    /// callback, nor under a lock that one takes.
    pub fn reap_one(&self) -> bool {
        let mut state = self.state.lock();
        let Some(at) = state.doomed.iter().position(|node| !node.is_used()) else {
            return false;
        };
        let node = state.doomed.swap_remove(at);
        drop(state);
        let pinned = node.pinned.lock().take();
        drop(pinned);
        self.state.lock().nr_pinned -= node.run.nr;
        true
    }

    /// Unpins what nobody uses any more, and waits for whoever else is just doing so.
    pub fn reap_all(&self) {
        spin_wait("devices.pin_cache.reaped", 0, || {
            while self.reap_one() {}
            let state = self.state.lock();
            let nodes = state.live.iter().chain(&state.doomed);
            state.nr_pinned == nodes.map(|node| node.run.nr).sum()
        });
    }

    /// Waits until the last transfer has let go, and unpins all. Comes after
    /// [`close`](Self::close); no transfer may hang.
    pub fn drain(&self) {
        spin_wait("devices.pin_cache.drained", 0, || {
            self.reap_all();
            self.state.lock().nr_pinned == 0
        });
    }

    /// How many pages are pinned, and how many of those are doomed.
    pub fn nr_pinned(&self) -> (u32, u32) {
        let state = self.state.lock();
        let doomed = state.doomed.iter().map(|node| node.run.nr).sum();
        (state.nr_pinned, doomed)
    }

    /// How many pages transfers find in the tree.
    pub fn nr_live(&self) -> u32 {
        self.state.lock().live.iter().map(|node| node.run.nr).sum()
    }
}

impl State {
    fn doom(&mut self, run: PageRun, doom: Doom) -> bool {
        let mut at = 0;
        while at < self.live.len() {
            let node = &self.live[at];
            let goes = match doom {
                Doom::All => true,
                Doom::Idle => !node.is_used(),
                Doom::None => false,
            };
            if goes && node.run.overlaps(run) {
                let node = self.live.swap_remove(at);
                self.doomed.push(node);
            } else {
                at += 1;
            }
        }
        !self.doomed.is_empty()
    }
}

impl Node {
    fn is_used(&self) -> bool {
        self.nr_users.load(Ordering::Relaxed) > 0
    }
}

impl Using<'_> {
    /// The translation of a page, if it is of the node.
    pub fn find(&self, page: PageIndex) -> Option<BusAddr> {
        let run = self.node.run;
        run.contains(page).then(|| self.at(page))
    }

    /// The translation of a page of the node.
    ///
    /// # Panics
    ///
    /// If the page is not of the node.
    pub fn at(&self, page: PageIndex) -> BusAddr {
        self.node.at[(page - self.node.run.first) as usize]
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let _state = self.cache.state.lock();
        self.node.nr_users.fetch_sub(1, Ordering::Relaxed);
    }
}
