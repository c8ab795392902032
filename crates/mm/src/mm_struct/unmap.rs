//! Unmapping and teardown.
//!
//! Linux counterpart: `do_munmap`, `exit_mmap`.

use super::{Mm, Scope, Vma};
use crate::addr::PageIndex;
use crate::mmu_notifier::{BracketError, Event};
use crate::reclaim::InFlight;
use core::fmt;
use std::sync::Arc;

/// Why a mapping cannot be unmapped. It is as it was.
#[derive(Clone, Debug)]
pub enum UnmapError {
    /// It was unmapped already, or belongs to another address space.
    NotMapped,
    /// A page is pinned.
    Pinned {
        /// The first such page.
        page: PageIndex,
    },
    /// A device did not let go in time.
    Notifier(BracketError),
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped => write!(f, "the mapping is not mapped in this address space"),
            Self::Pinned { page } => {
                write!(
                    f,
                    "page {page} is pinned; drop its guards and finish its I/O first"
                )
            }
            Self::Notifier(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for UnmapError {}

impl Mm {
    /// Unmaps `vma`: tells every device, and gives all of its memory back. Blocks until the
    /// devices have let go.
    ///
    /// # Errors
    ///
    /// See [`UnmapError`].
    pub fn unmap(&self, vma: &Vma) -> Result<(), UnmapError> {
        if vma.mm().id() != self.id() {
            return Err(UnmapError::NotMapped);
        }
        if let Some(page) = vma.first_pinned() {
            return Err(UnmapError::Pinned { page });
        }
        vma.unmap()
    }

    /// Tears the address space down: releases the subscriptions, then unmaps everything.
    pub(super) fn exit(self: &Arc<Self>) {
        let deadline = self.memcg().limits.settle_deadline;
        self.memcg().remove_mm(self.id());
        self.memcg().oom.forget(self.id());
        if self.notifiers().release(deadline).is_err() {
            // A device still uses the memory. It stays mapped and charged, so that it is never
            // used for anything else.
            return;
        }
        for vma in self.vmas() {
            // With nobody to tell, only a mapping that was unmapped already can answer an error.
            let _ = vma.unmap();
        }
    }
}

impl Vma {
    /// The first page that is pinned.
    pub(crate) fn first_pinned(&self) -> Option<PageIndex> {
        self.all()
            .pages()
            .find(|&page| self.pages.load(page).pins() > 0)
    }

    fn unmap(&self) -> Result<(), UnmapError> {
        if !self.mark_dead() {
            return Err(UnmapError::NotMapped);
        }
        let _in_flight = InFlight::new(&self.memcg().reclaim);
        let deadline = self.memcg().limits.settle_deadline;
        let notifiers = self.mm().notifiers();
        let end = self.address(self.nr_pages());
        let bracket = notifiers.start_blockable(self.base(), end, Event::Unmap, deadline);
        match bracket {
            Ok(_bracket) => {
                // Nothing comes back into a dead mapping; what is moving now stops by itself.
                while self.zap_told(self.all(), Scope::Gone).busy > 0 {}
                self.mm().forget_vma(self);
                Ok(())
            }
            Err(error) => {
                self.mark_alive();
                Err(UnmapError::Notifier(error))
            }
        }
    }
}
