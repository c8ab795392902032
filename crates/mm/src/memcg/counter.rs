//! A charge that never exceeds its bound.
//!
//! Linux counterpart: `struct page_counter`.

use core::sync::atomic::{AtomicU64, Ordering};

/// Usage with a hard bound and a peak.
///
/// # Invariants
///
/// At every instant `usage <= max`: an addition that would break it does not take place.
#[derive(Debug)]
pub struct Counter {
    usage: AtomicU64,
    peak: AtomicU64,
    max: u64,
}

impl Counter {
    /// A counter at zero.
    pub const fn new(max: u64) -> Self {
        Self {
            usage: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            max,
        }
    }

    /// Adds `n`, or nothing when that would exceed the bound. Returns the new usage.
    pub fn try_charge(&self, n: u64) -> Option<u64> {
        // Relaxed: the counter guards an amount, not data. What a charge is for is published by
        // the page's state word.
        let before = self
            .usage
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |usage| {
                usage.checked_add(n).filter(|&sum| sum <= self.max)
            })
            .ok()?;
        self.peak.fetch_max(before + n, Ordering::Relaxed);
        Some(before + n)
    }

    /// Takes `n` away again.
    ///
    /// # Panics
    ///
    /// If less than `n` is charged: a bug of this crate.
    pub fn uncharge(&self, n: u64) {
        let before = self.usage.fetch_sub(n, Ordering::Relaxed);
        assert!(before >= n, "uncharged {n} of {before}");
    }

    /// What is charged now.
    pub fn usage(&self) -> u64 {
        self.usage.load(Ordering::Relaxed)
    }

    /// The most that was ever charged.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// What may still be charged.
    pub fn free(&self) -> u64 {
        self.max - self.usage().min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_never_exceeds_its_bound() {
        let counter = Counter::new(100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 1..2000 {
                        if counter.try_charge(n % 40).is_some() {
                            assert!(counter.usage() <= 100);
                            counter.uncharge(n % 40);
                        }
                    }
                });
            }
        });
        assert_eq!(counter.usage(), 0);
        assert!(counter.peak() <= 100);
        assert_eq!(counter.try_charge(101), None);
        assert_eq!(counter.try_charge(u64::MAX), None);
        assert_eq!(counter.try_charge(100), Some(100));
        assert_eq!((counter.free(), counter.peak()), (0, 100));
    }
}
