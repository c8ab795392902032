//! The hook by which a simulator decides who runs.
//!
//! A simulator runs its tasks on real threads, or on stacks of their own with
//! [`ThreadState`](crate::ThreadState), but lets one at a time go on: it hands a baton around
//! inside [`Scheduler::point`] and [`Scheduler::block`]. What makes this sound is that
//! nothing in this crate calls a scheduler while it holds a lock of its own that another scheduled
//! task could need: a lock is only ever tried, and given up before its waiters are woken.
//!
//! The hook is per thread and set at run time. A program in which no thread has one pays a relaxed
//! load of one counter for each operation. While a scheduler is being called, the thread counts as
//! unscheduled, so a scheduler may take its own locks from this crate.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::Waited;
use super::watch::Pending;
use crate::Class;
use crate::{hooks, task};

/// A place in a task's run that its scheduler is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// What the task is about to do, or for [`PointKind::Unlock`], has just done.
    pub kind: PointKind,
    /// The class name of the object.
    pub class: &'static str,
    /// The address that stands for the object while it lives; 0 where there is none.
    ///
    /// Addresses differ from run to run and come back after an object is dropped or moved: a
    /// scheduler that must repeat a run should number them in the order in which it meets them.
    pub addr: usize,
}

/// What a task is doing at a [`Point`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum PointKind {
    /// Taking a mutex or a short lock, waiting if it is held.
    Lock,
    /// Trying a mutex or a short lock.
    TryLock,
    /// A lock of any kind has just been released.
    Unlock,
    /// Taking a reader-writer lock for reading, waiting if a writer has it.
    Read,
    /// Trying a reader-writer lock for reading.
    TryRead,
    /// Taking a reader-writer lock for writing, waiting if anybody has it.
    Write,
    /// Trying a reader-writer lock for writing.
    TryWrite,
    /// Waiting on a condition variable, a completion or a fence, or starting to spin.
    Wait,
    /// Notifying a condition variable.
    Notify,
    /// Completing a completion.
    Complete,
    /// Signalling a fence.
    Signal,
    /// A round of spinning found nothing: another task has to run before the next.
    Spin,
    /// Pausing for a time; nobody wakes it early.
    Sleep,
    /// Waiting for the token of a parker.
    Park,
    /// Handing a token to a parker.
    Unpark,
    /// A place named by [`scheduler_point`].
    User,
}

/// How many of the tasks blocked at an address may go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wake {
    /// One of them, of the scheduler's choice, if there is any.
    One,
    /// All of them.
    All,
}

/// Decides which task runs, in place of the operating system.
///
/// Each task is a thread that has called [`install`]; at any time one of them runs, and the others
/// sit inside `point` or `block`. The calls come from the running task. None comes while the task
/// holds a lock inside this crate, though it may hold locks that the program took.
///
/// A scheduler may end a run by panicking in `point` or `block`. The task then unwinds and may call
/// again, since destructors take locks too: a scheduler must not panic while
/// [`std::thread::panicking`] holds, or the process aborts.
///
/// It must not call [`install`], nor drop an [`Installed`], from inside one of its methods.
pub trait Scheduler: Send + Sync {
    /// A place where another task may be chosen to run; returns when the caller has been chosen.
    ///
    /// Called before the operation takes effect, except [`PointKind::Unlock`], which comes after.
    /// At [`PointKind::Spin`] the caller makes no progress until another task has run, so a
    /// scheduler that chooses the caller again and again hangs. Never called while panicking for
    /// an unlock, as a destructor must go through.
    fn point(&self, point: Point);

    /// The calling task cannot go on until `wake(point.addr)` or the timeout, in virtual time.
    ///
    /// Counting the caller as blocked and letting another task run is one step: a wake by any task
    /// that runs afterwards reaches it. Returns [`Waited::Done`] after a wake and
    /// [`Waited::TimedOut`] when the time has passed first, which never happens without a timeout.
    /// A wake that found nobody blocked is not remembered.
    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited;

    /// Tasks blocked at `addr` may go on.
    ///
    /// Marks them only: must not switch tasks, block or panic, since it is called from destructors,
    /// also while panicking, and between the two halves of a condition variable's wait.
    fn wake(&self, addr: usize, wake: Wake);
}

/// Makes `scheduler` decide for the calling thread, until the returned guard is dropped.
///
/// Installing another one inside puts the first back at the end; drop the guards in the reverse
/// order of their making, as scopes do. Allocates nothing but what the thread-local slot needs.
///
/// # Panics
///
/// When called from a thread-local destructor that runs after the slot's own.
#[must_use = "the scheduler is taken out when the guard is dropped"]
pub fn install(scheduler: Arc<dyn Scheduler>) -> Installed {
    let before = HOOK.with(|hook| hook.replace(Some(scheduler)));
    hooks::add_scheduler();
    Installed {
        before,
        not_send: PhantomData,
    }
}

/// The time during which a thread has a scheduler; see [`install`].
pub struct Installed {
    before: Option<Arc<dyn Scheduler>>,
    /// The slot is the thread's, so the guard has to end where it began.
    not_send: PhantomData<*const ()>,
}

impl Drop for Installed {
    fn drop(&mut self) {
        let before = self.before.take();
        // The slot is gone when a thread-local holds the guard: then so is the scheduler in it.
        // What comes out is dropped after the access, as its destructor may take locks.
        let ended = HOOK.try_with(|hook| hook.replace(before));
        hooks::remove_scheduler();
        drop(ended);
    }
}

impl fmt::Debug for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Installed")
            .field("nested", &self.before.is_some())
            .finish()
    }
}

/// Gives the calling thread another scheduler, or none; returns the one that it had.
///
/// There is none while it is being called.
pub(crate) fn exchange(other: Option<Arc<dyn Scheduler>>) -> Option<Arc<dyn Scheduler>> {
    // An error says that the thread is at its end.
    HOOK.try_with(|hook| hook.replace(other)).ok().flatten()
}

/// Tells the calling thread's scheduler that another task may run here; nothing without one.
///
/// For code whose interleavings matter but which takes no lock there, such as the steps of a
/// lock-free algorithm. May run any other task before it returns.
#[inline]
pub fn scheduler_point(class: &'static str, addr: usize) {
    if in_use() {
        point(Point {
            kind: PointKind::User,
            class,
            addr,
        });
    }
}

/// Whether the calling thread runs under a scheduler.
///
/// False inside the scheduler's own methods.
#[inline]
pub fn is_scheduled() -> bool {
    in_use() && has_hook()
}

thread_local! {
    /// Empty as well while the scheduler is being called.
    static HOOK: Cell<Option<Arc<dyn Scheduler>>> = const { Cell::new(None) };
}

/// Whether any thread at all has a scheduler: the only cost where there is none.
#[inline]
pub(super) fn in_use() -> bool {
    hooks::load().has_scheduler()
}

impl Class {
    fn point(&self, kind: PointKind) -> Point {
        Point {
            kind,
            class: self.name(),
            addr: self.addr(),
        }
    }
}

/// Goes through a point of the object of this class; false if the thread has no scheduler.
#[cold]
pub(super) fn point_at(kind: PointKind, class: &Class) -> bool {
    point(class.point(kind))
}

/// Goes through a point; false if the thread has no scheduler.
#[cold]
pub(super) fn point(point: Point) -> bool {
    with_hook(|scheduler| scheduler.point(point)).is_some()
}

/// Blocks a thread that is known to have a scheduler at the object of this class.
#[cold]
pub(super) fn block_at(kind: PointKind, class: &Class, timeout: Option<Duration>) -> Waited {
    block(class.point(kind), timeout).expect("only scheduled threads come here")
}

/// Blocks; `None`, at once, if the thread has no scheduler.
#[cold]
pub(super) fn block(point: Point, timeout: Option<Duration>) -> Option<Waited> {
    with_hook(|scheduler| scheduler.block(point, timeout))
}

/// Lets tasks blocked at the object of this class go on; nothing without a scheduler.
#[cold]
pub(super) fn wake_at(class: &Class, wake: Wake) {
    with_hook(|scheduler| scheduler.wake(class.addr(), wake));
}

/// Takes a lock under a scheduler by trying; `None` if the thread has none.
#[cold]
pub(super) fn acquire<G>(
    kind: PointKind,
    class: &Class,
    attempt: impl FnMut() -> Option<G>,
) -> Option<G> {
    let pending = Pending::of(class);
    let taken = point_at(kind, class).then(|| acquire_now(kind, class, attempt));
    pending.taken();
    taken
}

/// The second half of [`acquire`], for a scheduled thread that need not pass a point first.
///
/// Between a failed attempt and the block no other task runs, so the release that would have let
/// the attempt succeed cannot slip in between.
pub(super) fn acquire_now<G>(
    kind: PointKind,
    class: &Class,
    mut attempt: impl FnMut() -> Option<G>,
) -> G {
    loop {
        if let Some(guard) = attempt() {
            return guard;
        }
        let _: Waited = block_at(kind, class, None);
    }
}

/// A lock of this class was released: its waiters may go on, and another task may run.
#[cold]
pub(super) fn released(class: &Class) {
    wake_at(class, Wake::All);
    // A task that unwinds has to get through its destructors; see `Scheduler`.
    if !std::thread::panicking() {
        point_at(PointKind::Unlock, class);
    }
}

fn has_hook() -> bool {
    HOOK.try_with(|hook| {
        let scheduler = hook.take();
        let has = scheduler.is_some();
        hook.set(scheduler);
        has
    })
    .unwrap_or(false)
}

/// Calls the thread's scheduler, with the slot empty meanwhile so that it may take locks itself.
fn with_hook<R>(call: impl FnOnce(&dyn Scheduler) -> R) -> Option<R> {
    // In the thread's last moments there is no slot: what is left to destroy runs unscheduled.
    let scheduler = HOOK.try_with(Cell::take).ok().flatten()?;
    let lent = Lent {
        scheduler: Some(scheduler),
    };
    // What a scheduler locks is no part of the program: it runs while tasks hold anything.
    task::with(|task| {
        let _unwatched = task.begin_work();
        lent.scheduler.as_deref().map(call)
    })
}

/// A scheduler taken out of its slot for a call; goes back also when the call panics.
struct Lent {
    scheduler: Option<Arc<dyn Scheduler>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let scheduler = self.scheduler.take();
        let displaced = HOOK.try_with(|hook| hook.replace(scheduler));
        drop(displaced);
    }
}
