//! Devices that use managed memory without pinning it.
//!
//! A device keeps translations of pages and reads and writes through them, as hardware does,
//! without asking the memory manager again. What it owes is in the contract of
//! [`mmu_notifier`](pinless_mm::mmu_notifier): told that a range changes, it drops the
//! translations and stops using the old frames. Every access is checked by the bus, so a device
//! that breaks the rule is seen.
//!
//! Each driver is one short file over the parts in [`engine`]:
//!
//! * [`template`]: the simplest that is right; copy it to write one of your own.
//! * [`odp`]: a network card whose translations change only by commands to its engine.
//!
//! No driver starts a thread: somebody else calls [`DmaDevice::serve`] in one.
#![forbid(unsafe_code)]

pub mod engine;
pub mod lock_order;
pub mod odp;
pub mod template;

pub use odp::Odp;
pub use template::Template;

use core::fmt;
use pinless_mm::addr::PageIndex;
use pinless_mm::bus::StaleDma;
use pinless_mm::fault::FaultError;

/// A device as a workload sees it.
pub trait DmaDevice: Send + Sync {
    /// The name under which it subscribed.
    fn name(&self) -> &str;

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

    /// Makes the device hang, or go on: a device that hangs gives back no page that it holds.
    fn hang(&self, hang: bool);

    /// What the device did so far.
    fn stats(&self) -> DeviceStats;

    /// How many pages it holds translations of.
    fn holds(&self) -> u32;

    /// The device's engine: returns after [`stop`](Self::stop), or at once if there is none.
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
    /// Accesses through translations that were no longer valid.
    pub stale: u64,
}
