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

/// A callback that a thread runs.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) mode: Mode,
    /// Where the subscription is in memory: it stays there while its callback runs.
    pub(super) whose: usize,
}

std::thread_local! {
    /// Readable in a signal handler: a constant, and without a destructor.
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// The mode of the callback that the calling thread runs; `None` outside of callbacks.
///
/// For whoever may be called from everywhere and must not be called from a callback: a fault on
/// managed memory, a lock that sleeps. Callable in a signal handler.
#[inline]
pub fn running_callback() -> Option<Mode> {
    running().map(|running| running.mode)
}

#[inline]
pub(super) fn running() -> Option<Running> {
    RUNNING.try_with(Cell::get).unwrap_or(None)
}

/// The time in which a thread runs a callback.
pub(super) struct InCallback {
    outer: Option<Running>,
    /// The mark is the thread's.
    not_send: PhantomData<*const ()>,
}

impl InCallback {
    #[inline]
    pub(super) fn enter(mode: Mode, whose: usize) -> Self {
        let outer = RUNNING
            .try_with(|running| running.replace(Some(Running { mode, whose })))
            .unwrap_or(None);
        // What is run by a callback that may not block may not block either.
        if outer.is_some_and(|outer| outer.mode == Mode::NonBlock) {
            let mode = Mode::NonBlock;
            let _ = RUNNING.try_with(|running| running.set(Some(Running { mode, whose })));
        }
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
