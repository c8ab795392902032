//! A charge that never exceeds its bound, also while the bound changes.
//!
//! Linux counterpart: `struct page_counter`.

use core::sync::atomic::{AtomicU64, Ordering};

/// Bits of the word that hold the usage; those above count how often the bound was moved.
const USAGE_BITS: u32 = 48;
const USAGE_MASK: u64 = (1 << USAGE_BITS) - 1;

/// Usage with a hard bound and a peak.
///
/// A bound is lowered in two steps. First charges are held below the new one, while the old one is
/// still what is promised; when the usage has fallen to it, the new one is promised:
///
/// ```text
///   charge                       hold_below                     commit
///   load word (moves: 7)
///   load cap: old
///                                cap := new
///                                word: moves 8
///   exchange fails, loads anew
///   load cap: new                                     usage <= cap: max := cap
/// ```
///
/// # Invariants
///
/// At every instant `usage <= max`: an addition that would break it does not take place.
#[derive(Debug)]
pub struct Counter {
    /// The usage, and the number of moves of the cap.
    word: AtomicU64,
    peak: AtomicU64,
    /// What charges are held below.
    cap: AtomicU64,
    /// What is promised.
    max: AtomicU64,
}

impl Counter {
    /// A counter at zero. A bound above 2^48 - 1 is one of 2^48 - 1.
    pub const fn new(max: u64) -> Self {
        let max = if max > USAGE_MASK { USAGE_MASK } else { max };
        Self {
            word: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            cap: AtomicU64::new(max),
            max: AtomicU64::new(max),
        }
    }

    /// Adds `n`, or nothing when that would exceed the bound. Returns the new usage.
    pub fn try_charge(&self, n: u64) -> Option<u64> {
        self.try_charge_leaving(n, 0)
    }

    /// The same, if as much as `reserve` is free afterwards.
    pub(crate) fn try_charge_leaving(&self, n: u64, reserve: u64) -> Option<u64> {
        // Acquire: pairs with the Release in `move_cap`. Whoever finds the word as a move left it
        // finds its cap, too; and whoever finds a cap that is on its way, also by Acquire, finds
        // the bound that was raised for it. Release hands that on to `is_exceeded`. Apart from that
        // the counter guards an amount, not data: what a charge is for is published by the page's
        // state word.
        let before = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let most = self.cap.load(Ordering::Acquire).checked_sub(reserve)?;
                let sum = (word & USAGE_MASK).checked_add(n)?;
                (sum <= most).then_some(word + n)
            })
            .ok()?;
        let sum = (before & USAGE_MASK) + n;
        // A bound may have been lowered since: the peak is one under the bound of today.
        if sum <= self.max() {
            self.peak.fetch_max(sum, Ordering::Relaxed);
        }
        Some(sum)
    }

    /// Takes `n` away again.
    ///
    /// # Panics
    ///
    /// If less than `n` is charged: a bug of this crate.
    pub fn uncharge(&self, n: u64) {
        let before = self.word.fetch_sub(n, Ordering::Relaxed) & USAGE_MASK;
        assert!(before >= n, "uncharged {n} of {before}");
    }

    /// What is charged now.
    pub fn usage(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & USAGE_MASK
    }

    /// The most that was charged since the bound was last lowered.
    pub fn peak(&self) -> u64 {
        // Whoever charged before the bound was lowered may have told of it since.
        self.peak.load(Ordering::Relaxed).min(self.max())
    }

    /// The bound.
    pub fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    /// Whether more is charged than is promised: a bug of this crate. The two are looked at as one,
    /// also while the bound moves.
    pub fn is_exceeded(&self) -> bool {
        loop {
            // Acquire: pairs with moves of the cap and with charges. Who finds a charge under a
            // bound that was raised finds that bound; and the look at the bound stays after this.
            let word = self.word.load(Ordering::Acquire);
            // Acquire: pairs with the Release in `commit`. Whoever finds a bound that was lowered
            // finds below what the usage had fallen to.
            let max = self.max.load(Ordering::Acquire);
            if self.word.load(Ordering::Relaxed) == word {
                return word & USAGE_MASK > max;
            }
        }
    }

    /// What may still be charged.
    pub fn free(&self) -> u64 {
        self.cap
            .load(Ordering::Relaxed)
            .saturating_sub(self.usage())
    }

    /// How much more is charged than charges are held below.
    pub(crate) fn excess(&self) -> u64 {
        self.usage()
            .saturating_sub(self.cap.load(Ordering::Relaxed))
    }

    /// From the return on no charge comes to lie above `max`. One change at a time.
    pub(crate) fn hold_below(&self, max: u64) {
        self.move_cap(max.min(USAGE_MASK));
    }

    /// Makes the bound what charges are held below; false while more is charged.
    pub(crate) fn commit(&self) -> bool {
        let (cap, usage) = (self.cap.load(Ordering::Relaxed), self.usage());
        if usage > cap {
            return false;
        }
        if cap < self.max() {
            // Release: pairs with the Acquire in `is_exceeded`.
            self.max.store(cap, Ordering::Release);
            self.peak.store(usage, Ordering::Relaxed);
        } else {
            self.max.store(cap, Ordering::Relaxed);
        }
        true
    }

    /// Gives up the change.
    pub(crate) fn let_be(&self) {
        self.move_cap(self.max());
    }

    fn move_cap(&self, cap: u64) {
        if cap > self.max() {
            // What is charged from now on is below the new bound, and may be above the old one.
            self.max.store(cap, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire of whoever charges.
        self.cap.store(cap, Ordering::Release);
        // AcqRel: Release pairs with the Acquire in `try_charge_leaving`; Acquire keeps the look
        // at the usage, in `commit`, after this.
        self.word.fetch_add(1 << USAGE_BITS, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicBool;

    #[test]
    fn a_charge_never_exceeds_its_bound() {
        let counter = Counter::new(100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 1..if cfg!(miri) { 50 } else { 2000 } {
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
        assert_eq!(counter.try_charge_leaving(0, 1), None);
    }

    #[test]
    fn a_bound_that_moves_is_never_exceeded() {
        let (counter, is_over) = (Counter::new(100), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        if counter.try_charge(7).is_some() {
                            counter.uncharge(7);
                        }
                    }
                });
            }
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    assert!(!counter.is_exceeded(), "{counter:?}");
                }
            });
            for round in 0..if cfg!(miri) { 50 } else { 5000 } {
                let max = 10 + round % 5 * 20;
                counter.hold_below(max);
                while !counter.commit() {
                    std::thread::yield_now();
                }
                // Nothing came in above it since it was promised.
                assert!(
                    counter.usage() <= max && counter.peak() <= max,
                    "{counter:?}"
                );
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(counter.usage(), 0);
    }

    #[test]
    fn what_is_charged_above_a_bound_is_seen() {
        let counter = Counter::new(10);
        counter.try_charge(10).expect("as much as there may be");
        assert!(!counter.is_exceeded());
        counter.word.fetch_add(1, Ordering::Relaxed);
        assert!(counter.is_exceeded());
    }

    #[test]
    fn a_charge_that_is_noted_late_is_no_peak_above_the_bound() {
        let counter = Counter::new(90);
        counter.hold_below(10);
        assert!(counter.commit());
        // By who charged before that and was kept from going on.
        counter.peak.fetch_max(21, Ordering::Relaxed);
        assert_eq!(counter.peak(), 10);
    }

    #[test]
    fn a_change_can_be_given_up() {
        let counter = Counter::new(10);
        assert_eq!(counter.try_charge(8), Some(8));
        counter.hold_below(5);
        assert!(!counter.commit());
        assert_eq!(
            (counter.try_charge(1), counter.max(), counter.free()),
            (None, 10, 0)
        );
        counter.let_be();
        assert_eq!(counter.try_charge(2), Some(10));
        counter.hold_below(20);
        assert!(counter.commit());
        assert_eq!(
            (counter.max(), counter.free(), counter.peak()),
            (20, 10, 10)
        );
    }
}
