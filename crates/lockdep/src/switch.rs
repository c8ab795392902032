//! All that this crate keeps for a thread, for a scheduler that runs several on one.
//!
//! A thread of a simulator may be a coroutine: it has a stack of its own, and shares the thread of
//! the operating system, and what is local to that, with others. Exchanged at each switch, what is
//! local here is its own.
//!
//! ```
//! use lockdep::sync::Mutex;
//! use lockdep::thread::number;
//! use lockdep::{ThreadState, event};
//!
//! static TABLE: Mutex<u64> = Mutex::new("table", 0);
//!
//! # if !lockdep::is_enabled() { return; }
//! let mut other = ThreadState::new();
//! let held = TABLE.lock();
//! let me = number();
//! other.exchange();
//! assert!(event::nr_held() == 0 && number() != me);
//! other.exchange();
//! assert!(event::nr_held() == 1 && number() == me);
//! # drop(held);
//! ```

use std::fmt;
use std::sync::Arc;

use crate::handed::Token;
use crate::sync::scheduler::{self, Scheduler};
use crate::task::{self, TaskState};
use crate::validator::{self, Inner};

/// What this crate keeps for a thread that does not run: held locks, sections, its validator, the
/// numbers by which others know it, and whether it is inside the validator or its scheduler.
#[derive(Default)]
pub struct ThreadState {
    task: TaskState,
    validator: Option<Arc<Inner>>,
    scheduler: Option<Arc<dyn Scheduler>>,
    token: u32,
    number: u32,
    nr_joined: u32,
    nr_lost: u32,
    is_busy: bool,
}

impl ThreadState {
    /// A thread that has just begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one that does not run a thread that has just begun, under the numbers of the old one:
    /// of these there is an end.
    pub fn restart(&mut self) {
        let is_known = self.validator.is_none();
        *self = Self {
            token: self.token,
            number: if is_known { self.number } else { 0 },
            nr_joined: if is_known { self.nr_joined } else { 0 },
            ..Self::default()
        };
    }

    /// Puts this one on the calling thread, and what was there into `self`. Callable from the
    /// methods of a scheduler, where the running thread is to be put aside.
    ///
    /// Allocates if a thread is put aside with more than it ever was before.
    pub fn exchange(&mut self) {
        self.scheduler = scheduler::exchange(self.scheduler.take());
        self.token = Token(self.token).exchange().0;
        let place = |validator: &Option<Arc<Inner>>| validator.as_ref().map(Arc::as_ptr);
        let coming = self.validator.take();
        let comes_to = place(&coming);
        self.validator = validator::exchange_current(coming);
        let is_same = comes_to == place(&self.validator);
        task::with(|task| {
            let was_busy = task.set_busy(self.is_busy);
            self.is_busy = was_busy;
            self.number = task.thread.replace(self.number);
            self.nr_joined = task.nr_joined.replace(self.nr_joined);
            self.nr_lost = task.nr_lost.replace(self.nr_lost);
            task.exchange(&mut self.task);
            if !is_same {
                // What the thread has learned is of the other validator.
                task.slow_down();
            }
        });
    }
}

impl fmt::Debug for ThreadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadState")
            .field("task", &self.task)
            .field("is_busy", &self.is_busy)
            .finish_non_exhaustive()
    }
}
