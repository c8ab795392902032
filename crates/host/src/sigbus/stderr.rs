//! Last words: what is wrong, told without allocation, and then the end of the process.

use super::context::Trap;
use core::fmt::{self, Write};
use pinless_mm::addr::PageIndex;
use pinless_mm::primary_mmu::Access;

/// A fault inside a fault handler: whatever it was doing, it must not touch managed memory.
pub(super) fn die_in_handler(trap: &Trap<'_>, page: PageIndex) -> ! {
    die(format_args!(
        "pinless: the fault handler itself touched managed memory: page {page}, {} of {:#x} by \
         the instruction at {:#x}\n",
        kind(trap),
        trap.address,
        trap.instruction(),
    ))
}

/// A fault on a signal stack that is too small to resolve it.
pub(super) fn die_unattached(trap: &Trap<'_>, page: PageIndex) -> ! {
    die(format_args!(
        "pinless: too little is left of the signal stack for page {page} of an in-thread mapping: \
         {} of {:#x} by the instruction at {:#x}; have the thread call `attach_thread`, its signal \
         handlers use less, or map with service threads\n",
        kind(trap),
        trap.address,
        trap.instruction(),
    ))
}

/// An access to a slot that holds no page.
pub(super) fn die_in_staging(trap: &Trap<'_>, page: PageIndex) -> ! {
    die(format_args!(
        "pinless: bug: the empty slot of page {page} was touched: {} of {:#x} by the instruction \
         at {:#x}\n",
        kind(trap),
        trap.address,
        trap.instruction(),
    ))
}

fn kind(trap: &Trap<'_>) -> &'static str {
    match trap.access() {
        Access::Write => "write",
        Access::Read => "read",
    }
}

fn die(words: fmt::Arguments<'_>) -> ! {
    let mut line = Line::new();
    // A line that is too long is cut.
    let _ = line.write_fmt(words);
    line.say();
    // SAFETY: the call takes nothing and does not return.
    unsafe { libc::abort() }
}

/// A line of text on the stack.
struct Line {
    bytes: [u8; 320],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [0; 320],
            len: 0,
        }
    }

    fn say(&self) {
        // SAFETY: `len` never exceeds the buffer, which is borrowed for the call.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len) };
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let nr = text.len().min(room.len());
        room[..nr].copy_from_slice(&text.as_bytes()[..nr]);
        self.len += nr;
        Ok(())
    }
}
