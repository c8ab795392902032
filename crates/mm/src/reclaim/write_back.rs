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

use super::Effort;
use super::bell::Bell;
use super::compact::is_at_rest;
use super::hands::Hand;
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
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

/// Pages that the hand looks at in one go.
const RUN_PAGES: u64 = 16;

/// Clusters that are emptied into one.
const SPARSE_MAX: usize = 8;

/// Clusters that are tried again at a time: one may be a match for the other.
const AGAIN_MAX: u32 = 2;

/// How often the worker tries again when the file took nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What the worker sleeps by.
#[derive(Debug)]
pub(crate) struct WriteBack {
    pub(super) bell: Bell,
}

/// How far the worker is with a level.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// It goes on until there is room, not only until more than little is left.
    is_making_room: AtomicBool,
    /// When the last turn began in which there was nothing to do, or nothing could be done.
    idle_begun_ns: AtomicU64,
}

/// What came of the worker's turn at a level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Turn {
    /// There is room.
    Rest,
    /// There is not, and nothing could be done.
    Retry,
    /// Pages went to the file, or it has more room: there may be more to do.
    GoOn,
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
        }
    }
}

impl Turns {
    fn note(&self, turn: Turn, begun_ns: u64) {
        let is_making_room = turn == Turn::GoOn;
        self.is_making_room.store(is_making_room, Ordering::Relaxed);
        if !is_making_room {
            self.idle_begun_ns.store(begun_ns, Ordering::Relaxed);
        }
    }

    /// Whether a turn has begun after `since_ns` in which nothing was written.
    fn was_idle_since(&self, since_ns: u64) -> bool {
        self.idle_begun_ns.load(Ordering::Relaxed) > since_ns
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
            // A cluster for each level, then one more: who has much to write keeps nobody waiting.
            let mut most = Turn::Rest;
            self.for_each_level(&mut |level| most = most.max(level.take_turn(&mut batch)));
            let bell = &self.reclaim.write_back.bell;
            match most {
                Turn::GoOn => {}
                Turn::Retry => bell.wait(|| self.is_stopped(), Some(RETRY_PAUSE)),
                Turn::Rest => bell.wait(|| self.is_stopped(), None),
            }
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
        let needed = match self.frames.nr_waiting() {
            0 => reserve,
            _ => reserve + PAGE_SIZE as u64,
        };
        stored.usage() > max / denominator * numerator || total.free() < needed
    }

    /// Writes a cluster if little is left in the store, and goes on until it has room again.
    fn take_turn(&self, batch: &mut Batch) -> Turn {
        let (turns, begun_ns) = (&self.domain.turns, self.clock.now_ns());
        let is_wanted = match turns.is_making_room.load(Ordering::Relaxed) {
            true => self.is_store_above(5, 8),
            false => self.is_store_above(3, 4),
        };
        let turn = match self.file() {
            Some(file) if is_wanted => self.write_back(file, batch),
            _ => Turn::Rest,
        };
        turns.note(turn, begun_ns);
        turn
    }

    fn write_back(&self, file: &FileStore, batch: &mut Batch) -> Turn {
        // The file is everybody's: the pages of its clusters are found from the root only.
        let root = self.levels().last().unwrap_or(self);
        let nr_won = match file.is_short() {
            true => root.win_back(file, batch),
            false => 0,
        };
        let nr_written = self.write_cluster(file, &mut batch.moved);
        if nr_written > 0 {
            // There is room for what stands by.
            self.reclaim.kick();
        }
        match nr_written + nr_won {
            0 => Turn::Retry,
            _ => Turn::GoOn,
        }
    }

    /// Whether the worker that writes to the file may still make room for this level, because it
    /// was not idle since `since_ns` where little is left: on a busy machine it comes late. What is
    /// in the file counts as stored, too.
    pub(crate) fn awaits_write_back(&self, since_ns: u64) -> bool {
        let is_due = |level: &Self| {
            level.is_store_above(3, 4) && !level.domain.turns.was_idle_since(since_ns)
        };
        self.file().is_some()
            && self.levels().all(|level| level.swap().free() > 0)
            && self.levels().any(is_due)
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
        match filling.write() {
            Ok(_) => moved.drain(..).map(|moved| moved.finish(file)).sum(),
            Err(_) => {
                moved.clear();
                0
            }
        }
    }

    /// Writes the pages of clusters that are half empty to one that is full, for the others to come
    /// free. Nothing is won by one that goes to another. Returns how many pages went.
    fn win_back(&self, file: &FileStore, batch: &mut Batch) -> u64 {
        let Some(mut filling) = file.begin_last() else {
            return 0;
        };
        let mut sparse = [Cluster::MAX; SPARSE_MAX];
        let (mut nr_tried, mut nr_sources, mut nr_again) = (0, 0, 0);
        while nr_tried < SPARSE_MAX
            && let Some(cluster) = file.sparsest(&sparse[..nr_tried])
        {
            // What was tried in vain is not all read again for every cluster that is written.
            nr_again += u32::from(file.was_tried(cluster));
            if nr_again > AGAIN_MAX {
                break;
            }
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
        for &cluster in &sparse[..nr_tried] {
            file.note_tried(cluster);
        }
        nr
    }

    /// Adds the slots of a cluster that pages still have to another one. Nothing, when one of them
    /// would stay, because it is wrong or its page is busy: then the cluster would not come free,
    /// and the room would be lost.
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
            self.page_at(*owner, copy).is_some()
        };
        let nr_there = slots_in(cluster, bytes).filter(is_there).count();
        if nr_there < file.nr_pages(cluster) as usize {
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

impl Moved {
    /// The cluster is written: a page that is as it was is in the file now. Returns how many
    /// pages are: one or none.
    fn finish(self, file: &FileStore) -> u64 {
        let Self { vma, page, .. } = &self;
        let owned = loop {
            let seen = vma.load_settled(*page);
            if !is_at_rest(seen) || seen.copy() != Some(self.from) {
                break None;
            }
            if let Some(owned) = vma.try_own(*page, seen) {
                break Some(owned);
            }
        };
        match owned {
            Some(owned) if vma.generation(*page) == self.generation => {
                let next = owned.was.with_copy(self.in_file);
                match self.from {
                    Stored::File { handle, .. } => {
                        vma.publish(owned, next);
                        file.free(handle);
                    }
                    slot => {
                        vma.memcg().note_in_file();
                        vma.publish(owned, next);
                        vma.memcg().leave_slot(slot);
                    }
                }
                return 1;
            }
            Some(owned) => vma.restore(owned),
            None => {}
        }
        file.free(self.handle);
        0
    }
}
