//! Mapping: a machine's pages become a range of an address space.

use super::vma::books_bytes;
use super::{Mm, Vma, VmaId};
use crate::gfp::{Gfp, might_alloc};
use crate::limits::MAPPING_PAGES_MAX;
use crate::primary_mmu::PrimaryMmu;
use core::fmt;
use std::sync::Arc;

/// Why a mapping cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// The address space was killed.
    Killed,
    /// The address space was torn down: its handle was dropped.
    Exited,
    /// The addresses belong to another mapping of the address space.
    Overlap,
    /// The machine's mapping has no page, or more than [`MAPPING_PAGES_MAX`].
    Length {
        /// How many pages it has.
        nr_pages: u32,
    },
    /// The system sets no memory aside for the books.
    NoBooks {
        /// What they would take, in bytes.
        bytes: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => write!(
                f,
                "the address space was killed by the OOM killer; drop it and make a new one"
            ),
            Self::Exited => write!(f, "the address space was torn down; make a new one"),
            Self::Overlap => write!(f, "the addresses belong to another mapping already"),
            Self::Length { nr_pages } => write!(
                f,
                "a mapping of {nr_pages} pages cannot be made: 1 to {MAPPING_PAGES_MAX} pages can"
            ),
            Self::NoBooks { bytes } => write!(
                f,
                "the books of the mapping need {bytes} bytes, 12 a page, which the system does not \
                 give; map less, or look at ulimit -v and vm.overcommit_memory"
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
        might_alloc(Gfp::Kernel);
        let nr_pages = primary.nr_pages();
        if self.is_killed() {
            return Err(MapError::Killed);
        }
        if !(1..=MAPPING_PAGES_MAX).contains(&nr_pages) {
            return Err(MapError::Length { nr_pages });
        }
        let bytes = books_bytes(nr_pages);
        let id = VmaId(self.memcg().next_id());
        let vma = Vma::new(id, Arc::clone(self), primary).ok_or(MapError::NoBooks { bytes })?;
        let vma = Arc::new(vma);
        self.link_vma(&vma)?;
        self.memcg().add_vma(&vma);
        Ok(vma)
    }

    fn link_vma(&self, vma: &Arc<Vma>) -> Result<(), MapError> {
        let end = |vma: &Vma| vma.address(vma.nr_pages());
        let mut vmas = self.vmas.write();
        // Under the lock under which the teardown sets its mark, so that it misses no mapping.
        if self.is_exited() {
            return Err(MapError::Exited);
        }
        if vmas
            .iter()
            .any(|known| known.base() < end(vma) && vma.base() < end(known))
        {
            return Err(MapError::Overlap);
        }
        vmas.push(Arc::clone(vma));
        Ok(())
    }

    pub(super) fn forget_vma(&self, vma: &Vma) {
        self.vmas.write().retain(|known| known.id() != vma.id());
        self.memcg().forget_vma(vma);
    }
}
