//! What a page is brought in for.
//!
//! That a page comes says nothing of whether it will be needed again. So it comes fresh, and its
//! first use, whoever's that is, makes it an ordinary page; only another one keeps it for longer.
//! [`Word::used`] tells the two apart, for every way in which memory is used.
//!
//! Linux counterpart: `folio_mark_accessed`.

use crate::limits::PINS_PER_PAGE_MAX;
use crate::page::Word;
use crate::primary_mmu::Access;

/// What a page is brought in for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Demand {
    /// An access of the processor, which goes on as soon as the page is there: nobody sees it then.
    Trap(Access),
    /// A pin, which the page has from the moment at which it comes: nobody takes it away before it
    /// was used.
    Pin(Access),
    /// A use that the caller tells of when the page is there, by [`Word::used`].
    Use(Access),
    /// Nobody has asked for it yet: it is not written, and no sign that it was taken too early.
    Ahead,
}

impl Demand {
    /// What the page must allow.
    pub(super) fn access(self) -> Access {
        match self {
            Self::Trap(access) | Self::Pin(access) | Self::Use(access) => access,
            Self::Ahead => Access::Read,
        }
    }

    /// Whether a page that is not there, found as `word`, can be brought in for this. It may have
    /// pins, if something else took it away under them.
    pub(super) fn fits(self, word: Word) -> bool {
        !matches!(self, Self::Pin(_)) || word.pins() < PINS_PER_PAGE_MAX
    }

    /// The word of a page that has come now, and was found or made as `word`.
    pub(super) fn arrive(self, word: Word) -> Word {
        match self {
            Self::Trap(_) => word.used(),
            Self::Pin(_) => word.pinned().expect("asked before: `fits`"),
            Self::Use(_) | Self::Ahead => word,
        }
    }
}
