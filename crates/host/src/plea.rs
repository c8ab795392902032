//! Pleas: a thread asks the service for a page that it cannot have itself.
//!
//! A fault that was once refused leaves poison in its page, and the next access ends in a signal in
//! place of a message to the service. A thread with room on its signal stack resolves that fault
//! itself. One that was never attached has a small stack from elsewhere: it writes down what it
//! needs, rings, and waits for the answer, all of which takes two system calls and no lock.

use crate::errno::Errno;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use pinless_mm::addr::PageIndex;
use pinless_mm::primary_mmu::Access;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Pleas that a service thread can have before it at one time.
const NR_PLEAS: usize = 4;

/// What the answer to a plea is.
const GRANTED: u64 = 1;
const DENIED: u64 = 2;

/// The pleas before one service thread.
pub(crate) struct Pleas {
    bell: OwnedFd,
    slots: [Plea; NR_PLEAS],
}

struct Plea {
    is_taken: AtomicBool,
    /// Written down, and not yet answered.
    is_open: AtomicBool,
    /// Of the mapping, as the service knows it.
    key: AtomicU64,
    page: AtomicU32,
    is_write: AtomicBool,
    answer: OwnedFd,
}

/// A counter of the kernel's that a thread can wait for.
fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags by value.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    let fd = Errno::check(fd.into())?;
    // SAFETY: the descriptor was made above and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn add(fd: &OwnedFd, value: u64) {
    // SAFETY: the call reads the 8 bytes of `value`.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const value).cast(), 8) };
}

/// Waits until something was added, and takes it; zero when a signal came first.
fn take(fd: &OwnedFd) -> u64 {
    let mut value = 0_u64;
    // SAFETY: the call writes the 8 bytes of `value`, or nothing.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut value).cast(), 8) };
    value
}

impl Pleas {
    pub(crate) fn new() -> Result<Self, Errno> {
        let plea = || {
            Ok(Plea {
                is_taken: AtomicBool::new(false),
                is_open: AtomicBool::new(false),
                key: AtomicU64::new(0),
                page: AtomicU32::new(0),
                is_write: AtomicBool::new(false),
                answer: eventfd()?,
            })
        };
        Ok(Self {
            bell: eventfd()?,
            slots: [plea()?, plea()?, plea()?, plea()?],
        })
    }

    /// What is readable when there is a plea.
    pub(crate) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Asks for a page, and waits for the answer: whether it is there now. It waits for no longer
    /// than a fault of each thread that asks takes. Callable from a signal handler with little
    /// stack.
    pub(crate) fn plead(&self, key: u64, page: PageIndex, access: Access) -> bool {
        // Acquire: pairs with the Release below: the slot is as the last one left it.
        let free = |plea: &&Plea| !plea.is_taken.swap(true, Ordering::Acquire);
        let plea = loop {
            match self.slots.iter().find(free) {
                Some(plea) => break plea,
                // All are being answered.
                None => std::thread::yield_now(),
            }
        };
        plea.key.store(key, Ordering::Relaxed);
        plea.page.store(page, Ordering::Relaxed);
        let is_write = access == Access::Write;
        plea.is_write.store(is_write, Ordering::Relaxed);
        // Release: pairs with the Acquire in `answer`, which reads what was written down.
        plea.is_open.store(true, Ordering::Release);
        add(&self.bell, 1);
        let answer = loop {
            match take(&plea.answer) {
                0 => {}
                answer => break answer,
            }
        };
        // Release: pairs with the Acquire above.
        plea.is_taken.store(false, Ordering::Release);
        answer == GRANTED
    }

    /// Answers each plea with what `serve` says of its mapping, page and access. For the service
    /// thread, when the bell has rung.
    pub(crate) fn answer(&self, serve: impl Fn(u64, PageIndex, Access) -> bool) {
        take(&self.bell);
        // Acquire: pairs with the Release in `plead`.
        let is_open = |plea: &&Plea| plea.is_open.swap(false, Ordering::Acquire);
        for plea in self.slots.iter().filter(is_open) {
            let access = match plea.is_write.load(Ordering::Relaxed) {
                true => Access::Write,
                false => Access::Read,
            };
            let (key, page) = (
                plea.key.load(Ordering::Relaxed),
                plea.page.load(Ordering::Relaxed),
            );
            let is_there = serve(key, page, access);
            add(&plea.answer, if is_there { GRANTED } else { DENIED });
        }
    }
}
