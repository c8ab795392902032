//! What a thread is in the middle of: whether it runs a callback, and of which mode.
//!
//! Linux counterpart: non_block_count of struct task_struct

use super::range::Mode;
use super::stats::add_one;
use core::any::Any;
use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use std::panic::{AssertUnwindSafe, catch_unwind};

std::thread_local! {
    /// Readable in a signal handler: a constant, and without a destructor.
    static RUNNING: Cell<Option<Mode>> = const { Cell::new(None) };
}

/// The mode of the callback that the calling thread runs; `None` outside of callbacks.
///
/// For whoever may be called from everywhere and must not be called from a callback: a fault on
/// managed memory, the end of a subscription, a lock that sleeps. Callable in a signal handler.
#[inline]
pub fn running_callback() -> Option<Mode> {
    RUNNING.try_with(Cell::get).unwrap_or(None)
}

/// The time in which a thread runs a callback.
pub(super) struct InCallback {
    outer: Option<Mode>,
    /// The mark is the thread's.
    not_send: PhantomData<*const ()>,
}

impl InCallback {
    #[inline]
    pub(super) fn enter(mode: Mode) -> Self {
        // A callback that is run by one that may not block may not block either.
        let outer = running_callback();
        let inner = if outer == Some(Mode::NonBlock) {
            Mode::NonBlock
        } else {
            mode
        };
        let _ = RUNNING.try_with(|running| running.set(Some(inner)));
        Self {
            outer,
            not_send: PhantomData,
        }
    }
}

impl Drop for InCallback {
    #[inline]
    fn drop(&mut self) {
        let _ = RUNNING.try_with(|running| running.set(self.outer));
    }
}

/// Counts a panic and gets rid of what was thrown.
#[cold]
pub(super) fn bury(panics: &AtomicU64, payload: Box<dyn Any + Send>) {
    add_one(panics);
    // What was thrown is foreign too, and its drop may panic in turn.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        core::mem::forget(second);
    }
}
