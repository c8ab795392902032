//! An operation in flight.

use super::drive::Core;
use super::error::OpError;
use super::state::OpPhase;
use super::stats::count;
use crate::errno::Errno;
use crate::fork::is_forked_child;
use core::fmt;
use std::sync::Arc;

/// A transfer under way. Its pages are pinned until it is finished.
///
/// Dropping the handle does not end the transfer: its pages stay pinned until the kernel is done,
/// and nobody learns the result. Only the thread that started it can lead it to its end: if that
/// thread ends first, the kernel cancels it, and the answer is [`OpError::Failed`].
#[must_use = "the result is lost when this is dropped"]
pub struct Operation {
    core: Arc<Core>,
    number: u32,
    is_over: bool,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Operation {
    pub(super) fn new(core: Arc<Core>, number: u32) -> Self {
        Self {
            core,
            number,
            is_over: false,
        }
    }

    /// Whether it is finished, so that [`wait`](Self::wait) will not sleep. Takes the completions
    /// that have come.
    pub fn is_done(&self) -> bool {
        let mut state = self.core.state.lock();
        self.core.carry_out(&mut state);
        self.core.take_completions_beside(&mut state);
        state.op(self.number).phase == OpPhase::Done
    }

    /// Sleeps until it is finished, and unpins its pages. Not in a notifier, nor under a lock that
    /// one takes.
    ///
    /// # Errors
    ///
    /// [`OpError::Failed`] and [`OpError::Short`]; [`OpError::NotOwner`] in a thread that does not
    /// own the ring.
    pub fn wait(mut self) -> Result<(), OpError> {
        let (core, number) = (Arc::clone(&self.core), self.number);
        if !core.may_issue() {
            return Err(OpError::NotOwner);
        }
        let (result, wanted, keep) = core.drive_until(|state| {
            let op = state.op(number);
            let (result, wanted) = (op.result, op.wanted);
            (op.phase == OpPhase::Done).then(|| (result, wanted, state.finish_op(number)))
        });
        self.is_over = true;
        drop(keep);
        let answer = judge(result, wanted);
        if answer.is_err() {
            count(&core.counters.op_errors);
        }
        answer
    }

    /// Asks the kernel to end it early. It is finished only when [`wait`](Self::wait) says so, and
    /// may have succeeded all the same.
    ///
    /// # Errors
    ///
    /// [`OpError::NotOwner`] in a thread that does not own the ring.
    pub fn cancel(&self) -> Result<(), OpError> {
        if !self.core.may_issue() {
            return Err(OpError::NotOwner);
        }
        self.core.cancel(self.number);
        Ok(())
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.is_over || is_forked_child() {
            return;
        }
        let mut state = self.core.state.lock();
        let keep = state.disown_op(self.number);
        self.core.wake_service(&state);
        drop(state);
        drop(keep);
    }
}

fn judge(result: i32, wanted: u32) -> Result<(), OpError> {
    match u32::try_from(result) {
        Err(_) => Err(OpError::Failed {
            errno: Errno(-result),
        }),
        Ok(done) if done < wanted => Err(OpError::Short { done, wanted }),
        Ok(_) => Ok(()),
    }
}
