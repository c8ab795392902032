//! What is charged for stored pages at one level.

use super::counter::Counter;
use crate::limits::Limits;
use core::sync::atomic::{AtomicU64, Ordering};

/// The counters of what is stored.
#[derive(Debug)]
pub(crate) struct StoreCharges {
    /// Pages in the store, those that use no slot included.
    pub(crate) swap_pages: Counter,
    /// Of those, the ones that are in the file. Charged to nothing.
    file_pages: AtomicU64,
    /// Compressed bytes.
    pub(crate) zswap_bytes: Counter,
    /// Frames and compressed bytes together.
    pub(crate) total_bytes: Counter,
}

impl StoreCharges {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            swap_pages: Counter::new(limits.swap_max_pages()),
            file_pages: AtomicU64::new(0),
            zswap_bytes: Counter::new(limits.zswap_max_bytes),
            total_bytes: Counter::new(limits.total_max_bytes),
        }
    }

    /// A page that is stored and one that is in a frame are charged to the total both, until the
    /// frame is given back: what is needed for that moment, frames leave free.
    pub(super) fn try_charge(&self, bytes: u64) -> bool {
        if self.zswap_bytes.try_charge(bytes).is_none() {
            return false;
        }
        let is_charged = self.total_bytes.try_charge(bytes).is_some();
        if !is_charged {
            self.zswap_bytes.uncharge(bytes);
        }
        is_charged
    }

    pub(super) fn uncharge(&self, bytes: u64) {
        self.total_bytes.uncharge(bytes);
        self.zswap_bytes.uncharge(bytes);
    }

    pub(super) fn enter_file(&self) {
        self.file_pages.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave_file(&self) {
        self.file_pages.fetch_sub(1, Ordering::Relaxed);
    }

    /// Stored pages that are not in the file.
    pub(super) fn zswapped_pages(&self) -> u64 {
        let in_file = self.file_pages.load(Ordering::Relaxed);
        self.swap_pages.usage().saturating_sub(in_file)
    }

    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.swap_pages.free() > 0
            && self.zswap_bytes.free() >= bytes
            && self.total_bytes.free() >= bytes
    }
}
