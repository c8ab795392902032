//! A range of memory with a guard page on either side.

use crate::errno::Errno;
use crate::fork::is_forked_child;
use crate::memfd::Memfd;
use pinless_mm::addr::PAGE_SIZE;
use std::os::fd::{AsFd, AsRawFd};

/// Works on locked memory too, unlike `MADV_DONTNEED`. Linux 5.18.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// How the pages of a file are mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum View {
    /// Where programs use them.
    ReadWrite,
    /// Where they are looked at while programs cannot.
    ReadOnly,
}

/// Anonymous private memory, reserved but not committed, or a file in memory; a child process does
/// not inherit it, and the kernel does not merge it into huge pages.
///
/// # Invariants
///
/// `base..base + len` is a mapping that this value made and alone unmaps; `base` and `len` are
/// multiples of [`PAGE_SIZE`]; the page before and the page after it are not accessible, so a
/// program that runs over the end meets a fault and not its neighbour.
#[derive(Debug)]
pub(crate) struct Region {
    base: usize,
    len: usize,
}

impl Region {
    /// Reserves `nr_pages` pages of anonymous memory.
    pub(crate) fn reserve(nr_pages: u32) -> Result<Self, Errno> {
        let region = Self::inaccessible(nr_pages)?;
        // SAFETY: the range is the inside of the mapping made above, which nobody else knows.
        let done = unsafe {
            libc::mprotect(
                region.base as *mut libc::c_void,
                region.len,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        Errno::check(done.into())?;
        region.prepare()
    }

    /// Maps the pages of a file.
    pub(crate) fn of_file(file: &Memfd, view: View) -> Result<Self, Errno> {
        let region = Self::inaccessible(file.nr_pages())?;
        let protection = match view {
            View::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            View::ReadOnly => libc::PROT_READ,
        };
        // SAFETY: the range is the inside of the mapping made above, which nobody else knows: what
        // is replaced is inaccessible and empty.
        let start = unsafe {
            libc::mmap(
                region.base as *mut libc::c_void,
                region.len,
                protection,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        region.prepare()
    }

    /// Reserves the addresses of `nr_pages` pages and of a page on either side.
    fn inaccessible(nr_pages: u32) -> Result<Self, Errno> {
        let len = nr_pages as usize * PAGE_SIZE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len + 2 * PAGE_SIZE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // INVARIANT: the mapping has one page more on each side, which stays inaccessible. From
        // here on `Drop` unmaps it, also when a later call fails.
        Ok(Self {
            base: start as usize + PAGE_SIZE,
            len,
        })
    }

    fn prepare(self) -> Result<Self, Errno> {
        self.advise(0, self.len, libc::MADV_DONTFORK)?;
        self.advise(0, self.len, libc::MADV_NOHUGEPAGE)
            .or_else(|e| {
                // A kernel that was built without huge pages does not know the advice.
                if e.0 == libc::EINVAL { Ok(()) } else { Err(e) }
            })?;
        Ok(self)
    }

    /// The address of the first byte.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Bytes in the region.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes a part out of the page table, and marks with it. The frames of anonymous memory go
    /// back to the machine; those of a file stay in it.
    pub(crate) fn discard(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.advise(offset, len, MADV_DONTNEED_LOCKED)
    }

    /// Makes every later access end in SIGSEGV. What the frames hold stays.
    pub(crate) fn seal(&self) -> Result<(), Errno> {
        // SAFETY: the range is the mapping of this region (type invariant). Accesses from now on
        // trap, which is what the caller asks for; no Rust reference into a region is ever made.
        let done =
            unsafe { libc::mprotect(self.base as *mut libc::c_void, self.len, libc::PROT_NONE) };
        Errno::check(done.into()).map(drop)
    }

    fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), Errno> {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "advice beyond the region"
        );
        // SAFETY: the range lies in the mapping of this region (assertion, type invariant). The
        // advices used change sharing and page size, or drop contents that the caller owns and
        // to which no Rust reference exists.
        let done = unsafe { libc::madvise((self.base + offset) as *mut libc::c_void, len, advice) };
        Errno::check(done.into()).map(drop)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if is_forked_child() {
            // It did not come along, and something else may be at its addresses.
            return;
        }
        // SAFETY: the range with its two guard pages is the mapping that this value made (type
        // invariant), and nobody else unmaps it. Whoever kept a raw address gets SIGSEGV.
        unsafe {
            libc::munmap(
                (self.base - PAGE_SIZE) as *mut libc::c_void,
                self.len + 2 * PAGE_SIZE,
            )
        };
    }
}
