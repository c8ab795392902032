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
use super::header::HEADER_BYTES;
use super::zswap::unpack;
use super::{FileHandle, Owner, Zswap};
use crate::addr::{PAGE_SIZE, PageBuf};
use crate::fault::StoreError;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use lockdep::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Slots begin at multiples of so many bytes.
const UNIT_BYTES: usize = CLUSTER_BYTES >> FileHandle::UNIT_BITS;

/// The most slots of a cluster: each takes one unit at least.
pub(crate) const CLUSTER_SLOTS_MAX: usize = CLUSTER_BYTES / UNIT_BYTES;

/// The longest slot.
pub(crate) const SLOT_BYTES_MAX: usize = HEADER_BYTES + PAGE_SIZE;

/// In the count of a cluster: it is being filled or written.
const WRITING: u32 = 1 << 16;

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
    /// How many pages have a slot in each cluster; see [`WRITING`] and [`RETIRED`].
    counts: Box<[AtomicU32]>,
    /// Where the next free cluster is looked for.
    next: AtomicU32,
    buffers: Buffers,
    counters: Counters,
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
    /// If the file has fewer than 2 or more than 64 buffers.
    pub(crate) fn new(file: Arc<dyn BackingFile>) -> Self {
        let nr_clusters = file.nr_clusters().min(FileHandle::NR_CLUSTERS_MAX);
        Self {
            counts: (0..nr_clusters).map(|_| AtomicU32::new(0)).collect(),
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
        for count in &self.counts {
            match count.load(Ordering::Relaxed) {
                RETIRED => stats.retired += 1,
                0 => {}
                count => {
                    stats.clusters += 1;
                    stats.pages += u64::from(count % WRITING);
                }
            }
        }
        stats
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
            self.file.with_buffer(buffer.number, &mut |bytes| {
                let slot = &bytes[at..end.min(CLUSTER_BYTES)];
                result = unpack(slot, (owner, tag), zswap.decoders(), into);
            });
        }
        if result.is_err() {
            into.fill(0);
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Begins to fill a cluster; `None` when none is free.
    pub(crate) fn begin(&self) -> Option<Filling<'_>> {
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

    /// A page has no slot here any more.
    pub(crate) fn free(&self, handle: FileHandle) {
        // Release: pairs with the Acquire in `begin`.
        let before = self.counts[handle.cluster() as usize].fetch_sub(1, Ordering::Release);
        assert!(
            !before.is_multiple_of(WRITING),
            "a slot of a file was freed twice"
        );
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("file", &self.file)
            .finish_non_exhaustive()
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
                count.fetch_add(self.nr_slots, Ordering::Relaxed);
                Ok(Written { count })
            }
            Err(error) => {
                store.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                // A device that is full may have room again; what is broken stays so.
                let next = match error {
                    FileError::Full => 0,
                    FileError::Device { .. } | FileError::Short { .. } => RETIRED,
                };
                count.store(next, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Gives the cluster up: nothing was pushed that is needed.
    pub(crate) fn give_up(self) {
        self.store.counts[self.cluster as usize].store(0, Ordering::Relaxed);
    }
}

/// A cluster that was written: it is not taken again before this is dropped.
#[must_use = "the cluster can be free when this is dropped"]
pub(crate) struct Written<'a> {
    count: &'a AtomicU32,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `begin`.
        self.count.fetch_sub(WRITING, Ordering::Release);
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
        assert!((2..=64).contains(&nr), "a file with {nr} staging buffers");
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
        self.buffers.freed.notify_all();
    }
}
