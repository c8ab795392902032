//! What the memory manager asks of a machine: the primary MMU of one mapping.
//!
//! The memory manager decides, the machine does. A [`PrimaryMmu`] serves one mapping of
//! [`PrimaryMmu::nr_pages`] pages. Each page has two places: its *address*, where programs see it,
//! and its *slot*, a staging place of its own where nobody but the memory manager sees it.
//!
//! # Contract
//!
//! For every call the caller owns the pages of the run: their state words say `Moving` (see
//! `page`), so no two calls meet on one page. [`PrimaryMmu::protect`], [`PrimaryMmu::dma_read`]
//! and [`PrimaryMmu::dma_write`] are the exceptions: they may race with everything.
//! No call allocates, blocks on another thread of this process, or calls back.
//!
//! Linux counterpart: the page-table operations under `mm/` (zap, migrate, `userfaultfd`).

use crate::addr::{PageBuf, PageIndex, PageRun, Vaddr};
use core::fmt;

/// How a page is made visible to the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Readable; the first write traps, so that the page is marked dirty.
    Read,
    /// Readable and writable, no trap.
    Write,
}

/// What became of one page of a [`PrimaryMmu::detach`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detached {
    /// The page is in its slot; no program and no kernel device maps it.
    Done,
    /// The page is still at its address: something the machine knows of holds it (a kernel pin).
    Busy,
    /// There is no page, neither at the address nor in the slot.
    Hole,
}

/// A machine operation that failed. The books of the caller stay as they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmuError {
    /// Something other than this library put a page where the books have none.
    ForeignFill {
        /// The page.
        page: PageIndex,
    },
    /// The range is gone or was changed behind the library's back (unmapped, remapped, protected).
    Gone {
        /// The first page of the run.
        page: PageIndex,
    },
    /// The machine has no memory for a frame.
    NoMemory,
    /// The machine answered with an error that has no meaning here.
    Os {
        /// The operation, by its machine name.
        operation: &'static str,
        /// The error number (`errno`).
        errno: i32,
    },
}

impl fmt::Display for MmuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignFill { page } => write!(
                f,
                "page {page} was filled by something other than this library while it was stored"
            ),
            Self::Gone { page } => write!(
                f,
                "the mapping around page {page} was unmapped or changed behind the library's back"
            ),
            Self::NoMemory => write!(f, "the machine has no memory left for a frame"),
            Self::Os { operation, errno } => {
                write!(f, "{operation} failed with error number {errno}")
            }
        }
    }
}

impl std::error::Error for MmuError {}

/// A raw device access met a page that is not at its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaFault;

/// The primary MMU of one mapping.
///
/// Implemented by the real machine and by the simulator; one test suite runs over all.
pub trait PrimaryMmu: Send + Sync + fmt::Debug {
    /// The address of the first page.
    fn base(&self) -> Vaddr;

    /// The number of pages of the mapping.
    fn nr_pages(&self) -> u32;

    /// Whether the frames are those of a file that others may map, too: the kernel's `shmem`.
    /// Always the same.
    fn is_shared(&self) -> bool {
        false
    }

    /// Puts zero pages at the addresses of `run`, which were holes, and wakes whoever waits.
    ///
    /// # Errors
    ///
    /// [`MmuError::ForeignFill`] when a page is there already; the pages before it are mapped.
    fn map_zero(&self, run: PageRun) -> Result<(), MmuError>;

    /// Puts a page with `contents` at the address of `page`, which was a hole, and wakes whoever
    /// waits. With [`Access::Read`] the first write traps.
    ///
    /// # Errors
    ///
    /// [`MmuError::ForeignFill`] when a page is there already.
    fn map_filled(
        &self,
        page: PageIndex,
        contents: &PageBuf,
        access: Access,
    ) -> Result<(), MmuError>;

    /// Moves the pages of `run` from their addresses into their slots; holes are passed over.
    /// After the return no program and no kernel device can write a page that is `Done`.
    /// `outcome[i]` tells of the `i`-th page of the run.
    ///
    /// # Errors
    ///
    /// [`MmuError::Gone`] when the range was changed; `outcome` is valid all the same.
    fn detach(&self, run: PageRun, outcome: &mut [Detached]) -> Result<(), MmuError>;

    /// Whether one [`detach`](Self::detach) of a run with holes costs less than one of each part
    /// between them.
    fn detaches_over_holes(&self) -> bool {
        false
    }

    /// Moves the pages of `run` from their slots back to their addresses, writable without a
    /// trap, and wakes whoever waits. Every page of the run is in its slot.
    ///
    /// # Errors
    ///
    /// [`MmuError::ForeignFill`] when a page is at the address already; that page stays in its
    /// slot. Pages before it are back.
    fn reattach(&self, run: PageRun) -> Result<(), MmuError>;

    /// Copies the contents of a page that is in its slot.
    fn read_detached(&self, page: PageIndex, into: &mut PageBuf);

    /// Gives the frames in the slots of `run` back to the machine; empty slots are passed over. No
    /// page of the run is at its address.
    ///
    /// # Errors
    ///
    /// [`MmuError::Gone`] when the slots were changed behind the library's back.
    fn free_detached(&self, run: PageRun) -> Result<(), MmuError>;

    /// How frames go from a slot to the address of another page, where the machine can do that.
    fn reuse(&self) -> Option<&dyn ReuseFrames> {
        None
    }

    /// Whether the memory belongs to another process, whose books these are a copy of: this one is
    /// the child of a fork. Then every other operation is refused.
    fn is_elsewhere(&self) -> bool {
        false
    }

    /// Gives the frames at the addresses of `run` back to the machine, and removes poison; holes
    /// are passed over. A later access traps.
    ///
    /// # Errors
    ///
    /// [`MmuError::Gone`] when the range was changed.
    fn zap(&self, run: PageRun) -> Result<(), MmuError>;

    /// Changes how the pages at the addresses of `run` may be used, and wakes whoever waits;
    /// holes are passed over. May race with every other call.
    ///
    /// # Errors
    ///
    /// [`MmuError::Gone`] when the range was changed.
    fn protect(&self, run: PageRun, access: Access) -> Result<(), MmuError>;

    /// Marks the holes at the addresses of `run` as lost: an access ends in an error (SIGBUS),
    /// never in zeros. Wakes whoever waits.
    ///
    /// # Errors
    ///
    /// [`MmuError::Gone`] when the range was changed.
    fn poison(&self, run: PageRun) -> Result<(), MmuError>;

    /// Whether a page is at the address of `page`.
    fn is_present(&self, page: PageIndex) -> bool;

    /// Whether a page is at the address of `page`, for everybody who may use it. For the rare fault
    /// on a page that the books call mapped: either somebody resolved it meanwhile, or somebody
    /// took the page away. Where a page can be out of sight without being away (shared memory),
    /// this brings it back, with the protection that it had.
    fn remap(&self, page: PageIndex) -> bool {
        self.is_present(page)
    }

    /// Copies bytes from `offset` bytes into the mapping, as a device would: without asking the
    /// memory manager for the page. `offset..offset + into.len()` lies in one page.
    ///
    /// # Errors
    ///
    /// [`DmaFault`] when no page is at the address; part of `into` may be written.
    fn dma_read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaFault>;

    /// Copies bytes to `offset` bytes into the mapping, as a device would.
    ///
    /// # Errors
    ///
    /// [`DmaFault`] when no page is at the address; part of `from` may have been written.
    fn dma_write(&self, offset: u64, from: &[u8]) -> Result<(), DmaFault>;
}

/// A machine on which a frame that comes free can hold another page at once: it is neither given
/// back nor asked for again.
///
/// The caller owns the pages whose slots are named, too.
pub trait ReuseFrames {
    /// Puts `contents` in place of those in the slot of `page`, which is not empty.
    fn write_detached(&self, page: PageIndex, contents: &PageBuf);

    /// Moves what is in as many slots, from that of `from` on, to the addresses of `run`, which are
    /// holes: writable without a trap. Wakes whoever waits there. The slots of the pages of `run`
    /// are empty.
    ///
    /// # Errors
    ///
    /// [`MapStopped`]; what was not moved is in its slot, as it was.
    fn map_detached(&self, run: PageRun, from: PageIndex) -> Result<(), MapStopped>;
}

/// A move of frames to other pages that did not do all it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapStopped {
    /// The pages at the start of the run that are at their addresses all the same.
    pub nr_done: u32,
    /// Why the one after them is not.
    pub error: MmuError,
}
