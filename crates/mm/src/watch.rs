//! Who runs foreign code for a memory cgroup, and since when: the conviction of what overstays.
//!
//! A callback is foreign code. One that never returns keeps its thread, and nothing can be done
//! about that; but it must not keep the memory cgroup. So each worker has a *seat*, which says what
//! callback the worker is in and since when, and one of the spare threads looks at the seats while
//! any worker is in one. What is in it for longer than its budget is *convicted*:
//!
//! ```text
//!  worker           seat              watching spare            next spare
//!  begin   -------> call, deadline
//!  (hangs)                            looks: overdue
//!                   is_replaced <---- convicts, by name
//!                                     vacates the post
//!                                     takes it                  watches
//!  end     -------> acquitted
//!  becomes a spare
//! ```
//!
//! From its conviction until its call returns, no bracket is opened over the subscription: it is
//! refused in its name (see `Member::is_overdue`), and a teardown waits. What was open already
//! ends, which calls it. So one hang costs a worker at most once. Only a thread that is in a
//! callback can be convicted, and whether it was is settled under the lock of its seat, so that a
//! worker is replaced or goes on, and never both.

use crate::env::Clock;
use crate::limits::{CONVICTIONS_MAX, Limits, SEATS, WORKER_SEATS};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use core::time::Duration;
use lockdep::sync::{Condvar, Mutex, MutexGuard, ShortLock};
use std::sync::Arc;

/// A job of which there is one in a memory cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Post {
    /// [`Memcg::run_reclaim`](crate::Memcg::run_reclaim).
    Reclaim,
    /// [`Memcg::run_settle`](crate::Memcg::run_settle).
    Settle,
    /// [`Memcg::run_reaper`](crate::Memcg::run_reaper).
    Reaper,
}

impl Post {
    const ALL: [Self; 3] = [Self::Reclaim, Self::Settle, Self::Reaper];
}

/// Every post is filled.
const NOBODY_MISSING: [bool; Post::ALL.len()] = [false; Post::ALL.len()];

/// What a thread runs that is not ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Callback {
    /// A start that may not block.
    StartNonBlock,
    /// A start that may block.
    StartBlockable,
    /// The end of a bracket.
    End,
    /// The release of an address space.
    Release,
    /// A question for pages that were used.
    Young,
    /// [`TlbUser::flush`](crate::mmu_notifier::TlbUser::flush).
    FlushTlb,
    /// What [`Mm::set_on_kill`](crate::Mm::set_on_kill) set.
    OnKill,
    /// What [`Mm::set_on_cancel`](crate::Mm::set_on_cancel) set.
    Cancel,
    /// A [`Shrinker`](crate::memcg::Shrinker).
    Shrink,
}

impl Callback {
    /// Its name in reports.
    pub const fn text(self) -> &'static str {
        match self {
            Self::StartNonBlock => "start that may not block",
            Self::StartBlockable => "start that may block",
            Self::End => "end",
            Self::Release => "release",
            Self::Young => "answer whether pages were used",
            Self::FlushTlb => "flush",
            Self::OnKill => "reaction to its kill",
            Self::Cancel => "answer whether it gives memory back",
            Self::Shrink => "shrinker",
        }
    }

    const fn may_block(self) -> bool {
        matches!(self, Self::StartBlockable | Self::Release)
    }
}

/// A callback that ran for longer than its budget ([`Limits::callback_budget`],
/// [`Limits::nonblock_budget`]).
#[derive(Clone, Debug)]
pub struct Conviction {
    /// The name of the subscription, or of the address space.
    pub holder: Arc<str>,
    /// Which callback.
    pub callback: Callback,
    /// Whose worker was in it; `None` for a thread of the program.
    pub post: Option<Post>,
    /// When it was called, on the clock of the memory cgroup.
    pub since_ns: u64,
    /// How long it had run when it was convicted, in nanoseconds.
    pub overdue_ns: u64,
    /// How long it ran; `None` while it does.
    pub lasted_ns: Option<u64>,
    /// Which call.
    serial: u64,
}

impl fmt::Display for Conviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        let (holder, what) = (&self.holder, self.callback.text());
        match self.lasted_ns {
            None => write!(f, "the {what} of {holder} has not returned"),
            Some(ns) => write!(f, "the {what} of {holder} took {:.3} ms", ms(ns)),
        }?;
        write!(f, " (convicted after {:.3} ms)", ms(self.overdue_ns))
    }
}

/// Whose callback it is.
pub(crate) trait Suspect: Send + Sync {
    fn name(&self) -> &Arc<str>;

    /// One more call of it is overdue.
    fn convict(&self);

    /// One that was has returned.
    fn acquit(&self);
}

/// A callback that runs.
struct Call {
    suspect: Arc<dyn Suspect>,
    callback: Callback,
    since_ns: u64,
    until_ns: u64,
    serial: u64,
    is_convicted: bool,
}

/// A thread that calls callbacks.
struct Seat {
    is_taken: AtomicBool,
    state: ShortLock<SeatState>,
}

#[derive(Default)]
struct SeatState {
    /// `None` for a thread of the program, and for a worker that was replaced.
    post: Option<Post>,
    is_worker: bool,
    call: Option<Call>,
    /// Callbacks inside of one another; the outermost counts.
    depth: u32,
    /// Since when its time does not count.
    paused_ns: Option<u64>,
}

/// The seats of a memory cgroup and its spares.
pub(crate) struct Watch {
    clock: Arc<dyn Clock>,
    callback_budget: Duration,
    nonblock_budget: Duration,
    seats: [Seat; SEATS],
    state: Mutex<State>,
    /// Wakes the spare that watches.
    called: Condvar,
    /// Wakes the others.
    vacated: Condvar,
    /// Somebody looks at the seats, or is about to.
    is_armed: AtomicBool,
    next_serial: AtomicU64,
}

struct State {
    /// Which posts nobody fills.
    vacant: [bool; Post::ALL.len()],
    has_watcher: bool,
    /// The newest, oldest first.
    convictions: Vec<Conviction>,
}

std::thread_local! {
    /// How the calling thread is watched. Readable in a signal handler: a constant, without a
    /// destructor.
    static MARKS: Cell<u8> = const { Cell::new(0) };
    /// Where it sits, if it is watched.
    static SITTING: RefCell<Option<(Arc<Watch>, usize)>> = const { RefCell::new(None) };
}

/// Where a thread sits that does not run, and how it is watched.
#[derive(Default)]
pub(crate) struct Place {
    marks: u8,
    sitting: Option<(Arc<Watch>, usize)>,
}

impl Place {
    /// Puts this one on the calling thread, and what was there into `self`.
    pub(crate) fn exchange(&mut self) {
        // An error says that the thread is at its end.
        let _ = MARKS.try_with(|marks| self.marks = marks.replace(self.marks));
        let _ = SITTING
            .try_with(|sitting| core::mem::swap(&mut *sitting.borrow_mut(), &mut self.sitting));
    }
}

/// The thread sits somewhere.
const WATCHED: u8 = 1;

/// A callback of the thread was overdue, and somebody else does its work.
const REPLACED: u8 = 2;

/// Something is to be told of a callback that the thread is in, when it returns.
const OWING: u8 = 4;

/// Has the ends of callbacks look for what is to be told of them, or not.
#[cfg(feature = "notifiers")]
pub(crate) fn set_owing(is_owing: bool) {
    let mark = if is_owing { OWING } else { 0 };
    // An error says that the thread is at its end.
    let _ = MARKS.try_with(|marks| marks.set(marks.get() & !OWING | mark));
}

#[inline]
fn marks() -> u8 {
    MARKS.try_with(Cell::get).unwrap_or(0)
}

/// Whether somebody else does the work of the calling thread now.
#[inline]
pub(crate) fn is_replaced() -> bool {
    marks() & REPLACED != 0
}

/// The time in which the calling thread runs a callback, which it may be watched in. What it is
/// when the callback returns says what there is to do then: whoever sits down in a callback gets
/// up in it, and to remember what it was before would cost who is not watched.
#[must_use = "the callback ends when this is dropped"]
pub(crate) struct Watched<'a, S: Suspect + 'static>(&'a Arc<S>);

impl<'a, S: Suspect + 'static> Watched<'a, S> {
    /// The calling thread is about to run `callback` of `suspect`.
    #[inline]
    pub(crate) fn enter(callback: Callback, suspect: &'a Arc<S>) -> Self {
        if marks() & WATCHED != 0 {
            with_watch(|watch, seat| watch.begin(seat, callback, Arc::clone(suspect) as _));
        }
        Self(suspect)
    }
}

impl<S: Suspect + 'static> Drop for Watched<'_, S> {
    #[inline]
    fn drop(&mut self) {
        if marks() != 0 {
            leave(self.0);
        }
    }
}

/// A callback of `suspect` has returned in a thread that is marked.
#[cold]
#[inline(never)]
#[cfg_attr(
    not(feature = "notifiers"),
    expect(unused_variables, reason = "nothing is owed")
)]
fn leave<S: Suspect + 'static>(suspect: &Arc<S>) {
    if marks() & WATCHED != 0 {
        with_watch(Watch::end);
    }
    #[cfg(feature = "notifiers")]
    if marks() & OWING != 0 {
        crate::mmu_notifier::pay(&**suspect);
    }
}

#[cfg(any(feature = "notifiers", test))]
/// The time in which a callback waits for what is not its own: it does not count.
#[must_use = "the time counts again when this is dropped"]
pub(crate) struct Paused(bool);

#[cfg(any(feature = "notifiers", test))]
impl Paused {
    pub(crate) fn enter() -> Self {
        let is_watched = marks() & WATCHED != 0;
        if is_watched {
            with_watch(Watch::pause);
        }
        Self(is_watched)
    }
}

#[cfg(any(feature = "notifiers", test))]
impl Drop for Paused {
    fn drop(&mut self) {
        if self.0 {
            with_watch(Watch::resume);
        }
    }
}

#[cold]
fn with_watch(act: impl FnOnce(&Watch, usize)) {
    // An error says that the thread is at its end.
    let here = SITTING.try_with(|sitting| sitting.borrow().clone());
    // Not while it is borrowed: a simulator may exchange it at any lock that is taken.
    if let Some((watch, seat)) = here.ok().flatten() {
        act(&watch, seat);
    }
}

/// Sets aside what the calling thread needs to be watched: afterwards a fault in it allocates
/// nothing, also where somebody who walks the page table is told. The machine calls this for each
/// thread whose faults it resolves, and for those that resolve them.
pub fn prepare_thread() {
    // An error says that the thread is at its end, and has no faults any more.
    let _ = SITTING.try_with(|_| ());
    #[cfg(feature = "notifiers")]
    crate::mmu_notifier::prepare_thread();
}

/// The calling thread sits where it is watched; where it sat before, it sits again afterwards.
#[must_use = "the seat is given back when this is dropped"]
pub(crate) struct Sitting {
    outer: Option<(Arc<Watch>, usize)>,
    outer_marks: u8,
    seat: Option<(Arc<Watch>, usize)>,
}

impl Sitting {
    const NOWHERE: Self = Self {
        outer: None,
        outer_marks: 0,
        seat: None,
    };
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let Some((watch, seat)) = self.seat.take() else {
            return;
        };
        let outer = self.outer.take();
        // An error says that the thread is at its end.
        let _ = SITTING.try_with(|sitting| sitting.replace(outer));
        // What is owed of a callback around this still is.
        let _ = MARKS.try_with(|marks| marks.set(self.outer_marks | marks.get() & OWING));
        *watch.seats[seat].state.lock() = SeatState::default();
        // Release: pairs with the Acquire in `sit`; the next one finds the seat empty.
        watch.seats[seat].is_taken.store(false, Ordering::Release);
    }
}

impl Watch {
    pub(crate) fn new(limits: &Limits, clock: &Arc<dyn Clock>) -> Arc<Self> {
        let seat = |_| Seat {
            is_taken: AtomicBool::new(false),
            state: ShortLock::new("mm.watch.seat", SeatState::default()),
        };
        let state = State {
            vacant: NOBODY_MISSING,
            has_watcher: false,
            convictions: Vec::with_capacity(CONVICTIONS_MAX),
        };
        Arc::new(Self {
            clock: Arc::clone(clock),
            callback_budget: limits.callback_budget,
            nonblock_budget: limits.nonblock_budget,
            seats: core::array::from_fn(seat),
            state: Mutex::new("mm.watch", state),
            called: Condvar::new("mm.watch.called"),
            vacated: Condvar::new("mm.watch.vacated"),
            is_armed: AtomicBool::new(false),
            next_serial: AtomicU64::new(0),
        })
    }

    /// From now on the calling thread is watched, for itself; unless it sits here already, or no
    /// seat is free.
    pub(crate) fn sit_as_program(self: &Arc<Self>) -> Sitting {
        let is_here = SITTING.try_with(|sitting| {
            let sitting = sitting.borrow();
            matches!(&*sitting, Some((watch, _)) if Arc::ptr_eq(watch, self))
        });
        // An error says that the thread is at its end.
        if is_here.unwrap_or(true) {
            return Sitting::NOWHERE;
        }
        self.sit(None)
    }

    /// From now on the calling thread is watched, as the worker of a post or for itself; unless no
    /// seat is free. Threads of the program leave [`WORKER_SEATS`] to workers.
    pub(crate) fn sit(self: &Arc<Self>, post: Option<Post>) -> Sitting {
        // Acquire: pairs with the Release of whoever sat there.
        let take = |seat: &Seat| !seat.is_taken.swap(true, Ordering::Acquire);
        // Workers begin at those that are theirs.
        let seat = match post {
            Some(_) => self.seats.iter().rposition(take),
            None => self.seats[..SEATS - WORKER_SEATS].iter().position(take),
        };
        let Some(seat) = seat else {
            return Sitting::NOWHERE;
        };
        *self.seats[seat].state.lock() = SeatState {
            post,
            is_worker: post.is_some(),
            ..SeatState::default()
        };
        let here = (Arc::clone(self), seat);
        let outer = SITTING.try_with(|sitting| sitting.replace(Some(here.clone())));
        Sitting {
            outer: outer.unwrap_or(None),
            outer_marks: MARKS.try_with(|marks| marks.replace(WATCHED)).unwrap_or(0),
            seat: Some(here),
        }
    }

    fn begin(&self, seat: usize, callback: Callback, suspect: Arc<dyn Suspect>) {
        let budget = if callback.may_block() {
            self.callback_budget
        } else {
            self.nonblock_budget
        };
        let since_ns = self.clock.now_ns();
        let mut call = Call {
            suspect,
            callback,
            since_ns,
            until_ns: since_ns.saturating_add(budget.as_nanos() as u64),
            serial: 0,
            is_convicted: false,
        };
        let mut state = self.seats[seat].state.lock();
        state.depth += 1;
        let inner = if state.depth == 1 {
            // Under the lock of the seat: whoever reads a number that counts this call finds it.
            call.serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
            state.call = Some(call);
            None
        } else {
            Some(call)
        };
        drop(state);
        match inner {
            None => self.arm(),
            // Not under the lock: it counts down.
            Some(call) => drop(call),
        }
    }

    #[cfg(any(feature = "notifiers", test))]
    fn pause(&self, seat: usize) {
        let now_ns = self.clock.now_ns();
        self.seats[seat].state.lock().paused_ns = Some(now_ns);
    }

    #[cfg(any(feature = "notifiers", test))]
    fn resume(&self, seat: usize) {
        let now_ns = self.clock.now_ns();
        let mut state = self.seats[seat].state.lock();
        let paused_ns = state.paused_ns.take();
        if let (Some(paused_ns), Some(call)) = (paused_ns, &mut state.call) {
            let lasted_ns = now_ns.saturating_sub(paused_ns);
            call.until_ns = call.until_ns.saturating_add(lasted_ns);
        }
    }

    fn end(&self, seat: usize) {
        let mut state = self.seats[seat].state.lock();
        // Nothing began, if the thread has only sat down since.
        state.depth = state.depth.saturating_sub(1);
        if state.depth > 0 {
            return;
        }
        let (call, post, is_worker) = (state.call.take(), state.post, state.is_worker);
        drop(state);
        let Some(call) = call else { return };
        let now_ns = self.clock.now_ns();
        if call.is_convicted {
            call.suspect.acquit();
            if is_worker {
                let _ = MARKS.try_with(|marks| marks.set(marks.get() | REPLACED));
            }
        } else if now_ns < call.until_ns {
            return;
        }
        let lasted_ns = now_ns.saturating_sub(call.since_ns);
        let mut state = self.state.lock();
        let is_known = |known: &&mut Conviction| known.serial == call.serial;
        if let Some(known) = state.convictions.iter_mut().rev().find(is_known) {
            known.lasted_ns = Some(lasted_ns);
        } else {
            // It was too long, and nobody has seen it.
            let mut conviction = call.conviction(post, now_ns);
            conviction.lasted_ns = Some(lasted_ns);
            state.note(conviction);
        }
    }

    /// Has a spare look at the seats; cheap when one does already.
    fn arm(&self) {
        // SeqCst fence: pairs with the one in `watch`. A spare that stops looking sees the
        // call, or this one sees that it has stopped.
        fence(Ordering::SeqCst);
        // AcqRel: one of those who find it unset wakes the spares.
        if !self.is_armed.load(Ordering::Relaxed) && !self.is_armed.swap(true, Ordering::AcqRel) {
            drop(self.state.lock());
            self.called.notify_all();
        }
    }

    /// Wakes every spare.
    pub(crate) fn wake_all(&self) {
        drop(self.state.lock());
        self.called.notify_all();
        self.vacated.notify_all();
    }

    /// Watches, or sleeps while another spare does, until a post is vacant: that is the caller's
    /// then. `None` when `is_stopped` says so.
    pub(crate) fn wait_for_post(&self, is_stopped: impl Fn() -> bool) -> Option<Post> {
        let mut state = self.state.lock();
        let (mut is_watcher, mut seen) = (false, 0);
        let post = loop {
            if is_stopped() {
                break None;
            }
            if is_watcher {
                let is_any_running = self.look(&mut state);
                if state.vacant == NOBODY_MISSING {
                    state = self.watch(state, is_any_running, &mut seen);
                    continue;
                }
            }
            if let Some(at) = state.vacant.iter().position(|&is_vacant| is_vacant) {
                state.vacant[at] = false;
                break Some(Post::ALL[at]);
            }
            is_watcher = !state.has_watcher;
            if is_watcher {
                state.has_watcher = true;
            } else {
                state = self.vacated.wait(state);
            }
        };
        if is_watcher {
            state.has_watcher = false;
        }
        drop(state);
        // Somebody else watches from here on.
        self.vacated.notify_all();
        post
    }

    /// Sleeps for a while, or until there is something to look at. `seen` is how many calls had
    /// begun at the last look: once in a while is enough for any number of them.
    fn watch<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        is_any_running: bool,
        seen: &mut u64,
    ) -> MutexGuard<'a, State> {
        let nr_begun = self.next_serial.load(Ordering::Relaxed);
        if is_any_running || nr_begun != *seen {
            *seen = nr_begun;
            return self.called.wait_timeout(state, self.nonblock_budget / 2).0;
        }
        // AcqRel: pairs with the swap in `arm`.
        self.is_armed.swap(false, Ordering::AcqRel);
        // SeqCst fence: pairs with the one in `arm`.
        fence(Ordering::SeqCst);
        if self.next_serial.load(Ordering::Relaxed) != *seen {
            self.is_armed.store(true, Ordering::Relaxed);
            return state;
        }
        self.called.wait(state)
    }

    /// Convicts what is overdue; whether any other callback runs.
    fn look(&self, state: &mut State) -> bool {
        let now_ns = self.clock.now_ns();
        let mut is_any_running = false;
        // Acquire: pairs with the Release of whoever sat there.
        let is_taken = |seat: &&Seat| seat.is_taken.load(Ordering::Acquire);
        for seat in self.seats.iter().filter(is_taken) {
            let mut sitting = seat.state.lock();
            let SeatState {
                post,
                call,
                paused_ns,
                ..
            } = &mut *sitting;
            let Some(call) = call.as_mut().filter(|call| !call.is_convicted) else {
                continue;
            };
            if paused_ns.is_some() || now_ns < call.until_ns {
                is_any_running = true;
                continue;
            }
            call.is_convicted = true;
            call.suspect.convict();
            let post = post.take();
            let conviction = call.conviction(post, now_ns);
            drop(sitting);
            state.note(conviction);
            if let Some(post) = post {
                state.vacant[post as usize] = true;
            }
        }
        is_any_running
    }

    pub(crate) fn convictions(&self) -> Vec<Conviction> {
        self.state.lock().convictions.clone()
    }
}

impl Call {
    fn conviction(&self, post: Option<Post>, now_ns: u64) -> Conviction {
        Conviction {
            holder: Arc::clone(self.suspect.name()),
            callback: self.callback,
            post,
            since_ns: self.since_ns,
            overdue_ns: now_ns.saturating_sub(self.since_ns),
            lasted_ns: None,
            serial: self.serial,
        }
    }
}

impl State {
    fn note(&mut self, conviction: Conviction) {
        if self.convictions.len() == CONVICTIONS_MAX {
            self.convictions.remove(0);
        }
        self.convictions.push(conviction);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("is_armed", &self.is_armed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;

    /// Stands still unless it is moved on.
    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    struct Somebody(Arc<str>, AtomicU32);

    impl Suspect for Somebody {
        fn name(&self) -> &Arc<str> {
            &self.0
        }

        fn convict(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }

        fn acquit(&self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn watch() -> (Arc<Watch>, Arc<Hand>) {
        let hand = Arc::new(Hand::default());
        let clock = Arc::clone(&hand) as Arc<dyn Clock>;
        (Watch::new(&Limits::new(1 << 20), &clock), hand)
    }

    #[test]
    fn programs_leave_seats_to_workers() {
        let (watch, _) = watch();
        let mut sitting: Vec<_> = (0..SEATS).map(|_| watch.sit(None)).collect();
        let nr_seated = sitting.iter().filter(|one| one.seat.is_some()).count();
        assert_eq!(nr_seated, SEATS - WORKER_SEATS);
        let posts = Post::ALL.into_iter().cycle().take(WORKER_SEATS);
        sitting.extend(posts.map(|post| watch.sit(Some(post))));
        let nr_seated = sitting.iter().filter(|one| one.seat.is_some()).count();
        assert_eq!(nr_seated, SEATS);
        // The last that sat down gets up first.
        while sitting.pop().is_some() {}
    }

    #[test]
    fn a_pause_does_not_count() {
        let (watch, hand) = watch();
        let budget_ns = watch.callback_budget.as_nanos() as u64;
        let suspect = Arc::new(Somebody(Arc::from("somebody"), AtomicU32::new(0)));
        let is_convicted = || {
            watch.look(&mut watch.state.lock());
            suspect.1.load(Ordering::Relaxed) > 0
        };
        let pass = |ns| hand.0.fetch_add(ns, Ordering::Relaxed);
        let _sitting = watch.sit(Some(Post::Settle));
        let watched = Watched::enter(Callback::StartBlockable, &suspect);
        pass(budget_ns - 1);
        let paused = Paused::enter();
        pass(10 * budget_ns);
        assert!(!is_convicted(), "it waits for another");
        drop(paused);
        assert!(!is_convicted(), "the wait was another's");
        pass(1);
        assert!(is_convicted(), "its own time is over");
        drop(watched);
        assert!(is_replaced() && watch.convictions()[0].lasted_ns.is_some());
    }
}
