//! The state of interrupt-like levels, asked of the program that the library is linked into.
//!
//! The program may define `lockdep_ctx_*` or not. That takes references that may stay unresolved,
//! which the language has no stable way to write: each is a few lines of assembler, that jump to
//! the program's function if there is one, and give the answer of a plain task otherwise.

use validator::context::{self, Levels};

/// Defines `$name`, which calls `$asked` if the program has it, and gives `$default` otherwise.
macro_rules! ask {
    ($name:literal, $asked:literal, $default:literal) => {
        // SAFETY: the symbol is new, follows the calling convention of a C function without
        // arguments, and touches the register of its result only. What it jumps to has the
        // declaration that the header gives, and returns to our caller.
        #[cfg(target_arch = "x86_64")]
        core::arch::global_asm!(
            concat!(".weak ", $asked),
            concat!(".local ", $name),
            concat!($name, ":"),
            concat!("mov rax, qword ptr [rip + ", $asked, "@GOTPCREL]"),
            "test rax, rax",
            "jz 2f",
            "jmp rax",
            "2:",
            concat!("mov eax, ", $default),
            "ret",
        );
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        core::arch::global_asm!(
            concat!(".weak ", $asked),
            concat!(".local ", $name),
            concat!($name, ":"),
            concat!("adrp x0, :got:", $asked),
            concat!("ldr x0, [x0, :got_lo12:", $asked, "]"),
            "cbz x0, 2f",
            "br x0",
            "2:",
            concat!("mov w0, #", $default),
            "ret",
        );
    };
}

ask!(
    "lockdep_ask_irqs_disabled",
    "lockdep_ctx_irqs_disabled",
    "0"
);
ask!("lockdep_ask_in_hardirq", "lockdep_ctx_in_hardirq", "0");
ask!("lockdep_ask_in_softirq", "lockdep_ctx_in_softirq", "0");
ask!(
    "lockdep_ask_hardirq_threaded",
    "lockdep_ctx_hardirq_threaded",
    "0"
);
ask!(
    "lockdep_ask_softirqs_enabled",
    "lockdep_ctx_softirqs_enabled",
    "1"
);

// SAFETY: these are the functions defined above; the program's answers are plain numbers.
unsafe extern "C" {
    safe fn lockdep_ask_irqs_disabled() -> i32;
    safe fn lockdep_ask_in_hardirq() -> i32;
    safe fn lockdep_ask_in_softirq() -> i32;
    safe fn lockdep_ask_hardirq_threaded() -> i32;
    safe fn lockdep_ask_softirqs_enabled() -> i32;
}

/// The levels of the calling thread, as the program has them.
pub(crate) fn ask() -> Levels {
    Levels {
        in_hard: lockdep_ask_in_hardirq() != 0,
        in_soft: lockdep_ask_in_softirq() != 0,
        hard_off: lockdep_ask_irqs_disabled() != 0,
        soft_off: lockdep_ask_softirqs_enabled() == 0,
        is_threaded: lockdep_ask_hardirq_threaded() != 0,
    }
}

/// Takes the program's levels over, for the event that follows.
pub(crate) fn refresh() {
    context::set_levels(ask());
}
