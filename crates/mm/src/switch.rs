//! All that this crate keeps for a thread, for a simulator that runs several on one.

#[cfg(feature = "notifiers")]
use crate::mmu_notifier;
use crate::watch;

/// What this crate keeps for a thread that does not run: the callback that it is in, and the seat
/// where it is watched.
#[derive(Default)]
pub struct ThreadState {
    #[cfg(feature = "notifiers")]
    callback: mmu_notifier::Place,
    seat: watch::Place,
}

impl ThreadState {
    /// A thread that has just begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts this one on the calling thread, and what was there into `self`. Takes no lock.
    pub fn exchange(&mut self) {
        #[cfg(feature = "notifiers")]
        self.callback.exchange();
        self.seat.exchange();
    }
}

impl core::fmt::Debug for ThreadState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ThreadState").finish_non_exhaustive()
    }
}
