//! Write-back: stored pages that nobody has asked for go to the file.
//!
//! A worker does it while the compressed store has little room: it gathers slots until a cluster is
//! full, writes it, and lets go of the slots of those pages that are still as they were. Pages that
//! have not come back for as many evictions as there are frames go first.
//!
//! A cluster is free again when no page has a slot in it. When few are, the worker writes the pages
//! of those that are half empty to one that is full: a slot names its owner.
//!
//! While a cluster is written, its pages are where they were. What goes wrong costs nothing but the
//! room that was hoped for.
//!
//! Linux counterpart: `zswap_writeback_entry`, `shrink_memcg` in `mm/zswap.c`.

use super::bell::Bell;
use super::compact::is_at_rest;
use super::hands::Hand;
use super::{Effort, Stall};
use crate::addr::{PAGE_SIZE, PageIndex, PageRun};
use crate::limits::total_reserve;
use crate::memcg::stat::{add, count};
use crate::memcg::{Memcg, Protection};
use crate::mm_struct::Vma;
use crate::page::{State, Word};
use crate::swap::{
    CLUSTER_BYTES, CLUSTER_SLOTS_MAX, Cluster, FileHandle, FileStore, Filling, FoundSlot,
    SLOT_BYTES_MAX, SlotHandle, Stored, slots_in,
};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

/// Pages that the hand looks at in one go.
const RUN_PAGES: u64 = 16;

/// Clusters that are emptied into one.
const SPARSE_MAX: usize = 8;

/// Clusters that are tried again at a time: one may be a match for the other.
const AGAIN_MAX: u32 = 2;

/// How often it looks again at pages that are just being changed, and the pause before.
const BUSY_RESTS_MAX: u32 = 200;
const BUSY_REST: Duration = Duration::from_millis(1);

/// How often the worker tries again when the file took nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The worker's sleep, and what it is doing.
#[derive(Debug)]
pub(crate) struct WriteBack {
    pub(super) bell: Bell,
    /// When the write began that is under way, until its pages are where they go; zero for none.
    begun_ns: AtomicU64,
    /// How often it has looked at every level and done what it could.
    nr_rounds: AtomicU64,
}

/// What the worker works on, with room for all of it.
struct Batch {
    moved: Vec<Moved>,
    /// The bytes of a cluster that is to be emptied.
    cluster: Box<[u8]>,
}

/// A page whose slot is in the cluster that is being written.
struct Moved {
    vma: Arc<Vma>,
    page: PageIndex,
    generation: u32,
    /// Where it is until then.
    from: Stored,
    in_file: Stored,
    handle: FileHandle,
}

/// Which pages are gathered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Cold,
    Any,
}

/// What was taken out of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Nothing,
    /// As much as there was room for.
    Part,
    All,
}

impl WriteBack {
    pub(super) fn new() -> Self {
        Self {
            bell: Bell::new("mm.write_back.idle", "mm.write_back.wake"),
            begun_ns: AtomicU64::new(0),
            nr_rounds: AtomicU64::new(0),
        }
    }

    /// Rounds that have ended.
    pub(super) fn nr_rounds(&self) -> u64 {
        self.nr_rounds.load(Ordering::Relaxed)
    }

    /// Has the worker take its turn, if it has had none in this row of passes. It may find nothing
    /// to do, but nobody is killed before it has looked.
    pub(super) fn ask(&self, stall: &Stall) {
        if self.is_due(stall) {
            self.bell.ring();
        }
    }

    /// Whether no round has begun and ended in this row of passes.
    pub(crate) fn is_due(&self, stall: &Stall) -> bool {
        // One more may have begun before.
        self.nr_rounds() < stall.nr_written_rounds + 2
    }

    /// Whether a cluster is being written, for less than `age_max_ns`: there may be room soon.
    pub(crate) fn is_writing(&self, now_ns: u64, age_max_ns: u64) -> bool {
        let begun_ns = self.begun_ns.load(Ordering::Relaxed);
        begun_ns != 0 && now_ns.saturating_sub(begun_ns) < age_max_ns
    }
}

impl Memcg {
    /// The loop of the worker that writes stored pages to the file, until [`Memcg::stop`]. One
    /// thread, if there is a file; no fault ever waits for it.
    pub fn run_write_back(&self) {
        let mut batch = Batch {
            moved: Vec::with_capacity(CLUSTER_SLOTS_MAX),
            cluster: vec![0; CLUSTER_BYTES].into(),
        };
        while !self.is_stopped() {
            let mut is_short = false;
            self.for_each_level(&mut |level| is_short |= !level.write_back(&mut batch));
            let nr_rounds = &self.reclaim.write_back.nr_rounds;
            nr_rounds.fetch_add(1, Ordering::Relaxed);
            let pause = is_short.then_some(RETRY_PAUSE);
            let bell = &self.reclaim.write_back.bell;
            bell.wait(|| self.is_stopped(), pause);
        }
    }

    /// A page was stored, or there was no room for it: wakes the worker when little is left.
    pub(crate) fn kick_write_back(&self) {
        if self.file().is_some() && self.levels().any(|level| level.is_store_above(3, 4)) {
            self.reclaim.write_back.bell.ring();
        }
    }

    /// Whether more than this share of what may be stored is in use, or what is stored takes what
    /// somebody needs.
    fn is_store_above(&self, numerator: u64, denominator: u64) -> bool {
        let (stored, total) = (self.zswap_bytes(), self.total());
        let reserve = total_reserve(total.max());
        let max = stored.max().min(total.max().saturating_sub(reserve));
        stored.usage() > max / denominator * numerator || self.is_short_of_total()
    }

    /// Whether what is stored takes what somebody needs.
    pub(super) fn is_short_of_total(&self) -> bool {
        let total = self.total();
        let reserve = total_reserve(total.max());
        let needed = match self.frames.nr_waiting() {
            0 => reserve,
            _ => reserve + PAGE_SIZE as u64,
        };
        total.free() < needed
    }

    /// Writes clusters until the store has room again; false when it has not.
    fn write_back(&self, batch: &mut Batch) -> bool {
        let Some(file) = self.file().filter(|_| self.is_store_above(3, 4)) else {
            return true;
        };
        while self.is_store_above(5, 8) && !self.is_stopped() {
            // The file is everybody's: the pages of its clusters are found from the root only.
            let root = self.levels().last().unwrap_or(self);
            let nr_won = match file.is_short() {
                true => root.win_back(file, batch),
                false => 0,
            };
            if self.write_cluster(file, &mut batch.moved) > 0 {
                // There is room for what stands by.
                self.reclaim.kick();
            } else if nr_won == 0 {
                return false;
            }
        }
        true
    }

    /// Writes a cluster; returns how many pages are in the file now.
    fn write_cluster(&self, file: &FileStore, moved: &mut Vec<Moved>) -> u64 {
        let Some(mut filling) = file.begin() else {
            count(&self.stat.file_full);
            return 0;
        };
        self.gather(&mut filling, moved, Which::Cold);
        if moved.is_empty() {
            self.gather(&mut filling, moved, Which::Any);
        }
        if moved.is_empty() {
            filling.give_up();
            return 0;
        }
        let nr = self.write_moved(file, filling, moved);
        add(&self.stat.zswpwb, nr);
        nr
    }

    /// Writes what was gathered; returns how many pages have gone where they were to.
    fn write_moved(&self, file: &FileStore, filling: Filling<'_>, moved: &mut Vec<Moved>) -> u64 {
        let begun_ns = &self.reclaim.write_back.begun_ns;
        begun_ns.store(self.clock.now_ns().max(1), Ordering::Relaxed);
        let written = filling.write();
        let nr = match &written {
            Ok(_) => self.finish(file, moved),
            Err(_) => {
                moved.clear();
                0
            }
        };
        begun_ns.store(0, Ordering::Relaxed);
        nr
    }

    /// A cluster is written: says so of each page that is where it was. Returns how many are in it.
    ///
    /// Who is changed just then is waited for, if it came from a cluster, which it may be the last
    /// to keep: the one that was written would be lost for that, and may have been the last.
    fn finish(&self, file: &FileStore, moved: &mut Vec<Moved>) -> u64 {
        let (mut nr, mut nr_rests) = (0, 0);
        loop {
            moved.retain(|moved| {
                let outcome = moved.finish(file);
                nr += u64::from(outcome == Outcome::Moved);
                if outcome == Outcome::Left {
                    file.free(moved.handle);
                }
                outcome == Outcome::Busy
            });
            if moved.is_empty() {
                return nr;
            }
            if nr_rests == BUSY_RESTS_MAX || self.is_stopped() {
                moved.drain(..).for_each(|moved| file.free(moved.handle));
                return nr;
            }
            nr_rests += 1;
            let bell = &self.reclaim.write_back.bell;
            bell.rest(|| self.is_stopped(), BUSY_REST);
        }
    }

    /// Writes the pages of clusters that are half empty to one that is full, for the others to come
    /// free. Nothing is won by one that goes to another. Returns how many pages went.
    fn win_back(&self, file: &FileStore, batch: &mut Batch) -> u64 {
        let Some(mut filling) = file.begin_last() else {
            return 0;
        };
        let mut sparse = [Cluster::MAX; SPARSE_MAX];
        let mut held = [const { None }; SPARSE_MAX];
        let (mut nr_tried, mut nr_sources, mut nr_again) = (0, 0, 0);
        while nr_tried < SPARSE_MAX
            && let Some(cluster) = file.sparsest(&sparse[..nr_tried])
        {
            // What was tried in vain is not all read again for every cluster that is written.
            nr_again += u32::from(file.was_tried(cluster));
            if nr_again > AGAIN_MAX {
                break;
            }
            // As long as a page may be taken for one that was found there.
            let Some(hold) = file.hold(cluster) else {
                continue;
            };
            held[nr_tried] = Some(hold);
            // One that cannot be read does not keep the others from it.
            let is_read = file.read_cluster(cluster, &mut batch.cluster).is_ok();
            let taken = match is_read {
                true => self.gather_cluster((file, cluster), &mut filling, batch),
                false => Taken::Nothing,
            };
            nr_sources += u32::from(taken != Taken::Nothing);
            if taken == Taken::Part {
                break;
            }
            sparse[nr_tried] = cluster;
            nr_tried += 1;
        }
        let nr = if nr_sources > 1 {
            self.write_moved(file, filling, &mut batch.moved)
        } else {
            batch.moved.clear();
            filling.give_up();
            0
        };
        add(&self.stat.file_compact, nr);
        // First: to let one go says that it may be worth another try.
        drop(held);
        for &cluster in &sparse[..nr_tried] {
            file.note_tried(cluster);
        }
        nr
    }

    /// Adds the slots of a cluster that pages still have to another one. Nothing, when one of them
    /// would stay, because it is wrong or reclaim is about to take its page, which may wait for a
    /// device: then the cluster would not come free, and the room would be lost.
    fn gather_cluster(
        &self,
        (file, cluster): (&FileStore, Cluster),
        filling: &mut Filling<'_>,
        Batch {
            moved,
            cluster: bytes,
        }: &mut Batch,
    ) -> Taken {
        let is_there = |(handle, (owner, tag), _): &FoundSlot<'_>| {
            let copy = Stored::File {
                handle: *handle,
                tag: *tag,
            };
            let found = self.page_at(*owner, copy);
            found.is_some_and(|(vma, page)| vma.pages.load(page).state() != State::Evicting)
        };
        let nr_there = slots_in(cluster, bytes).filter(is_there).count();
        // Who holds it counts as a page; who left while it was read does not count any more.
        if nr_there + 1 < file.nr_pages(cluster) as usize {
            return Taken::Nothing;
        }
        let nr_before = moved.len();
        for (handle, (owner, tag), slot) in slots_in(cluster, bytes) {
            let old = Stored::File { handle, tag };
            let Some((vma, page)) = self.page_at(owner, old) else {
                continue;
            };
            let Some(handle) = filling.push(slot) else {
                return Taken::Part;
            };
            moved.push(Moved {
                generation: vma.generation(page),
                vma,
                page,
                from: old,
                in_file: Stored::File { handle, tag },
                handle,
            });
        }
        match moved.len() > nr_before {
            true => Taken::All,
            false => Taken::Nothing,
        }
    }

    /// Fills a cluster with slots of pages that are in the compressed store.
    fn gather(&self, filling: &mut Filling<'_>, moved: &mut Vec<Moved>, which: Which) {
        let mut lap = self.start_lap(Hand::Cold, Effort::Worker, Protection::Min);
        while let Some((vma, run)) = self.next_run(Hand::Cold, &mut lap, RUN_PAGES) {
            if !Vma::gather_run(&vma, run, filling, moved, which) {
                return;
            }
        }
    }
}

impl Vma {
    /// Adds the slots of a run to a cluster; false when it is full.
    fn gather_run(
        self: &Arc<Self>,
        run: PageRun,
        filling: &mut Filling<'_>,
        moved: &mut Vec<Moved>,
        which: Which,
    ) -> bool {
        let mut slot = [0; SLOT_BYTES_MAX];
        for page in run.pages() {
            let seen = self.pages.load(page);
            let Some((handle, tag)) = slot_of(seen) else {
                continue;
            };
            if which == Which::Cold && !self.is_cold(seen) {
                continue;
            }
            let generation = self.generation(page);
            let Some(len) = self.copy_slot(page, seen, (handle, tag), &mut slot) else {
                continue;
            };
            let Some(in_file) = filling.push(&slot[..len]) else {
                return false;
            };
            moved.push(Moved {
                vma: Arc::clone(self),
                page,
                generation,
                from: Stored::Slot { handle, tag },
                in_file: Stored::File {
                    handle: in_file,
                    tag,
                },
                handle: in_file,
            });
        }
        true
    }

    /// Copies the slot of a page, which nobody can free meanwhile. Returns how long it is.
    pub(super) fn copy_slot(
        &self,
        page: PageIndex,
        seen: Word,
        slot: (SlotHandle, u16),
        into: &mut [u8; SLOT_BYTES_MAX],
    ) -> Option<usize> {
        let owned = self.try_own(page, seen)?;
        let zswap = &self.memcg().zswap;
        let copied = zswap.with_slot(self.owner(page), slot, |bytes| {
            into[..bytes.len()].copy_from_slice(bytes);
            bytes.len()
        });
        self.restore(owned);
        // What is wrong with it, the next fault tells.
        copied.ok()
    }
}

/// The slot of a page that is in the compressed store and nowhere else.
pub(super) fn slot_of(word: Word) -> Option<(SlotHandle, u16)> {
    match word.copy() {
        Some(Stored::Slot { handle, tag }) if word.state() == State::Swapped => Some((handle, tag)),
        _ => None,
    }
}

/// What came of a page whose slot was written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It is in the file now.
    Moved,
    /// It is somewhere else by now, or stays where it was and costs nothing there.
    Left,
    /// Somebody is about to change it; until it is known how, it keeps the cluster it came from.
    Busy,
}

impl Moved {
    /// The cluster is written: a page that is where it was is in there now.
    fn finish(&self, file: &FileStore) -> Outcome {
        let Self { vma, page, .. } = self;
        let owned = loop {
            let seen = vma.load_settled(*page);
            if seen.copy() != Some(self.from) {
                return Outcome::Left;
            }
            if !is_at_rest(seen) {
                return match self.from {
                    Stored::File { .. } => Outcome::Busy,
                    _ => Outcome::Left,
                };
            }
            if let Some(owned) = vma.try_own(*page, seen) {
                break owned;
            }
        };
        let next = owned.was.with_copy(self.in_file);
        match self.from {
            // A page that was read meanwhile, and has gone again as it was, is of another
            // generation, and yet what was copied: its cluster is held, so nothing else has come to
            // where it is.
            Stored::File { handle, .. } => {
                vma.publish(owned, next);
                file.free(handle);
            }
            slot if vma.generation(*page) == self.generation => {
                vma.memcg().note_in_file();
                vma.publish(owned, next);
                vma.memcg().leave_slot(slot);
            }
            _ => {
                vma.restore(owned);
                return Outcome::Left;
            }
        }
        Outcome::Moved
    }
}
