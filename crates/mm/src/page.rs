//! The state word of a page.
//!
//! Eight bytes hold everything the memory manager knows of a page. The word changes by
//! compare-and-swap only, and whoever puts it into [`State::Moving`] owns the page until he
//! publishes the next state: no two machine operations ever meet on one page.
//!
//! ```text
//!           fault: zero or fill            detach              store
//!   Empty -----------------> Resident ~~ Evicting --> Standby ~~ Storing --> Swapped
//!     ^                        ^   ^                     |          |           |
//!     | zap, unmap, reap       |   +---- reattach -------+----------+           |
//!     +------------------------+---------------- fill -------------------------+
//! ```
//!
//! A plain arrow passes through Moving; the pairs joined by `~~` change into each other at once.
//!
//! * `Evicting`: still mapped, told to the devices or about to be. A fault or a pin *rescues* the
//!   page by taking the mark away; nobody waits for a notifier.
//! * `Storing`: still in its slot, being compressed from a copy. A fault rescues it too.
//! * `Moving`: a machine operation is under way; waiting for it is short.

use crate::addr::PageIndex;
use crate::fault::StoreError;
use crate::swap::{NoRoom, Stored};
use bytemuck::allocation::try_zeroed_slice_box;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Where a page is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// No frame and no contents: reads as zeros.
    Empty,
    /// Mapped.
    Resident,
    /// Mapped, and chosen by reclaim.
    Evicting,
    /// Owned by a thread that changes it.
    Moving,
    /// In its slot, mapped by nobody.
    Standby,
    /// In its slot, being compressed.
    Storing,
    /// In the store only.
    Swapped,
    /// The contents are lost; an access ends in an error.
    Poisoned,
}

const STATES: [State; 8] = [
    State::Empty,
    State::Resident,
    State::Evicting,
    State::Moving,
    State::Standby,
    State::Storing,
    State::Swapped,
    State::Poisoned,
];

/// Why contents can be lost, by the number that a poisoned word keeps.
const CAUSES: [StoreError; 3] = [
    StoreError::Corrupt,
    StoreError::Misplaced,
    StoreError::Unreadable,
];

/// Bits of a shadow: a page that is stored has no pins, and keeps it in their place. (One that
/// something else took away under its pins has them, and no shadow.)
pub(crate) const SHADOW_BITS: u32 = 10;

const STATE_MASK: u64 = 0x7;
const WAITERS: u64 = 1 << 3;
const DIRTY: u64 = 1 << 4;
const REFERENCED: u64 = 1 << 5;
const PROTECTED: u64 = 1 << 6;
const COPY_KIND: u64 = 3 << 7;
const COPY_IN_SLOT: u64 = 1 << 7;
const COPY_IN_FILE: u64 = 2 << 7;
const COPY_PATTERN: u64 = 3 << 7;
const LOCKED: u64 = 1 << 9;
const ACTIVE: u64 = 1 << 10;
const HAS_SHADOW: u64 = 1 << 11;
/// Of a page that is not stored. A fresh page has no pins, as a stored one: one bit says either.
const FRESH: u64 = HAS_SHADOW;
const PINS_SHIFT: u32 = 12;
const PINS_MASK: u64 = 0x3ff << PINS_SHIFT;
const TAG_SHIFT: u32 = 22;
const TAG_MASK: u64 = 0x3ff << TAG_SHIFT;
const PAYLOAD_SHIFT: u32 = 32;
const COPY_MASK: u64 = COPY_KIND | TAG_MASK | (0xffff_ffff << PAYLOAD_SHIFT);

/// A value of the state word.
///
/// | bits | meaning |
/// |---|---|
/// | 0..3 | [`State`] |
/// | 3 | somebody waits for the end of `Moving` |
/// | 4 | dirty: the stored copy, if any, is out of date |
/// | 5 | referenced: used again since the front hand passed; of a stored page, settled |
/// | 6 | write-protected at its address |
/// | 7, 8 | stored copy: 0 none, 1 in a slot, 3 a fill pattern, 2 in the file |
/// | 9 | locked: reclaim passes over it |
/// | 10 | active: the front hand passes over it while there are enough others |
/// | 11 | fresh: brought in, and not used yet; of a stored page, that the next field is a shadow |
/// | 12..22 | pins; of a stored page, how old its memory cgroup was when it was evicted |
/// | 22..32 | tag of the stored copy |
/// | 32..64 | slot, pattern, or place in the file; without a copy, what there was no room for |
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    /// A page that was never touched.
    pub const EMPTY: Self = Self(State::Empty as u64);

    /// A state without any flag.
    pub const fn of(state: State) -> Self {
        Self(state as u64)
    }

    /// A page whose contents are lost, and why.
    pub fn lost(cause: StoreError) -> Self {
        let code = CAUSES.iter().position(|&known| known == cause).unwrap_or(0) as u64;
        Self(State::Poisoned as u64 | code << PAYLOAD_SHIFT)
    }

    /// Why the contents of a poisoned page are lost.
    pub fn cause(self) -> StoreError {
        CAUSES[(self.0 >> PAYLOAD_SHIFT) as usize % CAUSES.len()]
    }

    /// The same word with as many pins as `other`.
    #[must_use]
    pub const fn with_pins_of(self, other: Self) -> Self {
        Self((self.0 & !PINS_MASK) | (other.pins() as u64) << PINS_SHIFT)
    }

    /// The state.
    pub fn state(self) -> State {
        STATES[(self.0 & STATE_MASK) as usize]
    }

    /// The same word in another state.
    #[must_use]
    pub const fn with_state(self, state: State) -> Self {
        Self((self.0 & !STATE_MASK) | state as u64)
    }

    /// Whether the contents differ from the stored copy.
    pub const fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    /// Whether the page was used again since the front hand passed.
    pub const fn is_referenced(self) -> bool {
        self.0 & REFERENCED != 0
    }

    /// Whether a write traps.
    pub const fn is_protected(self) -> bool {
        self.0 & PROTECTED != 0
    }

    /// Whether somebody waits.
    pub const fn has_waiters(self) -> bool {
        self.0 & WAITERS != 0
    }

    /// How often the page is pinned.
    pub const fn pins(self) -> u32 {
        if self.0 & HAS_SHADOW != 0 {
            return 0;
        }
        ((self.0 & PINS_MASK) >> PINS_SHIFT) as u32
    }

    /// Marks the page dirty: it is no longer what its copy says.
    #[must_use]
    pub const fn dirty(self) -> Self {
        Self(self.0 | DIRTY)
    }

    /// Marks the page clean.
    #[must_use]
    pub const fn clean(self) -> Self {
        Self(self.0 & !DIRTY)
    }

    /// The same word of a page that was brought in for whoever uses it first. One that is pinned is
    /// in use already.
    #[must_use]
    pub const fn fresh(self) -> Self {
        if self.pins() > 0 {
            return self;
        }
        Self((self.0 & !PINS_MASK) | FRESH)
    }

    /// Somebody uses the page. The first use is what the page was brought in for, and says nothing
    /// of whether it is needed again; another one does. Who uses it while it is pinned is, as far
    /// as anybody knows, the one who pinned it.
    #[must_use]
    pub const fn used(self) -> Self {
        if self.0 & FRESH != 0 {
            return Self(self.0 & !FRESH);
        }
        if self.pins() > 0 {
            return self;
        }
        self.referenced()
    }

    /// Sets the referenced mark.
    #[must_use]
    pub const fn referenced(self) -> Self {
        Self(self.0 | REFERENCED)
    }

    /// Takes the referenced mark away.
    #[must_use]
    pub const fn unreferenced(self) -> Self {
        Self(self.0 & !REFERENCED)
    }

    /// Whether a stored page was looked at for a smaller slot. A page is referenced while it is in
    /// a frame, so the two share a bit.
    #[cfg(feature = "zstd")]
    pub const fn is_settled(self) -> bool {
        self.is_referenced()
    }

    /// Marks a stored page settled.
    #[cfg(feature = "zstd")]
    #[must_use]
    pub const fn settled(self) -> Self {
        self.referenced()
    }

    /// The same word of a page that is stored no more.
    #[must_use]
    pub const fn unsettled(self) -> Self {
        self.unreferenced()
    }

    /// Whether the page is active.
    pub const fn is_active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    /// Makes the page active. A locked one is not: no hand would make it inactive again.
    #[must_use]
    pub const fn active(self) -> Self {
        if self.is_locked() {
            return self;
        }
        Self(self.0 | ACTIVE)
    }

    /// Makes the page inactive.
    #[must_use]
    pub const fn inactive(self) -> Self {
        Self(self.0 & !ACTIVE)
    }

    /// The shadow of a stored page, if it has one.
    pub fn shadow(self) -> Option<u16> {
        let shadow = (self.0 & PINS_MASK) >> PINS_SHIFT;
        (self.0 & HAS_SHADOW != 0).then_some(shadow as u16)
    }

    /// The same word of a page whose contents are in the store only, as its copy says: of its use
    /// nothing is left.
    #[must_use]
    pub const fn swapped(self) -> Self {
        let stored = self.with_state(State::Swapped).clean().unprotected();
        stored.without_shadow().unreferenced().inactive()
    }

    /// The same word with a shadow; of a page without pins, that is being stored.
    ///
    /// # Panics
    ///
    /// If the page is pinned, or the shadow has more than ten bits.
    #[must_use]
    pub fn with_shadow(self, shadow: u16) -> Self {
        assert!(self.pins() == 0, "a pinned page was stored");
        assert!(shadow >> SHADOW_BITS == 0, "a shadow of {shadow}");
        Self((self.0 & !PINS_MASK) | HAS_SHADOW | u64::from(shadow) << PINS_SHIFT)
    }

    /// The same word without a shadow.
    #[must_use]
    pub const fn without_shadow(self) -> Self {
        if self.0 & HAS_SHADOW == 0 {
            return self;
        }
        Self(self.0 & !(HAS_SHADOW | PINS_MASK))
    }

    /// Marks the page write-protected.
    #[must_use]
    pub const fn protected(self) -> Self {
        Self(self.0 | PROTECTED)
    }

    /// Marks the page writable.
    #[must_use]
    pub const fn unprotected(self) -> Self {
        Self(self.0 & !PROTECTED)
    }

    /// Whether the page is locked.
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// Locks the page.
    #[must_use]
    pub const fn locked(self) -> Self {
        Self(self.inactive().0 | LOCKED)
    }

    /// Unlocks the page.
    #[must_use]
    pub const fn unlocked(self) -> Self {
        Self(self.0 & !LOCKED)
    }

    const fn waiters(self) -> Self {
        Self(self.0 | WAITERS)
    }

    const fn no_waiters(self) -> Self {
        Self(self.0 & !WAITERS)
    }

    /// One pin more, which is a use, or `None` when the page has as many as it can have.
    ///
    /// # Panics
    ///
    /// If the page is not mapped.
    pub fn pinned(self) -> Option<Self> {
        assert!(self.is_mapped(), "pinned a page that is not mapped");
        let used = self.used();
        (used.pins() < crate::limits::PINS_PER_PAGE_MAX).then_some(Self(used.0 + (1 << PINS_SHIFT)))
    }

    /// One pin less.
    ///
    /// # Panics
    ///
    /// If the page has no pin: pins come and go through guards, so this is a bug of this crate.
    #[must_use]
    pub fn unpinned(self) -> Self {
        assert!(self.pins() > 0, "unpinned a page without a pin");
        Self(self.0 - (1 << PINS_SHIFT))
    }

    /// The stored copy, if there is one.
    pub fn copy(self) -> Option<Stored> {
        let payload = (self.0 >> PAYLOAD_SHIFT) as u32;
        let tag = ((self.0 & TAG_MASK) >> TAG_SHIFT) as u16;
        match self.0 & COPY_KIND {
            0 => None,
            COPY_PATTERN => Some(Stored::SameFilled(payload)),
            COPY_IN_FILE => Some(Stored::in_file(payload, tag)),
            _ => Some(Stored::from_slot_parts(payload, tag)),
        }
    }

    /// The same word with a stored copy.
    #[must_use]
    pub fn with_copy(self, stored: Stored) -> Self {
        let kind = match stored {
            Stored::SameFilled(_) => COPY_PATTERN,
            Stored::Slot { .. } => COPY_IN_SLOT,
            Stored::File { .. } => COPY_IN_FILE,
        };
        Self(
            (self.0 & !COPY_MASK)
                | kind
                | ((u64::from(stored.tag()) << TAG_SHIFT) & TAG_MASK)
                | (u64::from(stored.payload()) << PAYLOAD_SHIFT),
        )
    }

    /// What the store had no room for when the page was to be stored. The contents have not changed
    /// since: a page that is used, or given up, forgets it.
    pub fn no_room(self) -> Option<NoRoom> {
        if self.0 & COPY_KIND != 0 {
            return None;
        }
        NoRoom::from_code((self.0 >> PAYLOAD_SHIFT) as u32)
    }

    /// The same word without a stored copy, and with the reason why there is none.
    #[must_use]
    pub fn with_no_room(self, no_room: NoRoom) -> Self {
        Self((self.0 & !COPY_MASK) | u64::from(no_room.code()) << PAYLOAD_SHIFT)
    }

    /// The same word without a stored copy.
    #[must_use]
    pub const fn without_copy(self) -> Self {
        Self(self.0 & !COPY_MASK)
    }

    /// Whether the page is mapped and may be used through its address.
    pub fn is_mapped(self) -> bool {
        matches!(self.state(), State::Resident | State::Evicting)
    }

    /// Whether the contents are in a frame, mapped or not.
    pub fn holds_frame(self) -> bool {
        self.is_mapped() || self.is_detached()
    }

    /// Whether reclaim may look at the page: it is mapped and not locked.
    pub fn is_evictable(self) -> bool {
        self.is_mapped() && !self.is_locked()
    }

    /// Whether the contents are in the slot.
    pub fn is_detached(self) -> bool {
        matches!(self.state(), State::Standby | State::Storing)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state())?;
        for (is_set, name) in [
            (self.is_dirty(), "dirty"),
            (self.is_referenced(), "referenced"),
            (self.is_protected(), "protected"),
            (self.is_active(), "active"),
            (self.has_waiters(), "waiters"),
        ] {
            if is_set {
                write!(f, "+{name}")?;
            }
        }
        if self.pins() > 0 {
            write!(f, "+pins={}", self.pins())?;
        }
        if let Some(copy) = self.copy() {
            write!(f, "+{copy:?}")?;
        }
        Ok(())
    }
}

/// The state words of a mapping. Those that nobody writes take no memory.
#[derive(Debug)]
pub(crate) struct PageTable {
    words: Box<[AtomicU64]>,
}

impl PageTable {
    /// Every page is empty; `None` when there is no memory for the words.
    pub(crate) fn new(nr_pages: u32) -> Option<Self> {
        const { assert!(Word::EMPTY.0 == 0) };
        let words = try_zeroed_slice_box(nr_pages as usize).ok()?;
        Some(Self { words })
    }

    /// The word of `page`.
    pub(crate) fn load(&self, page: PageIndex) -> Word {
        // SeqCst: acquires what the last owner did to the page. And in one order with the marks
        // that say that a mapping or its address space is gone: whoever sets such a mark and then
        // reads the word, and whoever changes the word and then reads the mark, do not miss each
        // other. The same holds for a bracket that finds nobody to tell.
        Word(self.words[page as usize].load(Ordering::SeqCst))
    }

    /// Puts `next` in place of `seen`; fails when the word has changed since.
    pub(crate) fn try_change(&self, page: PageIndex, seen: Word, next: Word) -> Result<(), Word> {
        let word = &self.words[page as usize];
        // SeqCst: pairs with `load`, see there.
        match word.compare_exchange(seen.0, next.0, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Ok(()),
            Err(found) => Err(Word(found)),
        }
    }

    /// Takes ownership of a page found as `seen`.
    pub(crate) fn try_own(&self, page: PageIndex, seen: Word) -> Result<Word, Word> {
        assert!(
            seen.state() != State::Moving,
            "owned a page that has an owner"
        );
        self.try_change(page, seen, seen.with_state(State::Moving))
            .map(|()| seen)
    }

    /// Ends an ownership; returns whether somebody waits for it.
    pub(crate) fn publish(&self, page: PageIndex, next: Word) -> bool {
        assert!(
            next.state() != State::Moving,
            "published a page that still moves"
        );
        let word = &self.words[page as usize];
        // SeqCst: pairs with `load`; the machine operation is done before anybody sees the new
        // state. Takes over the mark that a waiter set.
        let before = Word(word.swap(next.no_waiters().0, Ordering::SeqCst));
        assert!(
            before.state() == State::Moving,
            "published a page that was not owned"
        );
        before.has_waiters()
    }

    /// Notes that somebody waits for the owner of `page`; false when nobody owns it any more.
    pub(crate) fn note_waiter(&self, page: PageIndex) -> bool {
        let seen = self.load(page);
        seen.state() == State::Moving
            && (seen.has_waiters() || self.try_change(page, seen, seen.waiters()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: Word, expected: &str) {
        assert_eq!(format!("{word:?}"), expected);
    }

    #[test]
    fn words_keep_their_parts_apart() {
        let stored = Stored::from_slot_parts(0xdead_beef, 0x3ff);
        let word = Word::of(State::Resident).dirty().with_copy(stored);
        assert_eq!(word.copy(), Some(stored));
        let pinned = word.pinned().expect("room for a pin");
        assert_eq!((pinned.pins(), pinned.copy()), (1, Some(stored)));
        assert_eq!(pinned.unpinned(), word.referenced());
        assert_eq!(pinned.without_copy().pins(), 1);
        check(Word::EMPTY, "Empty");
        check(
            Word::of(State::Standby).dirty().referenced(),
            "Standby+dirty+referenced",
        );
        check(
            word.without_copy().clean().protected(),
            "Resident+protected",
        );
        let shaded = Word::of(State::Swapped)
            .with_copy(stored)
            .with_shadow(0x3ff);
        assert_eq!((shaded.pins(), shaded.shadow()), (0, Some(0x3ff)));
        assert_eq!((shaded.copy(), word.shadow()), (Some(stored), None));
        let filed = Stored::in_file(0, 0x155);
        let in_file = Word::of(State::Swapped).with_copy(filed);
        assert_eq!((in_file.copy(), in_file.no_room()), (Some(filed), None));
        let bare = Word::of(State::Swapped).with_copy(stored);
        assert_eq!(shaded.without_shadow(), bare);
        assert_eq!(pinned.without_shadow(), pinned);
        assert_eq!(
            Word::lost(StoreError::Corrupt).with_pins_of(shaded).pins(),
            0
        );
        check(Word::of(State::Resident).active(), "Resident+active");
        for state in STATES {
            assert_eq!(word.with_state(state).state(), state);
        }
    }

    #[test]
    fn the_first_use_leaves_no_mark() {
        let stored = Stored::from_slot_parts(0xdead_beef, 0x3ff);
        let word = Word::of(State::Resident).with_copy(stored);
        assert_eq!(
            (word.fresh().pins(), word.fresh().copy()),
            (0, Some(stored))
        );
        assert_eq!(word.fresh().used(), word);
        assert_eq!(word.fresh().used().used(), word.referenced());
        let twice = word.fresh().pinned().and_then(Word::pinned);
        let pinned = twice.expect("room for two pins");
        assert_eq!((pinned.fresh(), pinned.used()), (pinned, pinned));
        assert_eq!(pinned.unpinned().unpinned(), word);
    }

    #[test]
    fn pins_end_at_their_bound() {
        let mut word = Word::of(State::Resident);
        for _ in 0..crate::limits::PINS_PER_PAGE_MAX {
            word = word.pinned().expect("below the bound");
        }
        assert_eq!(word.pinned(), None);
        assert_eq!((word.state(), word.copy()), (State::Resident, None));
    }

    #[test]
    fn an_owner_is_told_of_waiters() {
        let table = PageTable::new(2).expect("a few bytes");
        assert!(!table.note_waiter(1));
        let seen = table.try_own(1, Word::EMPTY).expect("nobody owns it");
        assert!(table.note_waiter(1));
        assert!(
            table
                .try_change(1, seen, Word::of(State::Resident))
                .is_err()
        );
        assert!(table.publish(1, Word::of(State::Resident)));
        check(table.load(1), "Resident");
    }
}
