//! What this crate knows of a thread: whether it may touch managed memory, whether it stands in
//! for a device, and whether it is resolving a fault.
//!
//! All of it lies in thread-local cells that need neither construction nor destruction, so the
//! SIGBUS handler can use them at any moment.

use crate::errno::Errno;
use crate::uaccess::UserFault;
use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::watch::prepare_thread;

/// Bytes of alternate stack that the fill of a page may use.
const SIGNAL_STACK_BYTES: usize = 64 * 1024;

/// Engine threads that can be marked at one time.
const NR_ENGINES_MAX: usize = 4096;

/// Slots that a search for an engine thread looks at.
const NR_PROBES_MAX: usize = 64;

struct ThreadState {
    /// How many fault handlers this thread is in.
    handler_depth: Cell<u32>,
    /// Whether it runs a guest.
    is_in_guest: Cell<bool>,
    /// How many engine guards it holds.
    engine_depth: Cell<u32>,
    /// Its slot in [`ENGINES`] while it holds one.
    engine_slot: Cell<usize>,
    /// Its number, or zero when not asked for yet.
    thread_id: Cell<u32>,
    /// The last fault that could not be resolved.
    fault: Cell<Option<UserFault>>,
    /// Page address and number of faults there that were resolved in a row.
    resolved_in_a_row: Cell<(usize, u32)>,
    /// Instruction and address of the last access, stale or not to be had, that a signal ended.
    interrupted: Cell<(usize, usize)>,
}

thread_local! {
    static STATE: ThreadState = const {
        ThreadState {
            handler_depth: Cell::new(0),
            is_in_guest: Cell::new(false),
            engine_depth: Cell::new(0),
            engine_slot: Cell::new(0),
            thread_id: Cell::new(0),
            fault: Cell::new(None),
            resolved_in_a_row: Cell::new((0, 0)),
            interrupted: Cell::new((0, 0)),
        }
    };
}

/// The kernel's number of this thread. Remembered, so not valid in the child of a fork.
pub(crate) fn thread_id() -> u32 {
    STATE.with(|state| {
        if state.thread_id.get() == 0 {
            // SAFETY: the call takes nothing and touches no memory.
            state.thread_id.set(unsafe { libc::gettid() } as u32);
        }
        state.thread_id.get()
    })
}

/// Notes that this thread resolves a fault, until dropped.
pub(crate) struct HandlerDepth {
    _not_send: PhantomData<*const ()>,
}

/// Enters a fault handler.
pub(crate) fn enter_handler() -> HandlerDepth {
    STATE.with(|state| state.handler_depth.set(state.handler_depth.get() + 1));
    HandlerDepth {
        _not_send: PhantomData,
    }
}

impl Drop for HandlerDepth {
    fn drop(&mut self) {
        STATE.with(|state| state.handler_depth.set(state.handler_depth.get() - 1));
    }
}

/// Whether this thread is resolving a fault already.
pub(crate) fn is_in_handler() -> bool {
    STATE.with(|state| state.handler_depth.get() > 0)
}

/// Notes that this thread is in a system call that runs a guest, until dropped.
#[cfg(feature = "kvm")]
pub(crate) struct InGuest {
    _not_send: PhantomData<*const ()>,
}

/// Enters a guest. A fault of it that cannot be resolved is noted, and ends the system call.
#[cfg(feature = "kvm")]
pub(crate) fn enter_guest() -> InGuest {
    take_fault();
    STATE.with(|state| {
        state.interrupted.set((0, 0));
        state.is_in_guest.set(true);
    });
    InGuest {
        _not_send: PhantomData,
    }
}

#[cfg(feature = "kvm")]
impl Drop for InGuest {
    fn drop(&mut self) {
        STATE.with(|state| state.is_in_guest.set(false));
    }
}

/// Whether this thread runs a guest.
pub(crate) fn is_in_guest() -> bool {
    STATE.with(|state| state.is_in_guest.get())
}

/// Remembers why the access that comes back as an error failed.
pub(crate) fn note_fault(fault: UserFault) {
    STATE.with(|state| state.fault.set(Some(fault)));
}

/// The fault that was noted last, once.
pub(crate) fn take_fault() -> Option<UserFault> {
    STATE.with(|state| state.fault.take())
}

/// The last fault in managed memory of this thread that could not be resolved and was handed on
/// to the SIGBUS handler that was installed before. For that handler, so that it can say why.
pub fn last_fault() -> Option<UserFault> {
    STATE.with(|state| state.fault.get())
}

/// Counts faults in a row at one page that the memory manager says it has resolved.
pub(crate) fn count_resolved(page_address: usize, is_resolved: bool) -> u32 {
    STATE.with(|state| {
        let (last, nr) = state.resolved_in_a_row.get();
        let nr = match is_resolved {
            false => 0,
            true if last == page_address => nr.saturating_add(1),
            true => 1,
        };
        state.resolved_in_a_row.set((page_address, nr));
        nr
    })
}

/// One engine thread, as others find it.
struct EngineSlot {
    /// The thread; zero when free.
    thread: AtomicU32,
    /// The page address of a stale access of this thread that a service thread has counted, and
    /// told it of with a signal that it has not met yet; zero when there is none.
    counted: AtomicU64,
}

static ENGINES: [EngineSlot; NR_ENGINES_MAX] = [const {
    EngineSlot {
        thread: AtomicU32::new(0),
        counted: AtomicU64::new(0),
    }
}; NR_ENGINES_MAX];

/// How many slots are taken, so that who looks for none need not search.
static NR_ENGINES: AtomicU32 = AtomicU32::new(0);

/// Marks this thread as one that stands in for a device, until dropped.
///
/// A fault of such a thread in managed memory is a stale translation: it is counted, never
/// resolved. Guards nest.
#[must_use = "the thread is an engine thread until the guard is dropped"]
pub struct EngineThread {
    _not_send: PhantomData<*const ()>,
}

/// Marks this thread as one that stands in for a device. SIGBUS must not be blocked in it.
///
/// # Panics
///
/// When thousands of threads are marked at the same time.
pub fn mark_engine_thread() -> EngineThread {
    STATE.with(|state| {
        let depth = state.engine_depth.get();
        if depth == 0 {
            state.engine_slot.set(claim_slot(thread_id()));
        }
        state.engine_depth.set(depth + 1);
    });
    EngineThread {
        _not_send: PhantomData,
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        STATE.with(|state| {
            let depth = state.engine_depth.get() - 1;
            state.engine_depth.set(depth);
            if depth == 0 {
                // Relaxed: the slot carries nothing but the number itself.
                ENGINES[state.engine_slot.get()]
                    .thread
                    .store(0, Ordering::Relaxed);
                NR_ENGINES.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
}

/// Where to look for a thread: its place by its number, and the places after it.
fn probes(thread: u32) -> impl Iterator<Item = usize> {
    let start = thread as usize;
    (start..start + NR_PROBES_MAX).map(|place| place % NR_ENGINES_MAX)
}

fn claim_slot(thread: u32) -> usize {
    // Relaxed, here and below: whoever asks for this thread has read a message of the kernel's
    // that this thread caused after the claim, and the kernel's queue orders the two.
    NR_ENGINES.fetch_add(1, Ordering::Relaxed);
    probes(thread)
        .find(|place| {
            let slot = &ENGINES[*place];
            let claimed =
                slot.thread
                    .compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed);
            if claimed.is_ok() {
                slot.counted.store(0, Ordering::Relaxed);
            }
            claimed.is_ok()
        })
        .expect("fewer engine threads than slots")
}

/// Whether this thread is marked.
pub(crate) fn is_engine() -> bool {
    STATE.with(|state| state.engine_depth.get() > 0)
}

/// Whether `thread` is marked; if so, notes that it is told of its stale access to a page.
pub(crate) fn engine_access(thread: u32, page_address: usize) -> EngineAccess {
    if thread == 0 || NR_ENGINES.load(Ordering::Relaxed) == 0 {
        return EngineAccess::NotAnEngine;
    }
    let marked = probes(thread).find(|place| {
        let slot = &ENGINES[*place];
        slot.thread.load(Ordering::Relaxed) == thread
    });
    match marked {
        None => EngineAccess::NotAnEngine,
        Some(place) => {
            // Relaxed: the thread reads it when the signal is delivered, which orders the two.
            let before = ENGINES[place]
                .counted
                .swap(page_address as u64, Ordering::Relaxed);
            if before == page_address as u64 {
                EngineAccess::Repeated
            } else {
                EngineAccess::New
            }
        }
    }
}

/// What a service thread meets in a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EngineAccess {
    /// An access of the program.
    NotAnEngine,
    /// A stale access.
    New,
    /// A second message about a stale access that the thread is being told of already.
    Repeated,
}

/// Whether a service thread told this one of its stale access to the page; true once for each.
pub(crate) fn take_counted(page_address: usize) -> bool {
    STATE.with(|state| {
        let counted = &ENGINES[state.engine_slot.get()].counted;
        let page_address = page_address as u64;
        // Relaxed: see `engine_access`.
        state.engine_depth.get() > 0
            && page_address != 0
            && counted
                .compare_exchange(page_address, 0, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    })
}

/// Tells our queued signals from those of others, in the field for an error number.
pub(crate) const QUEUED_MARK: i32 = 0x5049_4E4C;

/// What the kernel calls a queued signal (`siginfo_t`), with a word of the sender's.
#[repr(C)]
struct QueuedSignal {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    process: i32,
    user: u32,
    value: usize,
    rest: [u64; 12],
}

/// Tells an engine thread that waits in the kernel that its access is stale: the signal ends the
/// wait, and the handler ends the access.
pub(crate) fn interrupt_engine(thread: u32, address: usize) {
    // SAFETY: 1. `info` has the layout and size of the kernel's siginfo and is borrowed for the
    // call. 2. The signal goes to a thread of this process only, and its handler, installed
    // before any mapping is made, ignores it where it is not expected.
    unsafe {
        let process = libc::getpid();
        let info = QueuedSignal {
            signal: libc::SIGBUS,
            errno: QUEUED_MARK,
            code: libc::SI_QUEUE,
            padding: 0,
            process,
            user: 0,
            value: address,
            rest: [0; 12],
        };
        // Fails only when the thread is gone, and its access with it.
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            libc::SIGBUS,
            &raw const info,
        );
    }
}

/// Notes that an access was interrupted at an instruction; says whether the last one was, too, so
/// that it did not get past it.
pub(crate) fn is_stuck_at(instruction: usize, address: usize) -> bool {
    STATE.with(|state| {
        let here = (instruction, address);
        state.interrupted.replace(here) == here
    })
}

/// A thread that may touch managed memory whose faults it resolves itself; undone when dropped.
#[derive(Debug)]
#[must_use = "the thread is attached until the guard is dropped"]
pub struct AttachedThread {
    was_blocked: bool,
    /// The stack that was there before, and ours in its place.
    stack: Option<(libc::stack_t, SignalStack)>,
    _not_send: PhantomData<*const ()>,
}

/// Prepares this thread for touching memory whose faults it resolves itself
/// ([`crate::FaultMode::InThread`]): lets SIGBUS through, sees to an alternate stack of 64 KiB for
/// its handler, and touches the thread-locals once. Attaching twice is harmless.
///
/// # Errors
///
/// The error number of the system call that failed.
pub fn attach_thread() -> Result<AttachedThread, Errno> {
    thread_id();
    prepare_thread();
    let stack = match current_signal_stack()? {
        old if old.ss_flags & libc::SS_DISABLE == 0 && old.ss_size >= SIGNAL_STACK_BYTES => None,
        old => {
            let stack = SignalStack::map()?;
            stack.install()?;
            Some((old, stack))
        }
    };
    Ok(AttachedThread {
        was_blocked: set_sigbus_blocked(false),
        stack,
        _not_send: PhantomData,
    })
}

impl Drop for AttachedThread {
    fn drop(&mut self) {
        if self.was_blocked {
            set_sigbus_blocked(true);
        }
        if let Some((old, _)) = &self.stack {
            // SAFETY: `old` is what the kernel answered for this thread (the guard cannot leave
            // it), and whoever made that stack keeps it while the thread runs. The thread does
            // not stand on ours: guards are not dropped in a signal handler. Ours is unmapped
            // after this call.
            unsafe { libc::sigaltstack(old, core::ptr::null_mut()) };
        }
    }
}

/// Blocks or unblocks SIGBUS in this thread; says whether it was blocked.
fn set_sigbus_blocked(block: bool) -> bool {
    // SAFETY: the sets are plain data for which zero is a valid value; the calls read and write
    // them and nothing else.
    unsafe {
        let mut set: libc::sigset_t = core::mem::zeroed();
        let mut old: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGBUS);
        let how = if block {
            libc::SIG_BLOCK
        } else {
            libc::SIG_UNBLOCK
        };
        libc::pthread_sigmask(how, &set, &mut old);
        libc::sigismember(&old, libc::SIGBUS) == 1
    }
}

fn current_signal_stack() -> Result<libc::stack_t, Errno> {
    // SAFETY: zero is a valid value; the call writes the answer there.
    unsafe {
        let mut old: libc::stack_t = core::mem::zeroed();
        Errno::check(libc::sigaltstack(core::ptr::null(), &mut old).into())?;
        Ok(old)
    }
}

/// A signal stack with an inaccessible page below it.
///
/// # Invariants
///
/// `start..start + len` is a mapping that this value made and alone unmaps; its first page is not
/// accessible.
#[derive(Debug)]
struct SignalStack {
    start: usize,
    len: usize,
}

impl SignalStack {
    fn map() -> Result<Self, Errno> {
        // What the kernel saves of the registers comes on top of what the handler uses.
        // SAFETY: the call takes a number and answers one.
        let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let len = PAGE_SIZE + SIGNAL_STACK_BYTES + frame.next_multiple_of(PAGE_SIZE);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. It is
        // populated, so that the handler takes no other fault.
        let start = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let stack = Self {
            start: start as usize,
            len,
        };
        // INVARIANT: the first page becomes inaccessible here, before the stack is used.
        // SAFETY: the page belongs to the mapping made above, which nobody else knows.
        Errno::check(unsafe { libc::mprotect(start, PAGE_SIZE, libc::PROT_NONE) }.into())?;
        Ok(stack)
    }

    fn install(&self) -> Result<(), Errno> {
        let stack = libc::stack_t {
            ss_sp: (self.start + PAGE_SIZE) as *mut libc::c_void,
            ss_flags: 0,
            ss_size: self.len - PAGE_SIZE,
        };
        // SAFETY: the memory is ours and mapped until this value drops, and `AttachedThread`
        // takes it out of use before that.
        Errno::check(unsafe { libc::sigaltstack(&stack, core::ptr::null_mut()) }.into()).map(drop)
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping of this value (type invariant), no longer in use as a
        // signal stack (see `install`).
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len) };
    }
}
