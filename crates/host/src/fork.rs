//! Whether this process is the child of a fork that managed memory did not follow into.
//!
//! A child has none of the managed memory, none of the threads, and descriptors that act on its
//! parent's memory. So it is told apart, by a page that the kernel wipes in a child: however the
//! child was made, and without a system call.

use crate::errno::Errno;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use lockdep::sync::Mutex;
use pinless_mm::addr::PAGE_SIZE;

/// One in the process that made it, zero in its children; null before the first mapping.
static MARK: AtomicPtr<AtomicU8> = AtomicPtr::new(core::ptr::null_mut());

static MAKING: Mutex<()> = Mutex::new("host.fork", ());

/// Marks this process as the one that managed memory belongs to, once.
pub(crate) fn mark_owner() -> Result<(), Errno> {
    let _making = MAKING.lock();
    // Relaxed: written under the lock alone.
    if !MARK.load(Ordering::Relaxed).is_null() {
        return Ok(());
    }
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let page = unsafe {
        libc::mmap(
            core::ptr::null_mut(),
            PAGE_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: the page is the mapping made above; a failure leaves it as it is.
    let wiped = unsafe { libc::madvise(page, PAGE_SIZE, libc::MADV_WIPEONFORK) };
    if let Err(errno) = Errno::check(wiped.into()) {
        // SAFETY: the page is the mapping made above, which nobody else knows.
        unsafe { libc::munmap(page, PAGE_SIZE) };
        return Err(errno);
    }
    let mark = page.cast::<AtomicU8>();
    // SAFETY: the page is ours, aligned, and never unmapped.
    unsafe { &*mark }.store(1, Ordering::Relaxed);
    // Release: whoever finds the pointer finds the mark; pairs with the Acquire in
    // `is_forked_child`.
    MARK.store(mark, Ordering::Release);
    Ok(())
}

/// Whether this process is the child of one that has managed memory. One load of a page.
#[inline]
pub fn is_forked_child() -> bool {
    // Acquire: pairs with the Release in `mark_owner`.
    let mark = MARK.load(Ordering::Acquire);
    // SAFETY: what is not null is the page that `mark_owner` made, which is never unmapped.
    !mark.is_null() && unsafe { &*mark }.load(Ordering::Relaxed) == 0
}
