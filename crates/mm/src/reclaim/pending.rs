//! Things under way that may free memory, and may also hang: brackets that wait for devices.
//!
//! Nobody is killed while one of them may still end well. One that is older than its deadline
//! allows will not, and no longer counts: a device must not be able to switch the OOM killer off.

use core::sync::atomic::{AtomicU64, Ordering};

/// How many are counted at once; more of them are not counted at all.
const PENDING_MAX: usize = 32;

/// When each of them began; zero for a free place.
#[derive(Debug)]
pub(crate) struct Pending {
    begun_ns: [AtomicU64; PENDING_MAX],
}

impl Pending {
    pub(super) fn new() -> Self {
        Self {
            begun_ns: [const { AtomicU64::new(0) }; PENDING_MAX],
        }
    }

    /// Something begins at `now_ns`, and ends when the answer is dropped.
    pub(crate) fn begin(&self, now_ns: u64) -> Begun<'_> {
        let take = |place: &&AtomicU64| {
            let begun_ns = now_ns.max(1);
            // Relaxed: an amount, no data hangs on it.
            place
                .compare_exchange(0, begun_ns, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        Begun {
            place: self.begun_ns.iter().find(take),
        }
    }

    /// Whether something is under way that began before `before_ns` and less than `age_max_ns` ago.
    pub(crate) fn is_any(&self, before_ns: u64, now_ns: u64, age_max_ns: u64) -> bool {
        self.begun_ns.iter().any(|place| {
            let begun_ns = place.load(Ordering::Relaxed);
            let is_young = now_ns.saturating_sub(begun_ns) < age_max_ns;
            begun_ns != 0 && begun_ns <= before_ns && is_young
        })
    }
}

/// Something that is under way.
#[must_use = "it ends when this is dropped"]
pub(crate) struct Begun<'a> {
    place: Option<&'a AtomicU64>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_does_not_count() {
        let pending = Pending::new();
        assert!(!pending.is_any(5, 5, 100));
        let old = pending.begin(0);
        assert!(pending.is_any(5, 5, 100) && !pending.is_any(200, 200, 100));
        let young = pending.begin(150);
        assert!(pending.is_any(200, 200, 100));
        assert!(
            !pending.is_any(149, 200, 100),
            "it began after what is waited for"
        );
        drop(young);
        assert!(!pending.is_any(200, 200, 100));
        drop(old);
        let _all: Vec<_> = (0..40).map(|_| pending.begin(7)).collect();
        assert!(pending.is_any(8, 8, 100));
    }
}
