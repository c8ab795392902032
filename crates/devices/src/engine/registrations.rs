//! The registrations of a device that subscribes each of them by itself.

use crate::DmaError;
use lockdep::sync::{Mutex, spin_wait};
use pinless_mm::mmu_notifier::{IntervalNotifier, IntervalSubscription};
use std::sync::Arc;

/// Subscriptions to intervals. Never looked up in a callback.
pub struct Registrations<N> {
    list: Mutex<List<N>>,
}

struct List<N> {
    entries: Vec<Arc<IntervalSubscription<N>>>,
    is_closed: bool,
}

impl<N: IntervalNotifier> Registrations<N> {
    /// None.
    pub fn new() -> Self {
        Self {
            list: Mutex::new(
                "devices.registrations",
                List {
                    entries: Vec::new(),
                    is_closed: false,
                },
            ),
        }
    }

    /// One more. Who comes too late is not told of changes any more.
    ///
    /// # Errors
    ///
    /// [`DmaError::Stopped`] after [`close`](Self::close).
    pub fn add(&self, subscription: IntervalSubscription<N>) -> Result<(), DmaError> {
        let mut list = self.list.lock();
        if list.is_closed {
            drop(list);
            subscription.remove();
            return Err(DmaError::Stopped);
        }
        list.entries.push(Arc::new(subscription));
        Ok(())
    }

    /// The first that fits; hold it no longer than one transfer.
    pub fn find(&self, fits: impl Fn(&N) -> bool) -> Option<Arc<IntervalSubscription<N>>> {
        let list = self.list.lock();
        let mut entries = list.entries.iter();
        let found = entries.find(|entry| fits(entry.notifier()));
        found.cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<IntervalSubscription<N>>> {
        self.list.lock().entries.clone()
    }

    /// Takes out those that fit, waits for who uses them, has `quiesce` end what they still do, and
    /// ends them: until then each is told of changes.
    pub fn remove(&self, fits: impl Fn(&N) -> bool, quiesce: impl Fn(&N)) {
        let mut list = self.list.lock();
        let gone = list.entries.extract_if(.., |entry| fits(entry.notifier()));
        let gone: Vec<Arc<IntervalSubscription<N>>> = gone.collect();
        drop(list);
        Self::end(gone, quiesce);
    }

    /// Does that with all of them, and takes no other one any more.
    pub fn close(&self, quiesce: impl Fn(&N)) {
        let mut list = self.list.lock();
        list.is_closed = true;
        let gone = core::mem::take(&mut list.entries);
        drop(list);
        Self::end(gone, quiesce);
    }

    fn end(gone: Vec<Arc<IntervalSubscription<N>>>, quiesce: impl Fn(&N)) {
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
