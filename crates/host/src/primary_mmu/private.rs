//! The private backend: anonymous memory, and a staging area of equal size.
//!
//! Page `i` of the mapping has slot `i` of the staging area, so slots need no allocator and a run
//! of pages is a run of slots. Each area has a userfaultfd of its own: the mapping's reports
//! faults, the staging area's exists so that pages can be moved there, and so that a stray access
//! to an empty slot is a SIGBUS and not a silent zero page.
//!
//! What a move answers is not trusted unless it is full success: Linux 6.18 can answer EEXIST
//! with a negative count although every page has moved. See `moving`.

use super::CreateError;
use crate::region::Region;
use crate::uffd::{Track, Uffd, feature};
use pinless_mm::addr::{PAGE_SIZE, PageIndex};

/// The slots of a mapping of anonymous memory.
pub(super) struct Staging {
    // The memory goes before the descriptor; see `HostMmu`.
    pub(super) region: Region,
    pub(super) uffd: Uffd,
}

impl Staging {
    /// What the mapping's userfaultfd must be able to do.
    pub(super) const FEATURES: u64 = feature::WP | feature::POISON | feature::MOVE;
    /// Which accesses to the mapping trap.
    pub(super) const TRACK: Track = Track::MissingAndWrites;

    pub(super) fn create(nr_pages: u32) -> Result<Self, CreateError> {
        let uffd = Uffd::open(feature::MOVE | feature::SIGBUS)?;
        let region = Region::reserve(nr_pages).map_err(CreateError::os("mmap"))?;
        uffd.register(region.base(), region.len(), Track::Missing)
            .map_err(CreateError::os("UFFDIO_REGISTER"))?;
        Ok(Self { region, uffd })
    }

    /// The address of a page's slot.
    pub(super) fn slot(&self, page: PageIndex) -> usize {
        self.region.base() + page as usize * PAGE_SIZE
    }
}
