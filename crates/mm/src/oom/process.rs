//! Victims that are processes: killed, and their memory taken back, retried and timed.
//!
//! The machine has the signal and the call; when to ask again and when to stop is said here, as
//! for the victims of a memory cgroup: a notifier that refuses is asked again, so many times.
//!
//! Linux counterpart: `process_mrelease`, and who calls it (Android's `lmkd`).

use crate::env::Clock;
use crate::limits::Limits;
use core::fmt;
use core::time::Duration;

/// What a machine answers that was asked to take the memory of a dying process back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// All that can be taken back is.
    Released,
    /// An MMU notifier refused, without blocking, a part of it: ask again.
    Refused,
    /// No thread has the memory any more: it ended by itself.
    Gone,
    /// It is not dying, or not yet.
    NotDying,
    /// The machine cannot.
    Unsupported,
}

/// A process, as a machine offers it.
pub trait Process {
    /// Why it cannot be killed.
    type Error;

    /// Kills it, without waiting for its end.
    ///
    /// # Errors
    ///
    /// It is gone, or not ours to kill.
    fn kill(&self) -> Result<(), Self::Error>;

    /// Takes its memory back, in this thread.
    fn release(&self) -> Release;

    /// Waits until it is dead, or the time is over; whether it is dead.
    fn wait_dead(&self, at_most: Duration) -> bool;
}

/// The story of the kill of a process. Times are nanoseconds after the signal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessReport {
    /// The last answer; or [`Release::Gone`], when its end came before another.
    pub outcome: Release,
    /// How often its memory was asked for.
    pub passes: u32,
    /// How often a notifier refused.
    pub nr_refused: u32,
    /// When its memory was back; `None` if it was not when this gave up.
    pub back_ns: Option<u64>,
}

impl fmt::Display for ProcessReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passes = self.passes;
        match self.back_ns {
            Some(ns) => write!(f, "memory back after {:.3} ms", ns as f64 / 1e6)?,
            None => write!(f, "memory not back")?,
        }
        write!(
            f,
            " and {passes} passes, {} of them refused",
            self.nr_refused
        )?;
        match self.outcome {
            Release::Released => Ok(()),
            Release::Refused => write!(f, "; a device still holds a part"),
            Release::Gone => write!(f, "; it ended by itself"),
            Release::NotDying => write!(f, "; it is not dying"),
            Release::Unsupported => write!(f, "; the machine cannot take it back"),
        }
    }
}

/// Kills `process` and takes its memory back: as often as [`Limits::reap_passes`] says, with
/// [`Limits::reap_interval`] in between, until no notifier refuses. Blocks for no longer than that.
///
/// # Errors
///
/// It cannot be killed.
pub fn kill_process<P: Process>(
    process: &P,
    limits: &Limits,
    clock: &dyn Clock,
) -> Result<ProcessReport, P::Error> {
    let killed_at_ns = clock.now_ns();
    process.kill()?;
    let mut report = ProcessReport {
        outcome: Release::NotDying,
        passes: 0,
        nr_refused: 0,
        back_ns: None,
    };
    while report.passes < limits.reap_passes {
        report.passes += 1;
        report.outcome = process.release();
        report.nr_refused += u32::from(report.outcome == Release::Refused);
        let mut is_back = matches!(report.outcome, Release::Released | Release::Gone);
        // Its end is as good, and cuts the pause short.
        if !is_back && process.wait_dead(limits.reap_interval) {
            is_back = true;
            // What the machine cannot is worth knowing all the same.
            if report.outcome != Release::Unsupported {
                report.outcome = Release::Gone;
            }
        }
        if is_back {
            let back_ns = clock.now_ns().saturating_sub(killed_at_ns);
            report.back_ns = Some(back_ns);
            break;
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use core::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Ticks(AtomicU64);

    impl Clock for Ticks {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Gives its answers in turn, and ends in the pause with this number.
    struct Scripted<'a> {
        clock: &'a Ticks,
        answers: RefCell<Vec<Release>>,
        ends_in: Option<u32>,
        nr_pauses: Cell<u32>,
        can_be_killed: bool,
    }

    impl Process for Scripted<'_> {
        type Error = &'static str;

        fn kill(&self) -> Result<(), &'static str> {
            self.can_be_killed.then_some(()).ok_or("not ours")
        }

        fn release(&self) -> Release {
            self.clock.0.fetch_add(5, Ordering::Relaxed);
            let mut answers = self.answers.borrow_mut();
            if answers.len() > 1 {
                answers.remove(0)
            } else {
                answers[0]
            }
        }

        fn wait_dead(&self, at_most: Duration) -> bool {
            let ns = at_most.as_nanos() as u64;
            self.clock.0.fetch_add(ns, Ordering::Relaxed);
            self.nr_pauses.set(self.nr_pauses.get() + 1);
            self.ends_in == Some(self.nr_pauses.get())
        }
    }

    #[track_caller]
    fn check(
        answers: &[Release],
        ends_in: Option<u32>,
        expected: (Release, u32, u32, Option<u64>),
    ) {
        let clock = Ticks::default();
        let process = Scripted {
            clock: &clock,
            answers: RefCell::new(answers.to_vec()),
            ends_in,
            nr_pauses: Cell::new(0),
            can_be_killed: true,
        };
        let mut limits = Limits::new(1 << 20);
        limits.reap_interval = Duration::from_nanos(100);
        let report = kill_process(&process, &limits, &clock).expect("it can be killed");
        let (outcome, passes, nr_refused, back_ns) = expected;
        let expected = ProcessReport {
            outcome,
            passes,
            nr_refused,
            back_ns,
        };
        assert_eq!(report, expected, "{report}");
    }

    #[test]
    fn n79_a_refusal_is_asked_again_and_everything_else_is_told() {
        use Release::{Gone, NotDying, Refused, Released, Unsupported};
        check(&[Released], None, (Released, 1, 0, Some(5)));
        check(&[Gone], None, (Gone, 1, 0, Some(5)));
        check(
            &[Refused, Refused, Released],
            None,
            (Released, 3, 2, Some(215)),
        );
        check(&[Refused], None, (Refused, 10, 10, None));
        check(&[NotDying, Released], None, (Released, 2, 0, Some(110)));
        check(&[NotDying], None, (NotDying, 10, 0, None));
        check(&[Unsupported], Some(3), (Unsupported, 3, 0, Some(315)));
        check(&[Refused], Some(1), (Gone, 1, 1, Some(105)));
        check(&[NotDying], Some(2), (Gone, 2, 0, Some(210)));
    }

    #[test]
    fn who_cannot_be_killed_is_not_asked_for_memory() {
        let clock = Ticks::default();
        let process = Scripted {
            clock: &clock,
            answers: RefCell::new(Vec::new()),
            ends_in: None,
            nr_pauses: Cell::new(0),
            can_be_killed: false,
        };
        let killed = kill_process(&process, &Limits::new(1 << 20), &clock);
        assert_eq!(killed, Err("not ours"));
    }
}
