//! Mapping: a machine's pages become a range of an address space.

use super::{Mm, Vma, VmaId};
use crate::limits::MAPPING_PAGES_MAX;
use crate::primary_mmu::PrimaryMmu;
use core::fmt;
use core::sync::atomic::Ordering;
use std::sync::Arc;

/// Why a mapping cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The address space was killed.
    Killed,
    /// The machine's mapping has no page, or more than [`MAPPING_PAGES_MAX`].
    Length {
        /// How many pages it has.
        nr_pages: u32,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => write!(f, "the address space was killed by the OOM killer"),
            Self::Length { nr_pages } => write!(
                f,
                "a mapping of {nr_pages} pages cannot be made: 1 to {MAPPING_PAGES_MAX} pages can"
            ),
        }
    }
}

impl std::error::Error for MapError {}

impl Mm {
    /// Adds a mapping over the pages of `primary`, all of which are holes.
    ///
    /// # Errors
    ///
    /// See [`MapError`].
    pub fn map(self: &Arc<Self>, primary: Arc<dyn PrimaryMmu>) -> Result<Arc<Vma>, MapError> {
        let nr_pages = primary.nr_pages();
        if self.is_killed() {
            return Err(MapError::Killed);
        }
        if !(1..=MAPPING_PAGES_MAX).contains(&nr_pages) {
            return Err(MapError::Length { nr_pages });
        }
        let vma = Arc::new(Vma::new(
            VmaId(self.memcg().next_id()),
            Arc::clone(self),
            primary,
        ));
        self.vmas.write().push(Arc::clone(&vma));
        self.memcg().vmas.write().insert(vma.id(), Arc::clone(&vma));
        let nr_windows = u64::from(vma.nr_windows());
        self.memcg()
            .reclaim
            .nr_windows
            .fetch_add(nr_windows, Ordering::Relaxed);
        Ok(vma)
    }

    pub(super) fn forget_vma(&self, vma: &Vma) {
        self.vmas.write().retain(|known| known.id() != vma.id());
        if self.memcg().vmas.write().remove(&vma.id()).is_some() {
            let nr_windows = u64::from(vma.nr_windows());
            self.memcg()
                .reclaim
                .nr_windows
                .fetch_sub(nr_windows, Ordering::Relaxed);
        }
    }
}
