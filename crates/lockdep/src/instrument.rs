//! Futures whose locks belong to the task, whichever thread polls it.
//!
//! An executor runs many tasks on a thread, and a task on many threads. What a task holds while it
//! waits must not count as held by the next task of the thread, and must be there again when the
//! task goes on elsewhere. And a lock that threads wait for asleep must not be held at all while
//! its task waits: whoever waits for the lock blocks the very thread that could go on with the
//! task. That is reported.
//!
//! ```
//! # use std::task::{Context, Poll, Waker};
//! use lockdep::instrument::Instrument;
//! use lockdep::sync::Mutex;
//! # use lockdep::Validator;
//! # use std::pin::pin;
//!
//! static TABLE: Mutex<u64> = Mutex::new("table", 0);
//!
//! let task = async {
//!     let table = TABLE.lock();
//!     std::future::pending::<()>().await; // with the guard of `TABLE`
//!     drop(table);
//! };
//! # let validator = Validator::new();
//! # let _entered = validator.enter();
//! # let mut task = pin!(task.instrument("lookup"));
//! # let mut cx = Context::from_waker(Waker::noop());
//! # assert!(Future::poll(task.as_mut(), &mut cx).is_pending());
//! // executor.spawn(task.instrument("lookup"));
//! # assert_eq!(validator.reports().len(), 1);
//! ```

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::core::step_of;
use crate::event;
use crate::map;
use crate::registry::{self, WaitType};
use crate::report::Kind;
use crate::task::{Held, Site, Task, TaskState};

/// A future that is a task of its own to the validator; made by [`Instrument::instrument`].
#[must_use = "futures do nothing unless they are polled"]
pub struct Instrumented<F> {
    /// In a box, so that no unsafe code is needed to poll it in place; gone when it is dropped.
    future: Option<Pin<Box<F>>>,
    /// What the task holds while it is not polled.
    task: TaskState,
    name: &'static str,
    site: Site,
}

/// Makes a future a task of its own.
pub trait Instrument: Future + Sized {
    /// The future as a task of this name, by which reports call it. Allocates.
    #[track_caller]
    fn instrument(self, name: &'static str) -> Instrumented<Self> {
        Instrumented {
            future: Some(Box::pin(self)),
            task: TaskState::named(name),
            name,
            site: Site::caller(),
        }
    }
}

impl<F: Future> Instrument for F {}

impl<F> Instrumented<F> {
    /// The name of the task.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many locks the task holds while it waits.
    pub fn nr_held(&self) -> usize {
        self.task.nr_held()
    }
}

impl<F: Future> Future for Instrumented<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let future = this.future.as_mut().expect("it is there until the drop");
        let running = Running::begin(&mut this.task);
        let answer = future.as_mut().poll(cx);
        match answer {
            Poll::Pending => check_waiting(this.site),
            Poll::Ready(_) => event::check_none_held(),
        }
        drop(running);
        answer
    }
}

impl<F> Drop for Instrumented<F> {
    /// What a cancelled task held is released by the task, not by the thread that drops it.
    fn drop(&mut self) {
        let _running = Running::begin(&mut self.task);
        self.future = None;
    }
}

impl<F> std::fmt::Debug for Instrumented<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instrumented")
            .field("name", &self.name)
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

/// The time in which a task is on the thread; what was there before comes back also in a panic.
struct Running<'a>(&'a mut TaskState);

impl<'a> Running<'a> {
    fn begin(task: &'a mut TaskState) -> Self {
        task.exchange();
        Self(task)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.exchange();
    }
}

/// The task gives its thread away: it must hold nothing that threads wait for, and may sleep.
fn check_waiting(site: Site) {
    let mut is_holding = false;
    event::work(|inner, task: &Task, findings| {
        // A map is no lock: nobody waits for its holder.
        let blocks =
            |held: &Held| registry::attributes(held.word.class()).outer != WaitType::Unchecked;
        let Some(held) = task.iter().rfind(blocks) else {
            return;
        };
        is_holding = true;
        let finding = inner.finding(task, Kind::HeldAtExit, &Held { site, ..held });
        let note = "a guard is held across an await: the task waits, and its thread goes on";
        findings.add(finding.against(Some(step_of(&held))).note(note));
    });
    if !is_holding {
        map::might_sleep_at(site);
    }
}
