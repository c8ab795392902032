//! Reclaim: frames come back.
//!
//! Two hands go round all pages of a memory cgroup, one behind the other. The *front hand* detaches
//! mapped pages: they stand by in their slots, mapped by nobody. The *back hand* gives back the
//! frames of those that still stand by when it arrives: clean pages fall back on their stored
//! copy, dirty ones are compressed first. The time between the hands is a page's second chance: a
//! page that is touched meanwhile goes back at the price of a soft fault, and is passed over the
//! next time, if that was not its first use.
//!
//! Active pages are passed over while no more than half are active, and somebody is seen to use
//! them: who is not seen for a round makes them inactive, and they go in the next.
//!
//! No list is kept: the hands read the state words, which lie in the order of the addresses, so
//! that neighbours are found together and moved by one machine operation.
//!
//! Paper: the two-handed clock of 4.3BSD (Leffler et al., 1989). Linux counterpart: `mm/vmscan.c`.

mod bell;
mod compact;
mod detach;
mod domain;
mod hands;
mod pending;
mod retired;
mod reuse;
mod settle;
mod shed;
mod shrinker;
mod store;
mod workingset;
mod write_back;

pub use shrinker::{Shrinker, ShrinkerHandle};

use crate::gfp::Reclaiming;
use crate::limits::WINDOW_PAGES;
use crate::memcg::stat::count;
use crate::memcg::{Memcg, Protection};
use crate::mm_struct::Vma;
use crate::oom::Verdict;
use crate::watch;
use compact::Compaction;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use core::time::Duration;
pub(crate) use domain::Domain;
use hands::Hand;
pub(crate) use hands::Youth;
use lockdep::sync::{Condvar, Mutex};
use pending::{Begun, Pending};
use retired::Retired;
pub(crate) use reuse::Spare;
pub(crate) use settle::Awaited;
use settle::{Parked, RefusedQueue, StuckTable};
use std::sync::Arc;
use store::Workspace;
use write_back::WriteBack;

/// Frames that a thread reclaims for itself before it takes one. It does so while few are left, and
/// every access that does waits for all of them: few keep the tail short.
const DIRECT_FRAMES: u64 = 2;

/// Pages that it detaches at once for that.
const DIRECT_PAGES: u64 = 8;

/// Windows that a hand looks at for it before the work is left to the worker.
const DIRECT_WINDOWS: u64 = 16;

/// Frames after which the worker leaves a level for the others, once as many have come free in one
/// go: who uses them up as fast as they do holds up nobody else.
const TURN_FRAMES: u64 = 256;

/// How often a pass goes on because a shrinker has given something back.
const SHRINK_ROUNDS: u32 = 4;

/// The pause between two passes when somebody waits and nothing could be freed.
const STALL_PAUSE: Duration = Duration::from_millis(5);

/// Passes in a row that must free nothing before memory has run out, and pauses that must be over:
/// a pin that is about to be dropped, or a page that a thread is just moving, is no reason to kill
/// (the kernel's `MAX_RECLAIM_RETRIES`).
const STALLS_MAX: u32 = 16;

/// Passes in a row that freed nothing after which devices are asked for every single page, however
/// often they have refused: there are as many such passes before somebody is killed.
const LAST_RESORT: u32 = STALLS_MAX / 2;

/// The state of reclaim in a tree of memory cgroups; [`Domain`] is what each level has.
pub(crate) struct Control {
    kicked: AtomicBool,
    idle: Mutex<()>,
    wake: Condvar,
    workspaces: [Mutex<Workspace>; crate::limits::WORKSPACES],
    pub(crate) refused: RefusedQueue,
    pub(crate) stuck: StuckTable,
    /// Advice and teardowns that wait for devices.
    pub(crate) pending: Pending,
    pub(crate) parked: Parked,
    pub(crate) retired: Retired,
    pub(crate) write_back: WriteBack,
    pub(crate) compaction: Compaction,
    /// Faults, with the pieces of reclaim in them, that some thread works on now, none of which
    /// waits for long: those that began in an even epoch, and those of an odd one.
    in_flight: [AtomicU64; 2],
    epoch: AtomicUsize,
}

/// How a pass of reclaim ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pass {
    /// As many frames are free as was asked for.
    Done,
    /// As many came free as one pass is for, and somebody used them.
    Partial,
    /// Both hands went round and found nothing more to do.
    Stalled,
}

/// What the worker does after it has looked at a level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tended {
    /// Nothing: it is woken.
    Rest,
    /// It looks again soon: somebody waits here for a frame that was not found.
    Short,
    /// It looks again at once: there is more to do.
    GoOn,
}

/// Passes in a row after which somebody still waits for a frame.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Stall {
    nr_passes: u32,
    /// What had moved when the row began, as the frames of the level count it.
    pub(crate) nr_moved: u64,
    /// When the row began.
    pub(crate) began_ns: u64,
    /// Windows that had been refused when the row began.
    pub(crate) nr_refused: u64,
    /// Rounds of the worker that writes to the file, when the row began.
    pub(crate) nr_written_rounds: u64,
    /// How long it has been going on.
    lasted_ns: u64,
}

impl Stall {
    /// A pass ended. A frame that came back ends the row: somebody else may have taken it, but
    /// memory moves. So does one that somebody got who had waited. Whoever comes to wait cuts a
    /// pause short, so the passes alone say little. True when a row begins.
    fn note(&mut self, nr_moved: u64, now_ns: u64) -> bool {
        let begins = self.nr_passes == 0 || self.nr_moved != nr_moved;
        if begins {
            *self = Self {
                nr_moved,
                began_ns: now_ns,
                ..Self::default()
            };
        }
        self.nr_passes += 1;
        self.lasted_ns = now_ns.saturating_sub(self.began_ns);
        begins
    }

    /// How hard the next pass has to try.
    fn effort(&self) -> Effort {
        if self.nr_passes < LAST_RESORT {
            Effort::Worker
        } else {
            Effort::LastResort
        }
    }

    fn is_over(&self) -> bool {
        let pauses = STALL_PAUSE * (STALLS_MAX - 1);
        self.nr_passes >= STALLS_MAX && u128::from(self.lasted_ns) >= pauses.as_nanos()
    }
}

/// How hard a pass tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effort {
    /// In a fault, also on a signal stack: calls no notifier.
    Fault,
    /// In a thread that needs a frame outside of a fault.
    Direct,
    /// In the worker.
    Worker,
    /// In the worker, when nothing else is left: what this does not find is not there.
    LastResort,
}

impl Effort {
    /// In a thread that can leave the rest to the worker.
    fn is_direct(self) -> bool {
        matches!(self, Self::Fault | Self::Direct)
    }

    fn calls_notifiers(self) -> bool {
        self != Self::Fault
    }

    fn pages_at_once(self) -> u64 {
        match self {
            Self::Fault | Self::Direct => DIRECT_PAGES,
            Self::Worker | Self::LastResort => u64::from(WINDOW_PAGES),
        }
    }

    fn frames_max(self) -> u64 {
        match self {
            Self::Fault | Self::Direct => DIRECT_FRAMES,
            Self::Worker | Self::LastResort => TURN_FRAMES,
        }
    }

    fn windows_max(self) -> u64 {
        match self {
            Self::Fault | Self::Direct => DIRECT_WINDOWS,
            Self::Worker | Self::LastResort => u64::MAX,
        }
    }
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            kicked: AtomicBool::new(false),
            idle: Mutex::new("mm.reclaim.idle", ()),
            wake: Condvar::new("mm.reclaim.wake"),
            workspaces: core::array::from_fn(|_| {
                Mutex::new("mm.reclaim.workspace", Workspace::new())
            }),
            refused: RefusedQueue::new(),
            stuck: StuckTable::new(),
            pending: Pending::new(),
            parked: Parked::new(),
            retired: Retired::new(),
            write_back: WriteBack::new(),
            compaction: Compaction::new(),
            in_flight: [const { AtomicU64::new(0) }; 2],
            epoch: AtomicUsize::new(0),
        }
    }

    /// Wakes a worker; cheap when one was woken already.
    pub(crate) fn kick(&self) {
        // SeqCst fence: pairs with the one in `wait_for_work`. A worker that took the last kick
        // sees the frame that this thread charged before, or this kick comes after it and is not
        // dropped.
        fence(Ordering::SeqCst);
        // AcqRel: Release pairs with the swap in `wait_for_work`, so that the worker sees the
        // shortage; Acquire orders this kick after the worker took the last one.
        if !self.kicked.load(Ordering::Relaxed) && !self.kicked.swap(true, Ordering::AcqRel) {
            self.wake_workers();
        }
    }

    fn wake_workers(&self) {
        drop(self.idle.lock());
        self.wake.notify_all();
    }

    /// Wakes every thread that waits for something to do here.
    pub(crate) fn wake_all(&self) {
        self.wake_workers();
        self.refused.wake_all();
        self.write_back.bell.wake_all();
        self.compaction.bell.wake_all();
    }

    fn wait_for_work(&self, is_stopped: impl Fn() -> bool, timeout: Option<Duration>) {
        let mut guard = self.idle.lock();
        // AcqRel: pairs with the swap in `kick`.
        while !self.kicked.swap(false, Ordering::AcqRel) && !is_stopped() {
            guard = match timeout {
                None => self.wake.wait(guard),
                Some(timeout) => {
                    drop(self.wake.wait_timeout(guard, timeout));
                    break;
                }
            };
        }
        // SeqCst fence: pairs with those in `kick` and `Frames::wait`.
        fence(Ordering::SeqCst);
    }
}

/// Counts something as worked on: memory has not run out before it is done.
pub(crate) struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    pub(crate) fn new(control: &'a Control) -> Self {
        let in_flight = &control.in_flight[control.epoch.load(Ordering::Relaxed) % 2];
        in_flight.fetch_add(1, Ordering::Relaxed);
        Self(in_flight)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A piece of reclaim: memory has not run out before it is done, unless it calls devices and does
/// not come back from one.
#[expect(dead_code, reason = "held for their destructors")]
enum UnderWay<'a> {
    Counted(InFlight<'a>),
    Timed(Begun<'a>),
}

impl<'a> UnderWay<'a> {
    fn begin(memcg: &'a Memcg, effort: Effort) -> Self {
        let control = &memcg.reclaim;
        match effort {
            Effort::Fault => Self::Counted(InFlight::new(control)),
            Effort::Direct | Effort::Worker | Effort::LastResort => {
                Self::Timed(control.pending.begin(memcg.clock.now_ns()))
            }
        }
    }
}

impl Control {
    /// From here on what begins is counted apart from what has begun, unless something is left of
    /// the epoch before: then that is waited for first.
    fn turn_epoch(&self) {
        if !self.has_old_in_flight() {
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether something is still worked on that began before the epoch was turned.
    pub(crate) fn has_old_in_flight(&self) -> bool {
        let old = (self.epoch.load(Ordering::Relaxed) + 1) % 2;
        self.in_flight[old].load(Ordering::Relaxed) > 0
    }
}

impl Memcg {
    /// The loop of [`Memcg::run_reclaim`]: keeps free frames between the marks, at every level from
    /// this one down.
    pub(crate) fn reclaim_until_over(&self) {
        while !self.is_over() {
            self.reclaim.retired.destroy();
            let mut most = Tended::Rest;
            self.for_each_level(&mut |level| most = most.max(level.tend()));
            let pause = match most {
                Tended::Rest => None,
                Tended::Short => Some(STALL_PAUSE),
                Tended::GoOn => continue,
            };
            self.reclaim.wait_for_work(|| self.is_over(), pause);
        }
        self.reclaim.retired.destroy();
    }

    /// Makes room at this level.
    fn tend(&self) -> Tended {
        let mut stall = *self.domain.stall.lock();
        // Before the pass: whatever came of what has ended, this pass can have it.
        let may_still_free = self.may_still_free(&stall);
        let pass = self.reclaim_pass(self.marks().high, stall.effort());
        let is_short = pass == Pass::Stalled && self.frames.nr_waiting() > 0;
        if is_short {
            self.kick_write_back();
        }
        if !is_short {
            stall = Stall::default();
        } else if stall.note(self.frames.nr_moved(), self.clock.now_ns()) {
            stall.nr_refused = self.reclaim.refused.nr_pushed();
            stall.nr_written_rounds = self.reclaim.write_back.nr_rounds();
            self.reclaim.turn_epoch();
        }
        if is_short {
            self.reclaim.write_back.ask(&stall);
        }
        let has_run_out = stall.is_over() && !may_still_free;
        if has_run_out && self.out_of_memory(&stall) == Verdict::Acted {
            // Somebody is being killed: what comes of that counts anew.
            stall = Stall::default();
        }
        if watch::is_replaced() {
            // Whoever reclaims now counts for itself.
            return Tended::Rest;
        }
        *self.domain.stall.lock() = stall;
        match pass {
            Pass::Partial => Tended::GoOn,
            _ if is_short => Tended::Short,
            _ => Tended::Rest,
        }
    }

    /// Reclaims in the thread that needs a frame, at the levels where few are left; what cannot be
    /// had cheaply is left to the worker. Otherwise that is left asleep: on another processor, each
    /// page that it takes would interrupt this one. Not under a notifier's lock, unless it is a
    /// fault.
    pub(crate) fn reclaim_directly(&self, effort: Effort) {
        for level in self.levels() {
            let low = level.marks().low;
            if level.room() <= low {
                let began_ns = self.clock.now_ns();
                let _ = level.reclaim_pass(low + DIRECT_FRAMES, effort);
                self.note_short_stall(self.clock.now_ns().saturating_sub(began_ns));
            }
        }
    }

    /// Has as many frames free as a prefetch wants, and no fewer than before, as far as they can be
    /// had cheaply.
    pub(crate) fn make_room_for(&self, nr: u64, effort: Effort) {
        for level in self.levels() {
            let wanted = level.marks().low + nr;
            for _ in 0..nr.div_ceil(DIRECT_FRAMES) {
                if level.reclaim_pass(wanted, effort) == Pass::Stalled || level.room() >= wanted {
                    break;
                }
            }
        }
    }

    /// Takes back what is charged above a new bound, of which so many pages are `missing`, as far
    /// as it can be had.
    pub(crate) fn reclaim_for_limit(&self, missing: &dyn Fn() -> u64) {
        while self.reclaim_until(missing, Effort::Worker) == Pass::Partial {}
    }

    /// Frees frames until there is room for `target`, or nothing more can be done.
    fn reclaim_pass(&self, target: u64, effort: Effort) -> Pass {
        self.reclaim_until(&|| target.saturating_sub(self.room()), effort)
    }

    /// Frees frames until none is `missing`, or nothing more can be done.
    fn reclaim_until(&self, missing: &dyn Fn() -> u64, effort: Effort) -> Pass {
        if missing() == 0 {
            return Pass::Done;
        }
        let _inside = Reclaiming::enter();
        let _sitting = self.sit_for(effort);
        for _ in 0..SHRINK_ROUNDS {
            let pass = self.reclaim_pages(missing, effort);
            if pass != Pass::Stalled {
                return pass;
            }
            // Somebody may have let go of pages that the hands can have now.
            if effort == Effort::Fault || self.shrink(effort) == 0 {
                break;
            }
        }
        count(&self.stat.stalls);
        Pass::Stalled
    }

    /// Has the calling thread watched while it may call notifiers.
    fn sit_for(&self, effort: Effort) -> Option<watch::Sitting> {
        effort
            .calls_notifiers()
            .then(|| self.watch.sit_as_program())
    }

    /// The same with the hands alone. What `low` protects goes when there is nothing else.
    fn reclaim_pages(&self, missing: &dyn Fn() -> u64, effort: Effort) -> Pass {
        let pass = self.reclaim_from(Protection::LowAndMin, missing, effort);
        if pass == Pass::Stalled && !effort.is_direct() && self.domain.has_met_low() {
            count(&self.stat.event_low);
            return self.reclaim_from(Protection::Min, missing, effort);
        }
        pass
    }

    fn reclaim_from(
        &self,
        protection: Protection,
        missing: &dyn Fn() -> u64,
        effort: Effort,
    ) -> Pass {
        let nr_freed_before = self.frames.nr_freed();
        let mut front_is_idle = false;
        let mut stalls = 0;
        while missing() > 0 && !self.is_over() {
            let wanted = self.marks().standby.max(missing());
            let standby = self.domain.nr_standby();
            if !front_is_idle && standby < wanted {
                let nr = wanted - standby;
                let nr = nr.min(effort.pages_at_once());
                front_is_idle = !self.advance(Hand::Front, nr, (effort, protection));
            }
            let nr = missing().clamp(1, effort.pages_at_once());
            if self.advance(Hand::Back, nr, (effort, protection)) {
                stalls = 0;
                let nr_freed = self.frames.nr_freed() - nr_freed_before;
                // Enough for once, though others may have taken the frames.
                if nr_freed >= effort.frames_max() && missing() > 0 {
                    return Pass::Partial;
                }
                continue;
            }
            // Nothing that stands by can go: the store is full, or nothing stands by. A clean
            // page may still be among those that are mapped.
            stalls += 1;
            if stalls > 1 || effort.is_direct() || !self.detach_all((effort, protection)) {
                return Pass::Stalled;
            }
        }
        Pass::Done
    }

    /// Sends the front hand once round; false when it found nothing.
    fn detach_all(&self, how: (Effort, Protection)) -> bool {
        let mut windows = 0;
        while windows < self.domain.nr_windows()
            && !self.is_over()
            && self.advance(Hand::Front, u64::from(WINDOW_PAGES), how)
        {
            windows += 1;
        }
        windows > 0
    }

    /// Moves a hand on until it did something for about `wanted` pages; false when it went all the
    /// way round (the front hand three times: the first only takes marks away) without.
    fn advance(&self, hand: Hand, wanted: u64, how: (Effort, Protection)) -> bool {
        let (effort, protection) = how;
        let mut lap = self.start_lap(hand, effort, protection);
        loop {
            let under_way = UnderWay::begin(self, effort);
            let Some((vma, run)) = self.next_run(hand, &mut lap, wanted) else {
                return false;
            };
            let done = match hand {
                Hand::Front => vma.detach_window(run, effort, lap.youth()),
                Hand::Back => self.with_workspace(|space| vma.store_window(run, space, effort)),
                Hand::Shed | Hand::Cold | Hand::Pack => {
                    unreachable!("these take nothing from a frame")
                }
            };
            drop(under_way);
            self.let_go(vma, effort);
            if done > 0 {
                return true;
            }
            if watch::is_replaced() {
                return false;
            }
        }
    }

    /// Lets go of a mapping that reclaim has worked on.
    fn let_go(&self, vma: Arc<Vma>, effort: Effort) {
        if effort == Effort::Fault && self.reclaim.retired.let_go(vma) {
            self.reclaim.kick();
        }
    }

    /// Lends the caller a workspace; waits for one when all are in use.
    pub(crate) fn with_workspace<R>(&self, work: impl FnOnce(&mut Workspace) -> R) -> R {
        let workspaces = &self.reclaim.workspaces;
        let free = workspaces.iter().find_map(|space| space.try_lock());
        let mut space = free.unwrap_or_else(|| workspaces[0].lock());
        work(&mut space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes passes, each `(frames that have moved so far, milliseconds)`.
    #[track_caller]
    fn check(passes: impl IntoIterator<Item = (u64, u64)>, is_over: bool) {
        let mut stall = Stall::default();
        for (nr_moved, now_ms) in passes {
            stall.note(nr_moved, now_ms * 1_000_000);
        }
        assert_eq!(stall.is_over(), is_over, "{stall:?}");
    }

    #[test]
    fn memory_runs_out_after_passes_and_pauses_without_a_frame() {
        check((0..16).map(|nr| (7, nr * 5)), true);
        check((0..15).map(|nr| (7, nr * 5)), false);
        // Cut short, all of them.
        check((0..1000).map(|_| (7, 0)), false);
        check((0..1000).map(|nr| (7, nr / 14)), false);
        // A long sleep of the worker is no attempt.
        check([(7, 0), (7, 10_000)], false);
        // Frames come back, one in a while.
        check((0..1000).map(|nr| (nr / 15, nr * 5)), false);
        check((0..1000).map(|nr| (nr / 500, nr * 5)), true);
    }
}
