//! The handler that was there before ours, and how to give it what is not ours.
//!
//! It gets what the kernel would have given it: arguments, signal mask, error number. One thing is
//! not the same: it runs on the stack on which ours runs, with SA_ONSTACK or without, so on the
//! alternate one where the thread has one, and has the room that is left there.

use super::context;
use crate::errno::Errno;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// Poison that nobody has accessed yet; sent, not raised by an access.
const BUS_MCEERR_AO: i32 = 5;

/// Size of the kernel's signal set.
const KERNEL_SET_BYTES: usize = 8;

/// Signals that an instruction raises: never blocked while our handler runs.
const SYNCHRONOUS: [i32; 7] = [
    libc::SIGBUS,
    libc::SIGSEGV,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// What was in force before. Set before our handler is, and never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(core::ptr::null_mut());

/// A handler that was to be called once has been.
static IS_SPENT: AtomicBool = AtomicBool::new(false);

/// A handler as SA_SIGINFO has it.
pub(super) type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

/// Puts `handler` in the place of what is in force now, and remembers that.
pub(super) fn install(handler: Handler) -> Result<(), Errno> {
    // A signal may come as soon as ours is in force, so what to hand it on to is known before.
    remember(exchange(None)?);
    // SAFETY: zero is a valid value of the type.
    let mut ours: libc::sigaction = unsafe { core::mem::zeroed() };
    ours.sa_sigaction = handler as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the set belongs to the value above.
    unsafe {
        libc::sigfillset(&mut ours.sa_mask);
        for signal in SYNCHRONOUS {
            libc::sigdelset(&mut ours.sa_mask, signal);
        }
    }
    remember(exchange(Some(&ours))?);
    Ok(())
}

fn remember(previous: libc::sigaction) {
    // Release: pairs with the acquire in `hand_on`, which reads what the pointer leads to. An
    // older value is never freed: a handler may be reading it.
    PREVIOUS.store(Box::into_raw(Box::new(previous)), Ordering::Release);
}

/// Reads what is in force, and puts `new` in its place if there is one.
fn exchange(new: Option<&libc::sigaction>) -> Result<libc::sigaction, Errno> {
    let new = new.map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: zero is a valid value of `old`, which the call writes. `new` is null or a valid
    // action, whose handler is `on_sigbus` (safe to run at any moment, see there) or SIG_DFL.
    unsafe {
        let mut old: libc::sigaction = core::mem::zeroed();
        Errno::check(libc::sigaction(libc::SIGBUS, new, &mut old).into())?;
        Ok(old)
    }
}

/// Gives the signal to what was in force before ours, as the kernel would have.
///
/// # Safety
///
/// The arguments are those of the handler that calls this, as its last act.
pub(super) unsafe fn hand_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // Acquire: pairs with the release in `remember`.
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: the pointer is null or leads to an action that is never freed.
    let previous = unsafe { previous.as_ref() };
    // SAFETY: `info` is valid by this function's contract.
    let code = unsafe { (*info).si_code };
    let is_raised_by_access = code > 0 && code != BUS_MCEERR_AO;
    match previous {
        Some(action) if is_callable(action) => {
            // SAFETY: by this function's contract.
            unsafe { call(action, signal, info, context) };
        }
        // The kernel does not let a program ignore a signal that one of its accesses raised.
        Some(action) if action.sa_sigaction == libc::SIG_IGN && !is_raised_by_access => {}
        _ => end_as_default(is_raised_by_access),
    }
}

fn is_callable(action: &libc::sigaction) -> bool {
    if action.sa_sigaction == libc::SIG_DFL || action.sa_sigaction == libc::SIG_IGN {
        return false;
    }
    // Relaxed: who is first calls it; nothing else hangs on the flag.
    action.sa_flags & libc::SA_RESETHAND == 0 || !IS_SPENT.swap(true, Ordering::Relaxed)
}

/// Calls a handler under the signal mask that it asked for.
///
/// # Safety
///
/// As [`hand_on`]; `action` has a handler.
unsafe fn call(
    action: &libc::sigaction,
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    // SAFETY: `context` is valid by this function's contract; a C library's set starts with the
    // kernel's.
    let mut mask = unsafe {
        context::blocked_signals(context) | (&raw const action.sa_mask).cast::<u64>().read()
    };
    if action.sa_flags & libc::SA_NODEFER == 0 {
        mask |= 1 << (libc::SIGBUS - 1);
    }
    let ours = set_mask(mask);
    let handler = action.sa_sigaction as *const ();
    // SAFETY: 1. The kernel held this address as the SIGBUS handler, of the form that the flag
    // names. 2. It is called as the kernel would call it, with this signal's arguments; those of
    // the shorter form are a prefix.
    unsafe {
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            core::mem::transmute::<*const (), Handler>(handler)(signal, info, context);
        } else {
            core::mem::transmute::<*const (), extern "C" fn(i32)>(handler)(signal);
        }
    }
    set_mask(ours);
}

/// Replaces this thread's mask, and answers the old one. The C library's function of this name
/// would keep its own signals out.
fn set_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both pointers lead to 8 bytes, the size given.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            KERNEL_SET_BYTES,
        )
    };
    old
}

/// Lets the default happen: the process ends. An access that raised the signal is repeated when
/// the handler returns, and raises it again; one that was sent is sent again.
fn end_as_default(is_raised_by_access: bool) {
    // SAFETY: zero is a valid value, and means SIG_DFL with no flags.
    let default: libc::sigaction = unsafe { core::mem::zeroed() };
    let _ = exchange(Some(&default));
    if !is_raised_by_access {
        // SAFETY: the call takes no pointers.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}
