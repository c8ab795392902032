//! Blockability as a type: what a callback may do, given by the context that it was handed.
//!
//! A notifier is written once, over any [`Context`]. In a blockable bracket the context is
//! [`Blockable`], whose refusal has no value: the notifier *cannot* fail. In a non-blockable one
//! it is [`NonBlock`], which only ever tries, and which alone can make a [`WouldBlock`].
//!
//! A notifier cannot refuse by its own decision, because it cannot make the refusal:
//!
//! ```compile_fail,E0308
//! # use pinless_mm::mmu_notifier::{Context, Notifier, Range};
//! struct Veto;
//! impl Notifier for Veto {
//!     fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
//!         Err(()) // no value but one that a context returned has the type `C::Refusal`
//!     }
//! }
//! ```
//!
//! Nor can it turn the refusal of one mode into one of the other:
//!
//! ```compile_fail,E0308
//! # use pinless_mm::mmu_notifier::{Blockable, Context, WouldBlock};
//! fn refuse(seen: WouldBlock) -> Result<(), <Blockable<'static> as Context>::Refusal> {
//!     Err(seen)
//! }
//! ```
//!
//! Only this module can make a `WouldBlock`:
//!
//! ```compile_fail,E0451
//! # use pinless_mm::mmu_notifier::WouldBlock;
//! let forged = WouldBlock { sealed: () };
//! ```
//!
//! And through a `NonBlock` no lock is reached except by trying:
//!
//! ```compile_fail,E0308
//! # use lockdep::sync::{Mutex, MutexGuard};
//! # use pinless_mm::mmu_notifier::{Context, NonBlock};
//! fn take<'a>(table: &'a Mutex<u32>, cx: &NonBlock<'_>) -> MutexGuard<'a, u32> {
//!     cx.lock(table) // a `Result`: it may be refused
//! }
//! ```
//!
//! The same with a [`Blockable`] is fine, and needs no `?`:
//!
//! ```
//! # use lockdep::sync::{Mutex, MutexGuard};
//! # use pinless_mm::mmu_notifier::{Blockable, Context};
//! fn take<'a>(table: &'a Mutex<u32>, cx: &Blockable<'_>) -> MutexGuard<'a, u32> {
//!     let Ok(guard) = cx.lock(table);
//!     guard
//! }
//! ```
//!
//! Linux counterpart: mmu_notifier_range_blockable() and non_block_start()

use super::range::Mode;
use crate::watch::Paused;
use core::cell::{Cell, OnceCell, RefCell};
use core::convert::Infallible;
use core::fmt;
use core::marker::PhantomData;
use core::mem::take;
use core::time::Duration;
use lockdep::sync::{
    Fence, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, ShortGuard, ShortLock,
    Waited,
};

/// What `start` may do. Implemented by [`Blockable`] and [`NonBlock`] only.
///
/// The error of each method is a refusal to pass on with `?`.
#[expect(
    clippy::missing_errors_doc,
    reason = "the trait's text tells it for all methods"
)]
pub trait Context: sealed::Sealed {
    /// How this context says no.
    type Refusal;

    /// The mode of the bracket. For counting; what to do follows from the other methods.
    fn mode(&self) -> Mode;

    /// Takes the mutex, or tries to.
    fn lock<'a, T: ?Sized>(&self, mutex: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, Self::Refusal>;

    /// Takes the lock shared, or tries to.
    fn read<'a, T: ?Sized>(
        &self,
        lock: &'a RwLock<T>,
    ) -> Result<RwLockReadGuard<'a, T>, Self::Refusal>;

    /// Takes the lock exclusively, or tries to.
    fn write<'a, T: ?Sized>(
        &self,
        lock: &'a RwLock<T>,
    ) -> Result<RwLockWriteGuard<'a, T>, Self::Refusal>;

    /// Takes a short lock; its sections are bounded, so this is allowed in both modes.
    fn short<'a, T>(&self, lock: &'a ShortLock<T>) -> ShortGuard<'a, T> {
        lock.lock()
    }

    /// The page may go only after `fence` has signalled. A blockable context waits for it after
    /// every start was called, once for all; a non-blockable one refuses unless it has signalled.
    fn settle(&self, fence: &Fence) -> Result<(), Self::Refusal>;

    /// From here on the callback may sleep: refused where that is not allowed.
    fn would_block(&self) -> Result<(), Self::Refusal>;
}

/// A callback that may not block met something that it would have had to wait for.
///
/// Not an error: the caller leaves the range alone and comes back later.
#[derive(Debug)]
pub struct WouldBlock {
    sealed: (),
}

/// The context of a callback that may block, and cannot refuse.
pub struct Blockable<'a> {
    settling: &'a Settling,
}

/// The context of a callback that may not block.
pub struct NonBlock<'a> {
    /// Binds the context to the bracket that made it.
    bracket: PhantomData<&'a ()>,
}

/// The context of `end`, in both modes: atomics and short locks only.
///
/// ```compile_fail,E0599
/// # use lockdep::sync::Mutex;
/// # use pinless_mm::mmu_notifier::EndContext;
/// fn take(table: &Mutex<u32>, cx: &EndContext<'_>) {
///     cx.lock(table);
/// }
/// ```
pub struct EndContext<'a> {
    /// Binds the context to the bracket that made it.
    bracket: PhantomData<&'a ()>,
}

impl sealed::Sealed for Blockable<'_> {}
impl sealed::Sealed for NonBlock<'_> {}

impl Context for Blockable<'_> {
    type Refusal = Infallible;

    fn mode(&self) -> Mode {
        Mode::Blockable
    }

    fn lock<'a, T: ?Sized>(&self, mutex: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, Infallible> {
        Ok(mutex.lock())
    }

    fn read<'a, T: ?Sized>(
        &self,
        lock: &'a RwLock<T>,
    ) -> Result<RwLockReadGuard<'a, T>, Infallible> {
        Ok(lock.read())
    }

    fn write<'a, T: ?Sized>(
        &self,
        lock: &'a RwLock<T>,
    ) -> Result<RwLockWriteGuard<'a, T>, Infallible> {
        Ok(lock.write())
    }

    fn settle(&self, fence: &Fence) -> Result<(), Infallible> {
        self.settling.add(fence);
        Ok(())
    }

    fn would_block(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Context for NonBlock<'_> {
    type Refusal = WouldBlock;

    fn mode(&self) -> Mode {
        Mode::NonBlock
    }

    fn lock<'a, T: ?Sized>(&self, mutex: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, WouldBlock> {
        mutex.try_lock().ok_or(WOULD_BLOCK)
    }

    fn read<'a, T: ?Sized>(
        &self,
        lock: &'a RwLock<T>,
    ) -> Result<RwLockReadGuard<'a, T>, WouldBlock> {
        lock.try_read().ok_or(WOULD_BLOCK)
    }

    fn write<'a, T: ?Sized>(
        &self,
        lock: &'a RwLock<T>,
    ) -> Result<RwLockWriteGuard<'a, T>, WouldBlock> {
        lock.try_write().ok_or(WOULD_BLOCK)
    }

    fn settle(&self, fence: &Fence) -> Result<(), WouldBlock> {
        if fence.is_signalled() {
            Ok(())
        } else {
            Err(WOULD_BLOCK)
        }
    }

    fn would_block(&self) -> Result<(), WouldBlock> {
        Err(WOULD_BLOCK)
    }
}

impl EndContext<'_> {
    /// Takes a short lock.
    pub fn short<'a, T>(&self, lock: &'a ShortLock<T>) -> ShortGuard<'a, T> {
        lock.lock()
    }
}

impl<'a> Blockable<'a> {
    pub(super) fn new(settling: &'a Settling) -> Self {
        Self { settling }
    }
}

impl NonBlock<'_> {
    pub(super) fn new() -> Self {
        Self {
            bracket: PhantomData,
        }
    }
}

impl EndContext<'_> {
    pub(super) fn new() -> Self {
        Self {
            bracket: PhantomData,
        }
    }
}

/// The one value of its type: what makes it cannot be reached from outside.
const WOULD_BLOCK: WouldBlock = WouldBlock { sealed: () };

impl fmt::Display for WouldBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let () = self.sealed;
        f.write_str("the callback would have to wait")
    }
}

/// How many fences a blockable bracket holds back until every start was called. Above that it
/// waits for the oldest at once, which costs overlap and nothing else.
pub const SETTLE_QUEUE: usize = 16;

/// In how many steps a deadline is spent. There is no clock here, so time is what timed waits
/// took: a wait that ends early is not charged, and `n` of them make the deadline longer by at
/// most `n` steps.
const DEADLINE_STEPS: u32 = 64;

/// The fences that one blockable bracket still has to wait for. Allocates nothing, but where it
/// [collects](Self::collecting).
pub(super) struct Settling {
    deadline: Duration,
    /// How many starts were called before the one that runs.
    holder: Cell<usize>,
    /// Made when the first fence comes: most brackets meet none.
    state: OnceCell<RefCell<State>>,
}

struct State {
    /// The fences not waited for, oldest at `first`, with how many starts were called before.
    queue: [Option<(Fence, usize)>; SETTLE_QUEUE],
    first: usize,
    nr: usize,
    steps_left: u32,
    unsettled: Option<Unsettled>,
    /// All fences, where they are not waited for here.
    collected: Option<Vec<Fence>>,
}

/// A fence that did not signal in time.
pub(super) struct Unsettled {
    pub(super) holder: usize,
    pub(super) fence: Fence,
    pub(super) waited: Duration,
}

impl Settling {
    #[inline]
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            holder: Cell::new(0),
            state: OnceCell::new(),
        }
    }

    /// One that waits for nothing and keeps all for [`take`](Self::take). Adding to it allocates.
    pub(super) fn collecting() -> Self {
        let mut settling = Self::new(Duration::ZERO);
        let mut state = State::new(0);
        state.collected = Some(Vec::new());
        settling.state = OnceCell::from(RefCell::new(state));
        settling
    }

    /// Takes out what was collected.
    pub(super) fn take(&self) -> Vec<Fence> {
        let state = self.state.get();
        let taken = state.and_then(|state| Some(take(state.borrow_mut().collected.as_mut()?)));
        taken.unwrap_or_default()
    }

    /// The callback of the subscription at `holder` comes next.
    #[inline]
    pub(super) fn enter(&self, holder: usize) {
        self.holder.set(holder);
    }

    /// Whether a fence has already missed the deadline: no further start need be called.
    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        let state = self.state.get();
        state.is_some_and(|state| state.borrow().unsettled.is_some())
    }

    #[cold]
    pub(super) fn add(&self, fence: &Fence) {
        if fence.is_signalled() || self.has_failed() {
            return;
        }
        let state = self.state.get_or_init(|| {
            RefCell::new(State::new(if self.deadline.is_zero() {
                0
            } else {
                DEADLINE_STEPS
            }))
        });
        let mut state = state.borrow_mut();
        if let Some(collected) = &mut state.collected {
            return collected.push(fence.clone());
        }
        if state.nr == SETTLE_QUEUE {
            // Not the time of the callback that runs: what it waits for is another's.
            let _paused = Paused::enter();
            state.wait_for_oldest(self.deadline);
        }
        let at = (state.first + state.nr) % SETTLE_QUEUE;
        state.queue[at] = Some((fence.clone(), self.holder.get()));
        state.nr += 1;
    }

    /// Whether there was nothing to wait for.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.state.get().is_none()
    }

    /// Waits for every fence, until all have signalled or the deadline is spent.
    #[inline]
    pub(super) fn wait(&self) -> Result<(), Unsettled> {
        match self.state.get() {
            None => Ok(()),
            Some(state) => state.borrow_mut().wait_for_all(self.deadline),
        }
    }
}

impl State {
    fn new(steps_left: u32) -> Self {
        Self {
            queue: Default::default(),
            first: 0,
            nr: 0,
            steps_left,
            unsettled: None,
            collected: None,
        }
    }

    #[cold]
    fn wait_for_all(&mut self, deadline: Duration) -> Result<(), Unsettled> {
        while self.unsettled.is_none() && self.nr > 0 {
            self.wait_for_oldest(deadline);
        }
        self.unsettled.take().map_or(Ok(()), Err)
    }

    /// Waits for the oldest fence and takes it out of the queue.
    fn wait_for_oldest(&mut self, deadline: Duration) {
        let Some((fence, holder)) = self.queue[self.first].take() else {
            return;
        };
        self.first = (self.first + 1) % SETTLE_QUEUE;
        self.nr -= 1;
        while !fence.is_signalled() {
            if self.steps_left == 0 {
                self.unsettled = Some(Unsettled {
                    holder,
                    fence,
                    waited: deadline,
                });
                return;
            }
            // For the last one all that is left is waited in one go: nobody is charged after it.
            let nr_steps = if self.nr == 0 { self.steps_left } else { 1 };
            if fence.wait_timeout(deadline / DEADLINE_STEPS * nr_steps) == Waited::TimedOut {
                self.steps_left -= nr_steps;
            }
        }
    }
}

mod sealed {
    /// Keeps [`super::Context`] to this module.
    pub trait Sealed {}
}
