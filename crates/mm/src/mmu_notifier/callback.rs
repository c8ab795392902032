//! What a thread is in the middle of: whether it runs a callback, and of which mode.
//!
//! Linux counterpart: non_block_count of struct task_struct

use super::range::Mode;
use super::stats::add_one;
use super::version::Common;
use core::any::Any;
use core::cell::Cell;
use core::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A callback that a thread runs.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) mode: Mode,
    /// Where the subscription is in memory, as [`place`] says it: it stays there while its
    /// callback runs.
    pub(super) whose: usize,
}

/// The callback may not block. The other bits of the word say whose it is.
const NONBLOCK: usize = 1;

/// Where `whose` is in memory, without the lowest bit. Subscriptions stand in allocations of their
/// own, which begin at addresses that are even.
#[inline]
pub(super) fn place<W: ?Sized>(whose: &W) -> usize {
    core::ptr::from_ref(whose).addr() & !NONBLOCK
}

std::thread_local! {
    /// Readable in a signal handler: a constant, and without a destructor. One word, 0 outside of
    /// callbacks, because it is written twice for each.
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

#[inline]
fn word() -> usize {
    RUNNING.try_with(Cell::get).unwrap_or(0)
}

#[inline]
fn set_word(word: usize) {
    let _ = RUNNING.try_with(|running| running.set(word));
}

/// What a thread is in the middle of that does not run.
#[derive(Default)]
pub(crate) struct Place(usize);

impl Place {
    /// Puts this one on the calling thread, and what was there into `self`.
    pub(crate) fn exchange(&mut self) {
        let going = word();
        set_word(self.0);
        self.0 = going;
    }
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
    let word = word();
    let mode = if word & NONBLOCK == 0 {
        Mode::Blockable
    } else {
        Mode::NonBlock
    };
    let whose = word & !NONBLOCK;
    (word != 0).then_some(Running { mode, whose })
}

/// The time in which a thread runs a callback.
pub(super) struct InCallback {
    outer: usize,
    /// The mark is the thread's.
    not_send: PhantomData<*const ()>,
}

impl InCallback {
    #[inline]
    pub(super) fn enter<W: ?Sized>(mode: Mode, whose: &W) -> Self {
        let outer = word();
        let own = match mode {
            Mode::Blockable => 0,
            Mode::NonBlock => NONBLOCK,
        };
        // What is run by a callback that may not block may not block either.
        set_word(place(whose) | own | outer & NONBLOCK);
        Self {
            outer,
            not_send: PhantomData,
        }
    }
}

impl Drop for InCallback {
    #[inline]
    fn drop(&mut self) {
        set_word(self.outer);
    }
}

/// Counts a panic and gets rid of what was thrown.
#[cold]
pub(super) fn bury(common: &Common, payload: Box<dyn Any + Send>) {
    add_one(&common.counters.panics);
    // What was thrown is foreign too, and its drop may panic in turn.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        core::mem::forget(second);
    }
}
