//! The live figures of one device.

use super::Operation;
use crate::{DeviceStats, DmaError};
use core::sync::atomic::{AtomicU64, Ordering};
use pinless_mm::bus::StaleDma;

/// What a device counts. The figures order nothing, so all accesses are relaxed.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accesses that read.
    pub reads: Counter,
    /// Accesses that wrote.
    pub writes: Counter,
    /// Translations asked for.
    pub faults: Counter,
    /// Translations thrown away.
    pub retries: Counter,
    /// Starts that were accepted.
    pub invalidations: Counter,
    /// Starts that were refused.
    pub refusals: Counter,
    /// Stale accesses.
    pub stale: Counter,
    /// Transfers that found their page in a cache.
    pub cache_hits: Counter,
    /// Resets of hardware that took too long.
    pub timeouts: Counter,
}

/// One figure.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Counts an access that was right.
    pub fn done(&self, operation: &Operation<'_>) {
        match operation {
            Operation::Read(_) => self.reads.add(),
            Operation::Write(_) => self.writes.add(),
        }
    }

    /// Counts an access by its outcome, and passes it on.
    ///
    /// # Errors
    ///
    /// [`DmaError::Stale`], as the bus told it.
    pub fn ended(
        &self,
        operation: &Operation<'_>,
        outcome: Result<(), StaleDma>,
    ) -> Result<(), DmaError> {
        match outcome {
            Ok(()) => self.done(operation),
            Err(_) => self.stale.add(),
        }
        outcome.map_err(DmaError::Stale)
    }

    /// Counts an attempt without a result, and passes it on.
    pub fn tried<T>(&self, result: Option<T>) -> Option<T> {
        if result.is_none() {
            self.retries.add();
        }
        result
    }

    /// Counts a start by its answer, and passes it on.
    pub fn answered<E>(&self, answer: Result<(), E>) -> Result<(), E> {
        match answer {
            Ok(()) => self.invalidations.add(),
            Err(_) => self.refusals.add(),
        }
        answer
    }

    /// The figures now.
    pub fn snapshot(&self) -> DeviceStats {
        DeviceStats {
            reads: self.reads.get(),
            writes: self.writes.get(),
            faults: self.faults.get(),
            retries: self.retries.get(),
            invalidations: self.invalidations.get(),
            refusals: self.refusals.get(),
            stale: self.stale.get(),
            cache_hits: self.cache_hits.get(),
            timeouts: self.timeouts.get(),
            ..DeviceStats::default()
        }
    }
}
