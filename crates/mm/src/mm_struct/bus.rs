//! The checked bus over a mapping.

use super::PinError;
use super::Vma;
use super::demand::Demand;
use super::fault::FrameSource;
use super::vma::Life;
use crate::addr::{PAGE_SIZE, PageIndex, PageRun, Vaddr};
use crate::bus::{Bus, BusAddr, Caught, Checks, DeviceMemory, Pinned, StaleDma};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::memcg::stat::count;
use crate::mmu_notifier::Notifiers;
use crate::page::State;
use crate::primary_mmu::{Access, DmaFault};
use std::sync::Arc;

impl Bus for Vma {
    fn base(&self) -> Vaddr {
        self.primary().base()
    }

    fn nr_pages(&self) -> u32 {
        self.primary().nr_pages()
    }

    fn fault_range(
        &self,
        run: PageRun,
        access: Access,
        into: &mut [BusAddr],
    ) -> Result<(), FaultError> {
        self.mm().notifiers().note_touch();
        for (page, into) in run.pages().zip(&mut into[..run.nr as usize]) {
            *into = self.translate(page, access)?;
        }
        Ok(())
    }

    fn read(&self, at: BusAddr, offset: usize, into: &mut [u8]) -> Result<(), StaleDma> {
        let len = into.len();
        self.checked(at, offset, len, |at| self.primary().dma_read(at, into))
    }

    fn write(&self, at: BusAddr, offset: usize, from: &[u8]) -> Result<(), StaleDma> {
        if at.access == Access::Read && self.checks != Checks::Off {
            return self.convict(at, Caught::ReadOnly);
        }
        self.checked(at, offset, from.len(), |at| {
            self.primary().dma_write(at, from)
        })
    }
}

impl DeviceMemory for Vma {
    fn notifiers(&self) -> &Notifiers {
        self.mm().notifiers()
    }

    fn pin(
        self: Arc<Self>,
        holder: &str,
        run: PageRun,
        access: Access,
    ) -> Result<Pinned, PinError> {
        let holder = self.mm().pin_holder(holder);
        let pin = self.pin_for(&holder, run, access, Gfp::Kernel)?;
        Ok(Box::new(pin))
    }
}

impl Vma {
    /// Makes `page` resident and returns its translation.
    fn translate(&self, page: PageIndex, access: Access) -> Result<BusAddr, FaultError> {
        loop {
            // A bracket over a mapping that is going takes every page. A subscriber that it does
            // not see finds the mark.
            if let Some(error) = self.gone() {
                return Err(error);
            }
            if self.life() != Life::Alive || self.mm().is_exited() {
                return Err(FaultError::Unmapped);
            }
            // Read before the page is looked at: if the frame leaves after that, the translation
            // is one generation too old, and is convicted if it is used.
            let generation = self.generation(page);
            let seen = self.pages.load(page);
            let is_usable = access == Access::Read || !seen.is_protected();
            if !(seen.is_mapped() && is_usable) {
                self.fault_in(page, Demand::Use(access), FrameSource::Wait)?;
                continue;
            }
            // Takes the mark of reclaim away: this device may have subscribed after the bracket
            // was opened, so nobody would tell it.
            if self.try_change(page, seen, seen.with_state(State::Resident).used()) {
                return Ok(BusAddr {
                    page,
                    generation,
                    access,
                });
            }
        }
    }

    fn checked(
        &self,
        at: BusAddr,
        offset: usize,
        len: usize,
        access: impl FnOnce(u64) -> Result<(), DmaFault>,
    ) -> Result<(), StaleDma> {
        assert!(
            offset + len <= PAGE_SIZE,
            "a device access crosses the end of its page"
        );
        let is_old =
            || self.checks == Checks::Generation && self.generation(at.page) != at.generation;
        if is_old() {
            return self.convict(at, Caught::Before);
        }
        let address = u64::from(at.page) * PAGE_SIZE as u64 + offset as u64;
        if access(address).is_err() {
            return self.convict(at, Caught::Absent);
        }
        if is_old() {
            return self.convict(at, Caught::During);
        }
        Ok(())
    }

    fn convict(&self, used: BusAddr, caught: Caught) -> Result<(), StaleDma> {
        if self.checks != Checks::Off {
            count(&self.stat().stale_dma);
        }
        Err(StaleDma {
            used,
            found: self.generation(used.page),
            caught,
        })
    }
}
