//! An event that can be waited for, again and again.
//!
//! Linux counterpart: kernel/sched/completion.c.

use std::fmt;
use std::time::Duration;

use super::Waited;
use super::gate::Gate;
use super::scheduler::PointKind;
use crate::Class;

/// Something that gets done once; after [`reset`](Self::reset), once more.
///
/// Kernel counterpart: `struct completion`, completed for all at once.
pub struct Completion {
    gate: Gate,
}

impl Completion {
    /// A completion of something not yet done, of the class of this name and place.
    #[track_caller]
    pub const fn new(class: &'static str) -> Self {
        Self {
            gate: Gate::new(Class::new(class)),
        }
    }

    /// Says that it is done: every waiter goes on, and later waits return at once.
    ///
    /// What the caller did before is seen by whoever has waited. Never sleeps; allocates nothing.
    /// Kernel counterpart: `complete_all()`.
    #[track_caller]
    pub fn complete_all(&self) {
        self.gate.open(PointKind::Complete);
    }

    /// Whether it is done: one load, no scheduler point.
    ///
    /// Kernel counterpart: `completion_done()`.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.gate.is_open()
    }

    /// Makes it not done, for the next use; nothing if it is not done anyway.
    ///
    /// Whoever was already waiting when it got done goes on all the same, however late it wakes.
    /// Kernel counterpart: `reinit_completion()`, which leaves that race to its caller.
    pub fn reset(&self) {
        self.gate.close();
    }

    /// Sleeps until it is done.
    ///
    /// May sleep; allocates nothing. Kernel counterpart: `wait_for_completion()`.
    #[track_caller]
    pub fn wait(&self) {
        let _: Waited = self.gate.wait(None);
    }

    /// Sleeps until it is done, but for no longer than `timeout`, virtual under a scheduler.
    ///
    /// May sleep; allocates nothing. Kernel counterpart: `wait_for_completion_timeout()`.
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> Waited {
        self.gate.wait(Some(timeout))
    }

    /// What the completion is called, and where it was built.
    pub const fn class(&self) -> &Class {
        self.gate.class()
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("class", &self.class().name())
            .field("done", &self.is_done())
            .finish()
    }
}
