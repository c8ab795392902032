//! A block that is being emptied, for its memory to serve another size.
//!
//! Linux counterpart: `zs_compact` in `mm/zsmalloc.c`.

use super::{Class, List, NONE, Slab};
use crate::swap::SlotHandle;
use crate::swap::size_class::SizeClass;
use core::sync::atomic::Ordering::Relaxed;

/// Blocks of a class that are looked at for the emptiest.
const BLOCKS_MAX: usize = 256;

/// A class is worth compacting when one in so many of its slots is free.
const FREE_SHARE: u64 = 16;

/// A block of a size class that nothing is put into any more. When this is dropped it goes to the
/// pool if it is empty, and back to its class if not.
pub(in crate::swap) struct Isolated<'a> {
    slab: &'a Slab,
    class: SizeClass,
    index: u32,
    /// It could not be emptied before, and nothing was taken out of it since.
    was_tried: bool,
}

impl Slab {
    /// Takes the emptiest block of a class out of its list, if what is in it has room in others.
    /// Those that could not be emptied, and that nothing was taken out of since, come after all
    /// others, the one first that was tried the longest ago: a slot that cannot be moved keeps its
    /// own block alone.
    pub(in crate::swap) fn isolate(&self, class: SizeClass) -> Option<Isolated<'_>> {
        let mut list = self.classes[class.index()].lock();
        let slots_per_block = class.slots_per_block() as u64;
        let nr_slots = list.usage.nr_blocks * slots_per_block;
        let nr_free = nr_slots - list.usage.nr_slots;
        if nr_free < slots_per_block || nr_free * FREE_SHARE < nr_slots {
            return None;
        }
        let index = self.emptiest(&list)?;
        list.partial.unlink(&self.places, index);
        list.nr_isolated += 1;
        let mut block = self.blocks[index as usize].lock();
        block.is_isolated = true;
        Some(Isolated {
            slab: self,
            class,
            index,
            was_tried: block.tried > 0,
        })
    }

    fn emptiest(&self, list: &Class) -> Option<u32> {
        let blocks = list.partial.iter(&self.places).take(BLOCKS_MAX);
        blocks.min_by_key(|&index| {
            let block = self.blocks[index as usize].lock();
            (block.tried, block.nr_used)
        })
    }
}

impl Isolated<'_> {
    /// Whether this could not be emptied before, and nothing was taken out of it since.
    pub(in crate::swap) fn was_tried(&self) -> bool {
        self.was_tried
    }

    /// Whether no slot is in use.
    pub(in crate::swap) fn is_empty(&self) -> bool {
        self.slab.blocks[self.index as usize].lock().nr_used == 0
    }

    /// Calls `look` with each slot in use: its handle and what is in it.
    pub(in crate::swap) fn for_each(&self, mut look: impl FnMut(SlotHandle)) {
        for slot in 0..self.class.slots_per_block() {
            let block = self.slab.blocks[self.index as usize].lock();
            let is_used = !block.is_free(slot);
            drop(block);
            if is_used {
                look(SlotHandle::new(self.index as usize, slot));
            }
        }
    }
}

impl Drop for Isolated<'_> {
    fn drop(&mut self) {
        let mut list = self.slab.classes[self.class.index()].lock();
        let mut block = self.slab.blocks[self.index as usize].lock();
        block.is_isolated = false;
        if block.nr_used == 0 {
            drop(block);
            self.slab.retire(&mut list, self.index);
        } else {
            block.tried = list.nr_isolated;
            list.partial.push(&self.slab.places, self.index);
        }
    }
}

impl List {
    fn iter<'a>(&self, places: &'a [super::Place]) -> impl Iterator<Item = u32> + use<'a> {
        let some = |block| (block != NONE).then_some(block);
        core::iter::successors(some(self.head), move |&block| {
            some(places[block as usize].next.load(Relaxed))
        })
    }
}
