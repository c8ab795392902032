//! Slots of many sizes in blocks that were all made at start.
//!
//! A block belongs to one size class while any slot of it is in use, and to the pool otherwise.
//! A class keeps a list of those of its blocks that have a free slot.
//!
//! # Locks
//!
//! ```text
//! class -> pool -> block
//! ```
//! A reader takes the block's lock alone. The links of the lists are atomics only because safe
//! Rust has no other way to say "guarded by the lock of the list that the block is in": they are
//! read and written under that lock, so `Relaxed` is enough. A block goes from one list to
//! another under both locks.
//!
//! A block that is being emptied (`Isolated`) is in no list: nothing is put into it, and whoever
//! takes its last slot away leaves it to the one who empties it.

mod isolated;

use super::SlotHandle;
use super::size_class::{BLOCK_BYTES, NR_CLASSES, SLOTS_PER_BLOCK_MAX, SizeClass};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use lockdep::sync::{Mutex, MutexGuard};

/// "No block" in a link.
const NONE: u32 = u32::MAX;

/// A block is sparse when one in so many of its slots is in use.
const SPARSE_SHARE: u32 = 4;

const WORDS: usize = SLOTS_PER_BLOCK_MAX / 64;

pub(super) struct Slab {
    classes: Box<[Mutex<Class>]>,
    /// Blocks that no class has, most recently used on top: its memory is there already.
    pool: Mutex<List>,
    places: Box<[Place]>,
    blocks: Box<[Mutex<Block>]>,
}

/// The blocks of one class that have a free slot, and what the class holds.
struct Class {
    partial: List,
    usage: ClassUsage,
    /// Blocks that were to be emptied so far.
    nr_isolated: u64,
}

/// What a class holds, and has held.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct ClassUsage {
    /// Slots in use.
    pub(super) nr_slots: u64,
    /// Blocks with a slot in use.
    pub(super) nr_blocks: u64,
    /// Slots taken since the start.
    pub(super) nr_taken: u64,
}

struct List {
    head: u32,
}

/// Where a block is.
struct Place {
    next: AtomicU32,
    prev: AtomicU32,
    /// The class that the block belongs to. Does not change while a slot is in use, so who holds
    /// a handle may read it without a lock.
    class: AtomicU8,
}

struct Block {
    /// Bit `w` is set while `free[w]` is not zero.
    summary: u64,
    /// A bit for each free slot.
    free: [u64; WORDS],
    nr_used: u32,
    is_isolated: bool,
    /// If nothing was taken out of it since it could not be emptied: how many of its class had been
    /// tried by then. Zero otherwise.
    tried: u64,
    nr_slots: u32,
    slot_bytes: u32,
    /// Of the last store into this block.
    sequence: u32,
    data: Box<[u8]>,
}

// The summary is one word.
const _: () = assert!(WORDS <= 64);

impl Slab {
    pub(super) fn new(nr_blocks: usize) -> Self {
        assert!(
            nr_blocks <= SlotHandle::NR_BLOCKS_MAX,
            "too large a store for its handles"
        );
        let class = || Class {
            partial: List { head: NONE },
            usage: ClassUsage::default(),
            nr_isolated: 0,
        };
        let slab = Self {
            classes: (0..NR_CLASSES)
                .map(|_| Mutex::new("zswap.class", class()))
                .collect(),
            pool: Mutex::new("zswap.pool", List { head: NONE }),
            places: (0..nr_blocks).map(|_| Place::new()).collect(),
            blocks: (0..nr_blocks)
                .map(|_| Mutex::new("zswap.block", Block::new()))
                .collect(),
        };
        let mut pool = slab.pool.lock();
        for block in (0..nr_blocks as u32).rev() {
            pool.push(&slab.places, block);
        }
        drop(pool);
        slab
    }

    /// Takes a slot and calls `write` with it and with the number of this store; `None` if no
    /// slot of the class is free and no block either.
    pub(super) fn insert(
        &self,
        class: SizeClass,
        write: impl FnOnce(&mut [u8], u32),
    ) -> Option<(SlotHandle, u32)> {
        let mut list = self.classes[class.index()].lock();
        let (index, mut block) = self.block_with_room(class, &mut list)?;
        let slot = block.take();
        list.usage.nr_slots += 1;
        list.usage.nr_taken += 1;
        if block.is_full() {
            list.partial.unlink(&self.places, index);
        }
        drop(list);
        let sequence = block.next_sequence();
        write(block.slot_mut(slot), sequence);
        Some((SlotHandle::new(index as usize, slot), sequence))
    }

    /// Whether a slot of the class is free, or a block.
    pub(super) fn has_room(&self, class: SizeClass) -> bool {
        let list = self.classes[class.index()].lock();
        list.partial.head != NONE || self.pool.lock().head != NONE
    }

    /// Calls `read` with the slot.
    pub(super) fn read<R>(&self, handle: SlotHandle, read: impl FnOnce(&[u8]) -> R) -> R {
        let block = self.block(handle);
        block.assert_used(handle.slot());
        read(block.slot(handle.slot()))
    }

    /// The same, unless the slot has been given back.
    pub(super) fn read_if_used<R>(
        &self,
        handle: SlotHandle,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let block = self.block(handle);
        (!block.is_free(handle.slot())).then(|| read(block.slot(handle.slot())))
    }

    /// Calls `change` with the slot.
    #[cfg(test)]
    pub(super) fn modify(&self, handle: SlotHandle, change: impl FnOnce(&mut [u8])) {
        let mut block = self.block(handle);
        block.assert_used(handle.slot());
        change(block.slot_mut(handle.slot()));
    }

    /// Gives the slot back, after `wipe` made its contents unusable. Says whether its block has
    /// become sparse by that.
    pub(super) fn remove(&self, handle: SlotHandle, wipe: impl FnOnce(&mut [u8])) -> bool {
        let mut list = self.classes[self.class_of(handle).index()].lock();
        let index = handle.block() as u32;
        let mut block = self.block(handle);
        block.assert_used(handle.slot());
        wipe(block.slot_mut(handle.slot()));
        let was_full = block.is_full();
        block.give_back(handle.slot());
        list.usage.nr_slots -= 1;
        if block.is_isolated {
            return false;
        }
        let is_sparse = block.nr_used == block.nr_slots / SPARSE_SHARE;
        if block.nr_used == 0 {
            if !was_full {
                list.partial.unlink(&self.places, index);
            }
            drop(block);
            self.retire(&mut list, index);
        } else if was_full {
            list.partial.push(&self.places, index);
        }
        is_sparse
    }

    /// A block without a slot in use goes back to the pool.
    fn retire(&self, list: &mut Class, index: u32) {
        list.usage.nr_blocks -= 1;
        self.pool.lock().push(&self.places, index);
    }

    /// The class of a slot in use.
    pub(super) fn class_of(&self, handle: SlotHandle) -> SizeClass {
        SizeClass::from_index(self.places[handle.block()].class.load(Relaxed))
    }

    pub(super) fn usage(&self, class: SizeClass) -> ClassUsage {
        self.classes[class.index()].lock().usage
    }

    pub(super) fn nr_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, handle: SlotHandle) -> MutexGuard<'_, Block> {
        self.blocks[handle.block()].lock()
    }

    /// The first block of the class's list, locked; one out of the pool if the list is empty.
    fn block_with_room(
        &self,
        class: SizeClass,
        list: &mut Class,
    ) -> Option<(u32, MutexGuard<'_, Block>)> {
        if list.partial.head != NONE {
            let index = list.partial.head;
            return Some((index, self.blocks[index as usize].lock()));
        }
        let index = self.pool.lock().pop(&self.places)?;
        self.places[index as usize]
            .class
            .store(class.index() as u8, Relaxed);
        list.partial.push(&self.places, index);
        list.usage.nr_blocks += 1;
        let mut block = self.blocks[index as usize].lock();
        block.format(class);
        Some((index, block))
    }
}

impl Place {
    const fn new() -> Self {
        Self {
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
            class: AtomicU8::new(0),
        }
    }
}

impl List {
    fn push(&mut self, places: &[Place], block: u32) {
        let place = &places[block as usize];
        place.prev.store(NONE, Relaxed);
        place.next.store(self.head, Relaxed);
        if self.head != NONE {
            places[self.head as usize].prev.store(block, Relaxed);
        }
        self.head = block;
    }

    fn pop(&mut self, places: &[Place]) -> Option<u32> {
        let block = (self.head != NONE).then_some(self.head)?;
        self.unlink(places, block);
        Some(block)
    }

    fn unlink(&mut self, places: &[Place], block: u32) {
        let place = &places[block as usize];
        let (next, prev) = (place.next.load(Relaxed), place.prev.load(Relaxed));
        match prev {
            NONE => {
                assert_eq!(self.head, block, "block {block} is not in this list");
                self.head = next;
            }
            prev => places[prev as usize].next.store(next, Relaxed),
        }
        if next != NONE {
            places[next as usize].prev.store(prev, Relaxed);
        }
    }
}

impl Block {
    fn new() -> Self {
        Self {
            summary: 0,
            free: [0; WORDS],
            nr_used: 0,
            is_isolated: false,
            tried: 0,
            nr_slots: 0,
            slot_bytes: 0,
            sequence: 0,
            // Large enough for the allocator to hand out pages that nobody touched yet: a block
            // costs address space until it is used.
            data: vec![0; BLOCK_BYTES].into_boxed_slice(),
        }
    }

    /// Cuts an empty block into slots of `class`, all free; they hold what the block held before.
    fn format(&mut self, class: SizeClass) {
        assert_eq!(self.nr_used, 0, "a block in use changed its size class");
        self.tried = 0;
        self.nr_slots = class.slots_per_block() as u32;
        self.slot_bytes = class.slot_bytes() as u32;
        self.summary = 0;
        for (w, word) in self.free.iter_mut().enumerate() {
            let bits = (self.nr_slots as usize).saturating_sub(w * 64).min(64);
            *word = if bits == 64 {
                u64::MAX
            } else {
                (1 << bits) - 1
            };
            self.summary |= u64::from(bits != 0) << w;
        }
    }

    fn is_full(&self) -> bool {
        self.nr_used == self.nr_slots
    }

    /// Takes the first free slot: two words are looked at, whatever the block holds.
    fn take(&mut self) -> usize {
        assert!(self.summary != 0, "a full block was in its class's list");
        let w = self.summary.trailing_zeros() as usize;
        let bit = self.free[w].trailing_zeros() as usize;
        self.free[w] &= self.free[w] - 1;
        if self.free[w] == 0 {
            self.summary &= !(1 << w);
        }
        self.nr_used += 1;
        w * 64 + bit
    }

    fn give_back(&mut self, slot: usize) {
        self.free[slot / 64] |= 1 << (slot % 64);
        self.summary |= 1 << (slot / 64);
        self.nr_used -= 1;
        self.tried = 0;
    }

    fn assert_used(&self, slot: usize) {
        assert!(
            slot < self.nr_slots as usize,
            "slot {slot} is not in its block"
        );
        assert!(
            !self.is_free(slot),
            "slot {slot} is not in use: it was freed twice, or read after"
        );
    }

    fn is_free(&self, slot: usize) -> bool {
        self.free[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// Numbers stores from one; zero is left out when the numbers wrap.
    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    fn slot(&self, slot: usize) -> &[u8] {
        let start = slot * self.slot_bytes as usize;
        &self.data[start..start + self.slot_bytes as usize]
    }

    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        let start = slot * self.slot_bytes as usize;
        &mut self.data[start..start + self.slot_bytes as usize]
    }
}
