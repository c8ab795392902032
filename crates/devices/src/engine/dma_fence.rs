//! Fences of device work: contexts, numbers in order, callbacks, errors.
//!
//! A fence is the promise that a piece of work will be over, well or not. The contract:
//!
//! * **Bounded.** A published fence signals without help from any program. If the hardware hangs,
//!   its driver resets it and signals with an error; no waiter gives up by itself and goes on as
//!   if the work were done.
//! * **In order.** Fences of one [`Timeline`] signal in the order in which they were published.
//! * **May be waited for under a notifier.** Hardware that cannot fault goes on using the frames
//!   whose addresses it was given. Before such a frame goes, its work must be over, and nobody but
//!   the hardware can say when: that wait can be moved (to the core, once for all devices, see
//!   `Context::settle`), refused (where blocking is forbidden) or bought off with a pin, which
//!   keeps the frame from being freed; it cannot be left out.
//! * **So the way to a signal is short of everything.** Between [`Timeline::publish`] and the
//!   signal nothing may allocate with reclaim, touch managed memory, or take a lock under which
//!   fences are waited for: `lockdep::wait::begin_signalling` marks that section, and what belongs
//!   before it is allocated before it.
//! * **No fence for work that can fault.** To serve a fault takes memory, memory may need a
//!   notifier, and the notifier would wait for the fence.
//!
//! Linux counterpart: drivers/dma-buf/dma-fence.c

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::{Fence, ShortLock, Waited};
use lockdep::wait;
use pinless_mm::mmu_notifier::{Context, Mode};
use std::fmt;
use std::sync::Arc;

/// How many callbacks a fence has room for.
pub const CALLBACKS_MAX: usize = 4;

/// How long the work of one fence may take before its driver resets the hardware.
pub const JOB_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs when a fence signals, in the context of whoever signals: it may do next to nothing.
pub type Callback = Box<dyn FnOnce() + Send>;

/// The hardware was reset before the work was over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkLost;

/// Why a callback was not taken.
pub enum NotHung {
    /// The fence has signalled: here is the callback.
    Signalled(Callback),
    /// There is no room: here is the callback.
    Full(Callback),
}

/// A fence of device work; clones are the same fence.
#[derive(Clone)]
pub struct DmaFence {
    inner: Arc<Inner>,
}

struct Inner {
    /// Zero until it is published; then the number on its timeline.
    seqno: AtomicU64,
    is_lost: AtomicBool,
    signalled: Fence,
    callbacks: ShortLock<[Option<Callback>; CALLBACKS_MAX]>,
}

impl DmaFence {
    /// A fence that nobody knows yet. Allocates: make it before there is no way back.
    pub fn new() -> Self {
        let inner = Inner {
            seqno: AtomicU64::new(0),
            is_lost: AtomicBool::new(false),
            signalled: Fence::new("devices.dma_fence"),
            callbacks: ShortLock::new("devices.dma_fence.callbacks", Default::default()),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The number on its timeline, zero if it was not published.
    pub fn seqno(&self) -> u64 {
        self.inner.seqno.load(Ordering::Relaxed)
    }

    /// Whether the work is over.
    pub fn is_signalled(&self) -> bool {
        self.inner.signalled.is_signalled()
    }

    /// Sleeps until the work is over.
    ///
    /// # Errors
    ///
    /// [`WorkLost`]
    pub fn wait(&self) -> Result<(), WorkLost> {
        self.inner.signalled.wait();
        self.outcome()
    }

    /// Sleeps until the work is over, but no longer than `timeout`.
    pub fn wait_timeout(&self, timeout: Duration) -> Waited {
        wait::might_wait_for_fence();
        self.inner.signalled.wait_timeout(timeout)
    }

    /// Has a start wait for the work, or refuse where it may not wait.
    ///
    /// # Errors
    ///
    /// The refusal of the context.
    pub fn settle<C: Context>(&self, cx: &C) -> Result<(), C::Refusal> {
        if cx.mode() == Mode::Blockable {
            wait::might_wait_for_fence();
        }
        cx.settle(&self.inner.signalled)
    }

    /// Has `callback` run when the work is over.
    ///
    /// # Errors
    ///
    /// [`NotHung`] with the callback, which was not called.
    pub fn add_callback(&self, callback: Callback) -> Result<(), NotHung> {
        let mut callbacks = self.inner.callbacks.lock();
        // Under the lock that the signal takes after it: the callback is not forgotten.
        if self.is_signalled() {
            return Err(NotHung::Signalled(callback));
        }
        match callbacks.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(callback),
            None => return Err(NotHung::Full(callback)),
        }
        Ok(())
    }

    /// The work was given up before it was submitted: nobody waits any longer.
    ///
    /// # Panics
    ///
    /// If the fence was published.
    pub fn abandon(&self) {
        assert_eq!(self.seqno(), 0, "a published fence is owed by its timeline");
        self.signal(Err(WorkLost));
    }

    /// How the work ended, once it is over.
    pub(super) fn outcome(&self) -> Result<(), WorkLost> {
        // Relaxed: written before the signal, which the caller has seen.
        if self.inner.is_lost.load(Ordering::Relaxed) {
            Err(WorkLost)
        } else {
            Ok(())
        }
    }

    fn signal(&self, outcome: Result<(), WorkLost>) {
        // Relaxed: the signal publishes it.
        self.inner
            .is_lost
            .store(outcome.is_err(), Ordering::Relaxed);
        self.inner.signalled.signal();
        let callbacks = core::mem::take(&mut *self.inner.callbacks.lock());
        callbacks
            .into_iter()
            .flatten()
            .for_each(|callback| callback());
    }
}

impl Default for DmaFence {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for DmaFence {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for DmaFence {}

impl fmt::Debug for DmaFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaFence")
            .field("seqno", &self.seqno())
            .field("is_signalled", &self.is_signalled())
            .finish()
    }
}

/// The fences of one ring of hardware, a context: they signal in order.
#[derive(Default)]
pub struct Timeline {
    published: AtomicU64,
    signalled: AtomicU64,
}

impl Timeline {
    /// No fence yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the fence its number: from now on it is owed. Allocates nothing. Whoever publishes
    /// holds the lock of the ring, so that numbers are in the order of the work.
    ///
    /// # Panics
    ///
    /// If it was published before.
    pub fn publish(&self, fence: &DmaFence) {
        let seqno = self.published.fetch_add(1, Ordering::Relaxed) + 1;
        let before = fence.inner.seqno.swap(seqno, Ordering::Relaxed);
        assert_eq!(before, 0, "a fence is published twice");
    }

    /// The work of the fence is over. Runs its callbacks. Never sleeps.
    ///
    /// # Panics
    ///
    /// If an earlier fence of the timeline has not signalled.
    pub fn signal(&self, fence: &DmaFence, outcome: Result<(), WorkLost>) {
        let seqno = fence.seqno();
        // Relaxed: it orders nothing, it checks an order.
        let in_order = self.signalled.compare_exchange(
            seqno.wrapping_sub(1),
            seqno,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        assert!(in_order.is_ok(), "fences of a timeline signal in order");
        fence.signal(outcome);
    }

    /// The fences that are owed.
    pub fn nr_pending(&self) -> u64 {
        let signalled = self.signalled.load(Ordering::Relaxed);
        self.published.load(Ordering::Relaxed) - signalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn fences_signal_in_order_with_their_callbacks() {
        let timeline = Timeline::new();
        let [first, second] = [DmaFence::new(), DmaFence::new()];
        timeline.publish(&first);
        timeline.publish(&second);
        let nr = Arc::new(AtomicU32::new(0));
        let count = || {
            let nr = Arc::clone(&nr);
            Box::new(move || {
                nr.fetch_add(1, Ordering::Relaxed);
            }) as Callback
        };
        for _ in 0..CALLBACKS_MAX {
            assert!(first.add_callback(count()).is_ok());
        }
        assert!(matches!(first.add_callback(count()), Err(NotHung::Full(_))));
        let early = catch_unwind(AssertUnwindSafe(|| timeline.signal(&second, Ok(()))));
        assert!(early.is_err(), "out of order");
        timeline.signal(&first, Ok(()));
        assert_eq!(nr.load(Ordering::Relaxed), CALLBACKS_MAX as u32);
        let late = first.add_callback(count());
        assert!(matches!(late, Err(NotHung::Signalled(_))));
        timeline.signal(&second, Err(WorkLost));
        assert_eq!((first.wait(), second.wait()), (Ok(()), Err(WorkLost)));
        assert_eq!(timeline.nr_pending(), 0);
    }
}
