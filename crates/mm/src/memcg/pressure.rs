//! Pressure: how much time is lost because memory is short.
//!
//! The kernel does not see these waits, so they are counted here as it would count them. *Some* is
//! time in which a thread of a memory cgroup is stalled, *full* is time in which all of them are. A
//! thread is stalled while it waits for a frame or is held up above `high`, while it reclaims
//! itself, and while it waits for a page from a file.
//!
//! Whoever wants *full* to mean something has the threads that work for a memory cgroup counted
//! ([`Memcg::count_thread`]); while none is, it is taken for one.
//!
//! Linux counterpart: `kernel/sched/psi.c`.

use super::Memcg;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::ShortLock;
use std::sync::Arc;

/// How often the averages are taken, in nanoseconds.
const PERIOD_NS: u64 = 2_000_000_000;

/// The times over which they are taken, in periods.
const SPANS: [f64; 3] = [5.0, 30.0, 150.0];

/// One line of [`Pressure`].
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PressureLine {
    /// The share of the last ten seconds, in percent.
    pub avg10: f64,
    /// The same of the last minute.
    pub avg60: f64,
    /// The same of the last five minutes.
    pub avg300: f64,
    /// All of it since the start.
    pub total: Duration,
}

/// The pressure in a memory cgroup and all below it.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Pressure {
    /// Some thread was stalled.
    pub some: PressureLine,
    /// All threads were.
    pub full: PressureLine,
}

impl fmt::Display for PressureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "avg10={:.2} avg60={:.2} avg300={:.2} total={}",
            self.avg10,
            self.avg60,
            self.avg300,
            self.total.as_micros()
        )
    }
}

/// As the kernel's file `memory.pressure`.
impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "some {}", self.some)?;
        write!(f, "full {}", self.full)
    }
}

/// The pressure of one level.
#[derive(Debug)]
pub(super) struct Meter {
    state: ShortLock<State>,
    /// Stalls too short to take a lock for, in nanoseconds, that are not in the state yet.
    short_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    nr_stalled: u64,
    nr_threads: u64,
    /// Up to when everything is counted.
    now_ns: u64,
    /// When the period began.
    period_ns: u64,
    some: Line,
    full: Line,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    total_ns: u64,
    /// Of this period.
    recent_ns: u64,
    /// Shares, from 0 to 1.
    averages: [f64; 3],
}

impl Line {
    fn add(&mut self, ns: u64) {
        self.total_ns += ns;
        self.recent_ns += ns;
    }

    /// The period is over.
    fn fold(&mut self) {
        let share = self.recent_ns as f64 / PERIOD_NS as f64;
        self.recent_ns = 0;
        self.decay(share, 1);
    }

    /// `nr` periods passed, in each of which the share was this.
    fn decay(&mut self, share: f64, nr: u64) {
        for (average, span) in self.averages.iter_mut().zip(SPANS) {
            let kept = (-(nr as f64) / span).exp();
            *average = share + (*average - share) * kept;
        }
    }

    fn told(&self) -> PressureLine {
        let [avg10, avg60, avg300] = self.averages.map(|share| share * 100.0);
        PressureLine {
            avg10,
            avg60,
            avg300,
            total: Duration::from_nanos(self.total_ns),
        }
    }
}

impl State {
    /// Counts up to `now_ns`. Of that time, `short_ns` was lost in short stalls.
    fn advance(&mut self, now_ns: u64, short_ns: u64) {
        if now_ns <= self.now_ns {
            return;
        }
        if self.nr_stalled == 0 {
            let most = (now_ns - self.now_ns).min(self.period_ns + PERIOD_NS - self.now_ns);
            self.some.add(short_ns.min(most));
        }
        let periods = (now_ns - self.period_ns) / PERIOD_NS;
        if periods > 0 {
            self.run_to(self.period_ns + PERIOD_NS);
            self.some.fold();
            self.full.fold();
            // All alike: nothing changed meanwhile.
            let rest = periods - 1;
            let (some, full) = self.shares();
            for (line, is_lost) in [(&mut self.some, some), (&mut self.full, full)] {
                line.total_ns += if is_lost { rest * PERIOD_NS } else { 0 };
                line.decay(f64::from(u8::from(is_lost)), rest);
            }
            self.period_ns += periods * PERIOD_NS;
            self.now_ns = self.period_ns;
        }
        self.run_to(now_ns);
    }

    fn run_to(&mut self, now_ns: u64) {
        let ns = now_ns - self.now_ns;
        let (some, full) = self.shares();
        if some {
            self.some.add(ns);
        }
        if full {
            self.full.add(ns);
        }
        self.now_ns = now_ns;
    }

    /// Whether some thread is stalled, and whether all are.
    fn shares(&self) -> (bool, bool) {
        let some = self.nr_stalled > 0;
        (some, some && self.nr_stalled >= self.nr_threads.max(1))
    }
}

impl Meter {
    pub(super) fn new() -> Self {
        Self {
            state: ShortLock::new("mm.pressure", State::default()),
            short_ns: AtomicU64::new(0),
        }
    }

    fn change(&self, now_ns: u64, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        if state.now_ns == 0 {
            (state.now_ns, state.period_ns) = (now_ns, now_ns);
        }
        state.advance(now_ns, self.short_ns.swap(0, Ordering::Relaxed));
        change(&mut state);
    }

    fn told(&self, now_ns: u64) -> Pressure {
        let mut told = Pressure::default();
        self.change(now_ns, |state| {
            told = Pressure {
                some: state.some.told(),
                full: state.full.told(),
            };
        });
        told
    }
}

/// A thread is stalled until this is dropped.
#[must_use = "the stall ends when this is dropped"]
pub(crate) struct Stalled<'a>(&'a Memcg);

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        let now_ns = self.0.clock.now_ns();
        for level in self.0.levels() {
            level.meter.change(now_ns, |state| state.nr_stalled -= 1);
        }
    }
}

/// A thread that works for a memory cgroup, until this is dropped.
#[derive(Debug)]
#[must_use = "the thread is counted until this is dropped"]
pub struct CountedThread(Arc<Memcg>);

impl Drop for CountedThread {
    fn drop(&mut self) {
        self.0.change_threads(|nr| *nr -= 1);
    }
}

impl Memcg {
    /// The pressure in this memory cgroup and all below it.
    pub fn pressure(&self) -> Pressure {
        self.meter.told(self.clock.now_ns())
    }

    /// Counts the calling thread as one that works for this memory cgroup: *full* pressure is when
    /// all of these are stalled.
    pub fn count_thread(self: &Arc<Self>) -> CountedThread {
        self.change_threads(|nr| *nr += 1);
        CountedThread(Arc::clone(self))
    }

    fn change_threads(&self, change: impl Fn(&mut u64)) {
        let now_ns = self.clock.now_ns();
        for level in self.levels() {
            level
                .meter
                .change(now_ns, |state| change(&mut state.nr_threads));
        }
    }

    /// The calling thread is stalled from now on. Not nested.
    pub(crate) fn stall(&self) -> Stalled<'_> {
        let now_ns = self.clock.now_ns();
        for level in self.levels() {
            level.meter.change(now_ns, |state| state.nr_stalled += 1);
        }
        Stalled(self)
    }

    /// The calling thread was stalled for a moment. Takes no lock; such moments are put together,
    /// and those of several threads that overlap count more than once.
    pub(crate) fn note_short_stall(&self, ns: u64) {
        for level in self.levels() {
            level.meter.short_ns.fetch_add(ns, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    const TAKEN: [fn(&PressureLine) -> f64; 3] =
        [|line| line.avg10, |line| line.avg60, |line| line.avg300];

    /// The averages in percent, worked out period by period, of the seconds in which at least
    /// `least` threads are stalled.
    fn averages_of(stalls: &[(u64, u64, u64)], now_s: u64, least: u64) -> [f64; 3] {
        let is_lost = |second: u64| {
            let covers = |&&(from, to, _): &&(u64, u64, u64)| (from..to).contains(&second);
            let nr: u64 = stalls.iter().filter(covers).map(|stall| stall.2).sum();
            nr >= least
        };
        [10.0, 60.0, 300.0].map(|span_s| {
            (0..now_s / 2).fold(0.0, |average: f64, period| {
                let seconds = 2 * period..2 * period + 2;
                let lost = seconds.filter(|&second| is_lost(second)).count();
                let kept = (-2.0_f64 / span_s).exp();
                average * kept + 50.0 * lost as f64 * (1.0 - kept)
            })
        })
    }

    /// What is told at `now_s` of stalls, each of so many threads from one second to another; the
    /// averages over ten seconds as they are given, all others as [`averages_of`] has them.
    #[track_caller]
    fn check(nr_threads: u64, stalls: &[(u64, u64, u64)], now_s: u64, some: f64, full: f64) {
        let meter = Meter::new();
        let start = 7 * SECOND;
        meter.change(start, |state| state.nr_threads = nr_threads);
        for &(from, to, nr) in stalls {
            meter.change(start + from * SECOND, |state| state.nr_stalled += nr);
            meter.change(start + to * SECOND, |state| state.nr_stalled -= nr);
        }
        let told = meter.told(start + now_s * SECOND);
        let is_near = |found: f64, wanted: f64| (found - wanted).abs() < 0.01;
        let (found_some, found_full) = (told.some.avg10, told.full.avg10);
        assert!(
            is_near(found_some, some) && is_near(found_full, full),
            "{told}"
        );
        for (line, least) in [(&told.some, 1), (&told.full, nr_threads)] {
            let wanted = averages_of(stalls, now_s, least);
            let found = TAKEN.map(|taken| taken(line));
            let is_like = |(found, wanted): (f64, f64)| (found - wanted).abs() < 1e-6;
            let are_like = found.into_iter().zip(wanted).all(is_like);
            assert!(are_like, "{found:?} is not {wanted:?}");
        }
        let lost: u64 = stalls.iter().map(|(from, to, _)| to - from).sum();
        assert_eq!(told.some.total.as_secs(), lost);
    }

    #[test]
    fn averages_follow_the_time_that_is_lost() {
        let share = |periods: f64| 100.0 * (1.0 - (-periods / 5.0).exp());
        check(1, &[], 100, 0.0, 0.0);
        check(1, &[(0, 2, 1)], 2, share(1.0), share(1.0));
        check(2, &[(0, 2, 1)], 2, share(1.0), 0.0);
        check(2, &[(0, 2, 2)], 2, share(1.0), share(1.0));
        check(1, &[(0, 1, 1)], 2, share(1.0) / 2.0, share(1.0) / 2.0);
        check(1, &[(0, 100, 1)], 100, 100.0, 100.0);
        check(1, &[(0, 100, 1)], 10_000, 0.0, 0.0);
        check(3, &[(0, 10, 2)], 20, share(5.0) * (-1.0_f64).exp(), 0.0);
        // Where the three differ: a minute, half of an hour after it, and stalls that come and go.
        check(1, &[(0, 60, 1)], 60, share(30.0), share(30.0));
        check(2, &[(0, 60, 2)], 1800, 0.0, 0.0);
        let stalls = [(0, 61, 1), (200, 333, 2), (335, 336, 1)];
        for now_s in [336, 400, 700] {
            let [some, full] = [1, 2].map(|least| averages_of(&stalls, now_s, least)[0]);
            check(2, &stalls, now_s, some, full);
        }
    }

    #[test]
    fn short_stalls_are_put_together() {
        let meter = Meter::new();
        meter.change(SECOND, |_| {});
        meter.short_ns.store(SECOND / 2, Ordering::Relaxed);
        let told = meter.told(2 * SECOND);
        assert_eq!(
            (told.some.total.as_millis(), told.full.total.as_millis()),
            (500, 0)
        );
        meter.short_ns.store(90 * SECOND, Ordering::Relaxed);
        let told = meter.told(3 * SECOND);
        assert_eq!(
            told.some.total.as_millis(),
            1500,
            "no more than the time that passed"
        );
        let text = told.to_string();
        assert!(
            text.ends_with("full avg10=0.00 avg60=0.00 avg300=0.00 total=0"),
            "{text}"
        );
    }
}
