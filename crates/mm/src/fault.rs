//! What a page fault asks, and how it can end.

use crate::addr::PageIndex;
use crate::primary_mmu::{Access, MmuError};
use core::fmt;
use core::time::Duration;

/// Resolves faults of one mapping. The machine calls it, `Vma` implements it.
pub trait FaultHandler: Send + Sync {
    /// Makes `page` usable for `access`. After `Ok` the faulting access is simply repeated; it
    /// may fault again, when the page was taken back in between.
    ///
    /// Allocates nothing, runs no notifier and waits for none: it may wait for a frame to come
    /// free, up to the deadline in `Limits`. Callable from a signal
    /// handler that interrupted code which holds no lock of this library.
    ///
    /// # Errors
    ///
    /// See [`FaultError`]: the access must end in an error (SIGBUS), never in data.
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError>;

    /// The same, in a thread that resolves the faults of others: it is not held up for what one of
    /// them takes above `high` for as long as that one would be.
    ///
    /// # Errors
    ///
    /// See [`FaultHandler::fault`].
    fn serve(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        self.fault(page, access)
    }

    /// The thread with this number, as of [`number_threads`](crate::env::number_threads), waits for
    /// a page that another is about to [serve](Self::serve): it is told of if it may not.
    fn touched(&self, thread: u32) {
        let _ = thread;
    }

    /// Why an access was denied that [`FaultHandler::fault`] was asked for in another thread, as
    /// far as is known without trying once more. Uses little stack; allocates, waits for and locks
    /// nothing. Callable from a signal handler.
    fn denied(&self, page: PageIndex) -> FaultError {
        let _ = page;
        FaultError::NoFrame {
            waited: Duration::ZERO,
        }
    }

    /// A device touched `page` through a translation that is no longer valid: counts it. The
    /// machine never resolves such an access with data.
    fn stale_dma(&self, page: PageIndex);
}

/// Why an access cannot be given its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// The address space was killed by the OOM killer.
    Killed,
    /// The mapping is gone, or its memory cgroup was stopped.
    Unmapped,
    /// The contents were lost: the store answered with an error, or with something else than was
    /// stored.
    Lost {
        /// The page.
        page: PageIndex,
        /// What the store said.
        cause: StoreError,
    },
    /// No frame came free before the deadline.
    NoFrame {
        /// How long the fault waited.
        waited: Duration,
    },
    /// Whoever walks the page table has not returned from an earlier change of it, and would have
    /// to be told of this one.
    Overdue,
    /// The machine refused.
    Machine(MmuError),
}

/// Why the contents of a stored page cannot be given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// What is in the slot is not what was stored there.
    Corrupt,
    /// The slot holds the contents of another page, or an older version: a store was lost.
    Misplaced,
    /// The device of the store's file answered with an error. The contents may still be there: the
    /// next access asks again.
    Unreadable,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Corrupt => "the checksum of the stored copy is wrong",
            Self::Unreadable => "the device of the store's file answered with an error",
            Self::Misplaced => "the slot holds another page or an older version: a store was lost",
        })
    }
}

impl std::error::Error for StoreError {}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => write!(
                f,
                "the address space was killed by the OOM killer; drop it and make a new one"
            ),
            Self::Unmapped => write!(f, "the mapping is gone; map it again"),
            Self::Lost { page, cause } => {
                write!(f, "the contents of page {page} are lost: {cause}")
            }
            Self::NoFrame { waited } => write!(
                f,
                "no frame came free within {} ms; raise `max`, or pin less",
                waited.as_millis()
            ),
            Self::Overdue => write!(
                f,
                "a device that walks the page table does not return from a flush; \
                 `Memcg::convictions` has its name"
            ),
            Self::Machine(error) => write!(f, "the machine refused: {error}"),
        }
    }
}

impl std::error::Error for FaultError {}

impl From<MmuError> for FaultError {
    fn from(error: MmuError) -> Self {
        Self::Machine(error)
    }
}
