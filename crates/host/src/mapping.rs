//! A mapping as a whole: its memory, and who resolves its faults.

use crate::errno::Errno;
use crate::fault_thread::{FaultService, Service};
use crate::fork::{self, is_forked_child};
use crate::lock_order;
use crate::primary_mmu::{CreateError, FaultMode, PrivateMmu};
use crate::registry::{self, Kind, Registration, Target};
use crate::sigbus;
use crate::uaccess::{self, Cause, UserFault};
use core::fmt;
use pinless_mm::addr::{PAGE_SIZE, PageIndex};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::gfp::might_touch;
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
/// when the last [`PrivateMmu`] goes.
#[derive(Debug)]
pub struct HostMapping {
    attachment: Option<Attachment>,
    mmu: Arc<PrivateMmu>,
    resolver: Resolver,
}

/// What resolves the faults, in the order in which it is taken down: first no new fault reaches
/// the handler, then none is in it.
struct Attachment {
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
    /// Makes a mapping of `nr_pages` holes. It is used after [`HostMapping::attach`].
    ///
    /// # Errors
    ///
    /// See [`CreateError`].
    pub fn create(nr_pages: u32, resolver: Resolver) -> Result<Self, CreateError> {
        lock_order::prime();
        if is_forked_child() {
            return Err(CreateError::ForkedChild);
        }
        fork::mark_owner().map_err(|errno| CreateError::Os {
            operation: "madvise(MADV_WIPEONFORK)",
            errno,
        })?;
        sigbus::install().map_err(|errno| CreateError::Os {
            operation: "sigaction of SIGBUS",
            errno,
        })?;
        let mmu = Arc::new(PrivateMmu::create(nr_pages, resolver.mode())?);
        Ok(Self {
            attachment: None,
            mmu,
            resolver,
        })
    }

    /// The primary MMU, for the memory manager.
    pub fn mmu(&self) -> Arc<PrivateMmu> {
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
        let (base, len) = self.mmu.staging_range();
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
            },
        });
        let service = match &self.resolver {
            Resolver::InThread => None,
            Resolver::Service(service) => Some(service.serve(self.mmu(), handler)?),
        };
        self.attachment = Some(Attachment {
            _service: service,
            _managed: managed,
            _staging: staging,
        });
        Ok(())
    }

    /// The address of the first byte. Valid while the mapping lives; what is read through it is
    /// shared with whoever else uses it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mmu.mapping_range().0 as *mut u8
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
        let address = self.locate(offset, into.len())?;
        might_touch();
        // SAFETY: the bytes lie in the mapping (`locate`), which lives as long as `self`.
        unsafe { uaccess::copy_in(into, address as *const u8) }.map_err(|fault| self.failed(fault))
    }

    /// Writes to `offset` bytes on.
    ///
    /// # Errors
    ///
    /// See [`AccessError`]; part of `from` may have been written.
    #[track_caller]
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        let address = self.locate(offset, from.len())?;
        might_touch();
        // SAFETY: as in `read_at`; no Rust reference into a mapping is ever made.
        unsafe { uaccess::copy_out(address as *mut u8, from) }.map_err(|fault| self.failed(fault))
    }

    /// Loads the word at `offset` bytes, in one access, with acquire ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    #[track_caller]
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        let address = self.locate_word(offset)?;
        might_touch();
        // SAFETY: as in `read_at`; the address is aligned (`locate_word`).
        unsafe { uaccess::load_u64(address as *const u64) }.map_err(|fault| self.failed(fault))
    }

    /// Stores the word at `offset` bytes, in one access, with release ordering.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    #[track_caller]
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        let address = self.locate_word(offset)?;
        might_touch();
        // SAFETY: as in `write_at`; the address is aligned (`locate_word`).
        unsafe { uaccess::store_u64(address as *mut u64, value) }
            .map_err(|fault| self.failed(fault))
    }

    fn locate(&self, offset: u64, len: usize) -> Result<usize, AccessError> {
        let (base, mapped) = self.mmu.mapping_range();
        let fits = offset <= mapped as u64 && len as u64 <= mapped as u64 - offset;
        if is_forked_child() {
            Err(AccessError::ForkedChild)
        } else if self.attachment.is_none() {
            Err(AccessError::NotAttached)
        } else if fits {
            Ok(base + offset as usize)
        } else {
            Err(AccessError::OutOfRange { offset, len })
        }
    }

    fn locate_word(&self, offset: u64) -> Result<usize, AccessError> {
        let len = size_of::<u64>();
        if offset.is_multiple_of(len as u64) {
            self.locate(offset, len)
        } else {
            Err(AccessError::Misaligned { offset })
        }
    }

    fn failed(&self, fault: UserFault) -> AccessError {
        let offset = fault.address.0 - self.mmu.mapping_range().0 as u64;
        let page = (offset / PAGE_SIZE as u64) as PageIndex;
        match fault.cause {
            Cause::Fault(error) => AccessError::Fault {
                offset,
                page,
                error,
            },
            Cause::StaleDma => AccessError::StaleDma { offset, page },
            Cause::ThreadNotAttached => AccessError::ThreadNotAttached { offset },
        }
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
    /// The mapping resolves faults in the thread, and this thread has not called `attach_thread`.
    ThreadNotAttached {
        /// The byte that was accessed.
        offset: u64,
    },
    /// A thread that stands in for a device accessed a page that is not there.
    StaleDma {
        /// The byte that was accessed.
        offset: u64,
        /// Its page.
        page: PageIndex,
    },
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
                "access to offset {offset} by a thread that did not call `attach_thread`"
            ),
            Self::StaleDma { offset, page } => write!(
                f,
                "device access to offset {offset} (page {page}), which is not there"
            ),
        }
    }
}

impl std::error::Error for AccessError {}
