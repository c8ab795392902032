//! Where the pages of this process are, as the kernel's page tables say it.
//!
//! Linux counterpart: `fs/proc/task_mmu.c`, `Documentation/admin-guide/mm/pagemap.rst`.

use crate::errno::Errno;
use pinless_mm::addr::PAGE_SIZE;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const WRITE_PROTECTED: u64 = 1 << 57;

/// Entries read in one call, into a buffer on the stack, which may be that of a signal.
pub(crate) const BATCH: usize = 32;

/// What the page table holds for one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    /// Nothing at all: what a buffer holds before it is read into.
    pub(crate) const NOTHING: Self = Self(0);

    /// A frame is mapped.
    pub(crate) fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// There is no frame but a mark: contents in the kernel's swap, or poison.
    pub(crate) fn is_mark(self) -> bool {
        self.0 & (PRESENT | SWAPPED) == SWAPPED
    }

    /// There is something at all.
    pub(crate) fn is_occupied(self) -> bool {
        self.0 & (PRESENT | SWAPPED) != 0
    }

    /// The first write will trap.
    pub(crate) fn is_write_protected(self) -> bool {
        self.0 & WRITE_PROTECTED != 0
    }
}

/// The page map of this process, opened once and kept.
///
/// It belongs to the process that opened it: after a fork, the child still sees its parent's.
#[derive(Debug)]
pub(crate) struct Pagemap {
    fd: OwnedFd,
}

impl Pagemap {
    /// Opens the page map.
    pub(crate) fn open() -> Result<Self, Errno> {
        // SAFETY: the path is a C string; the call has no other requirement.
        let fd = unsafe {
            libc::open(
                c"/proc/self/pagemap".as_ptr(),
                libc::O_RDONLY | libc::O_CLOEXEC,
            )
        };
        Errno::check(fd.into())?;
        // SAFETY: the descriptor was opened above and is owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Reads the entries of `nr` pages from `address` on, or as many as `into` holds. Allocates
    /// nothing.
    pub(crate) fn read<'a>(
        &self,
        address: usize,
        nr: usize,
        into: &'a mut [Entry],
    ) -> Result<&'a [Entry], Errno> {
        let nr = nr.min(into.len());
        let bytes = nr * size_of::<Entry>();
        let at = (address / PAGE_SIZE * size_of::<Entry>()) as libc::off_t;
        // SAFETY: `into` holds at least `nr` entries of plain 64-bit integers, for which every
        // bit pattern is valid, and is borrowed mutably for the call.
        let done = unsafe { libc::pread(self.fd.as_raw_fd(), into.as_mut_ptr().cast(), bytes, at) };
        let done = Errno::check(done as i64)?;
        if done as usize == bytes {
            Ok(&into[..nr])
        } else {
            // The address lies beyond the address space.
            Err(Errno(libc::EFAULT))
        }
    }

    /// Reads the entry of one page.
    pub(crate) fn entry(&self, address: usize) -> Result<Entry, Errno> {
        let mut entries = NOTHING;
        self.read(address, 1, &mut entries).map(|read| read[0])
    }
}

/// A buffer for [`Pagemap::read`].
pub(crate) const NOTHING: [Entry; BATCH] = [Entry::NOTHING; BATCH];
