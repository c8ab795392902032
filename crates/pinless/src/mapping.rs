//! A mapping that belongs to one owner: memory, books and faults in one value.

use crate::events::span;
use crate::guard::{Guard, Pin};
use crate::io_count::IoCount;
use crate::options::{MAPPING_BYTES_MAX, MapOptions};
use core::fmt;
use pinless_host::io_uring::{Area, AttachError, Ring};
use pinless_host::{
    AccessError, CreateError, Errno, FaultMode, GuardError, HostMapping, Resolver, is_forked_child,
};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::fault::FaultHandler;
use pinless_mm::mm_struct::{
    AdviseError, MapError as BooksError, Mlock, MlockError, PinError, PinHolder, UnmapError,
};
use pinless_mm::mmu_notifier::{
    IntervalError, IntervalNotifier, IntervalSubscription, Notifier, Ranges, Subscription,
};
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use pinless_mm::{Advice, Mm, Vma};
use std::sync::Arc;

/// Managed memory. Its drop unmaps it, or leaves that to the last of its guards and operations.
///
/// Threads that touch a mapping of [`FaultMode::InThread`] call [`crate::attach_thread`] first.
#[derive(Debug)]
pub struct Mapping {
    shared: Arc<Shared>,
}

/// What a mapping and its guards share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) vma: Arc<Vma>,
    pub(crate) host: Arc<HostMapping>,
    pub(crate) io: Arc<IoCount>,
}

/// Why there is no mapping.
#[derive(Debug)]
#[non_exhaustive]
pub enum MapError {
    /// It cannot have this length.
    Length {
        /// The bytes that were asked for.
        len_bytes: u64,
    },
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
            Self::Length { len_bytes } => write!(
                f,
                "a mapping of {len_bytes} bytes cannot be made: ask for a multiple of the page \
                 size, 4096 bytes to {MAPPING_BYTES_MAX} bytes"
            ),
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

impl Mapping {
    pub(crate) fn create(
        mm: &Arc<Mm>,
        options: MapOptions,
        resolver: Resolver,
        io: &Arc<IoCount>,
        layer: impl FnOnce(Arc<dyn PrimaryMmu>) -> Arc<dyn PrimaryMmu>,
    ) -> Result<Self, MapError> {
        let len_bytes = options.len_bytes();
        let nr_pages = options.nr_pages().ok_or(MapError::Length { len_bytes })?;
        let create = match options.is_shared() {
            true => HostMapping::create_shared,
            false => HostMapping::create,
        };
        let mut host = create(nr_pages, resolver).map_err(MapError::Create)?;
        let vma = mm.map(layer(host.mmu())).map_err(MapError::Books)?;
        let attached = host.attach(Arc::clone(&vma) as Arc<dyn FaultHandler>);
        // Dropped on an error, which unmaps.
        let shared = Shared {
            vma,
            host: Arc::new(host),
            io: Arc::clone(io),
        };
        attached.map_err(MapError::Attach)?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The mapping in the books: pages, states, and the [`Bus`](crate::Bus) that devices use.
    pub fn vma(&self) -> &Arc<Vma> {
        &self.shared.vma
    }

    /// The memory on the machine: for who calls the system with it.
    pub fn host(&self) -> &HostMapping {
        &self.shared.host
    }

    /// Who resolves its faults.
    pub fn fault_mode(&self) -> FaultMode {
        self.host().mode()
    }

    /// Bytes in the mapping.
    pub fn len(&self) -> usize {
        self.host().len_bytes()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages in the mapping.
    pub fn nr_pages(&self) -> u32 {
        self.vma().nr_pages()
    }

    /// All of its pages.
    pub fn all(&self) -> PageRun {
        self.vma().all()
    }

    /// Reads from `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `into` may be written.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.host().read_at(offset, into)
    }

    /// Writes to `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `from` may have been written.
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        self.host().write_at(offset, from)
    }

    /// Loads the word at `offset` bytes, with acquire ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        self.host().load_u64(offset)
    }

    /// Stores the word at `offset` bytes, with release ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.host().store_u64(offset, value)
    }

    /// Makes pages resident and keeps them so while the guard lives: no access through it traps.
    ///
    /// # Errors
    ///
    /// See [`GuardError`].
    pub fn guard(&self, run: PageRun, access: Access) -> Result<Guard, GuardError> {
        span!("guard", run = run);
        Guard::new(&self.shared, run, access)
    }

    /// Makes pages resident and keeps them where they are while the answer lives: for a device that
    /// reaches them through [`Vma`] and its bus. A mapping that is dropped earlier is unmapped with
    /// its last pin.
    ///
    /// # Errors
    ///
    /// See [`PinError`].
    pub fn pin(&self, run: PageRun, access: Access) -> Result<Pin, PinError> {
        Pin::new(&self.shared, run, access)
    }

    /// The same in the name of `holder`, from [`Mm::pin_holder`](crate::Mm::pin_holder): then
    /// [`Memcg::pin_holders`](crate::Memcg::pin_holders), the report of a kill and a bound that
    /// cannot be lowered say who has the pages.
    ///
    /// # Errors
    ///
    /// See [`PinError`].
    ///
    /// # Panics
    ///
    /// If `holder` is of another address space.
    pub fn pin_for(
        &self,
        holder: &PinHolder,
        run: PageRun,
        access: Access,
    ) -> Result<Pin, PinError> {
        Pin::new_for(&self.shared, holder, run, access)
    }

    /// Says what is going to happen to `run`.
    ///
    /// # Errors
    ///
    /// See [`AdviseError`].
    pub fn advise(&self, run: PageRun, advice: Advice) -> Result<(), AdviseError> {
        span!("advise", run = run, advice = format_args!("{advice:?}"));
        self.vma().advise(run, advice)
    }

    /// Makes pages resident and keeps them in their frames while the answer lives; see
    /// [`Vma::mlock`].
    ///
    /// # Errors
    ///
    /// See [`MlockError`].
    pub fn mlock(&self, run: PageRun) -> Result<Mlock, MlockError> {
        self.vma().mlock(run)
    }

    /// Tells `notifier` of every change of this mapping, from now on until the answer is dropped.
    /// Once the address space is torn down, nobody is called any more. Allocates, and waits for
    /// callbacks that are under way: not to be called in one.
    pub fn subscribe<N: Notifier>(&self, name: &str, notifier: Arc<N>) -> Subscription {
        let (start, end) = self.addresses(self.all());
        let ranges = Ranges::Only(vec![start..end]);
        let notifiers = self.vma().mm().notifiers();
        notifiers.subscribe(name, ranges, notifier)
    }

    /// Tells `notifier` of every change of `run`, and counts these changes for its sequence, until
    /// the answer is dropped. Allocates: not to be called in a callback.
    ///
    /// # Errors
    ///
    /// See [`IntervalError`].
    ///
    /// # Panics
    ///
    /// If `run` leaves the mapping.
    pub fn subscribe_interval<N: IntervalNotifier>(
        &self,
        name: &str,
        run: PageRun,
        notifier: Arc<N>,
    ) -> Result<IntervalSubscription<N>, IntervalError> {
        let (start, end) = self.addresses(run);
        let notifiers = self.vma().mm().notifiers();
        notifiers.subscribe_interval(name, start, end, notifier)
    }

    /// Lets an io_uring use the mapping through fixed buffers.
    ///
    /// # Errors
    ///
    /// See [`AttachError`].
    pub fn attach_to(&self, ring: &Ring) -> Result<Area, AttachError> {
        ring.attach(self.host(), self.vma())
    }

    /// The mapping as a region of a guest's memory, for programs that are written against the
    /// `vm-memory` crate. It keeps the mapping.
    ///
    /// # Errors
    ///
    /// When the guest has no such addresses; the mapping is then unmapped.
    #[cfg(feature = "vm-memory")]
    pub fn into_region(
        self,
        start: pinless_host::vm_memory::GuestAddress,
    ) -> pinless_host::vm_memory::Result<pinless_host::vm_memory::Region> {
        let vma = Arc::clone(self.vma());
        pinless_host::vm_memory::Region::new(start, Arc::new(self), &vma)
    }

    fn addresses(&self, run: PageRun) -> (crate::Vaddr, crate::Vaddr) {
        let nr_pages = self.nr_pages();
        let end = |run: PageRun| run.first.checked_add(run.nr);
        assert!(
            end(run).is_some_and(|end: PageIndex| end <= nr_pages),
            "{run} is outside of a mapping of {nr_pages} pages"
        );
        let address = |page| self.vma().address(page);
        (address(run.first), address(run.end()))
    }

    /// Unmaps it, and says so if that fails; a drop cannot.
    ///
    /// # Errors
    ///
    /// See [`UnmapError`]. What is guarded goes with the last guard; what a device holds that does
    /// not let go stays charged until it does, or the address space goes.
    pub fn unmap(self) -> Result<(), UnmapError> {
        span!("unmap", run = self.all());
        self.vma().mm().unmap(self.vma())
    }
}

impl AsRef<HostMapping> for Mapping {
    fn as_ref(&self) -> &HostMapping {
        self.host()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // In a child of a fork there is nothing to unmap, and nobody to tell.
        if !is_forked_child() {
            match self.vma.mm().unmap(&self.vma) {
                Ok(()) | Err(UnmapError::NotMapped) => {}
                // Kept by a holder, whose device may go on: so its addresses stay as they are, for
                // good. The address space's teardown comes back to the pages.
                Err(UnmapError::Pinned { .. } | UnmapError::Notifier(_)) => {
                    core::mem::forget(Arc::clone(&self.host));
                }
            }
        }
    }
}
