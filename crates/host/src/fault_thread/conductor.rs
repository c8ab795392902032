//! The conductor: it has service threads follow those whose faults they resolve, and sees to it
//! that none starves of that.
//!
//! A service thread that follows is bound to the processor of the other, and idle to the scheduler:
//! it runs while the other sleeps, and a processor on which it is alone counts as free for the
//! other to wake on. So a fault wakes no second processor.
//!
//! What is idle may starve beside others who want the processor. Hence the conductor looks after
//! each that follows, some two hundred times a second while any does. As long as the two take
//! turns, one of them runs at almost any time. When they ran for less than half of it, somebody
//! else wants their processor; and one that has work may get nowhere. Then it is let go at once,
//! and not led again for a while, longer each time. A service thread does not change its own class:
//! idle, it may not come to change it back.
//!
//! Linux counterpart: `select_idle_sibling`, `sched_idle_cpu` in `kernel/sched/fair.c`.

use super::Shard;
use super::follow::Follow;
use crate::sched::{Class, Processors};
use core::time::Duration;
use lockdep::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// The time between two looks at who follows.
const TICK: Duration = Duration::from_millis(5);

/// Looks in a row that find nothing to do after which a service thread follows nobody: half a
/// second.
const IDLE_TICKS_MAX: u32 = 100;

/// Wishes that are refused to one that got nowhere: twice as many each time, up to so many. A wish
/// stands for some hundred faults.
const REFUSALS_MAX: u32 = 1 << 12;

/// Looks after which one that follows has earned that the next refusals are few again.
const GOOD_TICKS: u32 = 200;

/// What the conductor sleeps by.
pub(super) struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Default)]
struct BellState {
    is_rung: bool,
    is_over: bool,
}

impl Bell {
    fn new() -> Self {
        Self {
            state: Mutex::new("host.conductor", BellState::default()),
            rung: Condvar::new("host.conductor.rung"),
        }
    }

    /// Has the conductor look after wishes.
    pub(super) fn ring(&self) {
        self.state.lock().is_rung = true;
        self.rung.notify_all();
    }

    fn end(&self) {
        self.state.lock().is_over = true;
        self.rung.notify_all();
    }

    /// Waits until somebody rings; for no longer than `timeout`. False when it is over.
    fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        while !state.is_rung && !state.is_over {
            state = match timeout {
                None => self.rung.wait(state),
                Some(timeout) => {
                    state = self.rung.wait_timeout(state, timeout).0;
                    break;
                }
            };
        }
        state.is_rung = false;
        !state.is_over
    }
}

/// The thread that conducts; it ends when this is dropped, and then nobody follows.
pub(super) struct Conductor {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Conductor {
    /// A bell for a conductor, where one can do its work: a thread that became idle must be allowed
    /// to become ordinary again, and there must be processors to choose from.
    pub(super) fn bell() -> Option<Arc<Bell>> {
        let has_choice = Processors::of(0).is_ok_and(|processors| processors.nr() > 1);
        (has_choice && Class::can_be_left()).then(|| Arc::new(Bell::new()))
    }

    /// Starts the thread for these shards. Without one nobody follows.
    pub(super) fn start(bell: Arc<Bell>, shards: Vec<Arc<Shard>>) -> Self {
        let thread = std::thread::Builder::new()
            .name("pinless-conduct".into())
            .spawn({
                let bell = Arc::clone(&bell);
                move || conduct(&bell, &shards)
            })
            .ok();
        Self { bell, thread }
    }
}

impl Drop for Conductor {
    fn drop(&mut self) {
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            // An error says that the thread panicked, and it has said so itself.
            let _ = thread.join();
        }
    }
}

/// The life of the conductor. Allocates nothing after its start.
fn conduct(bell: &Bell, shards: &[Arc<Shard>]) {
    super::block_signals();
    let mut led: Vec<Led> = shards.iter().map(|_| Led::default()).collect();
    let mut has_followers = false;
    while bell.wait(has_followers.then_some(TICK)) {
        has_followers = false;
        for (led, shard) in led.iter_mut().zip(shards) {
            let is_busy = led.are_busy(&shard.follow);
            led.tend(&shard.follow, is_busy, || shard.has_work());
            has_followers |= led.place.is_some();
        }
    }
    for (led, shard) in led.iter_mut().zip(shards) {
        led.let_go(&shard.follow);
    }
}

/// A service thread that may follow.
#[derive(Default, Debug)]
struct Led {
    place: Option<Place>,
    watch: Watch,
}

/// One that follows.
#[derive(Debug)]
struct Place {
    /// Where it is bound, and where it may run otherwise.
    bound: u32,
    free: Processors,
    /// The last look at how long it and whom it follows have run by then.
    looked: Instant,
    ran: Duration,
}

impl Led {
    /// Looks after it: carries out what it wishes, and lets it go when that does it no good.
    /// `is_busy` is what [`Led::are_busy`] says.
    fn tend(&mut self, follow: &Follow, is_busy: Option<bool>, has_work: impl FnOnce() -> bool) {
        let wish = follow.wish();
        let Some(place) = &self.place else {
            if let Some(processor) = wish
                && self.watch.grants()
            {
                self.lead(follow, processor);
            }
            return;
        };
        let (nr_served, is_serving) = follow.progress();
        let has_work = || is_serving || has_work();
        let finding = match is_busy {
            Some(is_busy) => self.watch.look(nr_served, is_busy, has_work),
            None => Finding::Thrives,
        };
        if finding == Finding::Thrives && wish == Some(place.bound) {
            return;
        }
        self.let_go(follow);
        if finding == Finding::Thrives
            && let Some(processor) = wish
        {
            self.lead(follow, processor);
        }
    }

    /// Whether it and whom it follows have run for half of the time since the last look; `None`
    /// when that was a moment ago.
    fn are_busy(&mut self, follow: &Follow) -> Option<bool> {
        let place = self.place.as_mut()?;
        let passed = place.looked.elapsed();
        if passed < TICK / 2 {
            return None;
        }
        let (ran, had_run) = (follow.run_time(), place.ran);
        (place.looked, place.ran) = (Instant::now(), ran);
        Some(ran.saturating_sub(had_run) * 2 >= passed)
    }

    /// Binds it to a processor; nothing changes when that may not be.
    fn lead(&mut self, follow: &Follow, processor: u32) {
        let Some(thread) = follow.thread() else {
            return;
        };
        // Read each time: somebody may have changed it. What is not ordinary has a reason for that.
        let Ok(free) = Processors::of(thread) else {
            return;
        };
        let only = Processors::only(processor).filter(|_| free.contains(processor));
        let Some(only) = only.filter(|_| Class::of(thread) == Some(Class::Ordinary)) else {
            return;
        };
        if only.bind(thread).is_err() {
            return;
        }
        self.place = Some(Place {
            bound: processor,
            free,
            looked: Instant::now(),
            ran: follow.run_time(),
        });
        self.watch.begin(follow.progress().0);
        if Class::Idle.set(thread).is_err() {
            return self.let_go(follow);
        }
        follow.note_bound(Some(processor));
    }

    fn let_go(&mut self, follow: &Follow) {
        let Some(Place { free, .. }) = self.place.take() else {
            return;
        };
        let Some(thread) = follow.thread() else {
            return;
        };
        // They fail for a thread that has ended.
        let _ = Class::Ordinary.set(thread);
        let _ = free.bind(thread);
        follow.note_bound(None);
    }
}

/// What a look has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finding {
    Thrives,
    /// There was nothing to do for long.
    Rests,
    /// There is work, and little or none was done.
    Starves,
}

/// Whether one that follows gets its work done.
#[derive(Default, Debug)]
struct Watch {
    nr_served: u64,
    nr_good_ticks: u32,
    nr_idle_ticks: u32,
    /// Wishes that are still refused, and how many are the next time.
    nr_refused: u32,
    nr_refused_next: u32,
}

impl Watch {
    /// Whether a wish is granted.
    fn grants(&mut self) -> bool {
        self.nr_refused = self.nr_refused.saturating_sub(1);
        self.nr_refused == 0
    }

    fn begin(&mut self, nr_served: u64) {
        self.nr_served = nr_served;
        self.nr_idle_ticks = 0;
    }

    fn look(&mut self, nr_served: u64, is_busy: bool, has_work: impl FnOnce() -> bool) -> Finding {
        let has_progress = self.nr_served != nr_served;
        if has_progress && is_busy {
            self.nr_served = nr_served;
            self.nr_idle_ticks = 0;
            self.nr_good_ticks += 1;
            if self.nr_good_ticks >= GOOD_TICKS {
                (self.nr_good_ticks, self.nr_refused_next) = (0, 0);
            }
            return Finding::Thrives;
        }
        if has_progress || has_work() {
            self.nr_good_ticks = 0;
            self.nr_refused_next = (self.nr_refused_next * 2).clamp(8, REFUSALS_MAX);
            self.nr_refused = self.nr_refused_next;
            return Finding::Starves;
        }
        self.nr_idle_ticks += 1;
        match self.nr_idle_ticks {
            IDLE_TICKS_MAX.. => Finding::Rests,
            _ => Finding::Thrives,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault_thread::follow::Trail;
    use lockdep::sync::Completion;

    /// Looks at two who run all the time, each `(faults resolved so far, whether there is work)`:
    /// what the last one finds.
    #[track_caller]
    fn check(looks: impl IntoIterator<Item = (u64, bool)>, wanted: Finding) {
        let mut watch = Watch::default();
        watch.begin(0);
        let found = looks
            .into_iter()
            .map(|(nr_served, has_work)| watch.look(nr_served, true, || has_work));
        assert_eq!(found.last(), Some(wanted));
    }

    #[test]
    fn who_gets_nowhere_starves_and_who_has_nothing_to_do_rests() {
        let idle = IDLE_TICKS_MAX as usize;
        check([(1, true), (2, true)], Finding::Thrives);
        check([(1, true), (1, true)], Finding::Starves);
        check([(0, true)], Finding::Starves);
        check([(1, false), (1, false)], Finding::Thrives);
        check([(0, false); IDLE_TICKS_MAX as usize], Finding::Rests);
        let one_meanwhile = (0..2 * idle - 2).map(|nth| (u64::from(nth >= idle - 1), false));
        check(one_meanwhile, Finding::Thrives);
        let found = Watch::default().look(7, false, || false);
        assert_eq!(found, Finding::Starves, "others had the processor");
    }

    #[test]
    fn who_starves_again_and_again_is_led_ever_less_often() {
        let mut watch = Watch::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(watch.look(0, true, || true), Finding::Starves);
            waits.push((0..).find(|_| watch.grants()).unwrap_or(0));
        }
        assert!(waits.is_sorted() && waits[0] > 0, "{waits:?}");
        assert_eq!(waits[11], REFUSALS_MAX - 1);
        for nr_served in 1..=u64::from(GOOD_TICKS) {
            watch.look(nr_served, true, || false);
        }
        watch.look(u64::from(GOOD_TICKS), true, || true);
        let again = (0..).find(|_| watch.grants());
        assert_eq!(again, Some(waits[0]), "it has been good for long");
    }

    /// A thread that only waits is led and let go: by its class and its processors.
    #[test]
    fn who_is_let_go_is_as_before() {
        if Conductor::bell().is_none() {
            // Nobody is ever led here.
            return;
        }
        let (begun, end) = (&Completion::new("test.begun"), &Completion::new("test.end"));
        let follow = &Follow::new();
        let bell = &Bell::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut trail = Trail::begin(follow, Some(bell));
                // SAFETY: the call takes nothing and touches no memory.
                let me = unsafe { libc::gettid() } as u32;
                (0..1000).for_each(|_| trail.serve(me, || ()));
                begun.complete_all();
                end.wait();
            });
            begun.wait();
            let thread = follow.thread().expect("it has begun");
            let now = || (Class::of(thread), Processors::of(thread).expect("it lives"));
            let before = now();
            let mut led = Led::default();
            led.tend(follow, None, || true);
            let bound = follow.wish().and_then(Processors::only).expect("it wishes");
            assert_eq!(now(), (Some(Class::Idle), bound));
            led.tend(follow, None, || true);
            led.tend(follow, Some(true), || false);
            assert_eq!(now(), (Some(Class::Idle), bound), "it has nothing to do");
            led.tend(follow, Some(true), || true);
            assert_eq!(now(), before, "it starved");
            led.tend(follow, None, || true);
            assert_eq!(now(), before, "its next wish is refused");
            end.complete_all();
        });
    }
}
