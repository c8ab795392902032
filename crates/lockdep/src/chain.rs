//! Which chains of held locks have been validated: a set without locks, and without guesses.
//!
//! A chain is a path in a trie. Its number is the place where its last step stands in the table,
//! and a step is stored as it is: 20 bits for the number of the chain before it and 43 for the
//! acquisition. Two chains share a number only if they are the same, so a hit proves every check
//! that depends on classes, modes and contexts. No digest stands for a chain, and none can collide.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::word::Word;

/// A validated chain; 0 is the empty one.
pub(crate) type ChainId = u32;

const ID_BITS: u32 = 20;
const _: () = assert!(ID_BITS + Word::NR_BITS < 64);

/// Marks keys that are pairs of an event and a class, not steps of a chain.
const PAIR: u64 = 1 << 63;

/// The key of the chain that continues `before` with `word`; never 0, as no class is 0.
#[inline(always)]
pub(crate) const fn step(before: ChainId, word: Word) -> u64 {
    (before as u64) << Word::NR_BITS | word.bits()
}

/// The key of the fact that whoever ends `event` was seen to do `word` before.
pub(crate) const fn pair(event: u32, grade: u32, word: Word) -> u64 {
    // A class has 18 bits, the grade one; the lower 26 bits of the word have no context.
    PAIR | (grade as u64) << 62 | (event as u64) << 26 | word.bits() & ((1 << 26) - 1)
}

/// Spreads a key; invertible, though nothing depends on that.
#[inline(always)]
pub(crate) const fn spread(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// How many slots the smallest table in use has. Each class that goes clears it: few under Miri.
const NR_SLOTS_FIRST: u32 = if cfg!(miri) { 1 << 7 } else { 1 << 12 };
/// How many slots a table has that is to be cleared often.
const NR_SLOTS_TIGHT: u32 = 8;
/// How many slots the table of the whole process may grow to: chains are then forgotten together.
const NR_SLOTS_GLOBAL: usize = crate::room(1 << ID_BITS);

/// In zero pages until used.
static GLOBAL_SLOTS: [AtomicU64; NR_SLOTS_GLOBAL] = [const { AtomicU64::new(0) }; NR_SLOTS_GLOBAL];

#[derive(Debug)]
enum Slots {
    Static(&'static [AtomicU64]),
    Owned(Box<[AtomicU64]>),
}

/// The set; changed under the graph's lock, read without.
#[derive(Debug)]
pub(crate) struct ChainSet {
    slots: Slots,
    /// How many of the slots are in use: a power of two.
    nr_used_slots: AtomicU32,
    nr_chains: AtomicU32,
}

/// What came of adding a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Added {
    Chain(ChainId),
    /// The table is too full: all chains must be forgotten, see [`ChainSet::clear`].
    Full,
}

impl ChainSet {
    /// The table of the process; there must be one set of it.
    pub(crate) fn global() -> Self {
        Self::over(Slots::Static(&GLOBAL_SLOTS), NR_SLOTS_FIRST)
    }

    /// A small one, for validators of their own.
    pub(crate) fn private() -> Self {
        Self::of(NR_SLOTS_FIRST)
    }

    /// The smallest one that is of use.
    pub(crate) fn tight() -> Self {
        Self::of(NR_SLOTS_TIGHT)
    }

    fn of(nr_slots: u32) -> Self {
        let slots = (0..nr_slots).map(|_| AtomicU64::new(0)).collect();
        Self::over(Slots::Owned(slots), nr_slots)
    }

    fn over(slots: Slots, nr_slots: u32) -> Self {
        Self {
            slots,
            nr_used_slots: AtomicU32::new(nr_slots),
            nr_chains: AtomicU32::new(0),
        }
    }

    fn slots(&self) -> &[AtomicU64] {
        match &self.slots {
            Slots::Static(slots) => slots,
            Slots::Owned(slots) => slots,
        }
    }

    pub(crate) fn nr_chains(&self) -> u32 {
        self.nr_chains.load(Ordering::Relaxed)
    }

    /// The chain of this key, if it was validated.
    ///
    /// The caller looks at the epoch afterwards: a chain found while the set was being cleared
    /// may mean another one.
    pub(crate) fn find(&self, key: u64) -> Option<ChainId> {
        let mask = self.nr_used_slots.load(Ordering::Relaxed) - 1;
        let mut at = Self::home(key, mask);
        loop {
            // Acquire pairs with the Release in `add`: whoever finds a chain sees its validation.
            match self.slots()[at as usize].load(Ordering::Acquire) {
                found if found == key => return Some(at),
                0 => return None,
                _ => at = Self::next(at, mask),
            }
        }
    }

    /// Adds a validated chain that is not there yet; under the graph's lock.
    pub(crate) fn add(&self, key: u64) -> Added {
        let nr_slots = self.nr_used_slots.load(Ordering::Relaxed);
        // Half full at most, so that a search ends soon, also one that a clearing overtakes.
        if self.nr_chains() >= nr_slots / 2 {
            return Added::Full;
        }
        let mask = nr_slots - 1;
        let mut at = Self::home(key, mask);
        while self.slots()[at as usize].load(Ordering::Relaxed) != 0 {
            at = Self::next(at, mask);
        }
        // Release pairs with the Acquire in `find`.
        self.slots()[at as usize].store(key, Ordering::Release);
        self.nr_chains.fetch_add(1, Ordering::Relaxed);
        Added::Chain(at)
    }

    /// Forgets all chains and, if they had filled the table, takes a larger one into use.
    ///
    /// Under the graph's lock, after the epoch has changed.
    pub(crate) fn clear(&self) {
        let nr_slots = self.nr_used_slots.load(Ordering::Relaxed);
        for slot in &self.slots()[..nr_slots as usize] {
            slot.store(0, Ordering::Relaxed);
        }
        let is_full = self.nr_chains() >= nr_slots / 2;
        if is_full && (nr_slots as usize) < self.slots().len() {
            self.nr_used_slots.store(nr_slots * 2, Ordering::Relaxed);
        }
        self.nr_chains.store(0, Ordering::Relaxed);
    }

    /// Where the search for a key begins; slot 0 is not used, as its number means the empty chain.
    fn home(key: u64, mask: u32) -> u32 {
        if mask < NR_SLOTS_TIGHT {
            // The numbers of chains are their order, whatever the classes: runs can be repeated.
            return 1;
        }
        ((spread(key) >> 32) as u32 & mask).max(1)
    }

    fn next(at: u32, mask: u32) -> u32 {
        ((at + 1) & mask).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::{ClassId, Context, Mode};

    fn word(class: u32) -> Word {
        Word::new(
            ClassId::of_key(class),
            Mode::Exclusive,
            0,
            Context::default(),
        )
    }

    #[test]
    fn a_chain_is_found_after_it_was_added_and_not_before() {
        let set = ChainSet::private();
        let mut before = 0;
        for class in 1..NR_SLOTS_FIRST / 8 {
            let key = step(before, word(class));
            assert_eq!(set.find(key), None);
            let Added::Chain(id) = set.add(key) else {
                panic!("full at {class}");
            };
            assert_eq!(set.find(key), Some(id));
            assert_ne!(id, 0);
            before = id;
        }
        set.clear();
        assert_eq!(set.find(step(0, word(1))), None);
    }

    #[test]
    fn keys_of_different_steps_differ() {
        let words = [word(1), word(2), word(1).with_mode(Mode::Shared)];
        let mut keys: Vec<u64> = words
            .iter()
            .flat_map(|&word| [0, 1, (1 << ID_BITS) - 1].map(|before| step(before, word)))
            .chain(words.iter().map(|&word| pair(8, 0, word)))
            .chain(words.iter().map(|&word| pair(8, 1, word)))
            .collect();
        let nr_keys = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), nr_keys);
    }
}
