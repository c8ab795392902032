//! The state of interrupt-like levels, asked of the program that the library is linked into.
//!
//! The library defines `lockdep_ctx_*` weakly, with the answers of a plain task: where a program
//! defines one, that one is called instead. The language has no stable way to define a function
//! weakly, so each is two instructions of assembler.

use validator::context::{self, Levels};

/// Defines the function `$name` weakly, which answers with `$answer`.
macro_rules! answer {
    ($name:ident, $answer:literal) => {
        // SAFETY: the function follows the calling convention of a C function without arguments,
        // and touches the register of its result only.
        core::arch::global_asm!(
            concat!(".weak ", stringify!($name)),
            concat!(".type ", stringify!($name), ", %function"),
            concat!(stringify!($name), ":"),
            #[cfg(target_arch = "x86_64")]
            concat!("mov eax, ", $answer),
            #[cfg(target_arch = "aarch64")]
            concat!("mov w0, #", $answer),
            "ret",
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
        );
    };
}

answer!(lockdep_ctx_irqs_disabled, "0");
answer!(lockdep_ctx_in_hardirq, "0");
answer!(lockdep_ctx_in_softirq, "0");
answer!(lockdep_ctx_hardirq_threaded, "0");
answer!(lockdep_ctx_softirqs_enabled, "1");

/// Makes the functions above part of the interface of the shared library. The compiler tells the
/// linker what that is by the names of its own items, and the linker takes them for patterns.
// SAFETY: no other item has this name, which is none that a program can write.
#[unsafe(export_name = "lockdep_ctx_*")]
pub(crate) static EXPORT: u8 = 0;

// SAFETY: these are declared as the header does; the answers are plain numbers.
unsafe extern "C" {
    safe fn lockdep_ctx_irqs_disabled() -> i32;
    safe fn lockdep_ctx_in_hardirq() -> i32;
    safe fn lockdep_ctx_in_softirq() -> i32;
    safe fn lockdep_ctx_hardirq_threaded() -> i32;
    safe fn lockdep_ctx_softirqs_enabled() -> i32;
}

/// The levels of the calling thread, as the program has them.
pub(crate) fn ask() -> Levels {
    Levels {
        in_hard: lockdep_ctx_in_hardirq() != 0,
        in_soft: lockdep_ctx_in_softirq() != 0,
        hard_off: lockdep_ctx_irqs_disabled() != 0,
        soft_off: lockdep_ctx_softirqs_enabled() == 0,
        is_threaded: lockdep_ctx_hardirq_threaded() != 0,
    }
}

/// Takes the program's levels over, for the event that follows.
pub(crate) fn refresh() {
    context::set_levels(ask());
}
