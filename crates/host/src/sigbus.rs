//! The SIGBUS handler of the process.
//!
//! A SIGBUS in a mapping of ours is a fault that the faulting thread resolves itself, or the end
//! of an access that cannot be resolved. Any other SIGBUS belongs to somebody else and goes to
//! the handler that was there before. One handler serves all mappings; it is installed once and
//! stays.
//!
//! It runs on the alternate stack with every other signal blocked, so nothing happens there but
//! the fill and what frees a frame for it, and with SIGBUS let through, so that a fault inside it
//! is seen: that is a bug, and it ends the process with the name of the page. It allocates nothing
//! and takes no lock of this crate.
//!
//! Linux counterpart: `force_sig_fault`, `arch/x86/mm/fault.c:do_sigbus`.

mod chain;
mod context;
mod stderr;

use crate::errno::Errno;
use crate::fork::is_forked_child;
use crate::primary_mmu::{FaultMode, HostMmu};
use crate::registry::{self, InFlight, Kind};
use crate::thread;
use crate::uaccess::{self, Cause, UserFault};
use context::Trap;
use core::ffi::c_void;
use lockdep::sync::Mutex;
use pinless_mm::addr::{PAGE_SIZE, PageIndex, Vaddr};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::primary_mmu::MmuError;

/// A page that cannot be had.
const BUS_ADRERR: i32 = 2;
/// A page that is poisoned, met by an access.
const BUS_MCEERR_AR: i32 = 4;

/// Faults resolved in a row at one page after which somebody looks at what is there.
const NR_IN_A_ROW_MAX: u32 = 16;

static INSTALLED: Mutex<bool> = Mutex::new("host.sigbus", false);

/// Installs the handler, once a process.
///
/// # Errors
///
/// The error number of `sigaction(2)`.
pub(crate) fn install() -> Result<(), Errno> {
    let mut installed = INSTALLED.lock();
    if !*installed {
        chain::install(on_sigbus)?;
        *installed = true;
    }
    Ok(())
}

/// What is to become of the interrupted access.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Go on where the context says.
    GoOn,
    /// Not ours, or not to be resolved.
    HandOn,
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let errno = Errno::last();
    // SAFETY: the kernel calls this handler, installed with SA_SIGINFO, with a valid siginfo and
    // ucontext of this signal, which nobody else uses until it returns.
    let mut trap = unsafe { Trap::new(info, context) };
    let verdict = judge(&mut trap);
    errno.restore();
    if verdict == Verdict::HandOn {
        // SAFETY: the three arguments are those of this signal.
        unsafe { chain::hand_on(signal, info, context) };
    }
}

fn judge(trap: &mut Trap<'_>) -> Verdict {
    if is_forked_child() {
        // None of the memory is here. What is at its addresses now is the child's own, and the
        // locks of the library may be held by threads that are not here either.
        return Verdict::HandOn;
    }
    if let Some(address) = trap.queued {
        return judge_queued(trap, address);
    }
    if trap.code != BUS_ADRERR && trap.code != BUS_MCEERR_AR {
        return Verdict::HandOn;
    }
    let Some(found) = registry::lookup(trap.address) else {
        return Verdict::HandOn;
    };
    let target = found.target();
    let page = ((trap.address - target.base) / PAGE_SIZE) as PageIndex;
    let (handler, mmu, pleader) = match &target.kind {
        Kind::Managed {
            handler,
            mmu,
            pleader,
        } => (handler, mmu, pleader),
        Kind::Staging => stderr::die_in_staging(trap, page),
        Kind::Foreign => {
            drop::<InFlight>(found);
            return refuse(trap, Cause::OwnerRefused);
        }
    };
    if thread::is_in_handler() {
        stderr::die_in_handler(trap, page);
    }
    let result = if thread::is_engine() {
        let _depth = thread::enter_handler();
        handler.stale_dma(page);
        Err(Cause::StaleDma)
    } else if trap.has_room() {
        resolve(trap, &**handler, mmu, page).map_err(Cause::Fault)
    } else if pleader
        .as_ref()
        .is_some_and(|service| service.plead(page, trap.access()))
    {
        unless_broken(trap, mmu, page, Ok(())).map_err(Cause::Fault)
    } else {
        Err(refuse_unattached(trap, &**handler, mmu, page))
    };
    // Let go before the signal is handed on: the next handler may never come back.
    drop::<InFlight>(found);
    match result {
        Ok(()) => Verdict::GoOn,
        Err(cause) => refuse(trap, cause),
    }
}

/// A signal that a service thread of ours sent, about a stale access of this thread's that waits
/// in the kernel.
fn judge_queued(trap: &mut Trap<'_>, address: usize) -> Verdict {
    if !thread::take_counted(page_address(address)) {
        // Too late: the thread is no engine any more, or is doing something else.
        return Verdict::GoOn;
    }
    trap.address = address;
    let instruction = trap.instruction();
    if uaccess::contains(instruction) || thread::is_stuck_at(instruction, address) {
        return refuse(trap, Cause::StaleDma);
    }
    // The access has ended in another way meanwhile; if not, there will be another signal, here.
    Verdict::GoOn
}

fn page_address(address: usize) -> usize {
    address & !(PAGE_SIZE - 1)
}

/// Why an access ends of a thread that brought too small a signal stack to resolve it on.
fn refuse_unattached(
    trap: &Trap<'_>,
    handler: &dyn FaultHandler,
    mmu: &HostMmu,
    page: PageIndex,
) -> Cause {
    match mmu.mode() {
        // A service thread has tried, and again when it was asked to.
        FaultMode::Service => Cause::Fault(handler.denied(page)),
        FaultMode::InThread if uaccess::contains(trap.instruction()) => Cause::ThreadNotAttached,
        FaultMode::InThread => stderr::die_unattached(trap, page),
    }
}

fn resolve(
    trap: &Trap<'_>,
    handler: &dyn FaultHandler,
    mmu: &HostMmu,
    page: PageIndex,
) -> Result<(), FaultError> {
    let _depth = thread::enter_handler();
    unless_broken(trap, mmu, page, handler.fault(page, trap.access()))
}

/// What was answered, unless the memory is broken and no answer makes it whole.
fn unless_broken(
    trap: &Trap<'_>,
    mmu: &HostMmu,
    page: PageIndex,
    result: Result<(), FaultError>,
) -> Result<(), FaultError> {
    // Poison of ours goes away when the page is filled. If it stays although the memory manager
    // says again and again that all is well, it is the machine's: the memory is broken. The
    // signal's code does not tell: kernels without `CONFIG_MEMORY_FAILURE` call all poison an
    // absent page.
    let nr_in_a_row = thread::count_resolved(page_address(trap.address), result.is_ok());
    if nr_in_a_row > NR_IN_A_ROW_MAX && mmu.is_marked(page) {
        thread::count_resolved(0, false);
        return Err(FaultError::Machine(MmuError::Os {
            operation: "access to poisoned memory",
            errno: libc::EHWPOISON,
        }));
    }
    result
}

/// Ends an access that cannot be resolved: as an error, if it is one of our copies.
fn refuse(trap: &mut Trap<'_>, cause: Cause) -> Verdict {
    thread::note_fault(UserFault {
        address: Vaddr(trap.address as u64),
        cause,
    });
    if uaccess::contains(trap.instruction()) {
        trap.go_on_at(uaccess::fixup());
        Verdict::GoOn
    } else if thread::is_in_guest() && !thread::is_stuck_at(trap.instruction(), trap.address) {
        // The access was a guest's: the signal has ended its run, and what was noted says why. Or
        // it was one of a signal handler that interrupts the run, and comes here again at once.
        Verdict::GoOn
    } else {
        Verdict::HandOn
    }
}
