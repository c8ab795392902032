//! Copies between memory of ours and managed memory that end in an error, not in a signal, when a
//! page cannot be had.
//!
//! The copies are written in assembly and lie side by side in one block of code. When a fault
//! inside the block cannot be resolved, the SIGBUS handler moves the instruction pointer to the
//! block's fixup, which returns "failed" to the caller of the copy. None of the functions pushes
//! anything on the stack, so the one fixup serves them all. A kernel's exception table does the
//! same with one entry for each instruction.
//!
//! Because the accesses happen in assembly, they may race with a program or a device that uses
//! the same bytes: each single access is whole, but a copy may be of no single moment.
//!
//! Linux counterpart: `copy_from_user`, `arch/x86/lib/copy_user_64.S`, `arch/x86/mm/extable.c`.

use crate::thread;
use core::arch::{asm, global_asm};
use core::fmt;
use pinless_mm::addr::{PAGE_SIZE, Vaddr};
use pinless_mm::fault::FaultError;

/// A page that a copy, or another access, could not be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserFault {
    /// The address that was accessed.
    pub address: Vaddr,
    /// Why.
    pub cause: Cause,
}

/// Why an access could not be given its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The memory manager has no page to give.
    Fault(FaultError),
    /// The access was a device's, and its translation was stale: never resolved.
    StaleDma,
    /// The thread's signal stack is too small to resolve anything: it is not attached, or a signal
    /// handler on that stack leaves too little of it.
    ThreadNotAttached,
    /// The memory is another process's, and that refused or has gone.
    OwnerRefused,
}

impl fmt::Display for UserFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Fault(error) => write!(f, "access to {}: {error}", self.address),
            Cause::StaleDma => write!(
                f,
                "device access to {} through a translation that is no longer valid",
                self.address
            ),
            Cause::ThreadNotAttached => write!(
                f,
                "access to {} by a thread that did not call `attach_thread`, or whose signal \
                 handler left too little of its stack",
                self.address
            ),
            Cause::OwnerRefused => write!(
                f,
                "access to {}: the process that owns the memory refused, or has gone",
                self.address
            ),
        }
    }
}

impl std::error::Error for UserFault {}

/// Copies from managed memory. After an error part of `dst` may be written.
///
/// # Safety
///
/// `src` and the `dst.len()` bytes from it lie in a mapping that stays mapped during the call, or
/// are readable otherwise; they do not overlap `dst`.
///
/// # Errors
///
/// [`UserFault`] for the first page that cannot be had.
#[inline]
pub unsafe fn copy_in(dst: &mut [u8], src: *const u8) -> Result<(), UserFault> {
    // SAFETY: `dst` is valid for writes of its length; `src` by this function's contract.
    let failed = unsafe { pinless_uaccess_copy(dst.as_mut_ptr(), src, dst.len()) };
    outcome(failed)
}

/// Copies to managed memory. After an error part of it may have been written.
///
/// # Safety
///
/// As [`copy_in`], with the `src.len()` bytes from `dst` on writable; no Rust reference to them
/// exists.
///
/// # Errors
///
/// [`UserFault`] for the first page that cannot be had.
#[inline]
pub unsafe fn copy_out(dst: *mut u8, src: &[u8]) -> Result<(), UserFault> {
    // SAFETY: `src` is valid for reads of its length; `dst` by this function's contract.
    let failed = unsafe { pinless_uaccess_copy(dst, src.as_ptr(), src.len()) };
    outcome(failed)
}

/// Loads a word from managed memory, in one access, with acquire ordering.
///
/// # Safety
///
/// `src` is a multiple of 8, and the 8 bytes from it lie in a mapping that stays mapped during
/// the call, or are readable otherwise.
///
/// # Errors
///
/// [`UserFault`] when the page cannot be had.
#[inline]
pub unsafe fn load_u64(src: *const u64) -> Result<u64, UserFault> {
    debug_assert!(src.is_aligned());
    // SAFETY: by this function's contract.
    let loaded = unsafe { pinless_uaccess_load(src) };
    outcome(loaded.failed).map(|()| loaded.value)
}

/// Stores a word to managed memory, in one access, with release ordering.
///
/// # Safety
///
/// As [`load_u64`], with the 8 bytes writable; no Rust reference to them exists.
///
/// # Errors
///
/// [`UserFault`] when the page cannot be had.
#[inline]
pub unsafe fn store_u64(dst: *mut u64, value: u64) -> Result<(), UserFault> {
    debug_assert!(dst.is_aligned());
    // SAFETY: by this function's contract.
    outcome(unsafe { pinless_uaccess_store(dst, value) })
}

/// Copies a page that is there, or ends the process: not one of the copies above, so a fault does
/// not come back as an error. May race with whoever else uses the bytes.
///
/// # Safety
///
/// The page from `src` on lies in a mapping of this crate that stays during the call, or can be
/// read otherwise; the page from `dst` on likewise, to be written, and no Rust reference to it is
/// used meanwhile. They do not overlap.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) unsafe fn copy_page(dst: *mut u8, src: *const u8) {
    // SAFETY: the instruction reads and writes these bytes and nothing else. The direction flag is
    // clear wherever Rust code runs.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") PAGE_SIZE => _,
            inout("rsi") src => _,
            inout("rdi") dst => _,
            options(nostack, preserves_flags),
        );
    }
}

/// As on x86-64.
///
/// # Safety
///
/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[inline]
pub(crate) unsafe fn copy_page(dst: *mut u8, src: *const u8) {
    // SAFETY: the loop reads and writes these bytes, 16 at a time, and nothing else.
    unsafe {
        asm!(
            "2:",
            "ldp {low}, {high}, [{src}], #16",
            "stp {low}, {high}, [{dst}], #16",
            "subs {left}, {left}, #16",
            "b.ne 2b",
            low = out(reg) _,
            high = out(reg) _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            left = inout(reg) PAGE_SIZE => _,
            options(nostack),
        );
    }
}

#[inline]
fn outcome(failed: usize) -> Result<(), UserFault> {
    if failed == 0 {
        Ok(())
    } else {
        Err(thread::take_fault().expect("the SIGBUS handler notes the fault before each fixup"))
    }
}

/// Whether an instruction is one of the copies. For the SIGBUS handler.
pub(crate) fn contains(instruction: usize) -> bool {
    let first = (&raw const pinless_uaccess_begin).addr();
    let end = (&raw const pinless_uaccess_end).addr();
    (first..end).contains(&instruction)
}

/// Where a copy that cannot go on continues. For the SIGBUS handler.
pub(crate) fn fixup() -> usize {
    (&raw const pinless_uaccess_fixup).addr()
}

/// A word, or that there is none. Returned in two registers.
#[repr(C)]
struct Loaded {
    failed: usize,
    value: u64,
}

// SAFETY: the symbols are defined in the assembly of this module; only their addresses are used.
unsafe extern "C" {
    static pinless_uaccess_begin: u8;
    static pinless_uaccess_end: u8;
    static pinless_uaccess_fixup: u8;
    fn pinless_uaccess_copy(dst: *mut u8, src: *const u8, len: usize) -> usize;
    fn pinless_uaccess_load(src: *const u64) -> Loaded;
    fn pinless_uaccess_store(dst: *mut u64, value: u64) -> usize;
}

// Contract of the block, on both architectures: it calls nothing, leaves the stack pointer alone,
// and changes only registers that a C function may change. So a jump from any instruction between
// begin and end to the fixup is a plain return of 1 to the caller. An instruction that faulted and
// is repeated does the same again: none changes a register before its access is done, and the
// string copy keeps its progress in its registers.
//
// Copies of at most 512 bytes go in 16-byte blocks, the last one overlapping the one before it;
// the string copy takes longer to start.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.pinless_uaccess,\"ax\",@progbits",
    ".globl pinless_uaccess_begin",
    ".hidden pinless_uaccess_begin",
    ".globl pinless_uaccess_end",
    ".hidden pinless_uaccess_end",
    ".globl pinless_uaccess_fixup",
    ".hidden pinless_uaccess_fixup",
    ".globl pinless_uaccess_copy",
    ".hidden pinless_uaccess_copy",
    ".globl pinless_uaccess_load",
    ".hidden pinless_uaccess_load",
    ".globl pinless_uaccess_store",
    ".hidden pinless_uaccess_store",
    ".p2align 6",
    "pinless_uaccess_begin:",
    "pinless_uaccess_copy:",
    "cmp rdx, 16",
    "jb 20f",
    "cmp rdx, 512",
    "ja 40f",
    "movups xmm1, [rsi + rdx - 16]",
    "lea rcx, [rdx - 1]",
    "and rcx, -16",
    "xor eax, eax",
    "10:",
    "movups xmm0, [rsi + rax]",
    "movups [rdi + rax], xmm0",
    "add rax, 16",
    "cmp rax, rcx",
    "jb 10b",
    "movups [rdi + rdx - 16], xmm1",
    "xor eax, eax",
    "ret",
    "20:",
    "cmp rdx, 8",
    "jb 21f",
    "mov rax, [rsi]",
    "mov rcx, [rsi + rdx - 8]",
    "mov [rdi], rax",
    "mov [rdi + rdx - 8], rcx",
    "xor eax, eax",
    "ret",
    "21:",
    "cmp rdx, 4",
    "jb 22f",
    "mov eax, [rsi]",
    "mov ecx, [rsi + rdx - 4]",
    "mov [rdi], eax",
    "mov [rdi + rdx - 4], ecx",
    "xor eax, eax",
    "ret",
    "22:",
    "test rdx, rdx",
    "jz 24f",
    "23:",
    "movzx eax, byte ptr [rsi + rdx - 1]",
    "mov [rdi + rdx - 1], al",
    "dec rdx",
    "jnz 23b",
    "24:",
    "xor eax, eax",
    "ret",
    "40:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "pinless_uaccess_load:",
    "mov rdx, [rdi]",
    "xor eax, eax",
    "ret",
    "pinless_uaccess_store:",
    "mov [rdi], rsi",
    "xor eax, eax",
    "ret",
    "pinless_uaccess_end:",
    "pinless_uaccess_fixup:",
    "mov eax, 1",
    "ret",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.pinless_uaccess,\"ax\",@progbits",
    ".globl pinless_uaccess_begin",
    ".hidden pinless_uaccess_begin",
    ".globl pinless_uaccess_end",
    ".hidden pinless_uaccess_end",
    ".globl pinless_uaccess_fixup",
    ".hidden pinless_uaccess_fixup",
    ".globl pinless_uaccess_copy",
    ".hidden pinless_uaccess_copy",
    ".globl pinless_uaccess_load",
    ".hidden pinless_uaccess_load",
    ".globl pinless_uaccess_store",
    ".hidden pinless_uaccess_store",
    ".p2align 6",
    "pinless_uaccess_begin:",
    "pinless_uaccess_copy:",
    "cmp x2, #16",
    "b.lo 2f",
    "1:",
    "ldp x3, x4, [x1], #16",
    "stp x3, x4, [x0], #16",
    "sub x2, x2, #16",
    "cmp x2, #16",
    "b.hs 1b",
    "2:",
    "cbz x2, 4f",
    "3:",
    "ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "sub x2, x2, #1",
    "cbnz x2, 3b",
    "4:",
    "mov x0, #0",
    "ret",
    "pinless_uaccess_load:",
    "ldar x1, [x0]",
    "mov x0, #0",
    "ret",
    "pinless_uaccess_store:",
    "stlr x1, [x0]",
    "mov x0, #0",
    "ret",
    "pinless_uaccess_end:",
    "pinless_uaccess_fixup:",
    "mov x0, #1",
    "ret",
    ".popsection",
);

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("pinless runs on x86-64 and aarch64");
