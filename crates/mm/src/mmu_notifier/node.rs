//! A node of the interval tree: up to [`FANOUT`] slots in order of their keys.
//!
//! Starts and ends stand in arrays of their own, so that a search reads two cache lines of each and
//! nothing else of a node that it only passes.
//!
//! Linux counterpart: the nodes of lib/maple_tree.c

use core::hint::black_box;

/// Slots in a node.
pub(super) const FANOUT: usize = 16;

/// Slots that a node other than the root keeps at least; below, it is joined with a neighbour.
pub(super) const NR_MIN: usize = FANOUT / 4;

/// Where a slot stands among its neighbours: by start, and among equal starts by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) start: u64,
    pub(super) id: u64,
}

/// Slots of a node that a search has found.
pub(super) struct Overlapping<'a, T> {
    items: &'a [Option<T>; FANOUT],
    /// A bit for each.
    left: u32,
}

impl<'a, T> Iterator for Overlapping<'a, T> {
    /// Where it stands, and what it is.
    type Item = (usize, &'a T);

    #[inline]
    fn next(&mut self) -> Option<(usize, &'a T)> {
        if self.left == 0 {
            return None;
        }
        let at = self.left.trailing_zeros() as usize % FANOUT;
        self.left &= self.left - 1;
        self.items[at].as_ref().map(|item| (at, item))
    }
}

/// One slot, taken out of its node. In a leaf it is an interval, above it is a subtree: then the
/// key is its lowest, and the end its highest.
pub(super) struct Slot<T> {
    pub(super) key: Key,
    pub(super) end: u64,
    pub(super) item: T,
}

/// Slots in ascending order of their keys. The first `nr` are in use; the others end at 0, where
/// nothing is found.
#[derive(Clone)]
#[repr(C)]
pub(super) struct Node<T> {
    end: [u64; FANOUT],
    start: [u64; FANOUT],
    item: [Option<T>; FANOUT],
    nr: usize,
    id: [u64; FANOUT],
}

impl<T> Node<T> {
    pub(super) fn new() -> Self {
        Self {
            nr: 0,
            end: [0; FANOUT],
            start: [0; FANOUT],
            item: [const { None }; FANOUT],
            id: [0; FANOUT],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.nr
    }

    pub(super) fn is_full(&self) -> bool {
        self.nr == FANOUT
    }

    pub(super) fn key(&self, at: usize) -> Key {
        Key {
            start: self.start[at],
            id: self.id[at],
        }
    }

    /// The item at `at`.
    #[inline]
    pub(super) fn item(&self, at: usize) -> Option<&T> {
        self.item[at].as_ref()
    }

    /// The item at `at`, which is in use.
    pub(super) fn item_mut(&mut self, at: usize) -> Option<&mut T> {
        self.item[at].as_mut()
    }

    /// The highest end of all slots; 0 if there is none.
    pub(super) fn end_max(&self) -> u64 {
        self.end[..self.nr].iter().copied().max().unwrap_or(0)
    }

    /// The items whose intervals, or whose subtrees' hulls, share an address with `start..end`.
    #[inline]
    pub(super) fn overlapping(&self, start: u64, end: u64) -> Overlapping<'_, T> {
        // No branch hangs on where the range is: which slot it meets is chance, and a branch that
        // is predicted wrongly costs more than looking at all.
        let mut found = 0_u32;
        // Asks memory for the items before it is known which are wanted, else that would be a
        // second wait after that for the bounds.
        for at in (0..FANOUT).step_by((64 / size_of::<Option<T>>()).max(1)) {
            black_box(self.item[at].is_some());
        }
        for at in 0..FANOUT {
            let is_met = (start < self.end[at]) & (self.start[at] < end);
            found |= u32::from(is_met) << at;
        }
        Overlapping {
            items: &self.item,
            left: found,
        }
    }

    /// How many slots have a key of at most `key`.
    pub(super) fn rank(&self, key: Key) -> usize {
        (0..self.nr).take_while(|&at| self.key(at) <= key).count()
    }

    /// Puts `slot` in front of the one at `at`. There is room.
    pub(super) fn insert(&mut self, at: usize, slot: Slot<T>) {
        self.end.copy_within(at..self.nr, at + 1);
        self.start.copy_within(at..self.nr, at + 1);
        self.id.copy_within(at..self.nr, at + 1);
        self.item[at..=self.nr].rotate_right(1);
        self.nr += 1;
        self.set_bounds(at, slot.key, slot.end);
        self.item[at] = Some(slot.item);
    }

    /// Takes out the slot at `at`.
    pub(super) fn remove(&mut self, at: usize) -> Option<Slot<T>> {
        let item = self.item[at].take()?;
        let (key, end) = (self.key(at), self.end[at]);
        self.end.copy_within(at + 1..self.nr, at);
        self.start.copy_within(at + 1..self.nr, at);
        self.id.copy_within(at + 1..self.nr, at);
        self.item[at..self.nr].rotate_left(1);
        self.nr -= 1;
        self.end[self.nr] = 0;
        Some(Slot { key, end, item })
    }

    /// Says anew what the subtree at `at` spans.
    pub(super) fn set_bounds(&mut self, at: usize, key: Key, end: u64) {
        self.start[at] = key.start;
        self.id[at] = key.id;
        self.end[at] = end;
    }

    /// Moves the slots from `at` on into a node of their own.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let mut right = Self::new();
        while self.nr > at {
            let Some(slot) = self.remove(self.nr - 1) else {
                break;
            };
            right.insert(0, slot);
        }
        right
    }

    /// Moves slots of `right`, whose keys are higher, to the end of this node: all of them if they
    /// fit, else so many that both hold as many. Returns whether `right` is empty now.
    pub(super) fn join(&mut self, right: &mut Self) -> bool {
        let nr = self.nr + right.nr;
        if nr > FANOUT {
            let half = nr / 2;
            while self.nr < half
                && let Some(slot) = right.remove(0)
            {
                self.insert(self.nr, slot);
            }
            while self.nr > half
                && let Some(slot) = self.remove(self.nr - 1)
            {
                right.insert(0, slot);
            }
            return false;
        }
        while right.nr > 0
            && let Some(slot) = right.remove(0)
        {
            self.insert(self.nr, slot);
        }
        true
    }
}
