//! The checked bus: how a device reaches managed memory.
//!
//! A device holds *translations* ([`BusAddr`]) and reads and writes memory through them, without
//! asking the memory manager again, as hardware does. Each translation carries the generation of
//! the frame it was made for; the frame's generation changes whenever the frame leaves its
//! address. The bus compares the two before and after each access: a device that goes on using a
//! translation which it should have dropped is convicted, not obeyed. [`Checks`] says how far.
//!
//! Linux counterpart: the DMA API together with an IOMMU's fault log.

use crate::addr::{PageIndex, PageRun, Vaddr};
use crate::fault::FaultError;
use crate::primary_mmu::Access;
use core::fmt;

mod device;

pub use crate::mm_struct::PinError;
pub use device::{DeviceMemory, DeviceStats, DmaDevice, DmaError, Pinned};

/// A device's translation of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusAddr {
    /// The page of the mapping.
    pub page: PageIndex,
    /// The generation of the frame that this translation was made for.
    pub generation: u32,
    /// What the device may do.
    pub access: Access,
}

/// How far the accesses of devices are checked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Checks {
    /// The generation of the translation is compared with that of the frame, before each access and
    /// after it.
    #[default]
    Generation,
    /// No generation is looked at, as hardware has none: what convicts is what is found in a freed
    /// frame. On a real machine, to which freed frames go back, that is nothing; where they are
    /// kept, as in the conformance kit, it is the poison that they were filled with.
    Poison,
    /// Nothing is checked or counted: to measure devices that are known to be right. An access to a
    /// page that is not there ends in [`StaleDma`] all the same.
    Off,
}

impl Checks {
    /// Every level, the strictest first.
    pub const ALL: [Self; 3] = [Self::Generation, Self::Poison, Self::Off];
}

/// A device used a translation that was no longer valid, or wrote through a read-only one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleDma {
    /// The translation that was used.
    pub used: BusAddr,
    /// The generation of the page's frame when the access was checked.
    pub found: u32,
    /// How the access was caught.
    pub caught: Caught,
}

/// At which step a stale access was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caught {
    /// The generation was wrong before the access: nothing was read or written.
    Before,
    /// No page was at the address.
    Absent,
    /// The generation changed during the access: what was read or written cannot be trusted.
    During,
    /// The translation is read-only.
    ReadOnly,
}

impl fmt::Display for StaleDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.caught {
            Caught::Before => "before the access",
            Caught::Absent => "because no page was there",
            Caught::During => "during the access",
            Caught::ReadOnly => "because the translation is read-only",
        };
        write!(
            f,
            "stale DMA on page {}: translation of generation {}, frame of generation {}, \
             caught {how}",
            self.used.page, self.used.generation, self.found
        )
    }
}

impl std::error::Error for StaleDma {}

/// A device's way to one mapping.
pub trait Bus: Send + Sync {
    /// The address of the mapping's first page.
    fn base(&self) -> Vaddr;

    /// The number of pages of the mapping.
    fn nr_pages(&self) -> u32;

    /// Makes the pages of `run` resident and writes a translation for each into `into`.
    ///
    /// The translations are not protected: they may be installed only under the device's own
    /// lock, after a check that no invalidation of the range began since before this call.
    /// May wait for frames; never call it under a lock that a notifier takes.
    ///
    /// Linux counterpart: `hmm_range_fault`.
    ///
    /// # Errors
    ///
    /// [`FaultError`], as a CPU access would get.
    ///
    /// # Panics
    ///
    /// If `into` is shorter than the run, or the run leaves the mapping.
    fn fault_range(
        &self,
        run: PageRun,
        access: Access,
        into: &mut [BusAddr],
    ) -> Result<(), FaultError>;

    /// Reads `into.len()` bytes at `offset` in the page; the access stays in the page.
    ///
    /// # Errors
    ///
    /// [`StaleDma`]: counted by the bus, and `into` must not be used.
    fn read(&self, at: BusAddr, offset: usize, into: &mut [u8]) -> Result<(), StaleDma>;

    /// Writes `from` at `offset` in the page; the access stays in the page.
    ///
    /// # Errors
    ///
    /// [`StaleDma`]: counted by the bus.
    fn write(&self, at: BusAddr, offset: usize, from: &[u8]) -> Result<(), StaleDma>;
}
