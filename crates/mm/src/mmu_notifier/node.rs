//! A node of the interval tree: up to [`FANOUT`] slots in order of their keys.
//!
//! A search reads neither keys nor ends, but a *sieve* that is made from them: where each slot
//! begins and ends, counted from the node's first address in steps that are so large that 14 bits
//! are enough. That is two cache lines, compared many at a time. Where all slots begin and end at
//! whole steps, as pages do in a node that spans little, it tells exactly who is met; elsewhere the
//! few slots that it lets through are looked at.
//!
//! Keys and ends stand in the items alone, which a copy of the node touches anyway: a node is then
//! a third as large, and of a million intervals most time goes into finding the memory they are in.
//!
//! Linux counterpart: the nodes of lib/maple_tree.c

use core::hint::black_box;
use std::sync::Arc;
use wide::i16x16;

/// Slots in a node.
pub(super) const FANOUT: usize = 32;

/// A node other than the root that has fewer slots after something was taken out is joined with a
/// neighbour. One that was split off has two at first, where keys ascend.
pub(super) const NR_MIN: usize = FANOUT / 4;

/// Where a slot stands among its neighbours: by start, and among equal starts by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) start: u64,
    pub(super) id: u64,
}

/// What stands in a slot: an interval, or a subtree as wide as all of its intervals together.
pub(super) trait Spans {
    /// Its key; of a subtree the lowest.
    fn key(&self) -> Key;

    /// Where it ends; of a subtree the highest.
    fn end(&self) -> u64;
}

/// Slots of a node that a search has found.
pub(super) struct Overlapping<'a, T> {
    node: &'a Node<T>,
    start: u64,
    end: u64,
    /// A bit for each that the sieve let through.
    left: u32,
}

impl<T> Overlapping<'_, T> {
    /// Whether there is nothing more to look at.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.left == 0
    }
}

impl<'a, T: Spans> Iterator for Overlapping<'a, T> {
    /// Where it stands, and what it is.
    type Item = (usize, &'a Arc<T>);

    #[inline]
    fn next(&mut self) -> Option<(usize, &'a Arc<T>)> {
        while self.left != 0 {
            let at = self.left.trailing_zeros() as usize % FANOUT;
            self.left &= self.left - 1;
            if let Some(item) = &self.node.item[at]
                && self.node.is_met(&**item, self.start, self.end)
            {
                return Some((at, item));
            }
        }
        None
    }
}

/// Where slots begin and end, in steps from `base`. What is not in use is at [`NOWHERE`].
#[derive(Clone)]
#[repr(C)]
struct Sieve {
    base: u64,
    /// A step is this power of two.
    shift: u32,
    /// Every slot begins and ends at a whole step.
    is_whole: bool,
    first: [Steps; NR_STEPS],
    last: [Steps; NR_STEPS],
}

/// Where no search looks.
const NOWHERE: i16 = i16::MAX;

/// Bits of a step's number. The last address of a slot must come before [`NOWHERE`].
const STEP_BITS: u32 = i16::BITS - 2;

/// As many numbers as are compared at a time.
type Steps = [i16; NR_LANES];

const NR_LANES: usize = 16;
const LANES_MASK: u32 = (1 << NR_LANES) - 1;
const NR_STEPS: usize = FANOUT / NR_LANES;

impl Sieve {
    const EMPTY: Self = Self {
        first: [[NOWHERE; NR_LANES]; NR_STEPS],
        last: [[0; NR_LANES]; NR_STEPS],
        base: 0,
        shift: 0,
        is_whole: true,
    };

    /// A sieve for slots that begin and end there; the starts ascend.
    fn new(starts: &[u64], ends: &[u64]) -> Self {
        let mut sieve = Self::EMPTY;
        let (Some(&base), Some(&end)) = (starts.first(), ends.iter().max()) else {
            return sieve;
        };
        sieve.base = base;
        let bits = u64::BITS - (end - base).leading_zeros();
        sieve.shift = bits.saturating_sub(STEP_BITS);
        let mut edges = 0;
        for (at, (&start, &end)) in starts.iter().zip(ends).enumerate() {
            sieve.first[at / NR_LANES][at % NR_LANES] = sieve.steps(start);
            sieve.last[at / NR_LANES][at % NR_LANES] = sieve.steps(end - 1);
            edges |= (start - base) | (end - base);
        }
        sieve.is_whole = edges.trailing_zeros() >= sieve.shift;
        sieve
    }

    /// How many whole steps `address` is from the base; before it none, far behind it the most
    /// that is somewhere.
    #[inline]
    fn steps(&self, address: u64) -> i16 {
        let steps = address.saturating_sub(self.base) >> self.shift;
        steps.min(NOWHERE as u64 - 1) as i16
    }

    /// A bit for each slot that may share an address with `start..end`, which is not empty.
    #[inline(always)]
    fn let_through(&self, start: u64, end: u64) -> u32 {
        let (first, last) = (self.steps(start), self.steps(end - 1));
        let (first, last) = (i16x16::splat(first), i16x16::splat(last));
        // No branch hangs on where the range is: which slot it meets is chance, and a branch that
        // is predicted wrongly costs more than looking at all.
        let mut found = 0;
        for at in 0..NR_STEPS {
            let comes_after = i16x16::new(self.first[at]).simd_gt(last);
            let comes_before = first.simd_gt(i16x16::new(self.last[at]));
            let is_missed = (comes_after | comes_before).to_bitmask();
            found |= (!is_missed & LANES_MASK) << (at * NR_LANES);
        }
        found
    }

    /// Whether what it lets through for a range that ends there is met for certain.
    #[inline]
    fn is_exact(&self, end: u64) -> bool {
        self.is_whole && self.base < end
    }
}

/// Slots in ascending order of their keys. The first `nr` are in use.
///
/// What a search reads of a node besides the slots stands in front, with the count of its [`Arc`].
#[repr(C)]
pub(super) struct Node<T> {
    nr: usize,
    /// The highest end of all slots; 0 if there is none.
    end: u64,
    /// The number in the lowest key.
    id: u64,
    sieve: Sieve,
    item: [Option<Arc<T>>; FANOUT],
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        // Reads all counters before it raises the first: reads wait for memory together, and what
        // is atomic waits alone.
        for item in self.item.iter().flatten() {
            black_box(Arc::strong_count(item));
        }
        Self {
            nr: self.nr,
            end: self.end,
            id: self.id,
            sieve: self.sieve.clone(),
            item: self.item.clone(),
        }
    }
}

impl<T> Node<T> {
    pub(super) fn new() -> Self {
        Self {
            nr: 0,
            end: 0,
            id: 0,
            sieve: Sieve::EMPTY,
            item: [const { None }; FANOUT],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.nr
    }

    pub(super) fn is_full(&self) -> bool {
        self.nr == FANOUT
    }

    /// The item at `at`.
    #[inline]
    pub(super) fn item(&self, at: usize) -> Option<&Arc<T>> {
        self.item[at].as_ref()
    }

    /// The item at `at`. Whoever changes what it spans calls [`sift`](Self::sift).
    pub(super) fn item_mut(&mut self, at: usize) -> Option<&mut Arc<T>> {
        self.item[at].as_mut()
    }

    /// Puts `item` in front of the one at `at`. There is room.
    fn put(&mut self, at: usize, item: Arc<T>) {
        self.item[at..=self.nr].rotate_right(1);
        self.item[at] = Some(item);
        self.nr += 1;
    }

    fn take(&mut self, at: usize) -> Option<Arc<T>> {
        let item = self.item[at].take()?;
        self.item[at..self.nr].rotate_left(1);
        self.nr -= 1;
        Some(item)
    }
}

/// As wide as all slots together.
impl<T> Spans for Node<T> {
    fn key(&self) -> Key {
        Key {
            start: self.sieve.base,
            id: self.id,
        }
    }

    fn end(&self) -> u64 {
        self.end
    }
}

impl<T: Spans> Node<T> {
    /// The items whose intervals, or whose subtrees' hulls, share an address with `start..end`,
    /// which is not empty.
    #[inline(always)]
    pub(super) fn overlapping(&self, start: u64, end: u64) -> Overlapping<'_, T> {
        // Asks memory for the items before it is known which are wanted, else that would be a
        // second wait after that for the sieve.
        for at in (0..FANOUT).step_by(64 / size_of::<usize>()) {
            black_box(self.item[at].is_some());
        }
        Overlapping {
            node: self,
            start,
            end,
            left: self.sieve.let_through(start, end),
        }
    }

    /// Whether `item`, which the sieve let through, shares an address with `start..end`.
    #[inline]
    fn is_met(&self, item: &T, start: u64, end: u64) -> bool {
        self.sieve.is_exact(end) || (start < item.end() && item.key().start < end)
    }

    /// Makes the sieve anew: to be called when slots have changed, or what they span.
    pub(super) fn sift(&mut self) {
        let (mut starts, mut ends) = ([0; FANOUT], [0; FANOUT]);
        for (at, item) in self.item[..self.nr].iter().flatten().enumerate() {
            (starts[at], ends[at]) = (item.key().start, item.end());
        }
        self.sieve = Sieve::new(&starts[..self.nr], &ends[..self.nr]);
        self.end = ends.into_iter().max().unwrap_or(0);
        self.id = self.item[0].as_ref().map_or(0, |item| item.key().id);
    }

    /// How many slots have a key of at most `key`.
    pub(super) fn rank(&self, key: Key) -> usize {
        let steps = self.sieve.steps(key.start);
        let items = self.item[..self.nr].iter().flatten();
        // Only who begins in the same step is looked at.
        items
            .zip(self.sieve.first.as_flattened())
            .take_while(|&(item, &first)| first < steps || first == steps && item.key() <= key)
            .count()
    }

    /// Puts `item` in front of the one at `at`. There is room.
    pub(super) fn insert(&mut self, at: usize, item: Arc<T>) {
        self.put(at, item);
        self.sift();
    }

    /// Takes out the item at `at`.
    pub(super) fn remove(&mut self, at: usize) -> Option<Arc<T>> {
        let taken = self.take(at);
        self.sift();
        taken
    }

    /// Moves the slots from `at` on into a node of their own.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let mut right = Self::new();
        while self.nr > at
            && let Some(item) = self.take(self.nr - 1)
        {
            right.put(0, item);
        }
        self.sift();
        right.sift();
        right
    }

    /// Moves slots of `right`, whose keys are higher, to the end of this node: all of them if they
    /// fit, else so many that both hold as many. Returns whether `right` is empty now.
    pub(super) fn join(&mut self, right: &mut Self) -> bool {
        let nr = self.nr + right.nr;
        let nr_left = if nr > FANOUT { nr / 2 } else { nr };
        while self.nr < nr_left
            && let Some(item) = right.take(0)
        {
            self.put(self.nr, item);
        }
        while self.nr > nr_left
            && let Some(item) = self.take(self.nr - 1)
        {
            right.put(0, item);
        }
        self.sift();
        right.sift();
        right.nr == 0
    }
}

/// An interval as tests have it.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Interval {
    pub(super) key: Key,
    pub(super) end: u64,
}

#[cfg(test)]
impl Spans for Interval {
    fn key(&self) -> Key {
        self.key
    }

    fn end(&self) -> u64 {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Intervals so far apart that a step is many bytes: what the sieve lets through is not all
    /// met, and what is met is let through.
    #[test]
    fn a_coarse_sieve_is_looked_at_exactly() {
        let far = 1 << 60;
        let mut node = Node::new();
        for (at, (start, end)) in [
            (100, 101),
            (102, 103),
            (far, far + 1),
            (u64::MAX - 1, u64::MAX),
        ]
        .into_iter()
        .enumerate()
        {
            let key = Key { start, id: 0 };
            node.insert(at, Arc::new(Interval { key, end }));
        }
        assert!(node.sieve.shift > 0);
        #[track_caller]
        fn check(node: &Node<Interval>, start: u64, end: u64, expected: &[usize]) {
            let found: Vec<usize> = node.overlapping(start, end).map(|(at, _)| at).collect();
            assert_eq!(found, expected, "{start}..{end}");
        }
        assert_eq!(node.sieve.let_through(101, 102), 0b11, "too much");
        check(&node, 101, 102, &[]);
        check(&node, 100, 101, &[0]);
        check(&node, 99, 100, &[]);
        check(&node, 0, 100, &[]);
        check(&node, 0, 103, &[0, 1]);
        check(&node, far, far + 1, &[2]);
        check(&node, far - 1, far, &[]);
        check(&node, far + 1, far + 2, &[]);
        check(&node, far + 1, u64::MAX, &[3]);
        check(&node, 0, u64::MAX, &[0, 1, 2, 3]);
    }

    /// What spans as much as a sieve of single bytes can, and one byte more.
    #[test]
    fn a_step_is_as_small_as_can_be() {
        let widest = (1 << STEP_BITS) - 1;
        for (span, shift) in [
            (1, 0),
            (widest, 0),
            (widest + 1, 1),
            (u64::MAX, 64 - STEP_BITS),
        ] {
            let sieve = Sieve::new(&[0], &[span]);
            assert_eq!(sieve.shift, shift, "{span}");
            assert!(
                sieve.last[0][0] < NOWHERE - 1,
                "nothing behind is taken for it"
            );
            assert_eq!(sieve.is_exact(1), span.trailing_zeros() >= shift, "{span}");
        }
        assert!(
            !Sieve::new(&[5], &[6]).is_exact(5),
            "all of it comes before"
        );
        assert_eq!(Sieve::EMPTY.let_through(0, u64::MAX), 0);
    }

    /// Steps of many bytes are exact where all slots are made of them, counted from the first.
    #[test]
    fn whole_steps_are_exact() {
        const PAGE: u64 = 4096;
        let at = |page: u64| 5 + page * PAGE;
        let starts = [at(0), at(3), at(9)];
        let whole = Sieve::new(&starts, &[at(2), at(4), at(1 << 12)]);
        assert!(whole.shift > 0 && whole.is_exact(u64::MAX));
        for (page, expected) in [(0, 0b1), (1, 0b1), (2, 0), (3, 0b10), (4, 0), (9, 0b100)] {
            let found = whole.let_through(at(page), at(page) + 1);
            assert_eq!(found, expected, "the first byte of {page}");
            let found = whole.let_through(at(page + 1) - 1, at(page + 1));
            assert_eq!(found, expected, "the last byte of {page}");
        }
        for ends in [
            [at(2) + 1, at(4), at(1 << 12)],
            [at(2), at(4), at(1 << 12) - 1],
        ] {
            assert!(!Sieve::new(&starts, &ends).is_exact(u64::MAX), "{ends:?}");
        }
        let starts = [at(0), at(3) - 1, at(9)];
        let sieve = Sieve::new(&starts, &[at(2), at(4), at(1 << 12)]);
        assert!(!sieve.is_exact(u64::MAX), "one begins within a step");
    }

    /// Each slot has a bit of its own, in its place.
    #[test]
    fn every_slot_is_found_where_it_is() {
        let starts: [u64; FANOUT] = core::array::from_fn(|at| 10 + 2 * at as u64);
        let ends = starts.map(|start| start + 1);
        let sieve = Sieve::new(&starts, &ends);
        for (at, start) in starts.into_iter().enumerate() {
            assert_eq!(sieve.let_through(start, start + 1), 1 << at);
            assert_eq!(sieve.let_through(start + 1, start + 2), 0);
        }
        assert_eq!(sieve.let_through(0, u64::MAX), u32::MAX);
    }
}
