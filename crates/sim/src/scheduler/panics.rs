//! Panics of tasks: kept for the report instead of being printed.

use super::baton;
use core::any::Any;
use core::cell::RefCell;
use std::panic;
use std::sync::Once;
use std::thread;

/// What the daemons of a run that is over unwind with.
struct Over;

/// A panic: what it said and where, and whether the thread has gone on since.
struct Last {
    what: String,
    is_contained: bool,
}

thread_local! {
    /// The last panic of this thread.
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
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
    panic::resume_unwind(Box::new(Over))
}

/// The message of the panic that the calling thread is unwinding for. A thread that comes to a
/// point without one has contained its last.
pub(super) fn under_way() -> Option<String> {
    let is_under_way = thread::panicking();
    LAST.with_borrow_mut(|last| {
        if let Some(last) = last {
            last.is_contained |= !is_under_way;
        }
    });
    let unheard = || "a panic that no hook heard of".to_owned();
    is_under_way.then(|| last().unwrap_or_else(unheard))
}

/// The last panic of the calling thread, with its place: for whoever has just contained it.
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
        // An earlier panic of the thread may have been contained: that is not this one.
        (Some(text), Some(last)) if last.starts_with(text) => Some(last),
        (Some(text), _) => Some(text.to_owned()),
        (None, last) => Some(last.unwrap_or_else(|| "a panic without a message".to_owned())),
    }
}
