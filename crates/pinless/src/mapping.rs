//! A mapping that belongs to one owner: memory, books and faults in one value.

use core::fmt;
use pinless_host::{
    AccessError, CreateError, Errno, FaultMode, FaultService, Guard, GuardError, HostMapping,
    Resolver,
};
use pinless_mm::addr::PageRun;
use pinless_mm::fault::FaultHandler;
use pinless_mm::mm_struct::{AdviseError, MapError as BooksError, Mlock, MlockError, UnmapError};
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use pinless_mm::{Advice, Mm, Vma};
use std::sync::Arc;

/// Managed memory. Its drop unmaps it.
///
/// Threads that touch a mapping of [`FaultMode::InThread`] call [`crate::attach_thread`] first.
#[derive(Debug)]
pub struct Mapping {
    vma: Arc<Vma>,
    host: HostMapping,
}

/// Why there is no mapping.
#[derive(Debug)]
#[non_exhaustive]
pub enum MapError {
    /// The machine cannot make it.
    Create(CreateError),
    /// The address space cannot take it.
    Books(BooksError),
    /// Nobody can be set up to resolve its faults.
    Attach(Errno),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(error) => error.fmt(f),
            Self::Books(error) => error.fmt(f),
            Self::Attach(errno) => write!(
                f,
                "the faults of the mapping cannot be served: {errno}; look at the limit on watched \
                 descriptors (/proc/sys/fs/epoll/max_user_watches)"
            ),
        }
    }
}

impl std::error::Error for MapError {}

pub(crate) fn resolver(mode: FaultMode, faults: &Arc<FaultService>) -> Resolver {
    match mode {
        FaultMode::Service => Resolver::Service(Arc::clone(faults)),
        FaultMode::InThread => Resolver::InThread,
    }
}

impl Mapping {
    pub(crate) fn create(
        mm: &Arc<Mm>,
        nr_pages: u32,
        resolver: Resolver,
        layer: impl FnOnce(Arc<dyn PrimaryMmu>) -> Arc<dyn PrimaryMmu>,
    ) -> Result<Self, MapError> {
        let host = HostMapping::create(nr_pages, resolver).map_err(MapError::Create)?;
        let vma = mm.map(layer(host.mmu())).map_err(MapError::Books)?;
        let handler = Arc::clone(&vma) as Arc<dyn FaultHandler>;
        // Dropped on an error, which unmaps.
        let mut mapping = Self { vma, host };
        mapping.host.attach(handler).map_err(MapError::Attach)?;
        Ok(mapping)
    }

    /// The mapping in the books: pages, states, and the bus that devices use.
    pub fn vma(&self) -> &Arc<Vma> {
        &self.vma
    }

    /// The memory on the machine: for [`io_uring`](crate::io_uring) and system calls.
    pub fn host(&self) -> &HostMapping {
        &self.host
    }

    /// Bytes in the mapping.
    pub fn len(&self) -> usize {
        self.host.len_bytes()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads from `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `into` may be written.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.host.read_at(offset, into)
    }

    /// Writes to `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `from` may have been written.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        self.host.write_at(offset, from)
    }

    /// Loads the word at `offset` bytes, with acquire ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        self.host.load_u64(offset)
    }

    /// Stores the word at `offset` bytes, with release ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.host.store_u64(offset, value)
    }

    /// Makes pages resident and keeps them so while the guard lives: no access through it traps.
    ///
    /// # Errors
    ///
    /// See [`GuardError`].
    pub fn guard(&self, run: PageRun, access: Access) -> Result<Guard<'_>, GuardError> {
        self.host.guard(&self.vma, run, access)
    }

    /// Says what is going to happen to `run`.
    ///
    /// # Errors
    ///
    /// See [`AdviseError`].
    pub fn advise(&self, run: PageRun, advice: Advice) -> Result<(), AdviseError> {
        self.vma.advise(run, advice)
    }

    /// Makes pages resident and keeps them in their frames while the answer lives; see
    /// [`Vma::mlock`].
    ///
    /// # Errors
    ///
    /// See [`MlockError`].
    pub fn mlock(&self, run: PageRun) -> Result<Mlock, MlockError> {
        self.vma.mlock(run)
    }

    /// Unmaps it, and says so if that fails; a drop cannot.
    ///
    /// # Errors
    ///
    /// See [`UnmapError`]. The mapping is closed all the same; what is pinned, or held by a device
    /// that does not let go, stays charged until the address space goes.
    pub fn unmap(self) -> Result<(), UnmapError> {
        self.vma.mm().unmap(&self.vma)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Unmapped already, or kept by a holder: the address space's teardown comes back to it.
        let _ = self.vma.mm().unmap(&self.vma);
    }
}
