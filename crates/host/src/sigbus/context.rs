//! What the kernel tells a signal handler of the interrupted code, for each architecture.

use crate::thread;
use core::ffi::c_void;
use pinless_mm::primary_mmu::Access;

/// A SIGBUS and the code that it interrupted.
pub(super) struct Trap<'a> {
    /// Why (`si_code`).
    pub(super) code: i32,
    /// The address accessed. Zero when nobody accessed anything.
    pub(super) address: usize,
    /// The address in question, if a service thread of ours sent the signal.
    pub(super) queued: Option<usize>,
    /// Whether the access was a write.
    is_write: bool,
    context: &'a mut libc::ucontext_t,
}

impl Trap<'_> {
    /// Takes apart what a handler was called with.
    ///
    /// # Safety
    ///
    /// `info` and `context` are the arguments of a SA_SIGINFO handler, which runs until after the
    /// value is gone and uses `context` in no other way meanwhile.
    pub(super) unsafe fn new(info: *const libc::siginfo_t, context: *mut c_void) -> Self {
        // SAFETY: both pointers are valid by this function's contract, and `context` is ours
        // alone. The fields of the union are plain bytes, valid whichever of them the code means.
        let (code, address, queued, context) = unsafe {
            (
                (*info).si_code,
                (*info).si_addr() as usize,
                queued_address(&*info),
                &mut *context.cast::<libc::ucontext_t>(),
            )
        };
        Self {
            code,
            address: if code > 0 { address } else { 0 },
            queued,
            is_write: is_write(context),
            context,
        }
    }
}

/// What resolving a fault needs of a signal stack: twice what was ever seen to be used, which is
/// 15.4 KiB with the lock validator and 13.7 KiB without, frame of the kernel included.
const STACK_BYTES_MIN: usize = 32 * 1024;

impl Trap<'_> {
    /// What the access was.
    pub(super) fn access(&self) -> Access {
        match self.is_write {
            true => Access::Write,
            false => Access::Read,
        }
    }

    /// Whether the handler has room to resolve a fault: not at the end of a signal stack, as the
    /// small one is that a thread has from elsewhere. A thread without one is interrupted on its
    /// ordinary stack. Nor can the room be told of a stack that disarms itself
    /// (`SS_AUTODISARM`); whoever sets up such a one sees to its size.
    pub(super) fn has_room(&self) -> bool {
        let here = core::ptr::from_ref(&self).addr();
        let stack = &self.context.uc_stack;
        let start = stack.ss_sp as usize;
        let is_on_it = here >= start && here - start < stack.ss_size;
        stack.ss_flags & libc::SS_DISABLE != 0 || !is_on_it || here - start >= STACK_BYTES_MIN
    }
}

fn queued_address(info: &libc::siginfo_t) -> Option<usize> {
    if info.si_code != libc::SI_QUEUE || info.si_errno != thread::QUEUED_MARK {
        return None;
    }
    // SAFETY: a queued signal has these fields of the union. The call takes nothing.
    unsafe { (info.si_pid() == libc::getpid()).then(|| info.si_value().sival_ptr as usize) }
}

/// The signals that were blocked before the handler ran.
///
/// # Safety
///
/// `context` is the argument of a running signal handler.
pub(super) unsafe fn blocked_signals(context: *const c_void) -> u64 {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the pointer is valid by this function's contract. The kernel writes 8 bytes of the
    // field, of which the C library's type has more; only those 8 are read.
    unsafe { (&raw const (*context).uc_sigmask).cast::<u64>().read() }
}

#[cfg(target_arch = "x86_64")]
impl Trap<'_> {
    /// The address of the instruction.
    pub(super) fn instruction(&self) -> usize {
        self.context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize
    }

    /// Has the interrupted code go on at an instruction.
    pub(super) fn go_on_at(&mut self, instruction: usize) {
        self.context.uc_mcontext.gregs[libc::REG_RIP as usize] = instruction as i64;
    }
}

#[cfg(target_arch = "x86_64")]
fn is_write(context: &libc::ucontext_t) -> bool {
    const PAGE_FAULT_WRITE: i64 = 1 << 1;
    context.uc_mcontext.gregs[libc::REG_ERR as usize] & PAGE_FAULT_WRITE != 0
}

#[cfg(target_arch = "aarch64")]
impl Trap<'_> {
    /// The address of the instruction.
    pub(super) fn instruction(&self) -> usize {
        self.context.uc_mcontext.pc as usize
    }

    /// Has the interrupted code go on at an instruction.
    pub(super) fn go_on_at(&mut self, instruction: usize) {
        self.context.uc_mcontext.pc = instruction as u64;
    }
}

/// The write bit of the syndrome register, which the kernel appends as a record of its own.
#[cfg(target_arch = "aarch64")]
fn is_write(context: &libc::ucontext_t) -> bool {
    const ESR_MAGIC: u32 = 0x4553_5201;
    const ESR_WRITE: u64 = 1 << 6;
    const RECORDS_BYTES: usize = 4096;
    let machine = (&raw const context.uc_mcontext).cast::<u8>();
    // The records follow the last named field, aligned to 16 bytes.
    let named = core::mem::offset_of!(libc::mcontext_t, pstate) + size_of::<u64>();
    let first = named.next_multiple_of(16);
    let mut at = 0;
    while at + 16 <= RECORDS_BYTES {
        // SAFETY: `mcontext_t` ends with 4096 bytes of records, and `at` stays 16 bytes below
        // their end. Each record starts, 16-byte aligned, with its magic number and size.
        let (magic, size, value) = unsafe {
            let record = machine.add(first + at);
            (
                record.cast::<u32>().read(),
                record.add(4).cast::<u32>().read() as usize,
                record.add(8).cast::<u64>().read(),
            )
        };
        if magic == ESR_MAGIC {
            return value & ESR_WRITE != 0;
        }
        if magic == 0 || size < 16 {
            break;
        }
        at += size.next_multiple_of(16);
    }
    false
}
