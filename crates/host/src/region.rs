//! A range of anonymous private memory with a guard page on either side.

use crate::errno::Errno;
use pinless_mm::addr::PAGE_SIZE;

/// Works on locked memory too, unlike `MADV_DONTNEED`. Linux 5.18.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// Anonymous private memory, reserved but not committed, that a child process does not inherit
/// and that the kernel does not merge into huge pages.
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
    /// Reserves `nr_pages` pages.
    pub(crate) fn reserve(nr_pages: u32) -> Result<Self, Errno> {
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
        // here on `Drop` unmaps it, also when a call below fails.
        let region = Self {
            base: start as usize + PAGE_SIZE,
            len,
        };
        // SAFETY: the range is the inside of the mapping made above, which nobody else knows.
        let done = unsafe {
            libc::mprotect(
                region.base as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        Errno::check(done.into())?;
        region.advise(0, len, libc::MADV_DONTFORK)?;
        region.advise(0, len, libc::MADV_NOHUGEPAGE).or_else(|e| {
            // A kernel that was built without huge pages does not know the advice.
            if e.0 == libc::EINVAL { Ok(()) } else { Err(e) }
        })?;
        Ok(region)
    }

    /// The address of the first byte.
    pub(crate) fn base(&self) -> usize {
        self.base
    }

    /// Bytes in the region.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives the frames of a part back to the machine.
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
        // SAFETY: the range with its two guard pages is the mapping that `reserve` made (type
        // invariant), and nobody else unmaps it. Whoever kept a raw address gets SIGSEGV.
        unsafe {
            libc::munmap(
                (self.base - PAGE_SIZE) as *mut libc::c_void,
                self.len + 2 * PAGE_SIZE,
            )
        };
    }
}
