//! How many operations of devices are under way on guarded pages.

use core::sync::atomic::{AtomicU64, Ordering};

/// Counts of one [`Pinless`](crate::Pinless). They order nothing.
#[derive(Debug, Default)]
pub(crate) struct IoCount {
    in_flight: AtomicU64,
    abandoned: AtomicU64,
}

impl IoCount {
    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn complete(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn abandon(&self) {
        self.complete();
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    /// Operations under way.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Operations whose end nobody will ever tell.
    pub(crate) fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }
}
