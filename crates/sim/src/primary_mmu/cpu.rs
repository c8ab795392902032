//! Accesses by the simulated processor.

use super::{SimMmu, breach};
use core::ops::Range;
use pinless_mm::addr::{PAGE_SIZE, PageIndex};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::gfp::might_touch;
use pinless_mm::primary_mmu::Access;

/// Faults of one access after which somebody must have gone wrong: each fault gave the page, and
/// each time it was gone again.
const FAULTS_MAX: u32 = 10_000;

/// What the page tables say to one access.
enum Walk {
    Done,
    Fault,
    Poisoned,
}

impl SimMmu {
    /// Reads at `offset` bytes into the mapping, as a program does: faults as often as needed.
    /// Bytes of one page are read in one step, bytes of several page by page.
    ///
    /// # Errors
    ///
    /// What the handler answers a fault with; the program would get SIGBUS.
    ///
    /// # Panics
    ///
    /// If the machine's page is poisoned and the handler knows nothing of it.
    pub fn cpu_read(
        &self,
        handler: &dyn FaultHandler,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), FaultError> {
        might_touch();
        let mut done = 0;
        while done < into.len() {
            let (page, within) = place_first(offset + done as u64, into.len() - done);
            let part = &mut into[done..done + within.len()];
            done += part.len();
            self.access(handler, page, Access::Read, || {
                let at = self.page(page).lock();
                match &at.address {
                    _ if at.is_poisoned => Walk::Poisoned,
                    None => Walk::Fault,
                    Some(frame) => {
                        part.copy_from_slice(&frame.contents()[within.clone()]);
                        Walk::Done
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Writes at `offset` bytes into the mapping, as a program does; see [`SimMmu::cpu_read`].
    ///
    /// # Errors
    ///
    /// What the handler answers a fault with; pages before the one that faulted are written.
    ///
    /// # Panics
    ///
    /// As [`SimMmu::cpu_read`] does.
    pub fn cpu_write(
        &self,
        handler: &dyn FaultHandler,
        offset: u64,
        from: &[u8],
    ) -> Result<(), FaultError> {
        might_touch();
        let mut done = 0;
        while done < from.len() {
            let (page, within) = place_first(offset + done as u64, from.len() - done);
            let part = &from[done..done + within.len()];
            done += part.len();
            self.access(handler, page, Access::Write, || {
                let mut at = self.page(page).lock();
                let (is_protected, is_poisoned) = (at.is_protected, at.is_poisoned);
                match &mut at.address {
                    _ if is_poisoned => Walk::Poisoned,
                    Some(frame) if !is_protected => {
                        frame.contents_mut()[within.clone()].copy_from_slice(part);
                        Walk::Done
                    }
                    _ => Walk::Fault,
                }
            })?;
        }
        Ok(())
    }

    fn access(
        &self,
        handler: &dyn FaultHandler,
        page: PageIndex,
        access: Access,
        mut walk: impl FnMut() -> Walk,
    ) -> Result<(), FaultError> {
        let mut nr_poisoned = 0;
        for _ in 0..FAULTS_MAX {
            match walk() {
                Walk::Done => return Ok(()),
                Walk::Fault => handler.fault(page, access)?,
                Walk::Poisoned => {
                    // The processor asks nobody; the handler only says what the error is.
                    handler.fault(page, access)?;
                    nr_poisoned += 1;
                    if nr_poisoned > FAULTS_MAX / 2 {
                        breach(format_args!(
                            "page {page} is poisoned, and the books say usable"
                        ));
                    }
                }
            }
        }
        breach(format_args!(
            "page {page} was given {FAULTS_MAX} times for one access, in vain"
        ))
    }
}

/// The page of an access that stays in one page, and the bytes in it.
pub(super) fn place(offset: u64, len: usize) -> (PageIndex, Range<usize>) {
    let (page, within) = place_first(offset, len);
    assert_eq!(
        within.len(),
        len,
        "a device access at {offset:#x} leaves its page"
    );
    (page, within)
}

/// The page of the first byte of an access, and the bytes of the access in that page.
fn place_first(offset: u64, len: usize) -> (PageIndex, Range<usize>) {
    let page = PageIndex::try_from(offset / PAGE_SIZE as u64).expect("pages have 32-bit numbers");
    let start = (offset % PAGE_SIZE as u64) as usize;
    (page, start..PAGE_SIZE.min(start + len))
}
