//! The private backend: anonymous memory, and a staging area of equal size.
//!
//! Page `i` of the mapping has slot `i` of the staging area, so slots need no allocator and a run
//! of pages is a run of slots. Each area has a userfaultfd of its own: the mapping's reports
//! faults, the staging area's exists so that pages can be moved there, and so that a stray access
//! to an empty slot is a SIGBUS and not a silent zero page.
//!
//! What a move answers is not trusted unless it is full success: Linux 6.18 can answer EEXIST
//! with a negative count although every page has moved. See `moving`.

use super::{Backing, CreateError, HostMmu, moving};
use crate::region::Region;
use crate::uaccess;
use crate::uffd::{Track, Uffd, feature};
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun};
use pinless_mm::primary_mmu::{MapStopped, ReuseFrames};

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

/// # Panics
///
/// Of a shared mapping, whose frames stay at their places in the file: see
/// [`pinless_mm::primary_mmu::PrimaryMmu::reuse`].
impl ReuseFrames for HostMmu {
    fn write_detached(&self, page: PageIndex, contents: &PageBuf) {
        self.assert_inside(PageRun::single(page));
        let slot = self.private().slot(page);
        // SAFETY: 1. The slot lies in the area of slots, which lives as long as `self`, and is
        // memory of a kind that can be written; no Rust reference to it exists. If it is empty, the
        // access is a SIGBUS. 2. `contents` is memory of the caller's, apart from the slots.
        unsafe { uaccess::copy_page(slot as *mut u8, contents.as_ptr()) };
    }

    fn map_detached(&self, run: PageRun, from: PageIndex) -> Result<(), MapStopped> {
        let stopped = |error| MapStopped { nr_done: 0, error };
        self.admit(run).map_err(stopped)?;
        self.admit(PageRun::new(from, run.nr)).map_err(stopped)?;
        moving::attach(self, self.private(), run, from)
    }
}

impl HostMmu {
    #[track_caller]
    fn private(&self) -> &Staging {
        match &self.backing {
            Backing::Private(staging) => staging,
            Backing::Shared(_) => unreachable!("a frame of a file stays at its place"),
        }
    }
}
