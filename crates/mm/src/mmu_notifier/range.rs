//! What a bracket is about: which addresses, which change, and whether its callbacks may block.

use crate::addr::{PAGE_SIZE, Vaddr};
use core::fmt;

/// Names one address space among all of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MmId(pub u64);

/// What happens to the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// The mapping goes away, and its addresses may be used for something else
    /// (`MMU_NOTIFY_UNMAP`).
    Unmap,
    /// The pages leave their addresses and the mapping stays: a later fault finds the same
    /// contents, or new ones (`MMU_NOTIFY_CLEAR`).
    Clear,
    /// The same pages stay, with other access rights (`MMU_NOTIFY_PROTECTION_VMA` and
    /// `MMU_NOTIFY_PROTECTION_PAGE`).
    Protection,
    /// The address space is torn down (`MMU_NOTIFY_RELEASE`).
    Release,
}

impl Event {
    /// Every event, in the order in which they are declared.
    pub const ALL: [Self; 4] = [Self::Unmap, Self::Clear, Self::Protection, Self::Release];

    /// The event in lower case, for messages and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmap => "unmap",
            Self::Clear => "clear",
            Self::Protection => "protection",
            Self::Release => "release",
        }
    }
}

/// Whether the callbacks of a bracket may block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Mode {
    /// They may take locks and wait for their devices, and cannot refuse.
    Blockable,
    /// They may only try, and refuse where trying fails.
    NonBlock,
}

impl Mode {
    /// Both modes, in the order in which they are declared.
    pub const ALL: [Self; 2] = [Self::Blockable, Self::NonBlock];
}

/// The subject of a bracket.
///
/// # Invariants
///
/// `start < end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The address space.
    pub mm: MmId,
    /// The first address.
    pub start: Vaddr,
    /// One past the last address.
    pub end: Vaddr,
    /// What happens to the range.
    pub event: Event,
    /// Whether the callbacks may block.
    pub mode: Mode,
}

impl Range {
    /// Whether the range shares an address with `start..end`; neighbours share none.
    pub const fn overlaps(&self, start: Vaddr, end: Vaddr) -> bool {
        self.start.0 < end.0 && start.0 < self.end.0
    }

    /// The number of pages that the range touches.
    pub const fn pages(&self) -> u64 {
        let size = PAGE_SIZE as u64;
        self.end.0.div_ceil(size) - self.start.0 / size
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}..{}", self.event.name(), self.start, self.end)
    }
}
