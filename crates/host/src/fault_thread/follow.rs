//! Whom a service thread works for: what it notes of the faults that come to it.
//!
//! While one thread alone has faults, it and the service thread take turns: one of them sleeps at
//! any time, so one processor is enough for both. The scheduler does not see that. It sees a
//! thread that wakes on a busy processor, and sends it to an idle one, each time, and to wake a
//! processor that sleeps takes far longer than the fault. So a service thread asks to
//! [follow](super::conductor) the other.

use super::conductor::Bell;
use crate::sched::{ThreadId, processor_of, run_time};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

/// Faults of one thread in a row after which it is followed; and after as many again, it is looked
/// after where it runs by then.
const RUN: u32 = 256;

/// Processor numbers are kept one higher; this is none.
const NOWHERE: u32 = 0;

/// What a service thread tells the conductor, and hears of it.
pub(super) struct Follow {
    /// The service thread; zero before it runs.
    thread: AtomicU32,
    /// Whose faults it resolves, when it has a wish.
    leader: AtomicU32,
    /// Where it wishes to run.
    wish: AtomicU32,
    /// Where the conductor has bound it.
    bound: AtomicU32,
    /// Faults resolved so far; written by the service thread alone.
    nr_served: AtomicU64,
    is_serving: AtomicBool,
}

impl Follow {
    pub(super) const fn new() -> Self {
        Self {
            thread: AtomicU32::new(0),
            leader: AtomicU32::new(0),
            wish: AtomicU32::new(NOWHERE),
            bound: AtomicU32::new(NOWHERE),
            nr_served: AtomicU64::new(0),
            is_serving: AtomicBool::new(false),
        }
    }

    /// The service thread, if it runs.
    pub(super) fn thread(&self) -> Option<ThreadId> {
        let thread = self.thread.load(Ordering::Relaxed);
        (thread != 0).then_some(thread)
    }

    /// How long the service thread and whom it wishes to follow have run. Who has ended does not
    /// run any more.
    pub(super) fn run_time(&self) -> Duration {
        let threads = [&self.thread, &self.leader].map(|thread| thread.load(Ordering::Relaxed));
        threads.into_iter().filter_map(run_time).sum()
    }

    /// Where it wishes to run, if anywhere.
    pub(super) fn wish(&self) -> Option<u32> {
        self.wish.load(Ordering::Relaxed).checked_sub(1)
    }

    /// The conductor has bound it, or let it go.
    pub(super) fn note_bound(&self, processor: Option<u32>) {
        self.bound.store(code(processor), Ordering::Relaxed);
    }

    /// How many faults it has resolved, and whether it is at one.
    pub(super) fn progress(&self) -> (u64, bool) {
        let nr_served = self.nr_served.load(Ordering::Relaxed);
        (nr_served, self.is_serving.load(Ordering::Relaxed))
    }
}

fn code(processor: Option<u32>) -> u32 {
    processor.map_or(NOWHERE, |number| number + 1)
}

/// The faults that came to a service thread; its own.
pub(super) struct Trail<'a> {
    follow: &'a Follow,
    bell: Option<&'a Bell>,
    /// Whose the last faults were, and how many in a row.
    thread: ThreadId,
    nr_in_a_row: u32,
}

impl<'a> Trail<'a> {
    /// Begins, in the service thread. Without a conductor's `bell` nobody is followed.
    pub(super) fn begin(follow: &'a Follow, bell: Option<&'a Bell>) -> Self {
        // SAFETY: the call takes nothing and touches no memory.
        let me = unsafe { libc::gettid() };
        follow.thread.store(me as ThreadId, Ordering::Relaxed);
        Self {
            follow,
            bell,
            thread: 0,
            nr_in_a_row: 0,
        }
    }

    /// Resolves a fault of `thread` by `resolve`.
    pub(super) fn serve(&mut self, thread: ThreadId, resolve: impl FnOnce()) {
        let follow = self.follow;
        follow.is_serving.store(true, Ordering::Relaxed);
        resolve();
        follow.is_serving.store(false, Ordering::Relaxed);
        let nr_served = follow.nr_served.load(Ordering::Relaxed) + 1;
        follow.nr_served.store(nr_served, Ordering::Relaxed);
        if let Some(bell) = self.bell {
            match self.note(thread) {
                Step::GoOn => {}
                Step::Look => self.wish(bell, processor_of(thread)),
                Step::LetGo => self.wish(bell, None),
            }
        }
    }

    fn note(&mut self, thread: ThreadId) -> Step {
        if thread != self.thread || thread == 0 {
            let had_run = self.nr_in_a_row >= RUN;
            (self.thread, self.nr_in_a_row) = (thread, 1);
            return if had_run { Step::LetGo } else { Step::GoOn };
        }
        self.nr_in_a_row += 1;
        if self.nr_in_a_row.is_multiple_of(RUN) {
            // Not over the end of numbers.
            self.nr_in_a_row = RUN;
            return Step::Look;
        }
        Step::GoOn
    }

    fn wish(&self, bell: &Bell, processor: Option<u32>) {
        let wish = code(processor);
        self.follow.leader.store(self.thread, Ordering::Relaxed);
        self.follow.wish.store(wish, Ordering::Relaxed);
        if self.follow.bound.load(Ordering::Relaxed) != wish {
            bell.ring();
        }
    }
}

/// What a fault gives reason to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    GoOn,
    /// To look where the thread runs.
    Look,
    /// To follow nobody.
    LetGo,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Faults, each `(thread, how many)`: the steps that are not to go on, each with the number of
    /// its fault.
    #[track_caller]
    fn check(faults: &[(ThreadId, u32)], wanted: &[(usize, Step)]) {
        let follow = Follow::new();
        let mut trail = Trail::begin(&follow, None);
        let all = faults
            .iter()
            .flat_map(|&(thread, nr)| core::iter::repeat_n(thread, nr as usize));
        let steps: Vec<_> = all
            .map(|thread| trail.note(thread))
            .enumerate()
            .filter(|&(_, step)| step != Step::GoOn)
            .collect();
        assert_eq!(steps, wanted);
    }

    #[test]
    fn a_thread_is_followed_that_faults_alone() {
        let run = RUN as usize;
        check(&[(7, RUN - 1)], &[]);
        check(&[(7, RUN)], &[(run - 1, Step::Look)]);
        let twice = [(run - 1, Step::Look), (2 * run - 1, Step::Look)];
        check(&[(7, 2 * RUN)], &twice);
        check(&[(7, RUN - 1), (8, RUN - 1), (7, RUN - 1)], &[]);
        let then_another = [
            (run - 1, Step::Look),
            (run, Step::LetGo),
            (2 * run - 1, Step::Look),
        ];
        check(&[(7, RUN), (8, RUN)], &then_another);
        // Who is not named may be anybody.
        check(&[(0, 3 * RUN)], &[]);
    }
}
