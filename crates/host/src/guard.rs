//! Guards: managed memory that stays resident while it is used, so that no access traps.
//!
//! A guard is a pin and a way through the address. It is how memory is handed to a system call, and
//! the fastest way to use it. It gives out no reference: a device may write the same bytes at any
//! moment, so they are copied, or loaded and stored as words.
//!
//! Linux counterpart: `pin_user_pages` with `kmap`.

use crate::fork::is_forked_child;
use crate::mapping::{AccessError, HostMapping};
use core::fmt;
use core::ops::Deref;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::gfp::Gfp;
use pinless_mm::mm_struct::{Pin, PinError, Vma};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// Why there is no guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuardError {
    /// The `Vma` is not over the pages of the `HostMapping`.
    NotTheSamePages,
    /// The pages cannot be pinned.
    Pin(PinError),
    /// This process is the child of a fork, and has none of its parent's managed memory.
    ForkedChild,
}

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTheSamePages => {
                f.write_str("the address space's mapping is not over the pages of this mapping")
            }
            Self::Pin(error) => error.fmt(f),
            Self::ForkedChild => AccessError::ForkedChild.fmt(f),
        }
    }
}

impl std::error::Error for GuardError {}

/// Keeps pages of a mapping resident, and reads and writes them without a trap, until dropped.
///
/// `M` is how it holds the mapping: by reference, or by a share in it.
#[derive(Debug)]
#[must_use = "the pages may be taken back when this is dropped"]
pub struct Guard<M: Deref<Target = HostMapping>> {
    /// Before the mapping: a page is let go of while there is one.
    pin: Pin,
    mapping: M,
}

impl HostMapping {
    /// Makes the pages of `run` resident and keeps them so. `vma` is over the pages of this
    /// mapping. A guard for [`Access::Read`] can only be read.
    ///
    /// May reclaim memory and wait for it: not in a notifier, nor under a lock that one takes.
    ///
    /// # Errors
    ///
    /// See [`GuardError`]; nothing stays pinned.
    pub fn guard(
        &self,
        vma: &Arc<Vma>,
        run: PageRun,
        access: Access,
    ) -> Result<Guard<&Self>, GuardError> {
        Guard::new(self, vma, run, access)
    }
}

impl<M: Deref<Target = HostMapping>> Guard<M> {
    /// [`HostMapping::guard`], for any way to hold the mapping.
    ///
    /// # Errors
    ///
    /// See [`GuardError`]; nothing stays pinned.
    pub fn new(
        mapping: M,
        vma: &Arc<Vma>,
        run: PageRun,
        access: Access,
    ) -> Result<Self, GuardError> {
        if is_forked_child() {
            return Err(GuardError::ForkedChild);
        }
        if !mapping.is_over(vma) {
            return Err(GuardError::NotTheSamePages);
        }
        let pin = vma.pin(run, access, Gfp::Kernel).map_err(GuardError::Pin)?;
        Ok(Self { pin, mapping })
    }

    /// What the guard may do.
    pub fn access(&self) -> Access {
        self.pin.access()
    }

    /// The pages.
    pub fn run(&self) -> PageRun {
        self.pin.run()
    }

    /// Bytes under the guard.
    pub fn len_bytes(&self) -> usize {
        self.run().len_bytes()
    }

    /// The address of the first byte, to be handed to a system call. Valid while the guard lives.
    pub fn as_ptr(&self) -> *mut u8 {
        let offset = self.run().first as usize * PAGE_SIZE;
        self.mapping.as_ptr().wrapping_add(offset)
    }

    /// Reads from `offset` bytes into the guard on.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfRange`] when the bytes do not lie under the guard.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.mapping.read_at(self.locate(offset, into.len())?, into)
    }

    /// Writes to `offset` bytes into the guard on.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfRange`] when the bytes do not lie under the guard.
    ///
    /// # Panics
    ///
    /// If the guard is for reading: its pages may be write-protected, and the write be lost.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        self.assert_writable();
        self.mapping
            .write_at(self.locate(offset, from.len())?, from)
    }

    /// Loads the word at `offset` bytes into the guard, with acquire ordering.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfRange`] and [`AccessError::Misaligned`].
    pub fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        self.mapping
            .load_u64(self.locate(offset, size_of::<u64>())?)
    }

    /// Stores the word at `offset` bytes into the guard, with release ordering.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfRange`] and [`AccessError::Misaligned`].
    ///
    /// # Panics
    ///
    /// If the guard is for reading.
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.assert_writable();
        let at = self.locate(offset, size_of::<u64>())?;
        self.mapping.store_u64(at, value)
    }

    fn assert_writable(&self) {
        assert!(
            self.pin.access() == Access::Write,
            "a guard for reading is not written through"
        );
    }

    /// The offset in the mapping.
    fn locate(&self, offset: u64, len: usize) -> Result<u64, AccessError> {
        let guarded = self.len_bytes() as u64;
        if offset <= guarded && len as u64 <= guarded - offset {
            Ok(u64::from(self.run().first) * PAGE_SIZE as u64 + offset)
        } else {
            Err(AccessError::OutOfRange { offset, len })
        }
    }
}
