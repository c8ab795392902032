//! The registrations of a device that subscribes each of them by itself.

use lockdep::sync::{Mutex, spin_wait};
use pinless_mm::mmu_notifier::{IntervalNotifier, IntervalSubscription};
use std::sync::Arc;

/// Subscriptions to intervals. Never looked up in a callback.
pub struct Registrations<N> {
    list: Mutex<Vec<Arc<IntervalSubscription<N>>>>,
}

impl<N: IntervalNotifier> Registrations<N> {
    /// None.
    pub fn new() -> Self {
        Self {
            list: Mutex::new("devices.registrations", Vec::new()),
        }
    }

    /// One more.
    pub fn add(&self, subscription: IntervalSubscription<N>) {
        self.list.lock().push(Arc::new(subscription));
    }

    /// The first that fits; hold it no longer than one transfer.
    pub fn find(&self, fits: impl Fn(&N) -> bool) -> Option<Arc<IntervalSubscription<N>>> {
        let list = self.list.lock();
        let found = list.iter().find(|entry| fits(entry.notifier()));
        found.cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<IntervalSubscription<N>>> {
        self.list.lock().clone()
    }

    /// Takes out those that fit, waits for who uses them, has `quiesce` end what they still do, and
    /// ends them: until then each is told of changes.
    pub fn remove(&self, fits: impl Fn(&N) -> bool, quiesce: impl Fn(&N)) {
        let mut list = self.list.lock();
        let (gone, kept) = list.drain(..).partition(|entry| fits(entry.notifier()));
        *list = kept;
        drop(list);
        let gone: Vec<Arc<IntervalSubscription<N>>> = gone;
        for entry in gone {
            // It is on no list any more, so nobody comes after those who have it now.
            spin_wait("devices.registrations.unused", 0, || {
                Arc::strong_count(&entry) == 1
            });
            quiesce(entry.notifier());
            if let Some(entry) = Arc::into_inner(entry) {
                entry.remove();
            }
        }
    }
}

impl<N: IntervalNotifier> Default for Registrations<N> {
    fn default() -> Self {
        Self::new()
    }
}
