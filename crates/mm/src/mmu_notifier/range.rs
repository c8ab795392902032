//! What a bracket is about: which addresses, which change, and whether its callbacks may block.
//!
//! Linux counterpart: struct mmu_notifier_range in include/linux/mmu_notifier.h

use crate::addr::{PAGE_SIZE, Vaddr};
use core::fmt;

/// Names one address space among all of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MmId(pub u64);

/// Names who began a change for a device: that device need not be told of it.
///
/// The number is the device's own, for instance that of its memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner(pub u64);

/// What happens to the range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Event {
    /// The mapping goes away, and its addresses may be used for something else
    /// (`MMU_NOTIFY_UNMAP`).
    Unmap,
    /// The pages leave their addresses and the mapping stays: a later fault finds the same
    /// contents, or new ones (`MMU_NOTIFY_CLEAR`).
    Clear,
    /// The same pages stay, with other access rights for a part of the mapping
    /// (`MMU_NOTIFY_PROTECTION_VMA`).
    Protection,
    /// The same pages stay, and single ones of them may be written no more, or again
    /// (`MMU_NOTIFY_PROTECTION_PAGE`).
    ProtectionPage,
    /// The same pages stay and are protected, to find out which are written
    /// (`MMU_NOTIFY_SOFT_DIRTY`).
    SoftDirty,
    /// The address space is torn down (`MMU_NOTIFY_RELEASE`).
    Release,
    /// The pages are collected to go into the memory of a device, the owner
    /// (`MMU_NOTIFY_MIGRATE`). The owner collects them itself and is not told.
    Migrate,
    /// A device, the owner, takes the pages for itself, or gives them back and there is no owner
    /// (`MMU_NOTIFY_EXCLUSIVE`). The owner is not told.
    Exclusive,
}

impl Event {
    /// Every event, in the order in which they are declared.
    pub const ALL: [Self; 8] = [
        Self::Unmap,
        Self::Clear,
        Self::Protection,
        Self::ProtectionPage,
        Self::SoftDirty,
        Self::Release,
        Self::Migrate,
        Self::Exclusive,
    ];

    /// The event in lower case, for messages and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmap => "unmap",
            Self::Clear => "clear",
            Self::Protection => "protection",
            Self::ProtectionPage => "page protection",
            Self::SoftDirty => "soft-dirty",
            Self::Release => "release",
            Self::Migrate => "migrate",
            Self::Exclusive => "exclusive",
        }
    }

    /// Whether the pages stay where they are, with other access rights at most.
    pub const fn keeps_pages(self) -> bool {
        matches!(
            self,
            Self::Protection | Self::ProtectionPage | Self::SoftDirty
        )
    }

    /// Whether a device that began the change itself is left out. Of any other event everybody is
    /// told, whoever began it.
    pub const fn leaves_out_owner(self) -> bool {
        matches!(self, Self::Migrate | Self::Exclusive)
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
    /// Who began the change for a device. Only [`Event::Migrate`] and [`Event::Exclusive`] can
    /// have one.
    pub owner: Option<Owner>,
    /// Whether the callbacks may block. The bracket says it, not its caller.
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
