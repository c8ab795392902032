//! What a thread is in the middle of: whether it runs a callback, and of which mode.
//!
//! The word that says so has the place of the subscription, not its name: a name that may be used
//! as long as the callback runs would have to be counted, in each bracket. Who has the place among
//! its own knows the name. For who has not, whoever called the callback tells it when it returns:
//! it has the name at hand, and looks then whether the thread is marked, for `watch` already.
//!
//! Linux counterpart: non_block_count of struct task_struct

use super::misuse::Misuse;
use super::range::Mode;
use super::stats::add_one;
use super::version::Common;
use crate::watch::{Suspect, set_owing};
use core::any::Any;
use core::cell::{Cell, RefCell};
use core::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

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

/// How many misuses of the callbacks that a thread is in can be owed at one time.
const OWED_MAX: usize = 4;

/// A misuse to be told when the callback returns whose it is.
struct Owed {
    misuse: Misuse,
    whose: usize,
    /// Of the address space whose contract was broken.
    common: Arc<Common>,
}

std::thread_local! {
    /// Readable in a signal handler: a constant, and without a destructor. One word, 0 outside of
    /// callbacks, because it is written twice for each.
    static RUNNING: Cell<usize> = const { Cell::new(0) };
    /// Most threads never have any.
    static OWED: RefCell<[Option<Owed>; OWED_MAX]> = const { RefCell::new([const { None }; _]) };
}

/// Sets aside what [`owe`] needs, so that it allocates nothing afterwards.
pub(crate) fn prepare_thread() {
    // An error says that the thread is at its end.
    let _ = OWED.try_with(|_| ());
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
pub(crate) struct Place {
    word: usize,
    owed: [Option<Owed>; OWED_MAX],
}

impl Place {
    /// Puts this one on the calling thread, and what was there into `self`.
    pub(crate) fn exchange(&mut self) {
        let going = word();
        set_word(self.word);
        // An error says that the thread is at its end.
        let _ = OWED.try_with(|owed| core::mem::swap(&mut *owed.borrow_mut(), &mut self.owed));
        self.word = going;
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

/// Has `misuse` of the callback that the calling thread runs told to `common` when it returns, by
/// its name. False if that cannot be: nothing runs, or too much is owed. Callable in a signal
/// handler.
#[cold]
pub(super) fn owe(misuse: Misuse, common: &Arc<Common>) -> bool {
    let Some(Running { whose, .. }) = running() else {
        return false;
    };
    let is_owed = OWED.try_with(|owed| {
        // It is borrowed if this is a signal handler, and what was interrupted is at it.
        let Ok(mut owed) = owed.try_borrow_mut() else {
            return false;
        };
        let free = owed.iter_mut().find(|owed| owed.is_none());
        let common = Arc::clone(common);
        let put = |free: &mut Option<Owed>| {
            *free = Some(Owed {
                misuse,
                whose,
                common,
            });
        };
        free.map(put).is_some()
    });
    // An error says that the thread is at its end.
    let is_owed = is_owed.unwrap_or(false);
    if is_owed {
        set_owing(true);
    }
    is_owed
}

/// Tells what is owed of the callback of `whose`, which has returned.
pub(crate) fn pay<W: Suspect>(whose: &W) {
    let place = place(whose);
    loop {
        let is_due =
            |owed: &&mut Option<Owed>| owed.as_ref().is_some_and(|owed| owed.whose == place);
        // Not told while it is borrowed: who listens may do what it likes.
        let due = OWED.try_with(|owed| owed.borrow_mut().iter_mut().find(is_due)?.take());
        let Ok(Some(due)) = due else { break };
        due.common.misuses.tell(due.misuse, whose.name());
    }
    let is_any_left = OWED.try_with(|owed| owed.borrow().iter().any(Option::is_some));
    set_owing(is_any_left.unwrap_or(false));
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
