//! One access of a device: what to do with the bytes of a page.

use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::{Bus, BusAddr, StaleDma};
use pinless_mm::fault::FaultError;
use pinless_mm::primary_mmu::Access;

/// A read or a write of bytes of one page.
#[derive(Debug)]
pub enum Operation<'a> {
    /// From memory into the device.
    Read(&'a mut [u8]),
    /// From the device into memory.
    Write(&'a [u8]),
}

impl Operation<'_> {
    /// What the translation must allow.
    pub fn access(&self) -> Access {
        match self {
            Self::Read(_) => Access::Read,
            Self::Write(_) => Access::Write,
        }
    }

    /// Does it, through the translation.
    ///
    /// # Errors
    ///
    /// [`StaleDma`] as the bus tells it.
    pub fn run(&mut self, bus: &dyn Bus, at: BusAddr, offset: usize) -> Result<(), StaleDma> {
        match self {
            Self::Read(into) => bus.read(at, offset, into),
            Self::Write(from) => bus.write(at, offset, from),
        }
    }
}

/// Asks for a translation of one page. Call it with no lock held: it may wait.
///
/// # Errors
///
/// [`FaultError`] as the bus tells it.
pub fn fetch(bus: &dyn Bus, page: PageIndex, access: Access) -> Result<BusAddr, FaultError> {
    let mut into = [BusAddr {
        page,
        generation: 0,
        access,
    }];
    bus.fault_range(PageRun::single(page), access, &mut into)?;
    Ok(into[0])
}

/// Asks for a translation of each page of `run`. Call it with no lock held: it may wait.
///
/// # Errors
///
/// [`FaultError`] as the bus tells it.
pub fn fetch_run(bus: &dyn Bus, run: PageRun, access: Access) -> Result<Vec<BusAddr>, FaultError> {
    let page = |page| BusAddr {
        page,
        generation: 0,
        access,
    };
    let mut into: Vec<BusAddr> = run.pages().map(page).collect();
    bus.fault_range(run, access, &mut into)?;
    Ok(into)
}
