//! The file under the compressed store: clusters of slots that are written at once.
//!
//! A slot goes to the file as it is: header and contents, compressed already. Slots of pages that
//! were found one after the other lie one after the other. A cluster is not changed once it is
//! written; it is free again when no page has a slot in it.
//!
//! Linux counterpart: the swap clusters of `mm/swapfile.c`.

use super::backing_file::{
    BLOCK_BYTES, BackingFile, Buffer, CLUSTER_BYTES, Cluster, FileError, FileOp,
};
use super::header::{HEADER_BYTES, Header};
use super::{FileHandle, Owner, Zswap};
use crate::addr::{PAGE_SIZE, PageBuf};
use crate::fault::StoreError;
use core::fmt;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use lockdep::sync::{Condvar, Mutex};
use lockdep::{Level, context};
use std::sync::Arc;

/// Slots begin at multiples of so many bytes.
const UNIT_BYTES: usize = CLUSTER_BYTES >> FileHandle::UNIT_BITS;

/// The most slots of a cluster: each takes one unit at least.
pub(crate) const CLUSTER_SLOTS_MAX: usize = CLUSTER_BYTES / UNIT_BYTES;

/// The longest slot.
pub(crate) const SLOT_BYTES_MAX: usize = HEADER_BYTES + PAGE_SIZE;

/// In the count of a cluster: it is being filled or written.
const WRITING: u32 = 1 << 16;

/// Few clusters are free when it is one in so many.
const SHORT_SHARE: u32 = 8;

/// The count of a cluster that could not be written, and is not tried again.
const RETIRED: u32 = u32::MAX;

/// What a file holds and has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FileStats {
    /// Clusters that hold a page.
    pub clusters: u64,
    /// Clusters that are not used any more because a write to them failed.
    pub retired: u64,
    /// Clusters in all.
    pub clusters_max: u64,
    /// Pages whose slots are in the file.
    pub pages: u64,
    /// Slots of those clusters that no page has any more: they come free with their cluster.
    pub holes: u64,
    /// Clusters written so far.
    pub writes: u64,
    /// Pages read so far.
    pub reads: u64,
    /// Writes that failed: what they held stayed where it was.
    pub write_errors: u64,
    /// Reads that failed, or gave something else than was written.
    pub read_errors: u64,
}

/// A file that holds stored pages.
pub struct FileStore {
    file: Arc<dyn BackingFile>,
    /// How many pages have a slot in each cluster, and how many hold it; see [`WRITING`] and
    /// [`RETIRED`].
    counts: Box<[AtomicU32]>,
    /// What was written to each cluster.
    filled: Box<[Filled]>,
    /// If no page has left a cluster since it could not be emptied: how many had been tried by
    /// then. Zero otherwise. A hint: a page that leaves at that moment may go unnoticed.
    tried: Box<[AtomicU64]>,
    nr_tried: AtomicU64,
    /// Clusters that can be taken.
    nr_free: AtomicU32,
    /// Where the next free cluster is looked for.
    next: AtomicU32,
    buffers: Buffers,
    counters: Counters,
}

/// What was written to a cluster.
#[derive(Default)]
struct Filled {
    nr_slots: AtomicU16,
    nr_units: AtomicU16,
}

impl Filled {
    /// Whether so many of its pages, of middling size, take no more than half of a cluster.
    fn is_sparse(&self, nr_pages: u32) -> bool {
        let nr_slots = u32::from(self.nr_slots.load(Ordering::Relaxed));
        let nr_units = u32::from(self.nr_units.load(Ordering::Relaxed));
        2 * nr_pages * nr_units <= nr_slots * CLUSTER_SLOTS_MAX as u32
    }
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    reads: AtomicU64,
    write_errors: AtomicU64,
    read_errors: AtomicU64,
}

impl FileStore {
    /// Makes use of the whole file; nothing that it holds is looked at.
    ///
    /// # Panics
    ///
    /// If the file has fewer than 3 or more than 64 buffers.
    pub(crate) fn new(file: Arc<dyn BackingFile>) -> Self {
        let nr_clusters = file.nr_clusters().min(FileHandle::NR_CLUSTERS_MAX);
        Self {
            counts: (0..nr_clusters).map(|_| AtomicU32::new(0)).collect(),
            filled: (0..nr_clusters).map(|_| Filled::default()).collect(),
            tried: (0..nr_clusters).map(|_| AtomicU64::new(0)).collect(),
            nr_tried: AtomicU64::new(0),
            nr_free: AtomicU32::new(nr_clusters),
            next: AtomicU32::new(0),
            buffers: Buffers::new(file.nr_buffers()),
            counters: Counters::default(),
            file,
        }
    }

    /// What the file holds and has done.
    pub fn stats(&self) -> FileStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = FileStats {
            clusters_max: self.counts.len() as u64,
            writes: load(&self.counters.writes),
            reads: load(&self.counters.reads),
            write_errors: load(&self.counters.write_errors),
            read_errors: load(&self.counters.read_errors),
            ..FileStats::default()
        };
        for (count, filled) in self.counts.iter().zip(&self.filled) {
            match count.load(Ordering::Relaxed) {
                RETIRED => stats.retired += 1,
                0 => {}
                count => {
                    let (pages, slots) = (count % WRITING, filled.nr_slots.load(Ordering::Relaxed));
                    stats.clusters += 1;
                    stats.pages += u64::from(pages);
                    stats.holes += u64::from(u32::from(slots).saturating_sub(pages));
                }
            }
        }
        stats
    }

    /// Whether so few clusters are free that those that are half empty should be won back.
    pub(crate) fn is_short(&self) -> bool {
        self.nr_free.load(Ordering::Relaxed) <= self.counts.len() as u32 / SHORT_SHARE
    }

    /// Of the clusters that are half empty, the one with the fewest pages, but for those in `not`.
    /// Those that could not be emptied, and are as they were, come after all others, the one first
    /// that was tried the longest ago.
    pub(crate) fn sparsest(&self, not: &[Cluster]) -> Option<Cluster> {
        let is_sparse = |cluster: &Cluster| {
            let nr_pages = self.nr_pages(*cluster);
            (1..WRITING).contains(&nr_pages) && self.filled[*cluster as usize].is_sparse(nr_pages)
        };
        let clusters = 0..self.counts.len() as Cluster;
        clusters
            .filter(|cluster| is_sparse(cluster) && !not.contains(cluster))
            .min_by_key(|&cluster| {
                let tried = self.tried[cluster as usize].load(Ordering::Relaxed);
                (tried, self.nr_pages(cluster))
            })
    }

    /// Pages that have a slot in a cluster that is not being written, and who holds it.
    pub(crate) fn nr_pages(&self, cluster: Cluster) -> u32 {
        self.counts[cluster as usize].load(Ordering::Relaxed)
    }

    /// Whether a cluster could not be emptied, and is as it was then.
    pub(crate) fn was_tried(&self, cluster: Cluster) -> bool {
        self.tried[cluster as usize].load(Ordering::Relaxed) > 0
    }

    /// A cluster was to be emptied: what is left in it could not be moved.
    pub(crate) fn note_tried(&self, cluster: Cluster) {
        let nr_tried = 1 + self.nr_tried.fetch_add(1, Ordering::Relaxed);
        self.tried[cluster as usize].store(nr_tried, Ordering::Relaxed);
    }

    /// Reads a page that `zswap` had compressed. Waits for the device; allocates nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unreadable`] when the device failed: it may be asked again.
    /// [`StoreError::Misplaced`] and [`StoreError::Corrupt`] when what it gave is not what was
    /// stored.
    pub(crate) fn load(
        &self,
        owner: Owner,
        (handle, tag): (FileHandle, u16),
        zswap: &Zswap,
        into: &mut PageBuf,
    ) -> Result<(), StoreError> {
        let at = handle.unit() as usize * UNIT_BYTES;
        let block = BLOCK_BYTES as usize;
        let first = at / block * block;
        let end = (at + HEADER_BYTES + PAGE_SIZE).next_multiple_of(block);
        let op = FileOp::Read {
            cluster: handle.cluster(),
            offset: first as u32,
            len: (end.min(CLUSTER_BYTES) - first) as u32,
        };
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        let buffer = self.buffers.take(0);
        self.file.submit(buffer.number, op);
        let mut result = Err(StoreError::Unreadable);
        if self.file.wait(buffer.number).is_ok() {
            let mut slot = [0; SLOT_BYTES_MAX];
            let len = SLOT_BYTES_MAX.min(CLUSTER_BYTES - at);
            self.file.with_buffer(buffer.number, &mut |bytes| {
                slot[..len].copy_from_slice(&bytes[at..at + len]);
            });
            // Not before: the machine may hold a lock while it lends the buffer.
            result = zswap.unpack(&slot[..len], (owner, tag), into);
        }
        if result.is_err() {
            into.fill(0);
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Reads a whole cluster, and lends what is in it slot by slot, unless too many buffers are in
    /// use. For a fault: allocates nothing; waits for the device.
    pub(crate) fn look_around(&self, cluster: Cluster) -> Option<Around<'_>> {
        let buffer = self.buffers.try_take(2)?;
        let held = self.hold(cluster)?;
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.stage(&buffer, cluster).ok()?;
        Some(Around {
            buffer,
            held,
            at: 0,
        })
    }

    /// Reads a whole cluster. Waits for the device.
    ///
    /// # Errors
    ///
    /// See [`FileError`].
    pub(crate) fn read_cluster(&self, cluster: Cluster, into: &mut [u8]) -> Result<(), FileError> {
        let buffer = self.buffers.take(1);
        let staged = self.stage(&buffer, cluster);
        if staged.is_ok() {
            let mut copy = |bytes: &mut [u8]| into.copy_from_slice(bytes);
            self.file.with_buffer(buffer.number, &mut copy);
        }
        staged
    }

    fn stage(&self, buffer: &BufferGuard<'_>, cluster: Cluster) -> Result<(), FileError> {
        let whole = FileOp::Read {
            cluster,
            offset: 0,
            len: CLUSTER_BYTES as u32,
        };
        self.file.submit(buffer.number, whole);
        self.file.wait(buffer.number)
    }

    /// Begins to fill a cluster; `None` when none is free, but for one that is left to
    /// [`FileStore::begin_last`].
    pub(crate) fn begin(&self) -> Option<Filling<'_>> {
        let nr_kept = u32::from(self.counts.len() > 1);
        if self.nr_free.load(Ordering::Relaxed) <= nr_kept {
            return None;
        }
        self.begin_last()
    }

    /// Begins to fill a cluster with what other clusters will be emptied of.
    pub(crate) fn begin_last(&self) -> Option<Filling<'_>> {
        let nr_clusters = self.counts.len() as u32;
        let first = self.next.load(Ordering::Relaxed);
        let take = |cluster: &u32| {
            let count = &self.counts[*cluster as usize];
            // Acquire: pairs with the Release in `free`. Who reads what the cluster held finds that
            // its page has changed.
            count
                .compare_exchange(0, WRITING, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        };
        let cluster = (0..nr_clusters)
            .map(|nth| ((u64::from(first) + u64::from(nth)) % u64::from(nr_clusters)) as u32)
            .find(take)?;
        self.nr_free.fetch_sub(1, Ordering::Relaxed);
        self.next
            .store((cluster + 1) % nr_clusters, Ordering::Relaxed);
        Some(Filling {
            store: self,
            // A reader finds one free at any time.
            buffer: self.buffers.take(1),
            cluster,
            nr_units: 0,
            nr_slots: 0,
        })
    }

    /// Keeps a cluster that a page has a slot in as it is, and counts as one more.
    pub(crate) fn hold(&self, cluster: Cluster) -> Option<Held<'_>> {
        let one_more = |count| (1..WRITING).contains(&count).then_some(count + 1);
        let count = &self.counts[cluster as usize];
        // Acquire: pairs with the Release in `drop` of `Written`: it is read after it was written.
        let held = count.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more);
        // Only then is there one: its drop lets the cluster go.
        held.is_ok().then(|| Held {
            store: self,
            cluster,
        })
    }

    /// A cluster to which nothing was written is free again.
    fn give_back(&self, cluster: Cluster) {
        self.counts[cluster as usize].store(0, Ordering::Relaxed);
        self.nr_free.fetch_add(1, Ordering::Relaxed);
    }

    /// A page has no slot here any more.
    pub(crate) fn free(&self, handle: FileHandle) {
        self.let_go(handle.cluster());
    }

    fn let_go(&self, cluster: Cluster) {
        self.tried[cluster as usize].store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `begin_last`.
        let before = self.counts[cluster as usize].fetch_sub(1, Ordering::Release);
        assert!(
            !before.is_multiple_of(WRITING),
            "a slot of a file was freed twice"
        );
        if before == 1 {
            self.nr_free.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A slot in a cluster: where it is, whose, the tag of its store, and its bytes.
pub(crate) type FoundSlot<'a> = (FileHandle, (Owner, u16), &'a [u8]);

/// The slots in the bytes of a cluster, as they say themselves. What nobody has any more is among
/// them; what is wrong is not.
pub(crate) fn slots_in(cluster: Cluster, bytes: &[u8]) -> impl Iterator<Item = FoundSlot<'_>> {
    let mut at = 0;
    core::iter::from_fn(move || next_slot_in(cluster, bytes, &mut at))
}

/// The first slot from byte `at` on, which moves behind it.
fn next_slot_in<'a>(cluster: Cluster, bytes: &'a [u8], at: &mut usize) -> Option<FoundSlot<'a>> {
    while *at < CLUSTER_BYTES {
        let handle = FileHandle::new(cluster, (*at / UNIT_BYTES) as u32);
        let rest = &bytes[*at..];
        *at += UNIT_BYTES;
        if let Some((named, len)) = known_slot(rest) {
            *at += (len.div_ceil(UNIT_BYTES) - 1) * UNIT_BYTES;
            return Some((handle, named, &rest[..len]));
        }
    }
    None
}

/// Whose slot `bytes` begin with, and how long it is, if that is true of all of it: a bit that the
/// disk turned may be in its length, and what is wrong must not be copied to another place.
fn known_slot(bytes: &[u8]) -> Option<((Owner, u16), usize)> {
    let (head, body) = bytes.split_at_checked(HEADER_BYTES)?;
    let header = Header::decode(head).ok()?;
    let (owner, tag) = header.owner_and_tag()?;
    let body = &body[..body.len().min(PAGE_SIZE)];
    let payload = header.expect(owner, tag, body).ok()?;
    header.verify(payload).ok()?;
    Some(((owner, tag), HEADER_BYTES + payload.len()))
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A cluster that is not written anew while this lives: what a page has there is what was read.
pub(crate) struct Held<'a> {
    store: &'a FileStore,
    cluster: Cluster,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.store.let_go(self.cluster);
    }
}

/// A cluster that was read, and how far one has looked at it.
pub(crate) struct Around<'a> {
    buffer: BufferGuard<'a>,
    held: Held<'a>,
    /// Bytes that were looked at.
    at: usize,
}

impl Around<'_> {
    /// Copies the next slot, which need not be anybody's any more: where it is, whose, the tag of
    /// its store, and how long it is.
    pub(crate) fn next_slot(
        &mut self,
        into: &mut [u8; SLOT_BYTES_MAX],
    ) -> Option<(FileHandle, (Owner, u16), usize)> {
        let (mut found, at, cluster) = (None, &mut self.at, self.held.cluster);
        let mut copy = |bytes: &mut [u8]| {
            if let Some((handle, named, slot)) = next_slot_in(cluster, bytes, at) {
                into[..slot.len()].copy_from_slice(slot);
                found = Some((handle, named, slot.len()));
            }
        };
        let file = &self.held.store.file;
        file.with_buffer(self.buffer.number, &mut copy);
        found
    }
}

/// A cluster that is being filled.
pub(crate) struct Filling<'a> {
    store: &'a FileStore,
    buffer: BufferGuard<'a>,
    cluster: Cluster,
    nr_units: usize,
    nr_slots: u32,
}

impl<'a> Filling<'a> {
    /// Adds a slot; `None` when it does not fit any more.
    pub(crate) fn push(&mut self, slot: &[u8]) -> Option<FileHandle> {
        let nr_units = slot.len().div_ceil(UNIT_BYTES);
        let at = self.nr_units * UNIT_BYTES;
        if at + nr_units * UNIT_BYTES > CLUSTER_BYTES {
            return None;
        }
        self.store
            .file
            .with_buffer(self.buffer.number, &mut |bytes| {
                bytes[at..at + slot.len()].copy_from_slice(slot);
            });
        let handle = FileHandle::new(self.cluster, self.nr_units as u32);
        self.nr_units += nr_units;
        self.nr_slots += 1;
        Some(handle)
    }

    /// Writes the cluster, and waits for the device. What was pushed is in the file then, and each
    /// slot has to be freed once.
    ///
    /// # Errors
    ///
    /// See [`FileError`]: no slot is in the file.
    pub(crate) fn write(self) -> Result<Written<'a>, FileError> {
        let (store, number) = (self.store, self.buffer.number);
        // What lies behind the last slot is left from before: of other pages.
        let rest = self.nr_units * UNIT_BYTES;
        store
            .file
            .with_buffer(number, &mut |bytes| bytes[rest..].fill(0));
        let cluster = self.cluster;
        store.file.submit(number, FileOp::Write { cluster });
        let count = &store.counts[cluster as usize];
        match store.file.wait(number) {
            Ok(()) => {
                store.counters.writes.fetch_add(1, Ordering::Relaxed);
                let filled = &store.filled[cluster as usize];
                filled
                    .nr_slots
                    .store(self.nr_slots as u16, Ordering::Relaxed);
                filled
                    .nr_units
                    .store(self.nr_units as u16, Ordering::Relaxed);
                count.fetch_add(self.nr_slots, Ordering::Relaxed);
                Ok(Written { store, count })
            }
            Err(error) => {
                store.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                // A device that is full may have room again; what is broken stays so.
                match error {
                    FileError::Full => store.give_back(cluster),
                    FileError::Device { .. } | FileError::Short { .. } => {
                        count.store(RETIRED, Ordering::Relaxed);
                    }
                }
                Err(error)
            }
        }
    }

    /// Gives the cluster up: nothing was pushed that is needed.
    pub(crate) fn give_up(self) {
        self.store.give_back(self.cluster);
    }
}

/// A cluster that was written: it is not taken again before this is dropped.
#[must_use = "the cluster can be free when this is dropped"]
pub(crate) struct Written<'a> {
    store: &'a FileStore,
    count: &'a AtomicU32,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `begin_last`.
        if self.count.fetch_sub(WRITING, Ordering::Release) == WRITING {
            self.store.nr_free.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Which staging buffers are free, a bit each.
struct Buffers {
    free: Mutex<u64>,
    freed: Condvar,
}

struct BufferGuard<'a> {
    buffers: &'a Buffers,
    number: Buffer,
}

impl Buffers {
    fn new(nr: u32) -> Self {
        assert!((3..=64).contains(&nr), "a file with {nr} staging buffers");
        Self {
            free: Mutex::new("mm.file.buffers", u64::MAX >> (64 - nr)),
            freed: Condvar::new("mm.file.buffers.freed"),
        }
    }

    /// Takes one, when more than `nr_left` are free.
    fn take(&self, nr_left: u32) -> BufferGuard<'_> {
        let mut free = self.free.lock();
        while free.count_ones() <= nr_left {
            free = self.freed.wait(free);
        }
        self.lend(&mut free)
    }

    /// The same, without waiting.
    fn try_take(&self, nr_left: u32) -> Option<BufferGuard<'_>> {
        let mut free = self.free.lock();
        (free.count_ones() > nr_left).then(|| self.lend(&mut free))
    }

    fn lend(&self, free: &mut u64) -> BufferGuard<'_> {
        let number = free.trailing_zeros();
        *free &= !(1 << number);
        BufferGuard {
            buffers: self,
            number,
        }
    }
}

impl Drop for BufferGuard<'_> {
    fn drop(&mut self) {
        *self.buffers.free.lock() |= 1 << self.number;
        // Nobody waits for this thread: any buffer would do. The last is for who reads one page,
        // and waits for the device and a decoder alone; a cluster is read for its neighbours while
        // more are free, and waits for no worker. To the validator the signal comes from outside of
        // the thread's own work, as an interrupt's does: what the thread did before it had the
        // buffer does not hang on who waits.
        let _outside = context::enter(Level::Soft);
        self.buffers.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that takes whatever is written to it.
    #[derive(Debug)]
    struct Sink;

    impl BackingFile for Sink {
        fn nr_clusters(&self) -> u32 {
            5
        }

        fn nr_buffers(&self) -> u32 {
            3
        }

        fn with_buffer(&self, _: Buffer, work: &mut dyn FnMut(&mut [u8])) {
            work(&mut vec![0; CLUSTER_BYTES]);
        }

        fn submit(&self, _: Buffer, _: FileOp) {}

        fn wait(&self, _: Buffer) -> Result<(), FileError> {
            Ok(())
        }
    }

    /// Clusters that could not be emptied come after the others, each once before one comes twice,
    /// until a page leaves them.
    #[test]
    fn what_was_tried_in_vain_does_not_come_first() {
        const NR_SLOTS: usize = 8;
        let file = FileStore::new(Arc::new(Sink));
        let mut clusters: Vec<Vec<FileHandle>> = (0..4)
            .map(|_| {
                let mut filling = file.begin().expect("one is free");
                let slots = (0..NR_SLOTS).map(|_| filling.push(&[1; 40]).expect("room"));
                let slots = slots.collect();
                drop(filling.write().expect("it takes everything"));
                slots
            })
            .collect();
        for (nth, slots) in clusters.iter_mut().enumerate() {
            // 1, 2, 3 and 4 are left.
            slots.drain(nth + 1..).for_each(|slot| file.free(slot));
        }
        let try_next = || {
            let cluster = file.sparsest(&[])?;
            let was_tried = file.was_tried(cluster);
            file.note_tried(cluster);
            Some((cluster, was_tried))
        };
        for nth in (0..4)
            .map(|nth| (nth, false))
            .chain((0..3).map(|nth| (nth, true)))
        {
            assert_eq!(try_next(), Some(nth));
        }
        file.free(clusters[1].pop().expect("two are left"));
        assert_eq!(try_next(), Some((1, false)));
        assert_eq!(try_next(), Some((3, true)));
        file.free(clusters[0].pop().expect("one is left"));
        assert_eq!(try_next(), Some((2, true)), "an empty one is not sparse");
    }

    /// Two slots, the first of which has one bit turned: in none of them does it become longer than
    /// a page, or is taken for what was stored; the second is found behind it.
    #[test]
    fn a_turned_bit_hides_its_slot_alone() {
        let payloads = [[1; 40], [2; 40]];
        let mut whole = vec![0; CLUSTER_BYTES];
        for (nth, payload) in payloads.iter().enumerate() {
            let header = Header::new(Owner(nth as u64 + 5), 7, payload).encode();
            let at = nth * 2 * UNIT_BYTES;
            whole[at..at + HEADER_BYTES].copy_from_slice(&header);
            whole[at + HEADER_BYTES..][..payload.len()].copy_from_slice(payload);
        }
        let owners = |bytes: &[u8]| -> Vec<u64> {
            slots_in(3, bytes)
                .inspect(|(_, _, slot)| assert!(slot.len() <= SLOT_BYTES_MAX))
                .map(|(_, (owner, _), _)| owner.0)
                .collect()
        };
        assert_eq!(owners(&whole), [5, 6]);
        let step = if cfg!(miri) { 23 } else { 1 };
        for bit in (0..(HEADER_BYTES + payloads[0].len()) * 8).step_by(step) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(owners(&bytes), [6], "bit {bit}");
        }
    }
}
