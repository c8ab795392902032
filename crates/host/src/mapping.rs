//! A mapping as a whole: its memory, and who resolves its faults.

use crate::errno::Errno;
use crate::fault_thread::{FaultService, Service};
use crate::fork::{self, is_forked_child};
use crate::lock_order;
use crate::primary_mmu::{CreateError, FaultMode, HostMmu};
use crate::registry::{self, Kind, Registration, Target};
use crate::sigbus;
use crate::uaccess::Cause;
use crate::window::Window;
use core::fmt;
use pinless_mm::addr::{PAGE_SIZE, PageIndex};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::mm_struct::Vma;
#[cfg(feature = "kvm")]
use pinless_mm::{gfp::might_touch, primary_mmu::Access};
use std::sync::Arc;

/// Who resolves the faults of a mapping.
#[derive(Clone, Debug)]
pub enum Resolver {
    /// The threads of a service: every access works, from system calls too.
    Service(Arc<FaultService>),
    /// The faulting thread. Threads that touch the mapping call [`crate::attach_thread`] first;
    /// a system call that meets an absent page gets EFAULT.
    InThread,
}

impl Resolver {
    fn mode(&self) -> FaultMode {
        match self {
            Self::Service(_) => FaultMode::Service,
            Self::InThread => FaultMode::InThread,
        }
    }
}

/// A mapping of managed memory.
///
/// Dropping it ends the resolving of faults and closes the mapping: an access through an address
/// that somebody kept ends in SIGSEGV, or in SIGBUS if it was under way. The memory itself goes
/// when the last [`HostMmu`] goes.
#[derive(Debug)]
pub struct HostMapping {
    attachment: Option<Attachment>,
    mmu: Arc<HostMmu>,
    resolver: Resolver,
}

/// Whatever has a mapping, in shares: for those who keep it as long as they use it. It answers with
/// the same mapping each time. Should it not, the memory of the first answer is what is used, and
/// kept; accesses that are carried out for somebody go to what is answered then.
pub type SharedMapping = Arc<dyn AsRef<HostMapping> + Send + Sync>;

/// What resolves the faults, in the order in which it is taken down: first no new fault reaches
/// the handler, then none is in it.
struct Attachment {
    handler: Arc<dyn FaultHandler>,
    _service: Option<Service>,
    _managed: Registration,
    _staging: Registration,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").finish_non_exhaustive()
    }
}

impl HostMapping {
    /// Makes a mapping of `nr_pages` holes, of anonymous memory: see [`HostMmu::create`]. It is
    /// used after [`HostMapping::attach`].
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create(nr_pages: u32, resolver: Resolver) -> Result<Self, CreateError> {
        Self::with(resolver, |mode| HostMmu::create(nr_pages, mode))
    }

    /// The same, of memory that other processes can map ([`HostMapping::share`]): see
    /// [`HostMmu::create_shared`] for what it does not protect from.
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create_shared(nr_pages: u32, resolver: Resolver) -> Result<Self, CreateError> {
        Self::with(resolver, |mode| HostMmu::create_shared(nr_pages, mode))
    }

    fn with(
        resolver: Resolver,
        make: impl FnOnce(FaultMode) -> Result<HostMmu, CreateError>,
    ) -> Result<Self, CreateError> {
        lock_order::prime();
        if is_forked_child() {
            return Err(CreateError::ForkedChild);
        }
        fork::mark_owner().map_err(CreateError::os("madvise(MADV_WIPEONFORK)"))?;
        sigbus::install().map_err(CreateError::os("sigaction of SIGBUS"))?;
        let mmu = Arc::new(make(resolver.mode())?);
        Ok(Self {
            attachment: None,
            mmu,
            resolver,
        })
    }

    /// The primary MMU, for the memory manager.
    pub fn mmu(&self) -> Arc<HostMmu> {
        Arc::clone(&self.mmu)
    }

    /// Who resolves the faults.
    pub fn mode(&self) -> FaultMode {
        self.resolver.mode()
    }

    /// Has the faults of the mapping resolved by `handler`, until the mapping is dropped.
    ///
    /// # Errors
    ///
    /// The error number of the system call that failed.
    ///
    /// # Panics
    ///
    /// When the mapping is attached already.
    pub fn attach(&mut self, handler: Arc<dyn FaultHandler>) -> Result<(), Errno> {
        assert!(self.attachment.is_none(), "the mapping is attached already");
        let service = match &self.resolver {
            Resolver::InThread => None,
            Resolver::Service(service) => Some(service.serve(self.mmu(), Arc::clone(&handler))?),
        };
        let (base, len) = self.mmu.slot_range();
        let staging = registry::register(Target {
            base,
            len,
            kind: Kind::Staging,
        });
        let (base, len) = self.mmu.mapping_range();
        let managed = registry::register(Target {
            base,
            len,
            kind: Kind::Managed {
                handler: Arc::clone(&handler),
                mmu: self.mmu(),
                pleader: service.as_ref().map(Service::pleader),
            },
        });
        self.attachment = Some(Attachment {
            handler,
            _managed: managed,
            _staging: staging,
            _service: service,
        });
        Ok(())
    }

    /// What resolves the faults, once there is something.
    pub(crate) fn handler(&self) -> Option<Arc<dyn FaultHandler>> {
        let attachment = self.attachment.as_ref();
        attachment.map(|attachment| Arc::clone(&attachment.handler))
    }

    /// The address of the first byte. Valid while the mapping lives; what is read through it is
    /// shared with whoever else uses it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mmu.mapping_range().0 as *mut u8
    }

    /// Whether the pages of the mapping are those of `vma`.
    pub fn is_over(&self, vma: &Vma) -> bool {
        self.mmu.is_over(vma)
    }

    /// Bytes in the mapping.
    pub fn len_bytes(&self) -> usize {
        self.mmu.mapping_range().1
    }

    /// Reads from `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `into` may be written.
    #[track_caller]
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.window()?.read_at(offset, into)
    }

    /// Writes to `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `from` may have been written.
    #[track_caller]
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        self.window()?.write_at(offset, from)
    }

    /// Loads the word at `offset` bytes, in one access, with acquire ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    #[track_caller]
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        self.window()?.load_u64(offset)
    }

    /// Stores the word at `offset` bytes, in one access, with release ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    #[track_caller]
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.window()?.store_u64(offset, value)
    }

    /// Has the page at `offset` bytes filled, as an access by this thread would.
    #[cfg(feature = "kvm")]
    pub(crate) fn fault_in(&self, offset: u64, access: Access) -> Result<(), AccessError> {
        self.window()?.locate(offset, 1)?;
        let handler = self.handler().ok_or(AccessError::NotAttached)?;
        might_touch();
        let page = (offset / PAGE_SIZE as u64) as PageIndex;
        let filled = handler.fault(page, access);
        filled.map_err(|error| AccessError::Fault {
            offset,
            page,
            error,
        })
    }

    /// The whole mapping, if its faults are resolved.
    fn window(&self) -> Result<Window, AccessError> {
        if is_forked_child() {
            return Err(AccessError::ForkedChild);
        }
        if self.attachment.is_none() {
            return Err(AccessError::NotAttached);
        }
        // SAFETY: the mapping lives as long as `self`, which the caller borrows meanwhile.
        Ok(unsafe { Window::new(self.mmu.mapping_range()) })
    }
}

impl Drop for HostMapping {
    fn drop(&mut self) {
        if is_forked_child() {
            // The memory, the threads and what the descriptors act on are the parent's.
            core::mem::forget((self.attachment.take(), self.mmu()));
            return;
        }
        // First the handlers, then the gate: a thread that waits for a fault goes on when the
        // gate closes, and finds it closed.
        self.attachment = None;
        self.mmu.seal();
    }
}

/// Why an access through a [`HostMapping`] failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessError {
    /// The bytes do not lie in the mapping.
    OutOfRange {
        /// The first byte.
        offset: u64,
        /// How many.
        len: usize,
    },
    /// A word lies at a multiple of its size.
    Misaligned {
        /// Where it was wanted.
        offset: u64,
    },
    /// Nobody resolves the faults of the mapping yet.
    NotAttached,
    /// This process is the child of a fork, and has none of its parent's managed memory.
    ForkedChild,
    /// The memory manager had no page to give.
    Fault {
        /// The byte that was accessed.
        offset: u64,
        /// Its page.
        page: PageIndex,
        /// Why there is none.
        error: FaultError,
    },
    /// The mapping resolves faults in the thread, and this thread has not called `attach_thread`,
    /// or is in a signal handler that leaves too little of the signal stack.
    ThreadNotAttached {
        /// The byte that was accessed.
        offset: u64,
    },
    /// The memory is another process's, and that refused the page or has gone.
    OwnerRefused {
        /// The byte that was accessed.
        offset: u64,
        /// Its page.
        page: PageIndex,
    },
    /// A thread that stands in for a device accessed a page that is not there.
    StaleDma {
        /// The byte that was accessed.
        offset: u64,
        /// Its page.
        page: PageIndex,
    },
}

impl AccessError {
    /// Why the access to `offset` bytes into a mapping failed.
    pub(crate) fn at(offset: u64, cause: Cause) -> Self {
        let page = (offset / PAGE_SIZE as u64) as PageIndex;
        match cause {
            Cause::Fault(error) => Self::Fault {
                offset,
                page,
                error,
            },
            Cause::StaleDma => Self::StaleDma { offset, page },
            Cause::ThreadNotAttached => Self::ThreadNotAttached { offset },
            Cause::OwnerRefused => Self::OwnerRefused { offset, page },
        }
    }
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { offset, len } => {
                write!(
                    f,
                    "{len} bytes at offset {offset} do not lie in the mapping"
                )
            }
            Self::Misaligned { offset } => {
                write!(f, "offset {offset} is not a multiple of 8")
            }
            Self::NotAttached => f.write_str("nobody resolves the faults of the mapping yet"),
            Self::ForkedChild => f.write_str(
                "a child process has none of its parent's managed memory; fork before the first \
                 mapping, or let the child call exec",
            ),
            Self::Fault {
                offset,
                page,
                error,
            } => write!(f, "access to offset {offset} (page {page}): {error}"),
            Self::ThreadNotAttached { offset } => write!(
                f,
                "access to offset {offset} by a thread that did not call `attach_thread`, or whose \
                 signal handler left too little of its stack"
            ),
            Self::OwnerRefused { offset, page } => write!(
                f,
                "access to offset {offset} (page {page}): the process that owns the memory \
                 refused, or has gone"
            ),
            Self::StaleDma { offset, page } => write!(
                f,
                "device access to offset {offset} (page {page}), which is not there"
            ),
        }
    }
}

impl std::error::Error for AccessError {}
