//! Wakes the thread that serves an engine or does a driver's slow work.

use core::time::Duration;
use lockdep::sync::Completion;
use lockdep::{Level, context};

/// What a server does after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another step.
    Step,
    /// Sleep until the bell rings.
    Sleep,
    /// Sleep until the bell rings, but no longer than this.
    SleepFor(Duration),
    /// Nothing any more.
    End,
}

/// A bell with one listener.
pub struct Doorbell {
    work: Completion,
}

impl Doorbell {
    /// It has not rung.
    pub const fn new() -> Self {
        Self {
            work: Completion::new("devices.doorbell"),
        }
    }

    /// There may be something to do. Never sleeps.
    pub fn ring(&self) {
        // A server at rest waits for nobody in particular. To the validator the call comes from
        // outside of the caller's own work, as an interrupt does.
        let _outside = context::enter(Level::Soft);
        self.work.complete_all();
    }

    /// Does steps until one says that it was the last.
    pub fn serve(&self, mut step: impl FnMut() -> Next) {
        loop {
            // Whoever makes work after the step below has looked rings after this.
            self.work.reset();
            match step() {
                Next::Step => {}
                Next::Sleep => self.work.wait(),
                Next::SleepFor(time) => {
                    let _either = self.work.wait_timeout(time);
                }
                Next::End => return,
            }
        }
    }
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}
