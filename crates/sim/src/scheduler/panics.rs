//! Panics of tasks: kept for the report instead of being printed.
//!
//! The standard library counts the panics of a thread, and several tasks share one. While a task
//! waits in the middle of a panic, that count says nothing of the others: of one whose panic begins
//! then it is not known whether it was contained since.

use super::baton;
use core::any::Any;
use core::cell::{Cell, RefCell};
use std::mem;
use std::panic;
use std::sync::Once;
use std::thread;

/// What the daemons of a run that is over unwind with.
struct Over;

/// A panic: what it said and where, and whether the task was seen to go on since.
struct Last {
    what: String,
    is_contained: bool,
}

thread_local! {
    /// The last panic of the task that runs.
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
    /// Whether the task that runs was seen to unwind when it last had the thread.
    static UNWINDS: Cell<bool> = const { Cell::new(false) };
    /// Other tasks of this thread that may be in the middle of a panic.
    static NR_OTHERS: Cell<u32> = const { Cell::new(0) };
}

/// What a task that does not run is in the middle of.
#[derive(Default)]
pub(super) struct State {
    last: Option<Last>,
    unwinds: bool,
    may_unwind: bool,
}

impl State {
    /// Puts this on the calling thread, and what was there into `self`.
    pub(super) fn exchange(&mut self) {
        let going = (is_under_way(), may_be_under_way());
        NR_OTHERS.set(NR_OTHERS.get() + u32::from(going.1) - u32::from(self.may_unwind));
        UNWINDS.set(self.unwinds);
        (self.unwinds, self.may_unwind) = going;
        LAST.with_borrow_mut(|last| mem::swap(last, &mut self.last));
    }
}

/// Keeps the messages of tasks from now on; the panics of other threads go where they went.
pub(super) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !baton::is_task() {
                return before(info);
            }
            let place = info.location().map(|at| format!(", at {at}"));
            let what = info.payload_as_str().unwrap_or("a panic without a message");
            let last = Last {
                what: format!("{what}{}", place.unwrap_or_default()),
                is_contained: false,
            };
            // A second panic on top of one ends the process: better twice than never.
            let outer = LAST.replace(Some(last));
            if outer.is_some_and(|outer| !outer.is_contained) {
                before(info);
            }
        }));
    });
}

/// Unwinds the calling task: no failure, so no hook hears of it.
pub(super) fn unwind() -> ! {
    UNWINDS.set(true);
    panic::resume_unwind(Box::new(Over))
}

/// Whether the calling task is in the middle of a panic, as far as that is known.
fn is_under_way() -> bool {
    thread::panicking() && (NR_OTHERS.get() == 0 || UNWINDS.get())
}

/// The same, if in doubt: it must not be unwound once more.
pub(super) fn may_be_under_way() -> bool {
    let has_begun = || LAST.with_borrow(|last| last.as_ref().is_some_and(|one| !one.is_contained));
    is_under_way() || thread::panicking() && has_begun()
}

/// The message of the panic that the calling task is unwinding for. A task that comes to a point
/// without one has contained its last.
pub(super) fn under_way() -> Option<String> {
    if !thread::panicking() {
        LAST.with_borrow_mut(|last| {
            if let Some(last) = last {
                last.is_contained = true;
            }
        });
    }
    let unheard = || "a panic that no hook heard of".to_owned();
    is_under_way().then(|| last().unwrap_or_else(unheard))
}

/// The last panic of the calling task, with its place: for whoever has just contained it.
pub(crate) fn last() -> Option<String> {
    LAST.with_borrow(|last| last.as_ref().map(|last| last.what.clone()))
}

/// What the panic said that ended a task; `None` if it was only unwound.
pub(super) fn message_of(payload: Box<dyn Any + Send>) -> Option<String> {
    let last = LAST.take().map(|last| last.what);
    if payload.is::<Over>() {
        return None;
    }
    let text = payload.downcast_ref::<&'static str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    match (text, last) {
        // An earlier panic of the task may have been contained: that is not this one.
        (Some(text), Some(last)) if last.starts_with(text) => Some(last),
        (Some(text), _) => Some(text.to_owned()),
        (None, last) => Some(last.unwrap_or_else(|| "a panic without a message".to_owned())),
    }
}
