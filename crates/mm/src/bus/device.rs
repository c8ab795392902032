//! A device as a workload sees it, and a mapping as a driver sees it.
//!
//! Whoever drives devices (a workload, a checker) holds a [`DmaDevice`] and knows no driver;
//! whoever writes a driver is given a [`DeviceMemory`] and knows no address space. The life of a
//! device: made over a memory and subscribed, then one thread in [`DmaDevice::serve`] while others
//! register ranges and transfer, then [`DmaDevice::stop`], then the end of its subscription.

use super::{Bus, StaleDma};
use crate::addr::{PageIndex, PageRun};
use crate::fault::FaultError;
use crate::mm_struct::PinError;
use crate::mmu_notifier::Notifiers;
use crate::primary_mmu::Access;
use core::fmt;
use std::sync::Arc;

/// A mapping as a driver sees it: the way to its pages, who is told when they change, and pins.
pub trait DeviceMemory: Bus {
    /// Where a driver subscribes.
    fn notifiers(&self) -> &Notifiers;

    /// Pins the pages of `run` until the answer is dropped, in the name of `holder`: the name that
    /// the driver subscribed under. A pinned page keeps its frame, whatever becomes of the mapping.
    /// Call it with no lock held that a notifier takes: it may wait.
    ///
    /// # Errors
    ///
    /// [`PinError`]; nothing stays pinned.
    fn pin(self: Arc<Self>, holder: &str, run: PageRun, access: Access)
    -> Result<Pinned, PinError>;
}

/// Pinned pages. The drop unpins them, and frees those that are no longer mapped: never drop it in
/// a callback, nor under a lock that a callback takes.
pub type Pinned = Box<dyn Send + Sync>;

/// A device as a workload sees it.
pub trait DmaDevice: Send + Sync {
    /// The name under which it subscribed.
    fn name(&self) -> &str;

    /// Makes the pages of `run` known to the device, which may then transfer to and from them. May
    /// wait for the pages. Nothing for a device that faults: it knows every page.
    ///
    /// # Errors
    ///
    /// [`DmaError`]; nothing was registered.
    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let _ = run;
        Ok(())
    }

    /// Takes back what [`register`](Self::register) did for the pages of `run`; waits for
    /// transfers in flight.
    fn unregister(&self, run: PageRun) {
        let _ = run;
    }

    /// Reads `into.len()` bytes at `offset` in the page, as the device. May wait for the page.
    ///
    /// # Errors
    ///
    /// [`DmaError`]; `into` must not be used then.
    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `from` at `offset` in the page, as the device. May wait for the page.
    ///
    /// # Errors
    ///
    /// [`DmaError`]
    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError>;

    /// Waits until no transfer is in flight and nothing is left to do for the device's workers: no
    /// page is pinned that is in no cache, no queue is to be resumed. Not of a device that hangs.
    fn wait_idle(&self) {}

    /// Makes the device hang, or go on: a device that hangs gives back no page that it holds.
    fn hang(&self, hang: bool);

    /// What the device did so far.
    fn stats(&self) -> DeviceStats;

    /// How many pages it holds translations of.
    fn holds(&self) -> u32;

    /// How many threads belong into [`serve`](Self::serve).
    fn nr_servers(&self) -> u32 {
        1
    }

    /// The device's engine, or a worker of its driver: each thread that calls it takes the next
    /// part. Returns after [`stop`](Self::stop), or at once if there is nothing to do.
    fn serve(&self);

    /// Stops the device for good: no access begins any more, and all translations are dropped.
    /// Comes before the end of the subscription. Waits for accesses that are in flight, and not
    /// for an engine that hangs.
    fn stop(&self);
}

/// Why an access of a device failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaError {
    /// The device used a translation that was no longer valid: it, or the notifier, is wrong.
    Stale(StaleDma),
    /// The memory manager does not give the page.
    Fault(FaultError),
    /// The memory manager does not pin the page.
    Pin(PinError),
    /// The page was not registered, or was unmapped since and is not registered again by itself.
    Unregistered {
        /// The page.
        page: PageIndex,
    },
    /// The registration would exceed what the device may hold.
    LimitReached {
        /// In pages.
        limit: u32,
    },
    /// The device hangs.
    Hung,
    /// The device was stopped, or its memory is gone.
    Stopped,
    /// The page changed again and again while the device asked for it.
    Starved,
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale(stale) => stale.fmt(f),
            Self::Fault(fault) => fault.fmt(f),
            Self::Pin(error) => error.fmt(f),
            Self::Unregistered { page } => write!(f, "page {page} is not registered"),
            Self::LimitReached { limit } => write!(f, "the device may hold {limit} pages only"),
            Self::Hung => f.write_str("the device hangs"),
            Self::Stopped => f.write_str("the device is stopped"),
            Self::Starved => f.write_str("the page changed whenever the device asked for it"),
        }
    }
}

impl std::error::Error for DmaError {}

/// What a device did so far. A snapshot: the figures are not of one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceStats {
    /// Accesses that read, and were right.
    pub reads: u64,
    /// Accesses that wrote, and were right.
    pub writes: u64,
    /// Translations asked of the memory manager.
    pub faults: u64,
    /// Translations thrown away because the range had changed meanwhile.
    pub retries: u64,
    /// Starts that were accepted.
    pub invalidations: u64,
    /// Starts that were refused.
    pub refusals: u64,
    /// Those of them that were refused although nothing of the range was in use.
    pub refusals_idle: u64,
    /// Accesses through translations that were no longer valid.
    pub stale: u64,
    /// Transfers that found their page in a cache of pinned pages.
    pub cache_hits: u64,
    /// Pages pinned now.
    pub pinned: u64,
    /// Those of them that a start was accepted for: unmapped, and not freed yet.
    pub doomed: u64,
    /// Work that the device was given up on because it took too long.
    pub timeouts: u64,
}
